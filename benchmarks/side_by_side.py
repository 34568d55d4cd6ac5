"""Two ways of doing one piece of work, timed in turn in one run, so that whatever else the machine does falls on both.

Steps: (1) `alternate` runs ours and the peer's in turn, after one run of each that is not counted; (2) `compare` makes a row of the table
out of the seconds, or of other numbers of each pair: the median ratio with the lowest and the highest; (3) `peak_of` does the work in a
process of its own, and says how far its resident memory rose; (4) `write` puts rows into a CSV, in place of those of the same work.

A ratio says how many times better ours is, for memory how much of the peer's it takes. Ratios compare; seconds and MB are of one machine.
"""

import csv
import json
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent
WORDS = "a an owl cup dog street in the rain with red blue green old small person holding two three of near beach market"
PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets")


def alternate(ours: Callable, peer: Callable, pairs: int) -> list[tuple[float, float]]:
    """Seconds of ours and of the peer's, `pairs` times in turn; each runs once before, uncounted."""
    ours(), peer()
    return [(seconds(ours), seconds(peer)) for _ in range(pairs)]


def seconds(work: Callable) -> float:
    """How long a call takes, by `clock`."""
    if clock() == "wall":
        return wall(work)
    start = time.process_time()
    work()
    return time.process_time() - start


def wall(work: Callable) -> float:
    """How long a call takes by the clock on the wall."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def clock() -> str:
    """Which: "CPU", time of this process, which other work on the machine leaves alone, where it has one thread; else "wall"."""
    return "CPU" if torch.get_num_threads() == 1 else "wall"


def compare(work: str, size: str, measured: list[tuple[float, float]], peer_name: str, goal: str, unit: str) -> dict:
    """A row of the table.

    Args:
        measured: numbers of ours and the peer's, a pair a turn.
        goal: ">= 3" for a speed, whose numbers are seconds, rates or shares; "<= 0.6" for memory; "" if none was set.
        unit: "s" and "GFLOP" turn the ratio round, as fewer are better; any other ratio is ours over the peer's.
    """
    ratios = [peer / ours if unit in ("s", "GFLOP") else ours / peer for ours, peer in measured]
    bound = re.fullmatch(r"([<>])= ([\d.]+)", goal)
    met = "" if not bound else str(median(ratios) >= float(bound[2]) if bound[1] == ">" else median(ratios) <= float(bound[2])).lower()
    row = {
        "work": work, "size": size, "ours": median(o for o, _ in measured), "peer": median(p for _, p in measured), "peer_name": peer_name,
        "ratio": median(ratios), "low": min(ratios), "high": max(ratios), "goal": goal, "met": met, "unit": unit, "pairs": len(measured),
        "threads": torch.get_num_threads(), "clock": clock() if unit == "s" else "", "versions": versions(),
    }  # fmt: skip
    print(f"{work} · {size}: {row['ours']:.4g} against {row['peer']:.4g} {unit}", end=" · ")
    print(f"{peer_name}: {row['ratio']:.2f} ({row['low']:.2f} – {row['high']:.2f}) {goal and f'· goal {goal}: {met}'}", flush=True)
    return row


def operations(work: Callable) -> float:
    """Floating-point operations of a call in 1e9: what the ratio of seconds would be if all ran at one speed."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
        work()
    return counter.get_total_flops() / 1e9


def versions() -> str:
    """Of Python and of what the peers are made of."""
    return f"python {platform.python_version()}; " + "; ".join(f"{name} {version(name)}" for name in PACKAGES)


def peak_of(module: str, *words) -> float:
    """MB of memory that a new process holds at most, above what it holds at the start of the work that `module.peak(*words)` reports."""
    call = [sys.executable, str(FOLDER / "bench.py"), "--peak", module, *map(str, words)]
    return json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def report_peak(prepare: Callable) -> None:
    """In that process: `prepare` returns the work, which runs twice, as a peak is that of a process that goes on; prints the rise.

    Anonymous memory is watched (RssAnon in /proc/self/status): pages of mapped files are given back whenever memory is short.
    """
    work, most, over = prepare(), [0.0], threading.Event()
    start = anonymous()

    def watch() -> None:
        while not over.wait(0.003):
            most[0] = max(most[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    work(), work()
    over.set()
    print(json.dumps(max(most[0], anonymous()) - start))


def anonymous() -> float:
    """MB of this process in memory that no file stands behind."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def write(rows: list[dict], path: Path) -> list[dict]:
    """Put rows into a CSV in place of those of the same work; returns all rows of the file."""
    works = {row["work"] for row in rows}
    kept = []
    if path.exists():
        with path.open(newline="") as lines:
            kept = [row for row in csv.DictReader(lines) if row["work"] not in works]
    table = kept + [{k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return table


# --- made-up inputs -----------------------------------------------------------------------------------------------------------------


def captions(count: int, longest: int = 14, seed: int = 0) -> list[str]:
    """Different texts of 3 to `longest` words, most of them short."""
    rng = np.random.default_rng(seed)
    lengths = 3 + ((longest - 2) * rng.random(count) ** 2).astype(int)
    return [f"{' '.join(rng.choice(WORDS.split(), size))} {k}" for k, size in enumerate(lengths)]


def pictures(count: int, pixels: int = 224, seed: int = 0) -> list[Image.Image]:
    """Coloured blocks in three shapes of about pixels × pixels: 64 visual tokens at 224."""
    rng = np.random.default_rng(seed)
    shapes = [(pixels, pixels), (pixels * 8 // 7, pixels * 6 // 7), (pixels * 6 // 7, pixels * 8 // 7)]  # width, height
    blocks = rng.integers(0, 255, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(b).resize(shapes[k % 3], Image.Resampling.NEAREST) for k, b in enumerate(blocks)]


def nearly(ours, peer, tolerance: float, what: str) -> None:
    """ValueError, with the largest difference, unless two arrays are equal up to a tolerance."""
    difference = float(np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(peer, dtype=np.float64)).max())
    if not difference <= tolerance:
        raise ValueError(f"{what}: ours and the peer's differ by {difference:.2g}, more than {tolerance:.2g}; there is nothing to time")
