"""Visual Genome (Krishna et al., 2016): its pictures and the captioned boxes in them, held as lean as 5.4 million regions ask for.

Steps: (1) `records` reads a JSON list one record at a time; (2) `read_genome` checks every region and puts it into columns;
(3) `Regions` makes the regions of one picture when somebody looks at them. `readers` offers all of it too.
"""

import json
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from abc_core.data.reading import Skipped, file_names
from abc_core.data.texts import NO_TEXT
from abc_core.runs.files import NUMBER, expect, field_of, read_json

CHUNK = 1 << 20  # characters of a file that are read at once


class Region(NamedTuple):
    """A captioned box of a picture; x, y, width and height in pixels, the origin at the top left."""

    image: Path
    image_id: int
    region_id: int
    caption: str
    x: float
    y: float
    width: float
    height: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x, y, width, height)."""
        return self[4:]


@dataclass(frozen=True)
class GenomeImage:
    """A picture of Visual Genome and its regions, which may be none. `coco_id` links to COCO's splits, if the picture is from there."""

    image: Path
    folder: Path
    image_id: int
    width: int
    height: int
    coco_id: int | None
    regions: Sequence[Region]


# --- 1. a list of records -------------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The records of a file that is one JSON list, without holding more than a few of them.

    Raises:
        ValueError: the file is no such list; the message has file and record, and comes when the reader gets there.
    """
    try:
        yield from _records(path)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _records(path: Path) -> Iterator[Any]:
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*").match
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(CHUNK)
        while text and text.isspace():
            text = file.read(CHUNK)
        at, count, size = blank(text).end(), 0, CHUNK
        if text[at : at + 1] != "[":
            raise ValueError(f"{path} should hold a list of records, not a {type(read_json(path)).__name__}")
        at += 1
        while True:
            try:
                start = blank(text, at).end()
                if text[start : start + 1] == "]":
                    break
                if count:
                    if text[start : start + 1] != ",":
                        raise ValueError("a comma or the end of the list was expected")
                    start = blank(text, start + 1).end()
                record, end = decode(text, start)
                if end == len(text):  # a number may go on behind the chunk, and a list has to
                    raise ValueError("the list does not end")
            except ValueError as error:  # the record is cut off by the end of the chunk, or broken
                more = file.read(size)
                if not more:
                    raise ValueError(f"{path} is not JSON: record {count}: {getattr(error, 'msg', error)}") from error
                text, at, size = text[at:] + more, 0, 2 * size  # twice as much each time: a broken record costs one pass through the rest
            else:
                yield record
                at, count, size = end, count + 1, CHUNK
        rest = text[start + 1 :] + file.read(CHUNK)
        if rest.strip():
            raise ValueError(f"{path} is not JSON: more after the end of the list: {rest.strip()[:40]!r}")


# --- 2. reading -----------------------------------------------------------------------------------------------------------------


def read_genome(folder: Path) -> tuple[list[GenomeImage], Skipped]:
    """Pictures and region captions in the layout of Visual Genome: two JSON files, pictures in VG_100K/ and VG_100K_2/.

    Regions wholly outside their picture or without area are left out; boxes that stick out in part are kept and counted as odd. Pictures
    are not opened. The whole of Visual Genome takes about half a gigabyte.

    Raises:
        FileNotFoundError: one of the files, or both picture folders, are missing.
        ValueError: a record is not in the layout, or no picture can be used.
    """
    folder = Path(folder)
    described = expect(folder / "region_descriptions.json", "Visual Genome")
    measured = expect(folder / "image_data.json", "Visual Genome")
    if not (folder / "VG_100K_2").is_dir():
        expect(folder / "VG_100K", "Visual Genome")
    found = {name: part for part in ("VG_100K_2", "VG_100K") for name in file_names(folder / part)}
    skipped, images, table = Skipped(), [], _Table()
    sizes = _sizes(measured, skipped)
    seen: set[int] = set()
    for row, entry in enumerate(records(described)):
        where = f"{described} row {row}"
        image_id = field_of(entry, "id", int, where)
        regions = field_of(entry, "regions", list, where)
        name = f"{image_id}.jpg"
        if image_id in seen:
            skipped.leave_out("picture described twice", described, row, image_id)
        elif image_id not in sizes:
            skipped.leave_out(f"picture without width and height in {measured.name}", described, row, image_id)
        elif name not in found:
            skipped.leave_out("missing picture", described, row, name)
        else:
            image = folder / found[name] / name
            width, height, coco_id = sizes[image_id]
            start = len(table)
            _add_regions(table, regions, (width, height), skipped, described, row)
            kept = Regions(table, image, image_id, start, len(table))
            images.append(GenomeImage(image, folder, image_id, width, height, coco_id, kept))
        seen.add(image_id)
    if not images:
        raise ValueError(f"{described} has no picture that can be used\n{skipped}")
    return images, skipped


def _sizes(path: Path, skipped: Skipped) -> dict[int, tuple[int, int, int | None]]:
    """image_data.json as image_id -> (width, height, coco_id)."""
    sizes = {}
    for row, entry in enumerate(records(path)):
        where = f"{path} row {row}"
        width, height = field_of(entry, "width", int, where), field_of(entry, "height", int, where)
        if width < 1 or height < 1:
            raise ValueError(f"{where}: a picture of {width} x {height} pixels")
        image_id = field_of(entry, "image_id", int, where)
        coco_id = None if entry.get("coco_id") is None else field_of(entry, "coco_id", int, where)
        if image_id in sizes:
            skipped.leave_out("picture measured twice", path, row, image_id)
        else:
            sizes[image_id] = width, height, coco_id
    return sizes


def _add_regions(table: "_Table", raw: list, size: tuple[int, int], skipped: Skipped, file: Path, row: int) -> None:
    """Add those regions of one picture that have a phrase and a box with area in the picture."""
    numbers: set[int] = set()
    for k, entry in enumerate(raw):
        at = f"{row}, region {k}"
        where = f"{file} row {at}"
        region_id, phrase = field_of(entry, "region_id", int, where), field_of(entry, "phrase", str, where)
        x, y, w, h = box = tuple(field_of(entry, name, NUMBER, where) for name in ("x", "y", "width", "height"))
        if not phrase.strip():
            skipped.leave_out("empty phrase", file, at, phrase)
        elif NO_TEXT.search(phrase):
            skipped.leave_out("phrase that is not Unicode", file, at, phrase)
        elif not (w > 0 and h > 0):
            skipped.leave_out("box without area", file, at, box)
        elif math.inf in (w, h):
            skipped.leave_out("box without end", file, at, box)
        elif not (x < size[0] and y < size[1] and x + w > 0 and y + h > 0):
            skipped.leave_out("box wholly outside its picture", file, at, f"{box} in {size[0]} x {size[1]}")
        elif region_id in numbers:
            skipped.leave_out("region number used twice in a picture", file, at, region_id)
        else:
            if x < 0 or y < 0 or x + w > size[0] or y + h > size[1]:
                skipped.keep("box partly outside its picture", file, at, f"{box} in {size[0]} x {size[1]}")
            numbers.add(region_id)
            try:
                table.append(region_id, phrase, box)
            except OverflowError as error:
                raise ValueError(f"{where}: a number is out of range: region {region_id}, box {box}") from error


# --- 3. columns -----------------------------------------------------------------------------------------------------------------


class _Table:
    """All regions of a folder as columns: 48 bytes and the caption each, where a `Region` and its parts take about 500."""

    def __init__(self):
        self.ids, self.boxes = array("q"), array("d")  # R; 4 R
        self.text, self.ends = bytearray(), array("q", [0])  # captions one after the other, in UTF-8; where each ends

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, region_id: int, caption: str, box: tuple) -> None:
        """Add a region. Raises OverflowError for numbers of more than 64 bits, and then is of no more use."""
        self.ids.append(region_id)
        self.boxes.extend(box)
        self.text += caption.encode()
        self.ends.append(len(self.text))


class Regions(Sequence):
    """The regions of one picture: looks like a list, and is made anew from the columns whenever it is looked at."""

    __slots__ = ("_image", "_image_id", "_start", "_stop", "_table")

    def __init__(self, table: _Table, image: Path, image_id: int, start: int, stop: int):
        self._table, self._image, self._image_id, self._start, self._stop = table, image, image_id, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, at):
        return list(self)[at]

    def __iter__(self) -> Iterator[Region]:
        table, start, stop = self._table, self._start, self._stop
        ids, boxes, ends = table.ids[start:stop], iter(table.boxes[4 * start : 4 * stop]), table.ends[start : stop + 1]
        text = table.text[ends[0] : ends[-1]]
        for region_id, first, last, *box in zip(ids, ends, ends[1:], boxes, boxes, boxes, boxes):  # four numbers of boxes for each
            yield Region(self._image, self._image_id, region_id, text[first - ends[0] : last - ends[0]].decode(), *box)
