"""Pairs with their mined negatives, in the layout of ABC-Pretraining-Data: Parquet beside a folder of pictures, or beside tar shards.

Columns: id, url, caption, image (path in the folder, or shard/member), negatives (rows of the same file, the most similar first), and in
files of this project scores (the similarity of each negative to its query). `abc_core.mining.hard_negatives` mines them, as in Sec. 3.2 of the paper.

Steps: (1) `write_mined` writes, and (2) `read_mined` reads into an index (`abc_core.data.index`), a batch of rows at a time; (3) a `MinedSet`
gives rows out of the mapped index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.data import index, pairs, shards
from abc_core.data.pairs import Pair, Pairs
from abc_core.data.reading import Pictures, Skipped, usable
from abc_core.data.texts import caption_id
from abc_core.runs.files import expect, shorten, whole_file

_ANY, _TEXT, _LIST = "", ("string", "large_string"), ("list", "large_list")  # how the names of fitting Arrow types begin
COLUMNS = {"id": _ANY, "url": _ANY, "caption": _TEXT, "image": _TEXT, "negatives": _LIST}
SCHEMA = pa.schema({"id": pa.int64(), "url": pa.string(), "caption": pa.string(), "image": pa.string(), "negatives": pa.list_(pa.int64())})
SCORES = pa.field("scores", pa.list_(pa.float32()))


@dataclass(frozen=True)
class MinedSet:
    """Mined pairs. A row without a usable picture is no query, but its caption stays: it may be the negative of another row.

    queries: the usable pairs; `row` is their row in the file. captions, ids: of all N rows. caption_ids int64[N]: as `data.caption_ids`.
    offsets int64[N + 1], flat int32[T] and flat_scores float32[T]: the negatives of row r, and their similarities, lie between offsets[r]
    and offsets[r + 1]. All but caption_ids are mapped files.
    """

    queries: Pairs
    captions: Sequence[str]
    ids: Sequence
    caption_ids: np.ndarray
    offsets: np.ndarray
    flat: np.ndarray
    flat_scores: np.ndarray | None

    def negatives(self, row: int) -> np.ndarray:
        """int[K]: the rows of the negatives of a row."""
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def padded(self, places: int) -> "Padded":
        """int64[N, places]: the first negatives of every row, -1 where a row has fewer; computed for the rows that are asked for."""
        return Padded(self, places)

    def scores(self, row: int) -> np.ndarray:
        """float[K]: the similarities of the negatives of a row. Raises ValueError if the file has none."""
        if self.flat_scores is None:
            raise ValueError("this set has no column of scores")
        return self.flat_scores[self.offsets[row] : self.offsets[row + 1]]


class Padded:
    """An int64[N, places] of which only the rows that are asked for, by a slice or by int[n], are ever in memory."""

    def __init__(self, mined: MinedSet, places: int):
        self._mined, self.shape = mined, (len(mined.captions), places)

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.asarray(rows)
        start, stop = self._mined.offsets[rows], self._mined.offsets[rows + 1]
        at = start[:, None] + np.arange(self.shape[1])  # n, places
        there = at < stop[:, None]
        out = np.full(at.shape, -1, dtype=np.int64)
        out[there] = self._mined.flat[at[there]]
        return out


# --- 1. written -----------------------------------------------------------------------------------------------------------------


def write_mined(path: Path, pairs: Sequence[Pair], folder: Path, negatives: Sequence, scores: Sequence | None = None) -> Path:
    """Write pairs and their negatives, whole or not at all; returns `path`.

    Args:
        pairs: N pairs; `id` becomes their row in the file that they came from.
        folder: the folder that holds their pictures, or the shards of them.
        negatives: N sequences of positions in `pairs`; -1 is an empty place and not written.
        scores: N sequences of similarities, one per place.
    Raises:
        ValueError: a negative is not the position of another pair, lengths differ, or a picture is outside the folder.
    """
    path = Path(path)
    if len(negatives) != len(pairs) or (scores is not None and len(scores) != len(pairs)):
        lengths = [len(rows) for rows in (negatives, scores) if rows is not None]
        raise ValueError(f"{path}: {len(pairs)} pairs, but {' and '.join(map(str, lengths))} rows of negatives and scores")
    empty = np.fromiter((not pair.caption.strip() for pair in pairs), dtype=bool, count=len(pairs))
    with whole_file(path) as partial, _writer(partial, scores is not None) as out:
        for start in range(0, len(pairs), index.BATCH):
            part = slice(start, start + index.BATCH)
            table = _part(path, pairs[part], folder, negatives[part], None if scores is None else scores[part])
            _negatives_of(path, table, start, empty)
            out.write_table(table)
    return path


def _writer(path: Path, scored: bool) -> pq.ParquetWriter:
    """Pages carry a checksum, so that a damaged file is known for one."""
    return pq.ParquetWriter(path, SCHEMA.append(SCORES) if scored else SCHEMA, write_page_checksum=True)


def _part(path: Path, part: Sequence[Pair], folder: Path, negatives: Sequence, scores: Sequence | None) -> pa.Table:
    """Some of the rows of a file."""
    negatives = [np.asarray(row, dtype=np.int64) for row in negatives]
    images = [pairs.name_of(pair.image, folder) for pair in part]
    columns = [[pair.row for pair in part], images, [pair.caption for pair in part], images]
    columns.append(_lists([row[row != -1] for row in negatives], pa.int64()))
    if scores is None:
        return pa.table(columns, schema=SCHEMA)
    for pair, row, values in zip(part, negatives, scores, strict=True):
        if len(row) != len(values):
            raise ValueError(f"{path}: {len(values)} scores for {len(row)} negatives of row {pair.row}: {shorten(pair.caption)}")
    columns.append(_lists([np.asarray(v)[row != -1] for row, v in zip(negatives, scores, strict=True)], pa.float32()))
    return pa.table(columns, schema=SCHEMA.append(SCORES))


def _lists(rows: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """N arrays, of any lengths, as one Arrow list column."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    values = np.concatenate(rows) if len(rows) else np.empty(0)
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(kind.to_pandas_dtype()), kind))


# --- 2. read --------------------------------------------------------------------------------------------------------------------


def read_mined(path: Path, folder: Path) -> tuple[MinedSet, Skipped]:
    """Read mined pairs; rows without a caption or a picture are left out as queries, counted and named.

    Args:
        path: a Parquet file, or a folder of several, whose rows are counted on from one to the next.
        folder: the folder that holds the pictures, or tar shards of them.
    Raises:
        FileNotFoundError: no such file.
        ValueError: not this layout; a negative is no other row, or a row without caption; the message has file, row and value.
    """
    path, inside = expect(Path(path), "ABC-Pretraining-Data").absolute(), bool(shards.find(folder))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    key = ["mined", str(Path(folder).absolute()), pairs.fingerprint(folder) if inside else "", *map(str, files), *files]
    at, said, skipped = index.opened(key, lambda out, skipped: _Build(path, files, folder, inside, out, skipped).run())
    rows, numbers = index.table(at / "rows.arrow"), lambda name, dtype: index.numbers(at / f"{name}.bin", dtype)
    all_rows, ids = Pairs(rows, folder), rows["id"]
    return MinedSet(
        Pairs(rows, folder, numbers("queries", "int64")), all_rows.captions, index.Lazy(len(ids), lambda i: ids[i].as_py()),
        all_rows.caption_ids, numbers("offsets", "int64"), numbers("negatives", "int32"),
        numbers("scores", "float32") if said["scores"] else None,
    ), skipped  # fmt: skip


@dataclass
class _Build:
    """The index of a mined set: rows.arrow, and in long columns the rows that are queries, the negatives, their offsets and scores."""

    path: Path
    files: list[Path]
    folder: Path
    inside: bool  # the pictures are in shards
    out: Path
    skipped: Skipped

    def run(self) -> dict:
        """Write it."""
        sources = [self._opened(file) for file in self.files]
        scored = {"scores" in source.schema_arrow.names for source in sources}
        if len(scored) != 1:
            raise ValueError(f"{self.path} has {'no Parquet file' if not scored else 'scores in some files only'}")
        names = ["id", "caption", "image", "negatives", *(["scores"] if scored == {True} else [])]
        opened = list(zip(sources, self.files, strict=True))
        batches = lambda *wanted: (b for s, file in opened for b in index.batches(s, file, columns=list(wanted)))  # noqa: E731
        empty = np.fromiter((not (c or "").strip() for b in batches("caption") for c in b["caption"].to_pylist()), dtype=bool)
        pictures = pairs.Samples(pairs.read_pairs(self.folder)[0]) if self.inside else Pictures(Path(self.folder).absolute())
        kind = pa.schema([("id", sources[0].schema_arrow.field("id").type), *(pairs.IN_SHARDS if self.inside else pairs.IN_FILES)])
        first = queries = ends = 0
        with (
            index.writing(self.out / "rows.arrow", kind.remove(kind.get_field_index("row"))) as rows,
            index.appending(self.out, "queries", "offsets", "negatives", "scores") as columns,
        ):
            columns["offsets"](np.zeros(1, dtype=np.int64))
            for batch in batches(*names):
                lengths, flat, scores = _negatives_of(self.path, batch, first, empty)
                chosen = self._rows(batch, first, lengths, pictures, rows)
                columns["queries"](np.array(chosen, dtype=np.int64))
                columns["offsets"](ends + np.cumsum(lengths))
                columns["negatives"](flat.astype(np.int32))
                columns["scores"]((flat[:0] if scores is None else scores).astype(np.float32))
                first, queries, ends = first + batch.num_rows, queries + len(chosen), ends + len(flat)
            if not queries:
                raise ValueError(f"{self.path} has no row that can be used\n{self.skipped}")
        listed = {} if self.inside else {str(pictures.folder / name): then for name, then in pictures.listed.items()}
        return {"scores": scored == {True}, "listed": listed}

    def _opened(self, file: Path) -> pq.ParquetFile:
        source = index.parquet(file)
        _check_columns(file, source.schema_arrow)
        return source

    def _rows(self, batch, first: int, lengths: np.ndarray, pictures, rows: index.Rows) -> list[int]:
        """Write the rows of a batch; returns those that are queries."""
        chosen = []
        columns = (batch[name].to_pylist() for name in ("id", "caption", "image"))
        for row, (own, caption, image) in enumerate(zip(*columns, strict=True), start=first):
            caption, image = caption or "", image or ""
            fits = usable(pictures, caption, image, self.skipped, self.path, row)
            where = () if not self.inside else pictures[image] if fits else (-1, 0)
            rows.append(own, caption, caption_id(caption), image, *where)
            if fits:
                chosen.append(row)
                if not lengths[row - first]:
                    self.skipped.keep("no negatives", self.path, row, caption)
        return chosen


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise ValueError for a missing column or one of another type."""
    wanted = COLUMNS | ({"scores": _LIST} if "scores" in schema.names else {})
    for name, kinds in wanted.items():
        if name not in schema.names:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(schema.names)}")
        if not str(schema.field(name).type).startswith(kinds):
            raise ValueError(f"{path}: column {name!r} is of type {schema.field(name).type}; it should be a {kinds[0]}")


# --- both -----------------------------------------------------------------------------------------------------------------------


def _negatives_of(path: Path, part, first: int, empty: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(how many int[n], negatives int[T], scores float[T] or None) of the rows from `first` on; ValueError with file, row and value.

    empty: bool[N], which of all rows have no caption.
    """
    lengths, flat = _flatten(path, part, "negatives", first)
    if flat.dtype.kind not in "iu":
        raise ValueError(f"{path}: column 'negatives' holds {flat.dtype}, not whole numbers")
    owner = np.repeat(np.arange(first, first + len(lengths)), lengths)  # T: the row that each negative belongs to
    _raise_at(path, (flat < 0) | (flat >= len(empty)), owner, flat, f"is not a row of this file of {len(empty)} rows")
    _raise_at(path, flat == owner, owner, flat, "is the row itself")
    _raise_at(path, empty[flat], owner, flat, "is a row with an empty caption")
    if "scores" not in part.schema.names:
        return lengths, flat, None
    counts, scores = _flatten(path, part, "scores", first)
    differs = np.flatnonzero(counts != lengths)
    if len(differs):
        row = int(differs[0])
        raise ValueError(f"{path} row {first + row}: {counts[row]} scores for {lengths[row]} negatives")
    return lengths, flat, scores


def _flatten(path: Path, part, name: str, first: int) -> tuple[np.ndarray, np.ndarray]:
    """A list column of a table or batch as (lengths int64[n], values[T])."""
    column = part[name]
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    values = column.flatten()
    if column.null_count or values.null_count:
        row = next(r for r, v in enumerate(column.to_pylist()) if v is None or None in v)
        raise ValueError(f"{path} row {first + row}: {name!r} has no value: {shorten(column[row].as_py())}")
    return column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64), values.to_numpy(zero_copy_only=False)


def _raise_at(path: Path, wrong: np.ndarray, owner: np.ndarray, flat: np.ndarray, what: str) -> None:
    """Raise ValueError at the first negative that is `wrong` (bool[T])."""
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"{path} row {owner[first]}: negative {flat[first]} {what}")
