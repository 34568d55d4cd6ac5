"""A built CtrlBench (Sec. 4.4) as files: ctrlbench.parquet, card.json, and the same in words as README.md.

`write` writes rows and what is known about them, `load` reads them back, whole or not at all; `ctrlbench` builds and scores.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.ctrlbench import card as benchmark_card
from abc_core.instructions.regions import Instructed
from abc_core.runs.files import field_of, read_json, whole_file
from abc_core.runs.paths import inside

FILE, CARD, README = "ctrlbench.parquet", "card.json", "README.md"
BOX = ("x", "y", "width", "height")
COLUMNS = pa.schema(
    {"image_id": pa.int64(), "image": pa.string(), "region_id": pa.int64()}
    | dict.fromkeys(BOX, pa.float64())
    | {"kind": pa.string(), "instruction": pa.string(), "wordings": pa.list_(pa.string()), "caption": pa.string(), "gold": pa.int64()}
)


@dataclass(frozen=True)
class Benchmark:
    """Q queries (picture, instruction); the caption of query i is candidate i. `folder` holds the pictures; `card` says what it is."""

    rows: list[Instructed]
    folder: Path
    card: dict
    wordings: list[list[str]]  # of each query, all wordings of its instruction that training never saw, its own among them

    @property
    def instructions(self) -> list[str]:
        """Q instructions."""
        return [row.instruction for row in self.rows]

    @property
    def captions(self) -> list[str]:
        """C = Q captions, the candidates."""
        return [row.caption for row in self.rows]

    @property
    def kinds(self) -> list[str]:
        """Q kinds of instruction."""
        return [row.kind for row in self.rows]

    @property
    def groups(self) -> np.ndarray:
        """int64[Q], the image_id of each query."""
        return np.array([row.image_id for row in self.rows])

    @property
    def gold(self) -> np.ndarray:
        """int64[Q], the right candidate of each query."""
        return np.arange(len(self.rows))


def write(rows: list[Instructed], wordings: list[list[str]], folder: Path, out: Path, facts: dict) -> Path:
    """Write rows, their wordings, and the card: `facts`, counts, and the fingerprint of the rows; it comes last. Returns `out`."""
    records = [
        {"image_id": r.image_id, "image": r.image.relative_to(folder).as_posix(), "region_id": r.region_id}
        | dict(zip(BOX, map(float, r.box), strict=True))
        | {"kind": r.kind, "instruction": r.instruction, "wordings": said, "caption": r.caption, "gold": i}
        for i, (r, said) in enumerate(zip(rows, wordings, strict=True))
    ]
    counts = {"queries": len(rows), "images": len({r.image_id for r in rows}), "kinds": dict(Counter(r.kind for r in rows))}
    counts["wordings"] = sum(map(len, wordings))
    card = {"name": "CtrlBench", "folder": os.path.relpath(folder, out), "fingerprint": _fingerprint(records), **counts, **facts}
    with whole_file(out / FILE) as partial:
        pq.write_table(pa.Table.from_pylist(records, COLUMNS), partial)
    write_card(card, out)
    return out


def write_card(card: dict, out: Path) -> None:
    """Write card.json into the folder `out`, and the same in words as README.md."""
    with whole_file(out / README) as partial:
        partial.write_text(benchmark_card.markdown(card))
    with whole_file(out / CARD) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n")


def _fingerprint(records: list[dict]) -> str:
    """16 hex digits of the rows' content."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path, folder: Path | None = None) -> Benchmark:
    """Read a benchmark folder; `folder` says where the pictures are if they are no longer where they were.

    Raises:
        FileNotFoundError: a file or the picture folder is missing.
        ValueError: rows and card do not belong together, a path leaves the folder, or the files are not a benchmark's.
    """
    path = Path(path)
    for name in (FILE, CARD):
        if not (path / name).exists():
            raise FileNotFoundError(f"{path / name} is missing; notebook 06 builds the benchmark")
    card = read_json(path / CARD)
    where = str(path / CARD)
    try:
        table = pq.read_table(path / FILE)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path / FILE} is not a Parquet file: {error}; build the benchmark again") from error
    if not table.schema.equals(COLUMNS):
        raise ValueError(f"{path / FILE} has the columns {', '.join(table.column_names)}, not {', '.join(COLUMNS.names)}; build it again")
    records = table.to_pylist()
    if _fingerprint(records) != field_of(card, "fingerprint", str, where):
        raise ValueError(f"{path / FILE} is not what {where} describes (fingerprint {card['fingerprint']}); build the benchmark again")
    if [r["gold"] for r in records] != list(range(len(records))):
        raise ValueError(f"{path / FILE}: the caption of a row should be its own right answer")
    folder = Path(folder) if folder else Path(os.path.normpath(path / field_of(card, "folder", str, where)))
    if not folder.is_dir():
        raise FileNotFoundError(f"the pictures of {path} are missing: no folder {folder}. `make reproduce` draws the embedded ones.")
    rows = [
        Instructed(
            inside(folder, r["image"]), r["image_id"], r["region_id"], tuple(r[name] for name in BOX),
            r["kind"], r["instruction"], r["caption"],
        )
        for r in records
    ]  # fmt: skip
    return Benchmark(rows, folder, card, [r["wordings"] for r in records])
