"""Readers of public layouts, real or drawn: Visual Genome and Karpathy splits here; Conceptual Captions, from `pairs`, is offered here too.

ABC-Pretraining-Data is in `mined`, ABC-VG-Instruct in `instructions`, MMEB in `mmeb`. Every reader returns what it read and a `Skipped`:
rows that cannot be used are left out, counted and named; no row is changed. A file that is not in its layout at all raises, with file, row
and value. Rows count from 0.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abc_core.data import NUMBER, Pictures, Skipped, expect, field_of, file_names, read_json, usable
from abc_core.pairs import Pair, read_pairs
from abc_core.tasks import Task

__all__ = ["GenomeImage", "Pair", "Region", "karpathy_tasks", "read_genome", "read_karpathy", "read_pairs"]


# --- Visual Genome --------------------------------------------------------------------------------------------------------------


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
    regions: list[Region]


def read_genome(folder: Path) -> tuple[list[GenomeImage], Skipped]:
    """Pictures and region captions in the layout of Visual Genome: two JSON files, pictures in VG_100K/ and VG_100K_2/.

    Regions wholly outside their picture or without area are left out; boxes that stick out in part are kept and counted as odd.

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
    skipped, images = Skipped(), []
    sizes = _sizes(measured)
    seen: set[int] = set()
    for row, entry in enumerate(_records(described)):
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
            kept = _regions(regions, image, image_id, (width, height), skipped, described, row)
            images.append(GenomeImage(image, folder, image_id, width, height, coco_id, kept))
        seen.add(image_id)
    if not images:
        raise ValueError(f"{described} has no picture that can be used\n{skipped}")
    return images, skipped


def _records(path: Path) -> list:
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path} should hold a list of records, not a {type(records).__name__}")
    return records


def _sizes(path: Path) -> dict[int, tuple[int, int, int | None]]:
    """image_data.json as image_id -> (width, height, coco_id)."""
    sizes = {}
    for row, entry in enumerate(_records(path)):
        where = f"{path} row {row}"
        width, height = field_of(entry, "width", int, where), field_of(entry, "height", int, where)
        if width < 1 or height < 1:
            raise ValueError(f"{where}: a picture of {width} x {height} pixels")
        sizes[field_of(entry, "image_id", int, where)] = (width, height, entry.get("coco_id"))
    return sizes


def _regions(raw: list, image: Path, image_id: int, size: tuple[int, int], skipped: Skipped, file: Path, row: int) -> list[Region]:
    """The regions of one picture that have a phrase and a box with area in the picture."""
    kept: dict[int, Region] = {}
    for k, entry in enumerate(raw):
        at = f"{row}, region {k}"
        where = f"{file} row {at}"
        region_id, phrase = field_of(entry, "region_id", int, where), field_of(entry, "phrase", str, where)
        x, y, w, h = (field_of(entry, name, NUMBER, where) for name in ("x", "y", "width", "height"))
        if not phrase.strip():
            skipped.leave_out("empty phrase", file, at, phrase)
        elif not (w > 0 and h > 0):
            skipped.leave_out("box without area", file, at, (x, y, w, h))
        elif not (x < size[0] and y < size[1] and x + w > 0 and y + h > 0):
            skipped.leave_out("box wholly outside its picture", file, at, f"{(x, y, w, h)} in {size[0]} x {size[1]}")
        elif region_id in kept:
            skipped.leave_out("region number used twice in a picture", file, at, region_id)
        else:
            if x < 0 or y < 0 or x + w > size[0] or y + h > size[1]:
                skipped.keep("box partly outside its picture", file, at, f"{(x, y, w, h)} in {size[0]} x {size[1]}")
            kept[region_id] = Region(image, image_id, region_id, phrase, x, y, w, h)
    return list(kept.values())


# --- Karpathy splits ------------------------------------------------------------------------------------------------------------


def read_karpathy(path: Path, split: str = "test", sentences: int = 5) -> tuple[list[tuple[Path, list[str]]], Skipped]:
    """(picture, its first five sentences) of one split of `dataset_coco.json`, `dataset_flickr30k.json` or the embedded one.

    Pictures are looked up beside the file, as filepath/filename where records have a filepath; without one (Flickr30K) in
    `flickr30k-images`, if there is such a folder. No more of the file is held than the records of the split, without their tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record is not in the layout, or the split has no picture that can be used.
    """
    path = expect(Path(path), "Karpathy splits")
    records = field_of(read_json(path, partial(_lean, split)), "images", list, str(path))
    pictures, skipped, out = Pictures(path.parent), Skipped(), []
    beside = "flickr30k-images/" if (path.parent / "flickr30k-images").is_dir() else ""
    splits = Counter()
    for row, entry in enumerate(records):
        where = f"{path} row {row}"
        splits[field_of(entry, "split", str, where)] += 1
        if entry["split"] != split:
            continue
        said = [field_of(s, "raw", str, where) for s in field_of(entry, "sentences", list, where)[:sentences]]
        captions = [raw for raw in said if raw.strip()]
        for raw in (raw for raw in said if not raw.strip()):
            skipped.leave_out("empty sentence", path, row, raw)
        name = field_of(entry, "filename", str, where)
        relative = f"{field_of(entry, 'filepath', str, where)}/{name}" if "filepath" in entry else beside + name
        if usable(pictures, " ".join(captions), relative, skipped, path, row):
            out.append((path.parent / relative, captions))
    if not out:
        raise ValueError(f"{path} has no picture of the split {split!r} that can be used; its splits: {dict(splits)}\n{skipped}")
    return out, skipped


def _lean(split: str, entry: dict) -> dict:
    """An object of a Karpathy file without what nobody reads: tokens of sentences, and all but the split in records of other splits."""
    entry.pop("tokens", None)
    other = entry.get("split", split)
    return {"split": other} if isinstance(other, str) and other != split else entry


def karpathy_tasks(path: Path, split: str = "test", sentences: int = 5) -> tuple[Task, Task, Skipped]:
    """Retrieval both ways on a Karpathy split (Table 1): pictures find any of their sentences, and each sentence finds its picture.

    Args:
        path, split, sentences: as `read_karpathy`, whose account of what was left out comes back too.
    Returns:
        (image to text, text to image, skipped). The k-th sentence is candidate k of the one and query k of the other.
    """
    rows, skipped = read_karpathy(path, split, sentences)
    name = Path(path).stem.removeprefix("dataset_")
    pictures, captions = [picture for picture, _ in rows], [caption for _, said in rows for caption in said]
    owner = np.repeat(np.arange(len(rows)), [len(said) for _, said in rows])  # of each sentence
    own = np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1)
    none = np.full(len(captions), -1)
    to_text = Task(f"{name}, image to text", pictures, np.arange(len(rows)), [None] * len(rows), captions, own, kind="retrieval")
    to_image = Task(f"{name}, text to image", [], none, captions, pictures, list(owner[:, None]), kind="retrieval")
    return to_text, to_image, skipped
