"""Readers of public layouts, real or drawn: Karpathy splits here; Visual Genome, from `genome`, and Conceptual Captions, from `pairs`, too.

ABC-Pretraining-Data is in `mined`, ABC-VG-Instruct in `instructions`, MMEB in `mmeb`. Every reader returns what it read and a `Skipped`:
rows that cannot be used are left out, counted and named; no row is changed. A file that is not in its layout at all raises, with file, row
and value. Rows count from 0.
"""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from abc_core.data.genome import GenomeImage, Region, read_genome
from abc_core.data.pairs import Pair, read_pairs
from abc_core.data.reading import Pictures, Skipped, usable
from abc_core.data.tasks import Task
from abc_core.data.texts import NO_TEXT
from abc_core.runs.files import expect, field_of, read_json

__all__ = ["GenomeImage", "Pair", "Region", "karpathy_tasks", "read_genome", "read_karpathy", "read_pairs"]


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
        captions = [raw for raw in said if raw.strip() and not NO_TEXT.search(raw)]
        for raw in (raw for raw in said if raw not in captions):
            skipped.leave_out("sentence that is not Unicode" if raw.strip() else "empty sentence", path, row, raw)
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
