"""Several processes of this machine that do one job, started from a notebook's cell and ended with it.

Steps: (1) `launch` starts torch's own launcher on this module and passes its lines on; (2) `main` is what each process runs: it joins the
others and works (`abc_core.jobs`). `python -m torch.distributed.run --nproc_per_node N -m abc_core.launch JOB` does the same by hand.

Whatever ends one of them ends all: torch's launcher ends the others when one fails, the system ends them when their parent is gone, and
one that waits for another says so, and gives up after ABC_PATIENCE seconds (an hour; see `abc_core.parallel`).
"""

import argparse
import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from abc_core.parallel import PATIENCE

LAST_STEP = 600  # seconds that a process has, once it is told to stop, to end its step and save it; torch's launcher would give it 30


def launch(job: Path, processes: int, report: Callable = print) -> None:
    """Do a job in `processes` processes; Ctrl-C stops training after the step under way, saved, and a second one, or mining, at once.

    Raises:
        RuntimeError: a process failed, or was killed; with the last lines that were said.
        KeyboardInterrupt: after Ctrl-C, with the step that was saved.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))}
    child = subprocess.Popen(
        [*torchrun, f"--shutdown-timeout={LAST_STEP}", "-m", "abc_core.launch", str(job)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | threads, preexec_fn=_end_with_parent, start_new_session=True,
    )  # fmt: skip
    said = deque(maxlen=60)
    try:
        for line in child.stdout:
            said.append(line.rstrip())
            report(said[-1])
        child.wait()
    except KeyboardInterrupt as interrupt:
        child.terminate()  # the launcher hands it on; every process saves its step
        stopped = [line.strip() for line in child.stdout if line.startswith("stopped ")]
        child.wait()
        raise KeyboardInterrupt(stopped[-1] if stopped else "stopped before a step was done; run again to continue") from interrupt
    finally:
        if child.poll() is None:  # a second Ctrl-C, or `report` failed: the processes end with their parent
            child.kill()
        child.wait()
    if child.returncode:
        code = child.returncode
        how = f"failed with exit code {code}" if code > 0 else f"were ended by {signal.Signals(-code).name}"
        raise RuntimeError("\n".join([f"{job}: {processes} processes {how}; what they saved is intact", *said]))


@record  # torch's launcher ends its report with the traceback of the process that failed first
def main(words: list[str] | None = None) -> None:
    """Do a job as one of the processes that torch's launcher started."""
    # Optimizers import this. Imported with the others joined, its default arguments keep the process group, so that destroying it ends no
    # thread, and one that still frees a tensor while the interpreter goes aborts the process (pytorch/pytorch#179291).
    importlib.import_module("torch.distributed.nn.functional")
    from abc_core.jobs import read_job

    parser = argparse.ArgumentParser(prog="python -m abc_core.launch", description=main.__doc__)
    parser.add_argument("job", type=Path, help="a file of abc_core.jobs.write_job")
    job = read_job(parser.parse_args(words).job)
    _end_with_parent()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=PATIENCE))
    try:
        job.do(job.open(lock=dist.get_rank() == 0))
    except KeyboardInterrupt as stop:
        if dist.get_rank() == 0:
            print(stop, flush=True)
        sys.exit(1)
    dist.destroy_process_group()  # not after a failure: it would wait for processes that are gone


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent process ends, so that nothing works on behind a notebook that is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    main()
