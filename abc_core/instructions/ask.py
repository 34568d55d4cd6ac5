"""Ask any server that speaks the protocol of the `openai` client for instructions (Appendix A).

A generator for `generate.generate`: (1) `Server` asks several questions at a time, and the client retries; (2) `Pace` lets a rate limit
that one thread meets slow all of them.

A server is contacted only at the address that is given. Its key comes from the environment variable OPENAI_API_KEY; it is held by the
client alone and cut out of whatever the server says.
"""

import base64
import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from abc_core.data.pictures import open_image
from abc_core.instructions.replies import Answer, Question, Unanswered
from abc_core.runs.files import shorten

LONGEST_WAIT = 120  # seconds that a server may ask us to wait; the client gives up on more, and then nobody is asked any more


# --- 1. a server ------------------------------------------------------------------------------------------------------------------


class Server:
    """A model behind an address, asked at temperature 0 with the picture attached as JPEG.

    The client repeats calls that time out, break off or meet a status of 408, 409, 429 or 500 and more, after the time that the server
    names or 0.5 to 8 seconds; answers that are not in the protocol are repeated here.

    Args:
        model: its name at the server. base_url: the server's address, up to /v1.
        concurrent: calls under way at a time.
        max_side: pixels; larger pictures are made smaller. max_tokens: of an answer.
        retries: further attempts for a call. timeout: seconds without a byte.
        pause: seconds, growing, that a 429 which names no time halts all calls, and an answer not in the protocol the one.
    Raises:
        ValueError: no address, or one with a password in it.
    """

    def __init__(
        self, model: str, base_url: str, concurrent: int = 8, max_side: int = 1024, max_tokens: int = 100, retries: int = 6,
        timeout: float = 60.0, pause: float = 1.0,
    ):  # fmt: skip
        import openai  # a second, which nobody waits for who asks no server

        address = urlsplit(base_url or "")
        if not address.hostname or address.username or not model or concurrent < 1:
            raise ValueError(f"a model, an address without a password, and at least one call at a time are needed; got {model!r}, "
                             f"{address.hostname!r}, {concurrent}")  # fmt: skip
        self.host, self.name = address.hostname, f"{model}, pictures up to {max_side}, answers up to {max_tokens}"
        self.concurrent, self.max_side, self.retries, self.pause = concurrent, max_side, retries, pause
        self._options = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        self.picture_tokens = 85 + 170 * (-(-min(max_side, 768) // 512)) ** 2  # what GPT-4o takes at most; other models count otherwise
        self._pace = Pace(pause)
        hooks = {"request": [self._pace.wait], "response": [self._pace.heed]}
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=retries,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )  # fmt: skip

    def __call__(self, questions: list[Question], deliver: Callable) -> None:
        """Ask `concurrent` questions at a time. When this ends early, answers to calls under way are waited for and delivered."""
        left, running = iter(questions), {}
        self._pace.stopped.clear()
        with ThreadPoolExecutor(self.concurrent) as pool:
            try:
                while True:
                    running |= {pool.submit(self._ask, q): q for q in islice(left, self.concurrent - len(running))}
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        deliver(running[future], future.result())
                        del running[future]
            finally:
                self._pace.stopped.set()
                for future, question in running.items():
                    if future.exception() is None and isinstance(future.result(), Answer):
                        deliver(question, future.result())

    def _ask(self, question: Question) -> Answer | Exception:
        """The answer, or why there is none. Raises RuntimeError if no other call could do better."""
        import openai

        try:
            picture = data_url(question.image, self.max_side)
        except (OSError, ValueError) as error:
            return error
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question.prompt}]
        messages, why = [{"role": "user", "content": content}], ""
        for attempt in range(self.retries + 1):
            try:
                return self._read(self._client.chat.completions.create(messages=messages, **self._options))
            except openai.APIError as error:
                self._give_up_on(error)
                return Unanswered(self._clean(f"{type(error).__name__}: {error.message} {error.__cause__ or ''}".strip()))
            except _Stopped as error:
                return error
            except (ValueError, AttributeError, TypeError, LookupError) as error:  # not JSON, or not the protocol's
                why = f"an answer that is not in the protocol ({type(error).__name__}: {error})"
            self._pace.stopped.wait(min(self.pause * 2**attempt, 8))
        return Unanswered(self._clean(why))

    def _read(self, reply) -> Answer:
        """The answer of a reply in the protocol; an exception of Python's if it is not."""
        choice, usage = reply.choices[0], getattr(reply, "usage", None)
        text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError(f"neither text nor nothing: {shorten(refusal or text)}")
        if choice.finish_reason == "content_filter":
            refusal = refusal or "content_filter"
        tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
        return Answer(text and self._without_key(text), refusal and self._without_key(refusal), tokens)

    def _give_up_on(self, error) -> None:
        """Raise RuntimeError, in words of our own, after an error that all further calls would meet."""
        status, why = getattr(error, "status_code", None), None
        if status in (401, 403):
            why = "is OPENAI_API_KEY right?" if self._client.api_key != "none" else "OPENAI_API_KEY is not set"
        elif status == 404:
            why = f"does it have the model {self._options['model']!r}, and does the address end in /v1?"
        elif status == 429 and error.code == "insufficient_quota":
            why = "the account is used up"
        elif status == 429 and (_seconds(error.response.headers) or 0) > LONGEST_WAIT:
            why = f"it asks to wait {_seconds(error.response.headers):,.0f} s; call again then"
        if why is not None:
            raise RuntimeError(f"{self.host} answered with status {status}: {why}. All answers so far are kept") from None

    def _clean(self, text: str) -> str:
        return shorten(self._without_key(text), 300)

    def _without_key(self, text: str) -> str:
        return text if self._client.api_key == "none" else text.replace(self._client.api_key, "[key]")


def data_url(image: Path, max_side: int) -> str:
    """A picture as the data URL of a JPEG whose longer side has at most `max_side` pixels. Raises as `data.open_image` does."""
    picture, file = open_image(image), io.BytesIO()
    picture.thumbnail((max_side, max_side))
    picture.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# --- 2. the pace ------------------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """Nothing is asked any more."""


class Pace:
    """When the next request may leave, for all threads together.

    A 429 halts them all, for the time that the server names, or for `pause` seconds, twice as long if it goes on; and from then on requests
    leave one after another, at a distance that doubles with each such halt and shrinks by 3 % with each success.
    """

    def __init__(self, pause: float):
        self.stopped, self._lock = threading.Event(), threading.Lock()
        self._first = self._pause = pause
        self._gap, self._next, self._halted = 0.0, 0.0, 0.0  # seconds; times of the clock

    def wait(self, request=None) -> None:
        """Wait for one's turn; a hook of the client, called before each attempt. Raises `_Stopped` once `stopped` is set."""
        while not self.stopped.is_set():
            with self._lock:
                now = time.monotonic()
                left = self._next - now
                if left <= 0:
                    self._next = now + self._gap
                    return
            self.stopped.wait(left)
        raise _Stopped

    def heed(self, response) -> None:
        """Go slower after a 429, and faster after a success; a hook of the client."""
        if response.status_code == 429:
            self.halt(_seconds(response.headers))
        elif response.status_code < 400:
            with self._lock:
                self._pause, self._gap = self._first, 0.97 * self._gap

    def halt(self, seconds: float | None = None) -> None:
        """Let nothing leave for a while."""
        with self._lock:
            now = time.monotonic()
            if now >= self._halted:  # else it is one more of the requests that were under way
                self._halted = now + (self._pause if seconds is None else 0)
                self._pause, self._gap = min(2 * self._pause, 60), min(max(2 * self._gap, self._first / 50), 10)
            self._halted = max(self._halted, now + min(seconds or 0, LONGEST_WAIT))
            self._next = max(self._next, self._halted)


def _seconds(headers) -> float | None:
    """How long a server asks to wait, in seconds; None if it does not say so as a number (the client also reads dates)."""
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None
