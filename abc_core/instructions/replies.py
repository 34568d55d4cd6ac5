"""What a generator of instructions replies (Appendix A): kept on disk as it came, and judged by stated rules when it is read back.

Steps: (1) a `Question` has an `Answer`, or an exception in its place; (2) `AnswerCache` appends every answer to a file of JSON lines
{"key", "model", "prompt", "answer", "refusal", "tokens": [in, out]} at once; a last line that a killed call left half-written is dropped
and counted, and the lock on the file ends with the process; (3) `judge` names the rule of `RULES` that leaves an answer out.
"""

import fcntl
import json
import re
from pathlib import Path
from typing import NamedTuple

from abc_core.data.texts import NO_TEXT, normalise
from abc_core.runs.files import field_of, shorten

# --- 1. questions and answers -----------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a generator is asked: a prompt about a picture. `key` is a hash of both and of the generator's name."""

    key: str
    image: Path
    prompt: str


class Answer(NamedTuple):
    """What a generator said: a text, or in its place a refusal; and what it took, in tokens in and out (zeros where nobody counts)."""

    text: str | None
    refusal: str | None = None
    tokens: tuple[int, int] = (0, 0)


class Unanswered(Exception):
    """A call that failed for good, in the words of the report."""


# --- 2. the cache -----------------------------------------------------------------------------------------------------------------


def read_answers(path: Path) -> tuple[dict[str, Answer], bytes]:
    """key -> Answer of a cache, which need not be there yet; and what there is of a half-written last line.

    Raises:
        ValueError: a line before the last is broken; the message has file, row and value.
    """
    path = Path(path)
    *whole, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    answers = {}
    for row, line in enumerate(whole):
        where = f"{path} row {row}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}): {shorten(line)}") from error
        key, tokens = field_of(entry, "key", str, where), field_of(entry, "tokens", list, where)
        said = entry.get("answer"), entry.get("refusal")
        if [type(n) for n in tokens] != [int, int] or not all(isinstance(text, str | None) for text in said):
            raise ValueError(f"{where}: a text or nothing, and two numbers of tokens, were expected: {shorten(entry)}")
        answers[key] = Answer(*said, tuple(tokens))
    return answers, torn


class AnswerCache(dict):
    """key -> Answer, of a file that `add` appends to; to be used in a `with`.

    Raises:
        RuntimeError: another call, of this process or another, appends to the file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.torn = Path(path), 0

    def __enter__(self) -> "AnswerCache":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            answers, torn = read_answers(self.path)
            self._file.truncate(self.path.stat().st_size - len(torn))
        except BlockingIOError as error:
            self._file.close()
            raise RuntimeError(f"{self.path} is in use by another call that asks; wait for it, or stop it") from error
        except BaseException:
            self._file.close()
            raise
        self.update(answers)
        self.torn = int(bool(torn))
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, question: Question, model: str, answer: Answer) -> None:
        """Append an answer; it is handed to the system before this returns."""
        entry = {"key": question.key, "model": model, "prompt": question.prompt, "answer": answer.text, "refusal": answer.refusal}
        line = json.dumps(entry | {"tokens": answer.tokens}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError("only a part of a line")
        except OSError as error:
            raise OSError(f"could not write {self.path}: {error}. Is the disk full?") from error
        self[question.key] = answer


# --- 3. the rules -----------------------------------------------------------------------------------------------------------------

RULES = {
    "refusal": "the server says so, or the answer begins as refusals do (`REFUSALS`)",
    "empty": "the answer has no letter and no digit, or halves of characters, which are no text",
    "repeats the caption": "its words are the caption's, or, if the caption has three words or more, hold them all in a row",
}
REFUSALS = ("sorry", "i'm sorry", "i am sorry", "i can't", "i cannot", "i can not", "i'm unable", "i am unable", "i'm not able",
            "i am not able", "i won't", "as an ai", "unfortunately, i")  # fmt: skip
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`"}


def instruction_of(answer: Answer) -> str:
    """The answer's text without white space, or one pair of quotation marks, around the whole of it."""
    text = (answer.text or "").strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def judge(answer: Answer, caption: str) -> str | None:
    """The first of `RULES` that leaves an answer to this caption out; None if it is kept.

    Words are compared after Unicode normalisation, without regard to case and punctuation.
    """
    text = instruction_of(answer)
    if answer.refusal or normalise(text).casefold().replace("’", "'").startswith(REFUSALS):
        return "refusal"
    if not any(c.isalnum() for c in text) or NO_TEXT.search(text):
        return "empty"
    said, known = _words(text), _words(caption)
    within = len(known) >= 3 and f" {' '.join(known)} " in f" {' '.join(said)} "
    return "repeats the caption" if said == known or within else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalise(text).casefold())
