"""A server on this machine that speaks the protocol of the `openai` client and misbehaves on request.

`LyingServer({caption: [lie, …]})` tells a caption's lies one after the other, one a request, then the truth; the lies of None are for
whichever requests come first. It counts what it was asked.
"""

import base64
import io
import json
import re
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class LyingServer(ThreadingHTTPServer):
    """To be used in a `with`; `url` is its address. Each honest answer takes `seconds`, 1000 tokens in and 20 out."""

    daemon_threads, block_on_close = True, False  # whoever hangs is left behind

    def __init__(self, lies: dict | None = None, seconds: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lies, self.seconds = {caption: list(told) for caption, told in (lies or {}).items()}, seconds
        self.asked, self.arrived, self.answered = Counter(), [], 0  # requests of each caption; (time, caption); honest answers sent
        self.requests, self.keys = [], set()  # bodies; what the headers authorise
        self.under_way = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> "LyingServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Clients that went away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.caption = re.search(r"(?s)reasonable answer: (.*)\. Only", body["messages"][0]["content"][1]["text"])[1]
        with server.lock:
            server.asked[self.caption] += 1
            server.arrived.append((time.monotonic(), self.caption))
            server.requests.append(body)
            server.keys.add(self.headers["authorization"])
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            told = server.lies.get(self.caption) or server.lies.get(None)
            lie = told.pop(0) if told else honest
        try:
            lie(self)
        finally:
            with server.lock:
                server.under_way -= 1

    def reply(self, body: bytes, status: int = 200, kind: str = "application/json", length: int | None = None, **headers) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(length or len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Say nothing."""


def instruction(caption: str) -> str:
    """The truth: what the server asks for a caption."""
    return f"What is at place {zlib.crc32(caption.encode())}?"


def picture(request: dict) -> Image.Image:
    """The picture that a request attached."""
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))


def says(content=None, finish="stop", **fields):
    """A lie: a well-formed answer with this content."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **fields}}
    return sends({"choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}})


def sends(content: dict | list | bytes, status: int = 200, kind: str = "application/json", **headers):
    """A lie: a body of any kind under any status."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda handler: handler.reply(body, status, kind, **headers)


def refuses(status: int, message: str = "no", code: str | None = None, **headers):
    """A lie: an error of the protocol."""
    return sends({"error": {"message": message, "code": code}}, status, **headers)


def hangs(handler: _Handler) -> None:
    """A lie: says nothing for as long as a test may take."""
    time.sleep(3)


def cuts(handler: _Handler) -> None:
    """A lie: breaks off in the middle of its answer."""
    handler.reply(b'{"choices": [', length=1000)
    handler.close_connection = True


def honest(handler: _Handler) -> None:
    """No lie."""
    time.sleep(handler.server.seconds)
    says(instruction(handler.caption))(handler)
    with handler.server.lock:
        handler.server.answered += 1
