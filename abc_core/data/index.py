"""Data sets of any size, read once into files that are mapped into memory: the next start is instant, and memory does not grow.

RUNS/index-<key>/   content
*.arrow, *.bin      rows in Arrow's own format, long columns of numbers as they lie in memory; pages of both can be given back
account.json        what was left out, and how the folders of pictures looked; written last, so that an index is whole or absent

Steps: (1) `opened` makes an index or finds it; (2) `writing` and `appending` write it, a batch of rows at a time; (3) `table` and `numbers`
map it, and `Lazy` makes items when they are asked for. An index may be deleted at any time; it is made again.
"""

import fcntl
import json
import operator
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.data.reading import Skipped, changed
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.runs.files import whole_file

BATCH = 16_384  # rows that are held in memory while an index is written
LAYOUT = "1"  # of the files below; another number makes all indexes anew
SETTLED = 2_000_000_000  # ns; a folder that changed less than this before it was listed may have changed again within one tick of its clock


# --- 1. made once ---------------------------------------------------------------------------------------------------------------


def opened(key: Sequence, build: Callable[[Path, Skipped], dict]) -> tuple[Path, dict, Skipped]:
    """The folder of the index that `key` determines, what `build` said of it, and what it left out; made if it is missing or stale.

    Args:
        key: parts for `runlog.fingerprint`: all that the index depends on but the listings of folders.
        build: writes the index into a folder, counts what it leaves out, and returns plain values; "listed", if among them, says which
            folders it looked at and when they had changed (`data.Pictures.listed`, with whole paths). Once one changes, the index is stale.
    """
    folder = paths.RUNS / f"index-{runlog.fingerprint(LAYOUT, *key)}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "account.json"
    with (folder / "lock").open("a") as lock:  # several processes of a training start at once; one makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        account = _account(path)
        if account is None or not _fresh(account, folder):
            path.unlink(missing_ok=True)
            skipped, started = Skipped(), time.time_ns()
            account = {"said": build(folder, skipped), "skipped": vars(skipped), "started": started}
            account["sizes"] = {file.name: file.stat().st_size for file in folder.iterdir() if file.suffix in (".arrow", ".bin")}
            with whole_file(path) as partial:
                partial.write_text(json.dumps(account))
    left_out = account["skipped"]
    counted = {name: Counter(left_out[name]) for name in ("counts", "odd")}
    return folder, account["said"], Skipped(**left_out | counted)


def _account(path: Path) -> dict | None:
    """What account.json says; None if there is none, or a damaged one."""
    try:
        account = json.loads(path.read_text())
        return account if account.keys() >= {"said", "skipped", "started", "sizes"} else None
    except (OSError, ValueError, AttributeError):
        return None


def _fresh(account: dict, folder: Path) -> bool:
    """Is the index whole, and are the folders of pictures as they were when it was made?"""
    if any(not (folder / name).exists() or (folder / name).stat().st_size != size for name, size in account["sizes"].items()):
        return False
    listed = account["said"].get("listed", {})
    return all(changed(Path(folder)) == then < account["started"] - SETTLED for folder, then in listed.items())


# --- 2. written a batch at a time -----------------------------------------------------------------------------------------------


class Rows:
    """Writes rows, tuples in the order of a schema, into an Arrow file."""

    def __init__(self, sink, schema: pa.Schema):
        self._writer, self._schema, self._held, self.count = pa.ipc.new_file(sink, schema), schema, [], 0

    def append(self, *row) -> None:
        """Add a row."""
        self._held.append(row)
        self.count += 1
        if len(self._held) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        columns = zip(*self._held) if self._held else [[]] * len(self._schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._held.clear()

    def close(self) -> None:
        """Write the end of the file."""
        self.flush()
        self._writer.close()


@contextmanager
def writing(path: Path, schema: pa.Schema):
    """A `Rows` for a file that is whole or absent."""
    with whole_file(path) as partial, pa.OSFile(str(partial), "wb") as sink:
        rows = Rows(sink, schema)
        yield rows
        rows.close()


@contextmanager
def appending(folder: Path, *names: str):
    """name -> function that adds an array to `name`.bin; the files are whole or absent."""
    with ExitStack() as stack:
        files = {name: stack.enter_context(stack.enter_context(whole_file(folder / f"{name}.bin")).open("wb")) for name in names}
        yield {name: (lambda numbers, file=file: file.write(numbers.tobytes())) for name, file in files.items()}


# --- 3. mapped ------------------------------------------------------------------------------------------------------------------


def table(path: Path) -> pa.Table:
    """The rows of an Arrow file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def numbers(path: Path, dtype: str) -> np.ndarray:
    """A file of numbers, mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, to be read in batches; ValueError names a file that is none."""
    try:
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def batches(source: pq.ParquetFile, path: Path, size: int = BATCH, columns: list[str] | None = None):
    """The rows of a file of `parquet`, `size` at a time; ValueError names the file where its bytes are damaged.

    Pages that were written with a checksum, as ours are, are held against it.
    """
    rows = source.iter_batches(size, columns=columns)
    while True:
        try:
            batch = next(rows, None)
            if batch is None:
                return
            batch.validate(full=True)  # texts are UTF-8
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}; get it again") from error
        yield batch


class Lazy(Sequence):
    """A sequence of `count` items that are made when they are asked for; a slice of it is a list."""

    def __init__(self, count: int, item: Callable):
        self._count, self._item = count, item

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self._item(i) for i in range(*at.indices(self._count))]
        i = operator.index(at)
        if not -self._count <= i < self._count:
            raise IndexError(f"item {i} of {self._count}")
        return self._item(i % self._count)
