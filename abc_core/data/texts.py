"""Texts that are compared: one spelling of equal captions, and a number that equal captions share."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

NO_TEXT = re.compile("[\ud800-\udfff]")  # halves of characters, which JSON can spell and no file of text, and no tokenizer, can hold


def normalise(text: str) -> str:
    """Unicode NFKC, runs of white space as one space, none at the ends; for comparing texts, never for changing them."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def caption_id(caption: str) -> int:
    """A number of 64 bits that captions share which are equal after `normalise` and without regard to case.

    It is a hash of the caption alone, the same in every set, process and run. Two different captions of N share one by chance with a
    probability of N² / 2⁶⁵: 2.4e-7 for three million.
    """
    said = normalise(caption).casefold().encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little", signed=True)


def caption_ids(captions: Iterable[str]) -> np.ndarray:
    """int64[N]: the `caption_id` of each."""
    return np.fromiter(map(caption_id, captions), dtype=np.int64)
