"""Allocator and thread settings that the project sets, each with and without, in processes of their own, in turn; settings.csv.

A setting is kept only where it makes steps faster: the ratio is seconds without over seconds with. Steps are those of `bench_stage1`.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import median

import bench_stage1
import side_by_side as side

SETTINGS = {  # name -> (environment without, environment with, who sets it)
    "MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ of 1 GiB": (
        {"MALLOC_MMAP_THRESHOLD_": None, "MALLOC_TRIM_THRESHOLD_": None},
        {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}, "the Makefile",
    ),
    "bfloat16 where the CPU multiplies it": ({"BENCH_BF16": "0"}, {"BENCH_BF16": "1"}, "config.StageConfig.bf16"),
    "a thread for every core": ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}, "torch itself"),
    "glibc's arenas limited to 1": ({"MALLOC_ARENA_MAX": None}, {"MALLOC_ARENA_MAX": "1"}, "nobody"),
}  # fmt: skip


def step_seconds(environment: dict, count: int, repeats: int) -> float:
    """Median seconds of a step in a process with these variables (None: without)."""
    variables = {k: v for k, v in (os.environ | environment).items() if v is not None}
    call = [sys.executable, str(side.FOLDER / "bench.py"), "--peak", "settings", str(count), str(repeats)]
    said = subprocess.run(call, env=variables, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def peak(count: str, repeats: str) -> None:
    """In that process."""
    step = bench_stage1.our_step(int(count), replace(bench_stage1.CONFIG, bf16=os.environ.get("BENCH_BF16") == "1"))
    step()
    print(json.dumps(median(side.seconds(step) for _ in range(int(repeats)))))


def main(toy: bool = False) -> None:
    """Measure and write."""
    count, repeats, pairs = (2, 1, 1) if toy else (bench_stage1.PICTURES, 3, 2)
    rows = []
    for name, (without, given, where) in list(SETTINGS.items())[: 1 if toy else None]:
        measured = [(step_seconds(given, count, repeats), step_seconds(without, count, repeats)) for _ in range(pairs)]
        row = side.compare(name, f"stage-1 step of {count} pictures", measured, "without it", "", "s")
        rows.append(row | {"set_by": where})
    if not toy:
        side.write(rows, side.FOLDER / "settings.csv")
