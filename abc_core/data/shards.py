"""Tar shards in the layout of WebDataset, as `pixparse/cc3m-wds` has them: `cc3m-train-0000.tar` with members KEY.jpg, KEY.txt, KEY.json.

A shard is never unpacked. Steps: (1) `find` names the shards of a folder; (2) `samples` walks through the headers of one and notes where
its pictures lie, `samples_of_all` does it for many, on all cores; (3) `count_missing` holds them against `_info.json`. A shard that breaks
off gives the samples before the break.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from abc_core.data.reading import Skipped

PICTURES = ("jpg", "jpeg", "png", "webp")  # what the name of a picture ends in
CAPTION = "txt"
LONGEST = 1 << 16  # bytes of a caption
BROKEN = "shard breaks off here"
FEW = 8  # shards that one process reads sooner than several start


def find(folder: Path) -> list[Path]:
    """The shards of a folder, in order; none if there are none.

    Raises:
        ValueError: shards of several sets (cc3m-train-0000.tar, cc3m-validation-0000.tar) lie in it, which must not be mixed by mistake.
    """
    found = sorted(path for path in Path(folder).glob("*.tar") if path.is_file())
    sets = sorted({re.sub(r"\d+$", "", path.stem) for path in found})
    if len(sets) > 1:
        named = ", ".join(f"{name}*.tar" for name in sets)
        raise ValueError(f"{folder} has shards of several sets, {named}; give each a folder of its own (links will do)")
    return found


def samples_of_all(found: list[Path], skipped: Skipped) -> Iterator[tuple[str, tuple | None]]:
    """(shard's name, sample) of many shards, in order; a process for each core where there are shards enough to pay for its start."""
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(found) < FEW:
        yield from ((path.name, sample) for path in found for sample in samples(path, skipped))
        return
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:  # a fork would copy CUDA's state and other threads' locks
        for first in range(0, len(found), 2 * cores):  # so many shards' samples are held at most
            part = found[first : first + 2 * cores]
            for path, (listed, left_out) in zip(part, pool.map(_listed, part)):
                skipped.add(left_out)
                yield from ((path.name, sample) for sample in listed)


def _listed(path: Path) -> tuple[list, Skipped]:
    """All samples of one shard, and what was left out."""
    skipped = Skipped()
    return list(samples(path, skipped)), skipped


def samples(path: Path, skipped: Skipped) -> Iterator[tuple[str, str, int, int] | None]:
    """(member, caption, offset, size) of the pictures of one shard, in order, and None for every sample that is left out.

    Members of a sample share their name up to the first dot after the last slash, wherever in the shard they are.
    """
    found: dict[str, dict] = {}  # key -> "picture": (member, offset, size), "caption": text, or None if it is none
    for number, (name, offset, size, text) in enumerate(_members(path, skipped)):
        start = name.rfind("/") + 1
        stem, _, ending = name[start:].partition(".")
        kind = {CAPTION: "caption"}.get(ending.lower(), "picture" if ending.lower() in PICTURES else None)
        if kind is None:
            continue  # KEY.json, for one
        sample = found.setdefault(name[:start] + stem, {})
        if kind in sample:
            skipped.leave_out(f"second {kind} of a sample", path, number, name)
        else:
            sample[kind] = text if kind == "caption" else (name, offset, size)
    for number, (key, sample) in enumerate(found.items()):
        if len(sample) < 2:
            skipped.leave_out("picture without caption" if "picture" in sample else "caption without picture", path, number, key)
        elif sample["caption"] is not None and not sample["caption"].strip():
            skipped.leave_out("empty caption", path, number, key)
        elif sample["caption"] is not None:
            member, offset, size = sample["picture"]
            yield member, sample["caption"], offset, size
            continue
        yield None


def _members(path: Path, skipped: Skipped) -> Iterator[tuple[str, int, int, str | None]]:
    """(name, offset, size, text) of the regular files in a shard, as far as it is whole; the text of captions, None if it is none."""
    length, number = path.stat().st_size, -1
    try:
        with path.open("rb") as file, tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep every header
                number += 1
                name, offset, size = member.name, member.offset_data, member.size
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    skipped.leave_out("member that is no plain file", path, number, name)
                elif name.startswith("/") or ".." in name.split("/"):
                    skipped.leave_out("path leaves the folder", path, number, name)
                elif not name.isprintable():
                    skipped.leave_out("name that cannot be printed", path, number, name)
                elif size < 0 or offset + size > length:
                    return skipped.leave_out(BROKEN, path, number, name)
                elif name.lower().endswith("." + CAPTION):
                    file.seek(offset)
                    yield name, offset, size, _text(file.read(min(size, LONGEST + 1)), path, number, name, skipped)
                else:
                    yield name, offset, size, None
            file.seek(tar.offset)
            if file.read(512) != bytes(512):  # an archive ends in zeros; `next` takes whatever is no header for its end
                skipped.leave_out(BROKEN, path, number + 1, "no end")
    except (tarfile.TarError, RecursionError) as error:  # headers of headers without end
        skipped.leave_out(BROKEN, path, number + 1, str(error))


def _text(raw: bytes, path: Path, number: int, name: str, skipped: Skipped) -> str | None:
    """A caption, or None, counted, if it is none."""
    try:
        if len(raw) <= LONGEST:
            return raw.decode("utf-8")
        skipped.leave_out(f"caption of more than {LONGEST:,} bytes", path, number, name)
    except UnicodeDecodeError:
        skipped.leave_out("not UTF-8", path, number, name)
    return None


def count_missing(found: list[Path], skipped: Skipped) -> None:
    """Count the shards that are missing by `_info.json`, which is optional: those of the sets that were found in part."""
    path, here = found[0].parent / "_info.json", {path.name for path in found}
    try:
        listed = [split["filenames"] for split in json.loads(path.read_bytes())["splits"].values()]
        for names in (names for names in listed if here.intersection(names)):
            for row, name in enumerate(names):
                if name not in here:
                    skipped.keep("shard that is missing", path, row, name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # there is none, or one of another form
