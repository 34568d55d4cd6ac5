"""Pictures and texts as the readers take them in: bounded decoding, comparison of captions, and an account of what was left out.

(1) `open_image` decodes any picture to RGB, within bounds; (2) `normalise` makes captions comparable; (3) `Pictures` finds files with
one listing per folder; (4) `Skipped` counts and names what a reader left out. The layouts are in `abc_core.data.pairs`, `mined` and `readers`.
Rows count from 0 everywhere, as the `negatives` of ABC-Pretraining-Data do.
"""

import errno
import io
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")  # decoders that only decode; PostScript, for one, would run a program
_BROKEN = (  # what decoders raise on bad bytes
    OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, AttributeError, AssertionError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
LONGEST = 200  # times its shorter side that a picture's longer one may be; Qwen's processors refuse more
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)








# --- pictures -------------------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A picture inside a tar or zip file: `size` bytes of it from `offset` on; deflated to `packed` bytes there, if that is not None."""

    path: Path  # of the archive
    name: str
    offset: int
    size: int
    packed: int | None = None

    def read(self) -> bytes:
        """The bytes of the picture, no more than `size`. Raises zlib.error where they are not deflated."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            raw = file.read(self.size if self.packed is None else self.packed)
        return raw if self.packed is None else zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, self.size)

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"


class UnreadableImage(ValueError):
    """A picture that is there and cannot be decoded, today or tomorrow; `source` is what `open_image` was given."""

    def __init__(self, message: str, source):
        super().__init__(message)
        self.source = source


def open_image(source: Path | Member | Image.Image, max_pixels: int = 50_000_000) -> Image.Image:
    """Decode the first frame of a picture to upright RGB; its size is read from the header and checked before anything is decoded.

    A PIL picture in place of a path is treated alike.

    Transparent pixels show white. 16-bit grey levels are scaled to 8 bits, not clipped.

    Raises:
        OSError: the file is not there or the disk does not give it (FileNotFoundError, PermissionError, …), which may pass.
        UnreadableImage: not a picture, truncated, or of more than `max_pixels` pixels, or too long; a ValueError that names it.
    """
    try:
        with _opened(source, max_pixels) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
            if max(width, height) > LONGEST * min(width, height):
                raise ValueError(f"one side of {width} x {height} pixels is more than {LONGEST} times the other")
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except _BOMB as error:
        raise UnreadableImage(f"{source}: {error}", source) from error
    except _BROKEN as error:
        if getattr(error, "errno", None) not in (None, errno.EINVAL):  # of the system, not of a decoder; EINVAL: a seek to a false offset
            raise
        raise UnreadableImage(f"{source} is not a whole picture in one of {', '.join(FORMATS)}: {error}", source) from error


def _opened(source: Path | Member | Image.Image, max_pixels: int):
    """A context that yields the picture, its header read."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if not isinstance(source, Member):
        return Image.open(source, formats=FORMATS)
    size = max(source.size, source.packed or 0)
    if size > 8 * max_pixels:  # no picture of so few pixels needs so many bytes, and they are read at once
        raise ValueError(f"{size:,} bytes are more than a picture of {max_pixels:,} pixels may have")
    return Image.open(io.BytesIO(source.read()), formats=FORMATS)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode that Pillow decodes to RGB. Raises ValueError for grey levels that are not whole numbers of 16 bits."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        levels = np.asarray(picture)  # H, W
        if picture.mode == "F" or levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"mode {picture.mode} with levels {levels.min()} to {levels.max()}; whole numbers up to 65535 were expected")
        return Image.fromarray((levels / 257).round().astype(np.uint8)).convert("RGB")  # 65535 / 257 = 255
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")










# --- files ----------------------------------------------------------------------------------------------------------------------














# --- what was left out ----------------------------------------------------------------------------------------------------------


