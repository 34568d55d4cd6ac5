"""Where the time of mining goes: the rough product, comparing, exact pairs, joining, reading, drawing; mining_profile.csv and .png.

Steps: (1) the functions of `abc_core.mining` that do a part note the time that they take, less that of others inside them; (2) what
none of them accounts for is "other". In one thread, of which CPU time is counted, so tiles are not searched side by side.
"""

import time
from contextlib import ExitStack
from unittest import mock

import bench
import bench_mining
import side_by_side as side
import step_profile
import torch

from abc_core.mining import hard_negatives as mining
from abc_core.mining import search

PARTS = {
    "product": [(torch, "mm")],
    "comparing": [(search, "_near")],
    "exact pairs": [(search, "_products"), (search, "_dense")],
    "joining": [(search, "_join"), (search, "_encode")],
    "reading": [(search, "read"), (mining, "read"), (search, "_rounded")],
    "drawing": [(mining, "_draw")],
}
REST = "other"


def parts(work) -> dict[str, float]:
    """Milliseconds of each part of one call, after one that is not counted."""
    work()
    took, inside = dict.fromkeys([*PARTS, REST], 0.0), [0.0]

    def noted(function, part):
        def wrapper(*args, **kwargs):
            inside.append(0.0)
            start = time.process_time()
            out = function(*args, **kwargs)
            spent = 1000 * (time.process_time() - start)
            took[part] += spent - inside.pop()
            inside[-1] += spent
            return out

        return wrapper

    with ExitStack() as patches:
        for part, places in PARTS.items():
            for module, name in places:
                patches.enter_context(mock.patch.object(module, name, noted(getattr(module, name), part)))
        noted(work, REST)()
    return took


def measure(toy: bool) -> list[dict]:
    """A row for each size and part."""
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for n, m in ((300, 4_000),) if toy else bench_mining.SIZES:
        q, c = bench_mining.corpus(n, m)
        took, about = parts(lambda: bench_mining.ours(q, c)), {"threads": 1, "versions": side.versions()}  # noqa: B023
        name, total = f"mining, {n:,} × {m:,}", sum(took.values())
        rows += [{"work": name, "part": k, "ms": v, "share": v / total, **about} for k, v in took.items()]
        print(name, " · ".join(f"{k} {v / total:.0%}" for k, v in took.items()), flush=True)
    torch.set_num_threads(threads)
    return rows


def main(toy: bool = False) -> None:
    """Measure, write, draw."""
    rows = measure(toy)
    fig = step_profile.plot(rows, "share of CPU time in one thread, per cent of it written inside")
    if not toy:
        side.write(rows, side.FOLDER / "mining_profile.csv")
        bench.save(fig, "mining_profile", f"one profiled call each, 1 thread · {rows[0]['versions']}")
