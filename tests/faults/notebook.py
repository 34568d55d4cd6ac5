"""Stop a real notebook, in a real kernel, while it trains; run again, it ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from faults import Trial, until

from abc_core.jobs.stages import write_job

CELLS = ('profile = "default"', "from abc_core.jobs.stages import read_job, run_job\n\nrun_job(read_job({job!r}))")
LONGEST = 600  # seconds that a notebook may take, on a busy machine
RUN = "import sys, pathlib; from abc_core.reproduce import run; run.run_notebook(pathlib.Path(sys.argv[1]))"


def stopped(trial: Trial, how: str) -> str:
    """SIGINT to all processes of the notebook, as Ctrl-C in a terminal gives it, or SIGTERM to its kernel, once it trains."""
    notebook, job = trial.folder / "00_train.ipynb", write_job(trial.stage.job, trial.folder / "job.yaml")
    cells = [dict(cell_type="code", metadata={}, source=c.format(job=str(job)), outputs=[], execution_count=None, id=f"c{k}") for k, c in
             enumerate(CELLS)]  # fmt: skip
    cells[0]["metadata"] = {"tags": ["parameters"]}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    process = _start(trial, notebook)
    try:
        until(lambda: any(trial.runs.glob("pretrain-*/metrics.jsonl")) or process.poll() is not None, LONGEST)
    except AssertionError:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if how == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(_kernel(process.pid), signal.SIGTERM)
    said = process.communicate(timeout=LONGEST)[0]
    finished = list(trial.runs.glob("pretrain-*/result.json"))
    if not finished:
        assert process.returncode != 0 and ("run again to" in said), said[-3000:]
    again = _start(trial, notebook)
    said = again.communicate(timeout=LONGEST)[0]
    assert again.returncode == 0, said[-3000:]
    return "done before" if finished else "says how to go on; run again to its end"


def _start(trial: Trial, notebook: Path) -> subprocess.Popen:
    environment = os.environ | {"ABC_RUNS": str(trial.runs)}
    clear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(notebook)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=clear,
    )  # fmt: skip


def _kernel(parent: int) -> int:
    """The process id of the kernel that a process started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")")[-1].split()[1]) == parent and b"ipykernel" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError(f"process {parent} has no kernel")
