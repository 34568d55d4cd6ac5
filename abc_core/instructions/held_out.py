"""What training and CtrlBench may not share, and COCO's test pictures: kept apart, counted, and proved (Sec. 4.4).

(1) `comparable` says when two texts are the same; (2) `split_images` sets pictures of one folder aside; (3) `exclude` takes what is held
out from the pictures of Visual Genome, `exclude_groups` from rows that are drawn already; (4) `leakage` counts what two sets share after
all, and `near_duplicates` what they nearly share. Everything is linear in the number of texts and pictures.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abc_core.data.genome import GenomeImage
from abc_core.data.texts import normalise
from abc_core.runs.files import expect, field_of, read_json

ARTICLES = {"a", "an", "the"}


# --- 1. texts -------------------------------------------------------------------------------------------------------------------


def comparable(text: str) -> str:
    """What is equal for equal texts: Unicode NFKC, white space as single spaces, none at the ends, and no regard to case.

    **Paper:** Sec. 4.4 says "duplicated captions" and no more; this is the rule for captions and for instructions.
    """
    return normalise(text).casefold()


def near(text: str) -> str:
    """What is equal for near-duplicates: the set of words, without articles, punctuation, case and order; "" if nothing is left."""
    return " ".join(sorted(set(re.findall(r"\w+", comparable(text))) - ARTICLES))


def near_duplicates(captions: Sequence[str], others: Iterable[str] = (), shown: int = 5) -> dict:
    """How many captions have the same words as another, different one, among themselves and among `others`; and the first few.

    Returns:
        {"within": captions that have a near-duplicate in `captions`, "with_training": that have one in `others`,
        "examples": [[caption, its near-duplicate], …], up to `shown` of each}.
    """
    mine, theirs = _by_words(captions), _by_words(others)
    within, across = [], []
    for words, group in mine.items():
        within += [[caption, next(c for c in group.values() if c != caption)] for caption in group.values() if len(group) > 1]
        for key, caption in group.items():
            across += [[caption, other] for k, other in theirs.get(words, {}).items() if k != key][:1]
    return {"within": len(within), "with_training": len(across), "examples": within[:shown] + across[:shown]}


def _by_words(captions: Iterable[str]) -> dict[str, dict[str, str]]:
    """Words -> comparable caption -> the caption; without captions that have no words."""
    groups: dict[str, dict[str, str]] = {}
    for caption in captions:
        groups.setdefault(near(caption), {}).setdefault(comparable(caption), caption)
    groups.pop("", None)
    return groups


# --- 2. pictures that are set aside ---------------------------------------------------------------------------------------------


def split_images(images: Sequence[GenomeImage], count: int, seed: int) -> tuple[list[GenomeImage], list[GenomeImage]]:
    """Draw `count` pictures; returns them and the others, both in the order of `images`.

    A picture is drawn by a hash of the seed and its number, so that a missing file moves the draw by one picture and not by all. Applied
    to what is left over, it draws the next ones.

    CtrlBench's pictures are drawn from all of Visual Genome, COCO's test pictures among them: training goes without both anyway, so
    nothing leaks, and the benchmark is the same whether or not COCO's splits lie on the disk. Those pictures are also the ones that
    systems trained on COCO are least likely to have seen.

    Raises:
        ValueError: fewer pictures than asked for, or none asked for.
    """
    if not 1 <= count <= len(images):
        raise ValueError(f"{count} pictures were to be drawn of {len(images)}")
    drawn = {image.image_id for image in in_drawn_order(images, seed)[:count]}
    return [i for i in images if i.image_id in drawn], [i for i in images if i.image_id not in drawn]


def in_drawn_order(images: Iterable[GenomeImage], seed: int) -> list[GenomeImage]:
    """Pictures in the order of a hash of the seed and their number."""
    return sorted(images, key=lambda image: hashlib.blake2b(f"{seed} {image.image_id}".encode(), digest_size=16).digest())


# --- 3. what training goes without ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """What training may not see; by default nothing is held out."""

    coco_ids: frozenset[int] = frozenset()
    images: frozenset[Path] = frozenset()  # by file, and by content wherever it lies
    captions: frozenset[str] = frozenset()  # `comparable`
    instructions: frozenset[str] = frozenset()  # `comparable`


def coco_ids(path: Path, split: str = "test") -> frozenset[int]:
    """The numbers (cocoid) of the pictures of one split of `dataset_coco.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record is not in the layout, or no picture is of the split.
    """
    path = expect(Path(path), "Karpathy splits")
    found = set()
    for row, entry in enumerate(field_of(read_json(path), "images", list, str(path))):
        where = f"{path} row {row}"
        if field_of(entry, "split", str, where) == split:
            found.add(field_of(entry, "cocoid", int, where))
    if not found:
        raise ValueError(f"{path} has no picture of the split {split!r}")
    return frozenset(found)


def exclude(images: Sequence[GenomeImage], held: HeldOut) -> tuple[list[GenomeImage], dict[str, int]]:
    """The pictures that are not held out, by `coco_id`, by file (the same folder and number), or by content, byte for byte.

    Returns:
        pictures; and counts that add up: images, kept, coco_test, in_ctrlbench, copy_of_ctrlbench (left out, the first that applies).
    """
    files = {os.path.abspath(path) for path in held.images}
    copies = same_bytes([image.image for image in images], held.images) if held.images else set()
    why, kept = Counter(coco_test=0, in_ctrlbench=0, copy_of_ctrlbench=0), []
    for image in images:
        if image.coco_id is not None and image.coco_id in held.coco_ids:
            why["coco_test"] += 1
        elif files and os.path.abspath(image.image) in files:
            why["in_ctrlbench"] += 1
        elif image.image in copies:
            why["copy_of_ctrlbench"] += 1
        else:
            kept.append(image)
    return kept, {"images": len(images), "kept": len(kept), **why}


def exclude_groups(groups: list[list], held: HeldOut) -> tuple[list[list], dict[str, int]]:
    """As `exclude`, for the instructed rows of pictures whose regions are drawn already; a picture goes whole if any row is held out.

    Returns:
        groups; and counts that add up: images, kept, in_ctrlbench, with_its_captions, with_its_instructions.
    Raises:
        ValueError: COCO's numbers are held out; such rows do not have them.
    """
    if held.coco_ids:
        raise ValueError("these rows have no coco_id; COCO's test pictures can only be left out of Visual Genome's own files")
    copies = same_bytes([group[0].image for group in groups], held.images) if held.images else set()
    why, kept = Counter(in_ctrlbench=0, with_its_captions=0, with_its_instructions=0), []
    for group in groups:
        if group[0].image in copies:
            why["in_ctrlbench"] += 1
        elif any(comparable(row.caption) in held.captions for row in group):
            why["with_its_captions"] += 1
        elif any(comparable(row.instruction) in held.instructions for row in group):
            why["with_its_instructions"] += 1
        else:
            kept.append(group)
    return kept, {"images": len(groups), "kept": len(kept), **why}


# --- 4. the proof ---------------------------------------------------------------------------------------------------------------


def leakage(rows: Sequence, images: Iterable[Path], captions: Iterable[str], instructions: Iterable[str]) -> dict[str, int]:
    """How many pictures (byte for byte), captions and instructions (`comparable`) of the benchmark's rows training saw."""
    return {
        "images": len(same_bytes({row.image for row in rows}, images)),
        "captions": len({comparable(row.caption) for row in rows} & set(map(comparable, captions))),
        "instructions": len({comparable(row.instruction) for row in rows} & set(map(comparable, instructions))),
    }


def same_bytes(mine: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Those files of `mine` that have the content of one of `others`; only files of equal size are read."""
    by_size: dict[int, list[Path]] = {}
    for path in mine:
        by_size.setdefault(path.stat().st_size, []).append(path)
    digest = lambda path: hashlib.sha256(path.read_bytes()).digest()  # noqa: E731
    seen: dict[int, set[bytes]] = {}
    for path in others:
        if (size := path.stat().st_size) in by_size:
            seen.setdefault(size, set()).add(digest(path))
    return {path for size, known in seen.items() for path in by_size[size] if digest(path) in known}
