"""How cost grows with the batch, the corpus, the visual tokens of a picture and the processes: measured and expected exponents.

Steps: (1) each work is timed at four sizes (two numbers of processes), in turn, several times; (2) an exponent is the slope of log seconds
over log size, least squares, once for each turn: the table has the median and the range; (3) the expected exponent is 1 where every row
costs the same; for visual tokens it is the slope of the floating-point operations counted at the same sizes; for processes −1 as long as
there are cores for them, 0 beyond. Writes bench_scaling.csv and bench_scaling.png.
"""

import os
import subprocess
import sys
from functools import partial
from statistics import median

import bench
import bench_mining
import bench_models as models
import bench_stage1
import matplotlib.pyplot as plt
import numpy as np
import side_by_side as side
import torch

from abc_core.figures import style as figures


def slope(sizes, costs) -> float:
    """Of log cost over log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def batch(sizes: tuple) -> tuple[list, float, str]:
    """A call for each size, the expected exponent, and what it is of."""
    return [bench_stage1.our_step(size) for size in sizes], 1.0, "pictures in a batch"


def corpus(sizes: tuple) -> tuple[list, float, str]:
    q, c = bench_mining.corpus(min(512, min(sizes)), max(sizes))
    return [partial(bench_mining.ours, q, c[:m]) for m in sizes], 1.0, "captions searched"


def visual_tokens(sizes: tuple) -> tuple[list, float, str]:
    embedder = models.ours()
    works = [partial(embedder.embed, side.pictures(2, pixels=int(28 * size**0.5))) for size in sizes]
    return works, slope(sizes, [side.operations(work) for work in works]), "visual tokens"


def processes(sizes: tuple) -> tuple[list, float, str]:
    """Of `sizes` processes each embeds its share of 64 pictures, with one thread."""
    expected = slope(sizes, [1 / min(size, len(os.sched_getaffinity(0))) for size in sizes])
    return [Crew(size) for size in sizes], expected, "processes, 64 pictures"


class Crew:
    """Processes that embed their share whenever they are called; they start once."""

    def __init__(self, count: int):
        call = [sys.executable, str(side.FOLDER / "bench.py"), "--peak", "bench_scaling", str(64 // count)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        self.crew = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) for _ in range(count)]
        self._await()

    def __call__(self) -> None:
        for one in self.crew:
            one.stdin.write("go\n")
            one.stdin.flush()
        self._await()

    def _await(self) -> None:
        for one in self.crew:
            if one.stdout.readline() != "done\n":
                raise RuntimeError("a process that embeds pictures ended")

    def close(self) -> None:
        for one in self.crew:
            one.stdin.close()
            one.wait()
            one.stdout.close()


def peak(count: str) -> None:
    """One of a crew."""
    embedder, pictures = models.ours(), side.pictures(int(count))
    print("done", flush=True)
    for _ in sys.stdin:
        embedder.embed(images=pictures)
        print("done", flush=True)


STUDIES = {
    "batch": (batch, (4, 8, 16, 32), (1, 2)),
    "corpus": (corpus, (12_500, 25_000, 50_000, 100_000), (300, 600)),
    "visual tokens": (visual_tokens, (64, 144, 256, 484), (4, 16)),
    "processes": (processes, (1, 2), (1, 2)),
}


def measure(repeats: int, toy: bool) -> list[dict]:
    """A row for each study and size."""
    rows = []
    for name, (study, sizes, tiny) in STUDIES.items():
        sizes = tiny if toy else sizes
        works, expected, of = study(sizes)
        for work in works:
            work()
        timed = side.seconds if not isinstance(works[0], Crew) else side.wall  # a crew's time is not this process's
        turns = np.array([[timed(work) for work in works] for _ in range(repeats)])
        exponents = [slope(sizes, turn) for turn in turns]
        found = {"exponent": median(exponents), "low": min(exponents), "high": max(exponents), "expected": expected}
        more = {"of": of, "repeats": repeats, "threads": torch.get_num_threads(), "versions": side.versions()}
        rows += [{"work": name, "size": size, "seconds": median(turns[:, k].tolist()), **found, **more} for k, size in enumerate(sizes)]
        for work in works:
            if isinstance(work, Crew):
                work.close()
        print(f"{name}: exponent {found['exponent']:.2f} ({found['low']:.2f} – {found['high']:.2f}), expected {expected:.2f}", flush=True)
    return rows


@figures.drawn
def plot(rows: list[dict]):
    """Seconds over size for each study, and a line of the expected slope through the first size."""
    names = list(dict.fromkeys(row["work"] for row in rows))
    fig, axes = plt.subplots(1, len(names), figsize=(figures.WIDTH, 2.3))
    for axis, name in zip(axes, names):
        own = [row for row in rows if row["work"] == name]
        x, y = ([float(row[k]) for row in own] for k in ("size", "seconds"))
        expected = [y[0] * (size / x[0]) ** float(own[0]["expected"]) for size in x]
        axis.plot(x, expected, color=figures.GREY, linestyle="--", linewidth=1.2, label="expected slope")
        axis.plot(x, y, "o", color=figures.BLUE, markersize=5, label="measured")
        low, high = float(own[0]["low"]), float(own[0]["high"])
        axis.set_title(f"{float(own[0]['exponent']):.2f} ({low:.2f} – {high:.2f})\nexpected {float(own[0]['expected']):.2f}", fontsize=8)
        axis.set(xscale="log", yscale="log", ylabel="seconds" if axis is axes[0] else None)
        axis.set_xlabel(own[0]["of"], fontsize=7.5)
        axis.set_xticks(x, [f"{size:,.0f}" for size in x], fontsize=6)
        axis.set_yticks(y, [f"{seconds:.2g}" for seconds in y], fontsize=6)
        axis.minorticks_off()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def main(toy: bool = False) -> None:
    """Measure, write, draw."""
    rows = measure(1 if toy else 3, toy)
    fig = plot(rows)
    if not toy:
        side.write(rows, side.FOLDER / "bench_scaling.csv")
        bench.save(fig, "bench_scaling", f"median of {rows[0]['repeats']} turns, {rows[0]['threads']} thread(s) · {rows[0]['versions']}")
