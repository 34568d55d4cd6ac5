"""A long computation whose result is rows of an .npy file: written block by block, by one process or several, resumable, never in memory.

Beside DATA.npy lies DATA.done with one byte a row: 0 to do, 1 written, 2 written but blank. A byte is set after its row has reached the
disk, so a killed call loses the blocks under way and nothing else; which process, and how many, wrote a row leaves no trace.

Steps of `fill`: (1) make the files, if the disk has room for them; (2) every process takes its share of the blocks with rows to do;
(3) rows go to the file, then to the record.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from abc_core.runs.files import whole_file
from abc_core.runs.processes import rank_and_count, wait

TO_DO, WRITTEN, BLANK = 0, 1, 2
PAUSE = 10  # seconds between two lines of progress


def fill(
    path: Path,
    count: int,
    row: np.dtype,
    make: Callable,
    block: int,
    report: Callable | None = None,
    blanks: float = 0.0,
    name: Callable = str,
    mapped: Callable = map,
) -> np.ndarray:
    """Memory map of `count` rows, each block of it what `make` gives for it; in several processes all call this alike, and all wait.

    Blocks begin at multiples of `block`, so that what `make` is given does not depend on where an earlier call stopped.

    Args:
        path: an .npy file; its name must change with whatever the rows depend on (a run's folder does).
        row: type of a row, `np.dtype((np.float32, (D,)))` for vectors, or a structured one.
        make: slice of rows -> array of these rows.
        blanks: share of the rows that may be nothing but zeros, which says that they could not be made.
        name: number of a row -> text that says what it is, for messages.
        mapped: how `make` is called for all blocks; an executor's `map` makes some side by side.
    Raises:
        ValueError: the file holds other rows; `make` gave others, or too many blank ones, which are then to do again.
        OSError: the disk has no room, or the file could not be written; what was written stays.
    """
    path, (rank, processes) = Path(path), rank_and_count()
    if rank == 0:
        _make_files(path, count, row)
    wait()
    marks = np.fromfile(_record(path), dtype=np.uint8)
    to_do = [rows for rows in tiles(count, block) if not marks[rows].all()]
    wait()  # nobody writes before everybody knows what there is to do
    started = said = time.monotonic()
    share = to_do[rank::processes]
    for rows, part in zip(share, mapped(make, share)):
        part = np.ascontiguousarray(part)
        if part.dtype != row.base or part.shape != (rows.stop - rows.start, *row.shape):
            raise ValueError(f"{path}: rows {rows.start} to {rows.stop} became {part.dtype}{list(part.shape)}; {row} each was expected")
        blank = ~part.view(np.uint8).reshape(len(part), -1).any(1)
        _write(path, _start(path) + rows.start * row.itemsize, part.tobytes())
        _write(_record(path), rows.start, np.where(blank, BLANK, WRITTEN).astype(np.uint8).tobytes())
        if blank.any():
            _check_blanks(path, blanks, name)
        now = time.monotonic()
        if report is not None and rank == 0 and now - said >= PAUSE:
            said, done = now, np.count_nonzero(np.fromfile(_record(path), dtype=np.uint8))
            left = (now - started) / max(1, done - np.count_nonzero(marks)) * (count - done)
            report(f"{path.name}: {done:,} of {count:,} rows · {spell(left)} left")
    wait()
    return np.load(path, mmap_mode="r")


def blank_rows(path: Path) -> np.ndarray:
    """int64[n]: numbers of the rows of a filled file that could not be made."""
    return np.flatnonzero(np.fromfile(_record(Path(path)), dtype=np.uint8) == BLANK)


def check_room(sizes: Mapping[Path, int]) -> None:
    """Raise OSError, with the figures, if the disk has no room for what is still missing of files of these sizes in bytes."""
    folder = next(iter(sizes)).parent
    missing = sum(max(0, size - (path.stat().st_blocks * 512 if path.exists() else 0)) for path, size in sizes.items())
    free = shutil.disk_usage(folder).free
    if missing > free:
        files = ", ".join(path.name for path in sizes)
        raise OSError(f"{folder} has {spell_bytes(free)} free; {files} need {spell_bytes(missing)} more")


def tiles(count: int, size: int) -> list[slice]:
    """`count` rows as slices of `size`, the last one shorter."""
    return [slice(k, min(k + size, count)) for k in range(0, count, size)]


def timed(items: Iterable, count: int, what: str, report: Callable | None) -> Iterator:
    """The `count` items, with a line to `report` every ten seconds: how many of `what` are done, and how long the others take."""
    started = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and report is not None and now - said >= PAUSE:
            said = now
            report(f"{done:,} of {count:,} {what} · {spell((now - started) / done * (count - done))} left")
        yield item


def spell(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3.4 h."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def spell_bytes(count: int) -> str:
    """A size for people: 3.504 kB, 28.67 GB."""
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _record(path: Path) -> Path:
    return path.with_suffix(".done")


def _start(path: Path) -> int:
    """The byte at which the first row begins."""
    return np.load(path, mmap_mode="r").offset


def _make_files(path: Path, count: int, row: np.dtype) -> None:
    """Make both files, or check those that are there; the record comes last, so a file without one is made anew."""
    if path.exists() and _record(path).exists():
        try:
            there, marks = np.load(path, mmap_mode="r"), np.fromfile(_record(path), dtype=np.uint8)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. Delete it to begin anew") from error
        if there.shape != (count, *row.shape) or there.dtype != row.base:
            raise ValueError(f"{path} holds {there.dtype}{list(there.shape)}; {count} rows of {row} are wanted. Delete it to begin anew")
        if len(marks) != count or marks.max(initial=0) > BLANK:
            found = f"{len(marks)} marks of {count} rows, up to {marks.max(initial=0)}"
            raise ValueError(f"{_record(path)} is damaged: {found}. Delete it to begin anew")
        return
    check_room({path: count * row.itemsize, _record(path): count})
    _record(path).unlink(missing_ok=True)  # of a file that was deleted
    with _naming(path):
        np.lib.format.open_memmap(path, "w+", row.base, (count, *row.shape))
    with whole_file(_record(path)) as partial:
        partial.write_bytes(bytes(count))


def _write(path: Path, start: int, content: bytes) -> None:
    """Write bytes into a file, onto the disk; not through a map, which on a full disk would kill the process without a word."""
    with _naming(path), path.open("r+b") as file:
        file.seek(start)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path):
    """An OSError inside the block names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"could not write {path}: {error}. Is the disk full?") from error


def _check_blanks(path: Path, allowed: float, name: Callable) -> None:
    """Raise ValueError if too many rows of the file are blank, and put them back to be done."""
    marks = np.fromfile(_record(path), dtype=np.uint8)
    blank = np.flatnonzero(marks == BLANK)
    if len(blank) > allowed * len(marks):
        for k in blank.tolist():
            _write(_record(path), k, bytes([TO_DO]))
        shown = "; ".join(f"row {k}: {name(k)}" for k in blank[:3].tolist())
        raise ValueError(f"{path}: {len(blank):,} of {len(marks):,} rows could not be made, more than {allowed:.0%}, such as {shown}")
