"""What every embedder takes: pictures or texts, and instructions for pictures."""

from pathlib import Path

from PIL import Image

from abc_core.data import Member


def check_rows(images, texts, instructions) -> None:
    """What every system's `embed` takes: see `Embedder.embed`.

    Raises:
        ValueError: neither or both of images and texts; instructions without pictures, of another number, or empty; the message says
            which row.
    """
    if (images is None) == (texts is None):
        raise ValueError("give either images or texts" + (", not both" if images is not None else ""))
    if isinstance(images, str | Path | Member | Image.Image) or isinstance(texts, str):
        raise ValueError("images and texts are lists; wrap a single one in [ ]")
    if texts is not None and instructions is not None:
        raise ValueError("instructions go with images; a text is embedded without one")
    for row, text in enumerate([] if texts is None else texts):
        if not _is_text(text):
            raise ValueError(f"text {row} is empty: {text!r}")
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


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())
