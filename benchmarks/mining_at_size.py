"""How long does mining take, how much memory does it hold, and is it right? 10⁵ × 10⁵ × 256 with the paper's numbers; mining_at_size.csv.

Steps: (1) draw clustered unit vectors into files, with equal captions and captions that are equally similar; (2) in a child process,
plan, mine into a file, and watch the anonymous memory that it holds; (3) compare sampled queries with brute force: one full row of scores,
threshold first, then the 100 most similar, then the same draw; (4) print the plan of the paper's size. Half the corpus first, to see that
memory does not grow with it. Seconds are of this machine, under the load that it had.

`python benchmarks/mining_at_size.py [--rows 50000 100000]`
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from abc_core.config import MiningConfig
from abc_core.mining import hard_negatives as mining

WIDTH, CLUSTERS, SAMPLED = 256, 2_000, 200
CONFIG = MiningConfig()  # ε 0.95, pool 100, 7 negatives
A100 = 19.5e12  # float64 operations a second of its tensor cores, data sheet
SHARE = 0.3  # of that, assumed: every tile of candidates is read, widened and sorted too


def draw(folder: Path, rows: int) -> None:
    """q.npy, c.npy float32[rows, 256] and ids.npy: a picture and its caption lie near one of the clusters' centres."""
    rng = np.random.default_rng(rows)
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    of = rng.integers(0, CLUSTERS, rows)
    for name in ("q", "c"):
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, WIDTH))
        for start in range(0, rows, 10_000):
            x = centres[of[start : start + 10_000]]
            x = x + 1.2 * rng.standard_normal(x.shape, dtype=np.float32)
            out[start : start + len(x)] = x / np.linalg.norm(x, axis=1, keepdims=True)
    twins = rng.choice(rows, size=(2, rows // 10), replace=False)  # the second is as similar to everything as the first …
    out[twins[1]] = out[twins[0]]
    ids = np.arange(rows)
    ids[twins[1][: rows // 20]] = ids[twins[0][: rows // 20]]  # … and half of them say the same
    np.save(folder / "ids.npy", ids)


def run(folder: Path) -> None:
    """Plan and mine, in a process of its own; prints one line of JSON."""
    q, c, ids = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("q", "c", "ids"))
    plan = mining.plan(len(q), len(c), WIDTH, CONFIG)
    print(plan, file=sys.stderr, flush=True)
    held, peak, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    started, worked = time.perf_counter(), time.process_time()
    report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    mined = mining.mine_to_file(folder / "mined.npy", q, c, np.arange(len(q)), ids, CONFIG, report=report)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    stop.set()
    facts = {"planned_seconds": plan.seconds, "planned_bytes": plan.process_bytes, "full_pool": mined.counts["full_pool"]}
    print(json.dumps({"seconds": seconds, "cpu_seconds": worked, "held_bytes": peak[0] - held, "peak_bytes": peak[0], **facts}))


def anonymous() -> int:
    """Bytes of this process's resident memory that no file stands behind."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def wrong_rows(folder: Path) -> int:
    """How many of the sampled queries brute force finds other negatives, scores or pools for."""
    q, c, ids = (np.load(folder / f"{name}.npy") for name in ("q", "c", "ids"))
    rows, wrong = np.load(folder / "mined.npy"), 0
    exact = lambda x: np.round(x.astype(np.float64) * 2**26) / 2**26  # noqa: E731
    c, first = exact(c), np.isin(np.arange(len(ids)), np.unique(ids, return_index=True)[1])
    for n in np.random.default_rng(0).choice(len(q), SAMPLED, replace=False):
        scores = (c @ exact(q[n])).astype(np.float32)
        below = scores <= scores[n] - np.float32(1 - CONFIG.epsilon) * abs(scores[n])
        left = np.flatnonzero(below & (ids != ids[n]) & first)
        pool = left[np.lexsort((left, -scores[left]))][: CONFIG.pool]
        drawn = pool[np.random.default_rng([CONFIG.seed, n]).permutation(len(pool))[: CONFIG.negatives]]
        row = rows[n]
        same = row["pool_size"] == len(pool) and row["positive_score"] == scores[n]
        wrong += not (same and (row["indices"] == drawn).all() and (row["scores"] == scores[drawn]).all())
    return wrong


def main() -> None:
    """Measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run(args.child)
    table = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            draw(Path(name), rows)
            child = subprocess.run([sys.executable, __file__, "--child", name], stdout=subprocess.PIPE, text=True, check=True)
            facts = json.loads(child.stdout) | {"sampled": SAMPLED, "wrong": wrong_rows(Path(name))}
        table.append({"rows": rows, "threads": torch.get_num_threads(), **{k: round(v, 1) for k, v in facts.items()}})
        print(f"{rows:,} × {rows:,} × {WIDTH}: {facts['seconds']:.0f} s ({facts['cpu_seconds']:.0f} s of CPU)", end=" · ")
        print(f"planned {facts['planned_seconds']:.0f} s", end=" · ")
        print(f"{facts['held_bytes'] / 1e6:.0f} MB held by the search, planned {facts['planned_bytes'] / 1e6:.0f} MB", end=" · ")
        print(f"{facts['wrong']} of {SAMPLED} queries differ from brute force", flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"\nThe paper's width on eight A100s, {A100 / 1e12} TFLOP/s each, of which {SHARE:.0%} are assumed to be reached:")
    print(mining.plan(10**6, 10**6, 3584, MiningConfig(tile=8192), processes=8, device="cuda", speed=SHARE * A100))


if __name__ == "__main__":
    main()
