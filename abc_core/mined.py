"""Pairs with their mined negatives, in the layout of ABC-Pretraining-Data: one Parquet file beside a folder of pictures.

Columns: id, url, caption, image (path in the folder), negatives (rows of the same file, the most similar first), and in files of this
project scores (the similarity of each negative to its query). Sec. 3.2 of the paper says how they are mined: `abc_core.mining`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.data import Pictures, Skipped, expect, shorten, whole_file
from abc_core.readers import Pair, usable_image

_ANY, _TEXT, _LIST = "", ("string", "large_string"), ("list", "large_list")  # how the names of fitting Arrow types begin
COLUMNS = {"id": _ANY, "url": _ANY, "caption": _TEXT, "image": _TEXT, "negatives": _LIST}


@dataclass(frozen=True)
class MinedSet:
    """Mined pairs. A row without a usable picture is no query, but its caption stays: it may be the negative of another row.

    queries: the usable pairs; `row` is their row in the file. captions, ids: of all N rows. offsets int64[N + 1], flat int[T] and
    flat_scores float[T]: the negatives of row r, and their similarities, lie between offsets[r] and offsets[r + 1].
    """

    queries: list[Pair]
    captions: list[str]
    ids: list
    offsets: np.ndarray
    flat: np.ndarray
    flat_scores: np.ndarray | None

    def negatives(self, row: int) -> np.ndarray:
        """int[K]: the rows of the negatives of a row."""
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def padded(self, places: int) -> np.ndarray:
        """int64[N, places]: the first negatives of every row, -1 where a row has fewer."""
        rank = np.arange(len(self.flat)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))  # T
        out = np.full((len(self.captions), places), -1, dtype=np.int64)
        kept = rank < places
        out[np.repeat(np.arange(len(out)), np.diff(self.offsets))[kept], rank[kept]] = self.flat[kept]
        return out

    def scores(self, row: int) -> np.ndarray:
        """float[K]: the similarities of the negatives of a row. Raises ValueError if the file has none."""
        if self.flat_scores is None:
            raise ValueError("this set has no column of scores")
        return self.flat_scores[self.offsets[row] : self.offsets[row + 1]]


def write_mined(path: Path, pairs: Sequence[Pair], folder: Path, negatives: Sequence, scores: Sequence | None = None) -> Path:
    """Write pairs and their negatives, whole or not at all; returns `path`.

    Args:
        pairs: N pairs; `id` becomes their row in the file that they came from.
        folder: the folder that holds their pictures.
        negatives: N sequences of positions in `pairs`; -1 is an empty place and not written.
        scores: N sequences of similarities, one per place.
    Raises:
        ValueError: a negative is not the position of another pair, lengths differ, or a picture is outside the folder.
    """
    path = Path(path)
    if len(negatives) != len(pairs) or (scores is not None and len(scores) != len(pairs)):
        lengths = [len(rows) for rows in (negatives, scores) if rows is not None]
        raise ValueError(f"{path}: {len(pairs)} pairs, but {' and '.join(map(str, lengths))} rows of negatives and scores")
    negatives = [np.asarray(row, dtype=np.int64) for row in negatives]
    images = [pair.image.relative_to(folder).as_posix() for pair in pairs]
    columns = {
        "id": pa.array([pair.row for pair in pairs], pa.int64()),
        "url": images,
        "caption": [pair.caption for pair in pairs],
        "image": images,
        "negatives": _lists([row[row != -1] for row in negatives], pa.int64()),
    }
    if scores is not None:
        for pair, row, values in zip(pairs, negatives, scores, strict=True):
            if len(row) != len(values):
                raise ValueError(f"{path}: {len(values)} scores for {len(row)} negatives of row {pair.row}: {shorten(pair.caption)}")
        columns["scores"] = _lists([np.asarray(v)[row != -1] for row, v in zip(negatives, scores, strict=True)], pa.float32())
    table = pa.table(columns)
    _check_negatives(path, table, columns["caption"])
    with whole_file(path) as partial:
        pq.write_table(table, partial)
    return path


def read_mined(path: Path, folder: Path) -> tuple[MinedSet, Skipped]:
    """Read mined pairs; rows without a caption or a picture are left out as queries, counted and named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not this layout; a negative is no other row, or a row without caption; the message has file, row and value.
    """
    path = expect(Path(path), "ABC-Pretraining-Data")
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    _check_columns(path, table.schema)
    captions = [c or "" for c in table["caption"].to_pylist()]
    offsets, flat, flat_scores = _check_negatives(path, table, captions)
    pictures, skipped, queries = Pictures(folder), Skipped(), []
    for row, relative in enumerate(table["image"].to_pylist()):
        image = usable_image(pictures, captions[row], relative or "", skipped, path, row)
        if image is not None:
            queries.append(Pair(image, captions[row], row))
            if offsets[row] == offsets[row + 1]:
                skipped.keep("no negatives", path, row, captions[row])
    if not queries:
        raise ValueError(f"{path} has no row that can be used\n{skipped}")
    return MinedSet(queries, captions, table["id"].to_pylist(), offsets, flat, flat_scores), skipped


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise ValueError for a missing column or one of another type."""
    wanted = COLUMNS | ({"scores": _LIST} if "scores" in schema.names else {})
    for name, kinds in wanted.items():
        if name not in schema.names:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(schema.names)}")
        if not str(schema.field(name).type).startswith(kinds):
            raise ValueError(f"{path}: column {name!r} is of type {schema.field(name).type}; it should be a {kinds[0]}")


def _lists(rows: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """N arrays, of any lengths, as one Arrow list column."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    values = np.concatenate(rows) if len(rows) else np.empty(0)
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(kind.to_pandas_dtype()), kind))


def _check_negatives(path: Path, table: pa.Table, captions: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(offsets int64[N + 1], negatives int[T], scores float[T] or None); raises ValueError with file, row and value."""
    offsets, flat = _flatten(path, table, "negatives")
    if flat.dtype.kind not in "iu":
        raise ValueError(f"{path}: column 'negatives' holds {flat.dtype}, not whole numbers")
    owner = np.repeat(np.arange(table.num_rows), np.diff(offsets))  # T: the row that each negative belongs to
    _raise_at(path, (flat < 0) | (flat >= table.num_rows), owner, flat, f"is not a row of this file of {table.num_rows} rows")
    _raise_at(path, flat == owner, owner, flat, "is the row itself")
    empty = np.array([not c.strip() for c in captions], dtype=bool)
    _raise_at(path, empty[flat], owner, flat, "is a row with an empty caption")
    if "scores" not in table.column_names:
        return offsets, flat, None
    score_offsets, flat_scores = _flatten(path, table, "scores")
    differs = np.flatnonzero(np.diff(score_offsets) != np.diff(offsets))
    if len(differs):
        row = int(differs[0])
        raise ValueError(f"{path} row {row}: {np.diff(score_offsets)[row]} scores for {np.diff(offsets)[row]} negatives")
    return offsets, flat, flat_scores


def _flatten(path: Path, table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (offsets int64[N + 1], values[T])."""
    column = table[name].combine_chunks()
    column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    values = column.flatten()
    if column.null_count or values.null_count:
        row = next(r for r, v in enumerate(column.to_pylist()) if v is None or None in v)
        raise ValueError(f"{path} row {row}: {name!r} has no value: {shorten(column[row].as_py())}")
    lengths = np.asarray(column.value_lengths())
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), values.to_numpy(zero_copy_only=False)


def _raise_at(path: Path, wrong: np.ndarray, owner: np.ndarray, flat: np.ndarray, what: str) -> None:
    """Raise ValueError at the first negative that is `wrong` (bool[T])."""
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"{path} row {owner[first]}: negative {flat[first]} {what} ({int(wrong.sum())} such negatives)")
