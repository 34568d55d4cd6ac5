"""What do a hundred thousand and a million pairs cost before the first step, and in memory? Writes readers_at_size.csv.

Steps: (1) write made-up sets in three layouts, a table beside pictures, Parquet with 35 negatives a row, and tar shards; pictures are hard
links to a few, so that folders are as long as real ones; (2) for each, two processes one after the other read it and draw 200 batches, the
first without an index, the second with that of the first; (3) print both starts, and the highest anonymous memory (RssAnon in
/proc/self/status) above that of the same process before it read anything. Pages of mapped files are not counted: they are given back
whenever memory is short. Starts are without the time of imports.

`python benchmarks/readers_at_size.py [--folder FOLDER] [--rows 100000 1000000] [--layouts table mined shards]`
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = "a an owl cup dog street in the rain with red blue green old small person holding two three of near beach market"
LAYOUTS = ("table", "mined", "shards")
NEGATIVES, STEPS, PER_FOLDER = 35, 200, 10_000


# --- 1. made-up sets ------------------------------------------------------------------------------------------------------------


def captions(start: int, stop: int) -> list[str]:
    """Made-up captions of some ten words, in part the same."""
    words = WORDS.split()
    draw = np.random.default_rng(start).integers(len(words), size=(stop - start, 9))
    return [f"{' '.join(words[k] for k in row)} {i if i % 10 else ''}" for i, row in enumerate(draw, start)]


def jpeg(seed: int) -> bytes:
    """A small picture."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(255, size=(8, 8, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write_pictures(folder: Path, rows: int) -> None:
    """images/000/0.jpg …: hard links to one picture per folder (a file has at most 65,000)."""
    for part in range(0, rows, PER_FOLDER):
        here = folder / "images" / f"{part // PER_FOLDER:03d}"
        here.mkdir(parents=True)
        first = here / f"{part}.jpg"
        first.write_bytes(jpeg(part))
        for k in range(part + 1, min(part + PER_FOLDER, rows)):
            os.link(first, here / f"{k}.jpg")


def write_table(folder: Path, rows: int) -> None:
    """The layout of Conceptual Captions, and in the same folder that of ABC-Pretraining-Data."""
    write_pictures(folder, rows)
    kinds = [("id", pa.int64()), ("url", pa.string()), ("caption", pa.string()), ("image", pa.string())]
    schema = pa.schema([*kinds, ("negatives", pa.list_(pa.int64()))])
    with (folder / "Train_GCC-training.tsv").open("w") as lines, pq.ParquetWriter(folder / "mined.parquet", schema) as out:
        for start in range(0, rows, PER_FOLDER):
            own = np.arange(start, min(start + PER_FOLDER, rows))
            said, images = captions(start, own[-1] + 1), [f"images/{k // PER_FOLDER:03d}/{k}.jpg" for k in own]
            lines.writelines(f"{caption}\t{image}\n" for caption, image in zip(said, images))
            negatives = (own[:, None] + np.random.default_rng(start).integers(1, rows, size=(len(own), NEGATIVES))) % rows
            lists = pa.FixedSizeListArray.from_arrays(pa.array(negatives.ravel()), NEGATIVES).cast(pa.list_(pa.int64()))
            out.write_table(pa.table([pa.array(own), images, said, images, lists], schema=schema))


def write_shards(folder: Path, rows: int) -> None:
    """One tar file of 10,000 samples, under as many names as are needed."""
    folder.mkdir(parents=True)
    first, picture = folder / "cc3m-train-0000.tar", jpeg(0)
    with tarfile.open(first, "w") as tar:
        for k, caption in enumerate(captions(0, PER_FOLDER)):
            for ending, content in (("jpg", picture), ("json", b'{"url": ""}'), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{k:09d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for part in range(1, rows // PER_FOLDER):
        os.link(first, folder / f"cc3m-train-{part:04d}.tar")


# --- 2. one process -------------------------------------------------------------------------------------------------------------


def anonymous() -> float:
    """Anonymous memory of this process that is in RAM, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measure(layout: str, folder: Path) -> dict:
    """Start, and draw batches as a stage-1 job does: seconds to the first batch, to the others, and the highest memory in MB."""
    from abc_core.batches import PairBatches
    from abc_core.config import PretrainConfig
    from abc_core.data.mined import read_mined
    from abc_core.data.pairs import read_pairs

    before, over, most = anonymous(), threading.Event(), [0.0]

    def watch():
        while not over.wait(0.01):
            most[0] = max(most[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    if layout == "mined":
        mined, _ = read_mined(folder / "mined.parquet", folder)
        config = PretrainConfig(queries=64, negatives=7)
        batches = PairBatches(mined.queries, mined.captions, mined.caption_ids, mined.padded(7), config)
    else:
        pairs = read_pairs(folder)[0].numbered()
        batches = PairBatches(pairs, pairs.captions, pairs.caption_ids, None, PretrainConfig(queries=64, negatives=0))
    batches(0)
    ready, at_start = time.perf_counter(), max(most[0], anonymous()) - before
    most[0] = 0.0
    for step in range(1, STEPS):
        batches(step)
    done = time.perf_counter()
    over.set()
    drawing = max(most[0], anonymous()) - before
    return {"start": ready - start, "batch": (done - ready) / (STEPS - 1), "start_mb": at_start, "batches_mb": drawing}


# --- 3. all of them -------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("readers_at_size"), help="for the made-up sets; removed at the end")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--layouts", choices=LAYOUTS, nargs="+", default=LAYOUTS, help="shards take minutes to index")
    parser.add_argument("--measure", choices=LAYOUTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure, args.folder)))
    rows = []
    try:
        for count in args.rows:
            places = {"table": args.folder / f"cc-{count}", "shards": args.folder / f"wds-{count}"}
            write_table(places["table"], count)
            if "shards" in args.layouts:
                write_shards(places["shards"], count)
            time.sleep(3)  # a folder that has just changed is not trusted
            for layout in args.layouts:
                place = places["shards" if layout == "shards" else "table"]
                for start in ("first", "second"):
                    call = [sys.executable, __file__, "--folder", str(place), "--measure", layout]
                    runs = {"ABC_RUNS": str(args.folder.absolute() / "runs")}
                    said = subprocess.run(call, env=os.environ | runs, check=True, capture_output=True, text=True).stdout
                    rows.append({"layout": layout, "rows": count, "start_number": start, **json.loads(said)})
                    print(" · ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v:>9}" for k, v in rows[-1].items()), flush=True)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    for layout in args.layouts:
        few, many = ([r["batches_mb"] for r in rows if r["layout"] == layout and r["rows"] == n][-1] for n in (args.rows[0], args.rows[-1]))
        print(f"{layout}: {args.rows[-1]:,} rows take {many:.0f} MB while batches are drawn, {args.rows[0]:,} take {few:.0f} MB")


if __name__ == "__main__":
    main()
