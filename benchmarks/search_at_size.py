"""How long does the demo's search among 10⁶ captions of width 256 take, what does it hold, and is it right? search_at_size.csv.

Side by side: `abc_core.demo.index` (int8 first, then float32; exact), the same with faiss (approximate), a plain float32 product, and the
flat index of faiss, which is one. Steps: (1) draw clustered unit vectors into files, equal ones among them, as mining_at_size.py does;
(2) in a child process for each way, read the vectors and ask 100 queries, one by one, for five entries; (3) compare the scores with those
of brute force in float64.

Wall clock and processor time are both told: on a machine with other work only the latter means something. Without faiss-cpu its rows are
left out.

`python benchmarks/search_at_size.py [--rows 1000000] [--threads 1]`
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mining_at_size import WIDTH, anonymous, draw

from abc_core.demo.index import CHUNK, Index
from abc_core.runs.arrays import tiles

TOP, QUERIES = 5, 100
FAISS = ("index, faiss", "faiss flat")
WAYS = ("index", "float32 product", *FAISS)


def searcher(way: str, emb: np.ndarray, threads: int):
    """A function float32[D] -> rows of the five best, best first; `emb` is a memory map."""
    if way.startswith("index"):
        found = Index(range(len(emb)), emb, approximate_above=0 if way == FAISS[0] else None)
        return lambda q: [row for row, _ in found.nearest(q, TOP)]
    if way == "float32 product":
        held = torch.from_numpy(np.array(emb))
        return lambda q: (held @ torch.from_numpy(q)).topk(TOP).indices.tolist()
    import faiss

    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(WIDTH)
    for rows in tiles(len(emb), CHUNK):
        flat.add(np.array(emb[rows]))
    return lambda q: flat.search(q[None], TOP)[1][0].tolist()


def run(folder: Path, way: str, threads: int) -> None:
    """Ask all queries, in a process of its own; prints one line of JSON."""
    torch.set_num_threads(threads)
    emb, queries = np.load(folder / "c.npy", mmap_mode="r"), np.load(folder / "q.npy", mmap_mode="r")
    queries = np.array(queries[:: max(1, len(queries) // QUERIES)][:QUERIES])
    held, start = anonymous(), time.perf_counter()
    search = searcher(way, emb, threads)
    found = [search(queries[0])]  # the index rounds its vectors at the first search
    ready, held = time.perf_counter() - start, anonymous() - held
    wall, cpu = [], []
    for q in queries:
        start, worked = time.perf_counter(), time.process_time()
        found.append(search(q))
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - worked))
    times = {"ms_min": min(wall), "ms_median": np.median(wall), "cpu_ms_min": min(cpu), "cpu_ms_median": np.median(cpu)}
    print(json.dumps({"ready_s": ready, "held_mb": held / 1e6} | times | {"exact": exact(emb, queries, found[1:])}))


def exact(emb: np.ndarray, queries: np.ndarray, found: list) -> float:
    """Share of 20 queries whose five scores are the five highest of all, to 1e-6."""
    asked = range(0, len(queries), max(1, len(queries) // 20))
    scores = np.concatenate([emb[k : k + 50_000].astype(np.float64) @ queries[asked].T for k in range(0, len(emb), 50_000)])
    best = np.sort(np.partition(scores, -TOP, axis=0)[-TOP:], axis=0)[::-1].T
    return float(np.mean([np.allclose(scores[found[i], n], best[n], rtol=0, atol=1e-6) for n, i in enumerate(asked)]))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run(Path(args.child[0]), args.child[1], int(args.child[2]))
    ways = [way for way in WAYS if way not in FAISS or find_spec("faiss")]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}  # which keep what is freed
    table = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            draw(Path(name), rows)
            for threads, way in ((t, w) for t in args.threads for w in ways):
                child = [sys.executable, __file__, "--child", name, way, str(threads)]
                facts = json.loads(subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True, env=plain).stdout)
                table.append({"rows": rows, "way": way, "threads": threads, **{k: round(v, 2) for k, v in facts.items()}})
                print(table[-1], flush=True)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
