"""What every embedder takes: pictures or texts, and instructions for pictures."""

from pathlib import Path

from PIL import Image

from abc_core.data.pictures import Member
from abc_core.data.texts import NO_TEXT
from abc_core.runs.files import shorten


def check_rows(images, texts, instructions) -> None:
    """What every system's `embed` takes: see `Embedder.embed`.

    Raises:
        ValueError: neither or both of images and texts; no list; instructions without pictures, of another number, or empty; words that are
            not Unicode; the message says which row.
    """
    if (images is None) == (texts is None):
        raise ValueError("give either images or texts" + (", not both" if images is not None else ""))
    if isinstance(images, str | Path | Member | Image.Image) or isinstance(texts, str):
        raise ValueError("images and texts are lists; wrap a single one in [ ]")
    for name, given in (("images", images), ("texts", texts), ("instructions", instructions)):
        listed = hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, dict)
        if given is not None and not listed:
            raise ValueError(f"{name} is a {type(given).__name__}; a list was expected")
    if texts is not None and instructions is not None:
        raise ValueError("instructions go with images; a text is embedded without one")
    for row, text in enumerate([] if texts is None else texts):
        if not _is_text(text):
            raise ValueError(f"text {row} is empty: {text!r}")
        _check_unicode(f"text {row}", text)
    for row, image in enumerate([] if images is None else images):
        if not isinstance(image, str | Path | Member | Image.Image):
            raise ValueError(f"image {row} is a {type(image).__name__}; PIL pictures and paths can be embedded")
    if instructions is None:
        return
    if isinstance(instructions, str) or len(instructions) != len(images):
        raise ValueError(f"{len(images)} images need {len(images)} instructions or lists of instructions; got {len(instructions)}")
    for row, asked in enumerate(instructions):
        if not (_is_text(asked) or (isinstance(asked, list | tuple) and asked and all(map(_is_text, asked)))):
            raise ValueError(f"instruction of image {row} is empty: {asked!r}")
        for text in [asked] if isinstance(asked, str) else asked:
            _check_unicode(f"instruction of image {row}", text)


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_unicode(what: str, text: str) -> None:
    if half := NO_TEXT.search(text):
        raise ValueError(f"{what} is not Unicode: {half[0]!r} at place {half.start()} is half a character: {shorten(text)}")
