"""What readers of any layout share: which files of a folder are there, which are usable, and a count of what was left out, by reason."""

import errno
import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from abc_core.runs.files import shorten
from abc_core.runs.paths import inside

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


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
