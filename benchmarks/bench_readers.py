"""Reading a stage-1 batch (pictures decoded, captions, seven negatives each) against a plain loop over a `datasets.Dataset`.

Steps: (1) a made-up set in the layout of ABC-Pretraining-Data: a Parquet file with the negatives' rows, pictures beside it; (2) both give
the same pictures and captions; (3) batches are read in turn, ours as training reads them.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import side_by_side as side
from PIL import Image

from abc_core.batches import PairBatches, positions
from abc_core.config import PretrainConfig
from abc_core.data.mined import read_mined
from abc_core.runs import paths

ROWS, STEPS = 4_000, 8
CONFIG = PretrainConfig(queries=64, negatives=7)


def make(folder: Path, rows: int) -> None:
    """mined.parquet and rows pictures of 224 × 224 pixels."""
    (folder / "images").mkdir()
    for k, picture in enumerate(side.pictures(rows)):
        picture.save(folder / "images" / f"{k}.jpg", quality=90)
    negatives = (np.arange(rows)[:, None] + np.random.default_rng(0).permuted(np.tile(np.arange(1, 36), (rows, 1)), axis=1)) % rows
    columns = {"id": range(rows), "url": [""] * rows, "caption": side.captions(rows), "image": [f"images/{k}.jpg" for k in range(rows)]}
    pq.write_table(pa.table(columns | {"negatives": negatives.tolist()}), folder / "mined.parquet")


def plain(dataset, folder: Path, step: int, config: PretrainConfig) -> tuple[list, list[str]]:
    """Pictures and captions of a batch, row by row."""
    pictures, captions = [], []
    for i in positions(step, config.queries, len(dataset), config.seed).tolist():
        row = dataset[i]
        pictures.append(Image.open(folder / row["image"]).convert("RGB"))
        captions += [row["caption"], *(dataset[j]["caption"] for j in row["negatives"][: config.negatives])]
    return pictures, captions


def bench(pairs: int = 3, toy: bool = False) -> list[dict]:
    """Rows of the table."""
    from datasets import load_dataset

    rows, steps = (80, 1) if toy else (ROWS, STEPS)
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), paths.RUNS
        make(folder, rows)
        paths.RUNS = folder / "runs"  # for the index
        try:
            mined, _ = read_mined(folder / "mined.parquet", folder)
            batches = PairBatches(mined.queries, mined.captions, mined.caption_ids, mined.padded(CONFIG.negatives), CONFIG)
            dataset = load_dataset("parquet", data_files=str(folder / "mined.parquet"), split="train", cache_dir=str(folder / "cache"))
            ours, peer = batches(0), plain(dataset, folder, 0, CONFIG)
            if ours.candidates != peer[1]:
                raise ValueError("the captions of ours and of the plain loop differ; there is nothing to time")
            for mine, other in zip(ours.images, peer[0], strict=True):
                side.nearly(mine, other, 0, "pictures")
            read = lambda: [batches(step) for step in range(steps)]  # noqa: E731
            loop = lambda: [plain(dataset, folder, step, CONFIG) for step in range(steps)]  # noqa: E731
            measured = side.alternate(read, loop, pairs)
        finally:
            paths.RUNS = before
    size = f"{steps} batches of {CONFIG.queries} pictures, {CONFIG.queries * (1 + CONFIG.negatives)} captions"
    return [side.compare("reader", size, measured, "a plain loop over datasets.Dataset", ">= 1", "s")]
