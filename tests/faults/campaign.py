"""The fault campaign: disturb every stage at random moments, let it go on, and compare what is left, bit for bit.

    PYTHONPATH=tests/made python tests/faults/campaign.py [--only NAME …] [--times N] [--seed S]

Writes benchmarks/faults.csv, a row as soon as it is known: what, where, times, what_happened, same (how often it ended as undisturbed),
seed. `--only` takes names of faults, or "fault, stage"; moments depend on the seed, the row and the number of the try alone, but for those
of a clock.
"""

import argparse
import csv
import os
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faults
import notebook
import numpy as np
from faults import Skip, Trial
from stages import Stage, stages

from abc_core.runs import paths
from abc_core.runs.files import whole_file

ALL = ("mining", "stage 1", "stage 2", "backbone", "generation")
RUNS = ALL[:4]  # that lock a run folder
TRAINED = ALL[1:4]
TABLE = paths.ROOT / "benchmarks" / "faults.csv"


class Row(NamedTuple):
    """A fault, how it disturbs a trial, in which stages, and how often in each."""

    name: str
    fault: Callable[[Trial], str]
    where: tuple[str, ...]
    times: int


ROWS = (
    Row("kill -9 by the clock", faults.killed_by_the_clock, ALL, 8),
    Row("kill -9 at a file operation", faults.killed_at_a_file_operation, ALL, 6),
    Row("killed within a write", faults.killed_within_a_write, ALL, 6),
    Row("Ctrl-C or SIGTERM", faults.interrupted, ALL, 4),
    Row("full disk (a limit on files)", faults.full_disk, ALL, 3),
    Row("full disk (a small tmpfs)", faults.full_tmpfs, RUNS, 3),
    Row("read-only folder", faults.read_only, ALL, 2),
    Row("NaN in a gradient", faults.nan_in_a_gradient, TRAINED, 3),
    Row("NaN in an embedding", faults.nan_in_an_embedding, ("mining", "mining from shards"), 2),
    Row("damaged checkpoint of its own", faults.damaged_checkpoint, TRAINED, 4),
    Row("damaged checkpoint of another", partial(faults.damaged_input, name="checkpoint"), ("mining", "stage 2"), 4),
    Row("damaged Parquet", partial(faults.damaged_input, name="parquet"), ("stage 1",), 4),
    Row("truncated shard", faults.truncated_shard, ("mining from shards",), 3),
    Row("damaged line of a cache", faults.damaged_cache_line, ("generation",), 4),
    Row("clocks that jump", faults.jumping_clock, RUNS, 2),
    Row("two runs in one folder", faults.two_at_once, RUNS, 2),
    Row("hanging and lying server", faults.lying_server, ("generation",), 5),
    Row("Ctrl-C in a notebook", partial(notebook.stopped, how="SIGINT"), ("stage 1",), 1),
    Row("SIGTERM of a notebook's kernel", partial(notebook.stopped, how="SIGTERM"), ("stage 1",), 1),
)


def undisturbed(stage: Stage, folder: Path, world: Path) -> Trial:
    """The stage done without a fault, timed, its operations on files counted."""
    trial = Trial(stage, folder / "trial", world, np.random.default_rng(0))
    started = time.perf_counter()
    status = trial.go(lambda: faults.counted(trial.runs, lambda n: (folder / "operations").write_text(str(n))))
    assert status == 0, trial.said.read_text()
    trial.seconds, trial.operations = time.perf_counter() - started, int((folder / "operations").read_text())
    trial.largest = max(path.stat().st_size for path in trial.runs.rglob("*") if path.is_file())
    return trial


def attempt(row: Row, reference: Trial, k: int, seed: int, folder: Path) -> tuple[str, bool | None]:
    """One try of a row: what happened, and whether it then ended as undisturbed; None where this machine cannot be."""
    stage = reference.stage
    rng = np.random.default_rng([seed, zlib.crc32(f"{row.name}, {stage.name}".encode()), k])
    trial = Trial(stage, folder / f"{zlib.crc32(row.name.encode())}-{k}", reference.world, rng).like(reference)
    try:
        what = row.fault(trial)
        other = faults.differs(trial)
        return what + f" and ended with another {', '.join(other)}" * bool(other), not other
    except Skip as skip:
        return f"not tried: {skip}", None
    except (AssertionError, subprocess.TimeoutExpired) as error:  # it ended otherwise than it should
        return f"WRONG: {str(error)[:300]!r}", False
    finally:
        if os.path.ismount(trial.runs):
            subprocess.run(["umount", "-l", str(trial.runs)], check=True)


def write(found: dict) -> None:
    """Put a row into the table, in the place of a former one of the same fault and stage."""
    order = [(row.name, where) for row in ROWS for where in row.where]
    former = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    rows = {(row["what"], row["where"]): row for row in [*former, found]}
    with whole_file(TABLE) as partial_file, partial_file.open("w", newline="") as file:
        out = csv.DictWriter(file, found)
        out.writeheader()
        out.writerows(rows[key] for key in order if key in rows)


def campaign(rows: list[tuple[Row, str, int]], seed: int, report: Callable = print) -> list[dict]:
    """Try every (row, stage, times); a stage's small world is made once."""
    found = []
    with tempfile.TemporaryDirectory() as made:
        world = Path(made)
        known = stages(world, tuple({where for _, where, _ in rows}))
        references = {name: undisturbed(stage, world / f"undisturbed {name}", world) for name, stage in known.items()}
        for row, where, times in rows:
            tried = [attempt(row, references[where], k, seed, world / "tried" / where) for k in range(times)]
            happened = Counter(what for what, _ in tried)
            said = " · ".join(f"{count} × {what}" if times > 1 else what for what, count in happened.most_common())
            same = "" if tried[0][1] is None else f"{sum(ends for _, ends in tried)} of {times}"
            found.append({"what": row.name, "where": where, "times": times, "what_happened": said, "same": same, "seed": seed})
            write(found[-1])
            report(" | ".join(str(value) for value in found[-1].values()))
    return found


def main() -> int:
    """Run the campaign, or one row of it; the exit code is 1 if anything ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(prog="python tests/faults/campaign.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="faults by their names, or `fault, stage`")
    parser.add_argument("--times", type=int, help="how often each is tried, in place of the table's own numbers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [(row, where, args.times or row.times) for row in ROWS for where in row.where]
    names = {name for row, where, _ in rows for name in (row.name, f"{row.name}, {where}")}
    if unknown := set(args.only or ()) - names:
        parser.error(f"no fault {', '.join(unknown)}; there are {'; '.join(row.name for row in ROWS)}")
    chosen = [r for r in rows if args.only is None or {r[0].name, f"{r[0].name}, {r[1]}"} & {*args.only}]
    found = campaign(chosen, args.seed, partial(print, flush=True))
    return int(any(row["same"] not in ("", f"{row['times']} of {row['times']}") for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
