"""Pairs of pictures and captions at any size: Conceptual Captions as a table beside pictures, or as tar shards (WebDataset).

Steps: (1) `read_pairs` finds out which layout a folder has; (2) rows are read once, one after the other, into an index (`abc_core.data.index`),
and what cannot be used is left out, counted and named; (3) `Pairs` gives them out of the mapped index, at a few microseconds a pair.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from abc_core.data import index, shards
from abc_core.data.pictures import Member
from abc_core.data.reading import Pictures, Skipped, usable
from abc_core.data.texts import caption_id
from abc_core.runs import run as runlog
from abc_core.runs.files import expect

CAPTIONS_TSV = "Train_GCC-training.tsv"
OWN_TSV = "captions.tsv"  # the same table, under the name that people give to theirs
ROWS = "pairs.arrow"
IN_FILES = pa.schema({"caption": pa.string(), "caption_id": pa.int64(), "image": pa.string(), "row": pa.int64()})
IN_SHARDS = pa.schema([*IN_FILES, pa.field("offset", pa.int64()), pa.field("size", pa.int64())])


class Pair(NamedTuple):
    """A picture and its caption; `row` is their row in the file they were read from, or their number among the samples of all shards."""

    image: Path | Member
    caption: str
    row: int


class Pairs(index.Lazy):
    """A sequence of `Pair` out of a mapped table with the columns of IN_FILES or IN_SHARDS; a slice is a list.

    captions, images: the same in sequences of their own. caption_ids int64[N]: as `data.caption_ids`.

    Args:
        root: the folder that the names in the column "image" start from.
        places: int[N], the rows of the table that are meant; None: all. Without a column "row" a row's number in the table is its row.
    """

    def __init__(self, table: pa.Table, root: Path, places: np.ndarray | None = None):
        self.table, self.root, self._places = table, Path(root), places
        self._columns = {name: table[name] for name in table.column_names}
        count = table.num_rows if places is None else len(places)
        super().__init__(count, self._pair)
        self.captions = index.Lazy(count, lambda i: self._cell("caption", self._place(i)))
        self.images = index.Lazy(count, lambda i: self._image(self._place(i)))

    @property
    def caption_ids(self) -> np.ndarray:
        """int64[N]: equal for captions that are equal but for case and white space."""
        ids = self._columns["caption_id"].to_numpy()
        return ids if self._places is None else ids[self._places]

    @property
    def rows(self) -> np.ndarray:
        """int64[N]: the `row` of every pair."""
        rows = self._columns["row"].to_numpy() if "row" in self._columns else np.arange(self.table.num_rows)
        return rows if self._places is None else rows[self._places]

    def numbered(self) -> "Pairs":
        """The same pairs with their place here as their `row`."""
        return Pairs(self.table.drop_columns("row"), self.root, self._places)

    def _pair(self, i: int) -> Pair:
        place = self._place(i)
        row = self._cell("row", place) if "row" in self._columns else place
        return Pair(self._image(place), self._cell("caption", place), row)

    def _image(self, place: int) -> Path | Member:
        name = self._cell("image", place)
        if "offset" not in self._columns:
            return self.root / name
        shard, member = name.split("/", 1)
        return Member(self.root / shard, member, self._cell("offset", place), self._cell("size", place))

    def _place(self, i: int) -> int:
        return i if self._places is None else int(self._places[i])

    def _cell(self, name: str, place: int):
        return self._columns[name][place].as_py()


def read_pairs(folder: Path) -> tuple[Pairs, Skipped]:
    """Pairs in one of the layouts of Conceptual Captions: a TSV without header, `caption<TAB>path of the picture in the folder`, which may
    be called captions.tsv, or tar shards with members KEY.jpg and KEY.txt (see `abc_core.data.shards`).

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: no row can be used, or shards of several sets lie in the folder.
    """
    at, _, skipped = _opened(folder)
    return Pairs(index.table(at / ROWS), folder), skipped


def has_pairs(folder: Path) -> bool:
    """Is a folder in a layout that `read_pairs` reads, and no mere folder of pictures?"""
    return table_of(folder).exists() or bool(shards.find(folder))


def table_of(folder: Path) -> Path:
    """Where the table of a folder is, or would be."""
    theirs, own = (Path(folder).absolute() / name for name in (CAPTIONS_TSV, OWN_TSV))
    return own if own.exists() and not theirs.exists() else theirs


def fingerprint(folder: Path) -> str:
    """16 hex digits of the captions and the names of the pictures that `read_pairs` would read; the pictures' pixels have no part in it."""
    path = table_of(folder)
    return runlog.fingerprint(path) if path.exists() or not has_pairs(folder) else _opened(folder)[1]["digest"]


def name_of(image: Path | Member, folder: Path) -> str:
    """How a file beside the pictures names one of them: its path in the folder, or shard/member. ValueError: it is not in there."""
    path = image.path if isinstance(image, Member) else image
    name = path.relative_to(folder).as_posix()
    return f"{name}/{image.name}" if isinstance(image, Member) else name


class Samples:
    """The pictures of shards by the names that `name_of` gives them: name -> (offset, size). Holds 16 bytes a picture."""

    def __init__(self, pairs: Pairs):
        self._table = pairs.table
        names = (name for chunk in self._table["image"].chunks for name in chunk.to_pylist())
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(pairs))
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def _place(self, name: str) -> int | None:
        first, last = (np.searchsorted(self._hashes, hash(name), side) for side in ("left", "right"))
        return next((int(k) for k in self._order[first:last] if self._table["image"][int(k)].as_py() == name), None)

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    def __getitem__(self, name: str) -> tuple[int, int]:
        place = self._place(name)
        return self._table["offset"][place].as_py(), self._table["size"][place].as_py()


# --- the index ------------------------------------------------------------------------------------------------------------------


def _opened(folder: Path) -> tuple[Path, dict, Skipped]:
    """The index of a folder; see `index.opened`."""
    path = table_of(folder)
    found = [] if path.exists() else shards.find(path.parent)
    if found:
        key = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in found]  # reading all bytes would take hours
        return index.opened(["shards", *key], lambda out, skipped: _from_shards(found, out, skipped))
    expect(path, "Conceptual Captions")
    return index.opened(["pairs", str(path), path], lambda out, skipped: _from_table(path, out, skipped))


def _from_table(path: Path, out: Path, skipped: Skipped) -> dict:
    """Write the index of a TSV beside its pictures."""
    pictures = Pictures(path.parent)
    with index.writing(out / ROWS, IN_FILES) as rows, path.open("rb") as lines:
        for row, line in enumerate(lines):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != 2:
                skipped.leave_out(f"{len(columns)} columns instead of 2", path, row, line)
                continue
            try:
                caption, image = (c.decode("utf-8") for c in columns)
            except UnicodeDecodeError:
                skipped.leave_out("not UTF-8", path, row, line)
                continue
            if usable(pictures, caption, image, skipped, path, row):
                rows.append(caption, caption_id(caption), image, row)
        _check_any(rows, path, skipped)
    return {"listed": {str(path.parent / name): then for name, then in pictures.listed.items()}}


def _from_shards(found: list[Path], out: Path, skipped: Skipped) -> dict:
    """Write the index of shards; its digest is of the captions and the names of the pictures."""
    digest = hashlib.sha256()
    with index.writing(out / ROWS, IN_SHARDS) as rows:
        for row, (shard, sample) in enumerate(shards.samples_of_all(found, skipped)):
            if sample is not None:
                member, caption, offset, size = sample
                image = f"{shard}/{member}"
                rows.append(caption, caption_id(caption), image, row, offset, size)
                digest.update(f"{image}\0{caption}\0".encode())
        shards.count_missing(found, skipped)
        _check_any(rows, found[0].parent, skipped)
    return {"digest": digest.hexdigest()[:16]}


def _check_any(rows: index.Rows, path: Path, skipped: Skipped) -> None:
    if not rows.count:
        raise ValueError(f"{path} has no row that can be used\n{skipped}")
