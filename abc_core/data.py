"""Pictures and texts as the readers take them in: bounded decoding, comparison of captions, and an account of what was left out.

(1) `open_image` decodes any picture to RGB, within bounds; (2) `normalise` makes captions comparable; (3) `Pictures` finds files with
one listing per folder; (4) `Skipped` counts and names what a reader left out. The layouts are in `abc_core.pairs`, `mined` and `readers`.
Rows count from 0 everywhere, as the `negatives` of ABC-Pretraining-Data do.
"""

import errno
import hashlib
import io
import json
import os
import re
import struct
import unicodedata
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from abc_core.paths import inside

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")  # decoders that only decode; PostScript, for one, would run a program
_BROKEN = (  # what decoders raise on bad bytes
    OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, AttributeError, AssertionError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
NUMBER = (int, float)  # for `field_of`
NO_TEXT = re.compile("[\ud800-\udfff]")  # halves of characters, which JSON can spell and no file of text, and no tokenizer, can hold
LONGEST = 200  # times its shorter side that a picture's longer one may be; Qwen's processors refuse more
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


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


class Pictures:
    """The files below a folder, found with one directory listing per sub-folder instead of a look at the disk per row.

    A listing is held as 64-bit hashes of the names, 8 bytes a file. A missing file is taken for present with a probability of one in
    10¹² for millions of files, and then found missing when it is opened.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.listed: dict[str, int] = {}  # sub-folder -> when it last changed, in ns, looked up before it was listed; -1: it is not there
        self._parents: dict[str, array] = {}

    def __contains__(self, relative: str) -> bool:
        """Is there such a file? Raises ValueError if `relative` leaves the folder."""
        cut = relative.rfind("/") + 1
        parent, name = relative[:cut], relative[cut:]  # "images/", "0.jpg"
        if parent not in self._parents:
            path = inside(self.folder, parent or ".")
            self.listed[parent] = changed(path)
            self._parents[parent] = array("q", np.sort(np.fromiter(map(hash, file_names(path)), dtype=np.int64)).tobytes())
        names, key = self._parents[parent], hash(name)
        at = bisect_left(names, key)
        return at < len(names) and names[at] == key

    def find(self, relative: str) -> Path | None:
        """The path of an existing file, or None. Raises ValueError if `relative` leaves the folder."""
        return self.folder / relative if relative in self else None


def changed(path: Path) -> int:
    """When a file or folder last changed, in ns since 1970; -1 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        if error.errno in _ABSENT:
            return -1
        raise


def file_names(folder: Path) -> Iterator[str]:
    """Names of the files in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            yield from (e.name for e in entries if e.is_file())
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def usable(pictures: Pictures, caption: str, relative: str, skipped: "Skipped", file: Path, row: int) -> bool:
    """Does a row have a caption and a picture? If not, it is counted in `skipped`."""
    try:
        if not caption.strip():
            skipped.leave_out("empty caption", file, row, caption)
        elif "://" in relative:
            skipped.leave_out("picture is a web address, not a downloaded file", file, row, relative)
        elif relative in pictures:
            return True
        else:
            skipped.leave_out("missing picture", file, row, relative)
    except ValueError:
        skipped.leave_out("path leaves the folder", file, row, relative)
    return False


# --- files ----------------------------------------------------------------------------------------------------------------------


def expect(path: Path, layout: str) -> Path:
    """`path`, or FileNotFoundError that says what is missing, which layout has it, and how to make the embedded data."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it belongs to the layout of {layout}. `make reproduce` draws the embedded one.")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on success it takes the place of `path`, so that a file is whole or absent."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.rename(path)
    except OSError as error:
        raise OSError(f"could not write {path}: {error}. Is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path, object_hook: Callable | None = None) -> Any:
    """The content of a JSON file; ValueError names the file and where it breaks off. `object_hook` is that of `json.loads`."""
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or lists in lists without end
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(row, value) of a JSON-lines file, blank lines left out; ValueError names the file and the row that is broken."""
    with path.open("rb") as lines:
        for row, line in enumerate(lines):
            if line.strip():
                try:
                    yield row, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path} row {row} is not JSON ({error}): {shorten(line)}") from error


def field_of(record: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """record[name] if it has one of the types `kinds`; else ValueError with `where` (file and row) and the value. A bool is no number."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where}: {name!r} is missing or of a wrong type: {shorten(record if value is None else value)}")
    return value


def shorten(value: Any, length: int = 100) -> str:
    """repr(value), cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


# --- what was left out ----------------------------------------------------------------------------------------------------------


@dataclass
class Skipped:
    """What a reader left out (`counts`), what it kept although it is odd (`odd`), by reason, and the first few `examples` of each."""

    counts: Counter = field(default_factory=Counter)
    odd: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    shown: int = 3  # examples kept per reason

    def leave_out(self, reason: str, file: Path, row: int | str, value: Any) -> None:
        """Count one row that is left out."""
        self.counts[reason] += 1
        self._remember(reason, file, row, value)

    def keep(self, reason: str, file: Path, row: int | str, value: Any) -> None:
        """Count one row that is kept as it is, although it is odd."""
        self.odd[reason] += 1
        self._remember(reason, file, row, value)

    def add(self, other: "Skipped") -> None:
        """Count what another reader left out, or kept, as well."""
        self.counts += other.counts
        self.odd += other.odd
        for reason, examples in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine += examples[: self.shown - len(mine)]

    def _remember(self, reason: str, file: Path, row: int | str, value: Any) -> None:
        examples = self.examples.setdefault(reason, [])
        if len(examples) < self.shown:
            examples.append(f"{file} row {row}: {shorten(value)}")

    def __str__(self) -> str:
        lines = []
        for title, counter in (("left out", self.counts), ("odd, but kept", self.odd)):
            lines.append(f"{title}: {counter.total():,}" + (" (rows count from 0)" if counter else ""))
            for reason, count in counter.most_common():
                lines.append(f"  {count:,} x {reason}, such as")
                lines += [f"    {example}" for example in self.examples[reason]]
        return "\n".join(lines)
