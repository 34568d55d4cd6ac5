"""Several processes of this machine that do one job, started from a notebook's cell and ended with it.

`launch` starts torch's own launcher on `abc_core.jobs`, whose main is what each process runs, and passes its lines on.
`python -m torch.distributed.run --nproc_per_node N -m abc_core.jobs JOB` does the same by hand.

Whatever ends one of them ends all: torch's launcher ends the others when one fails, the system ends them when their parent is gone, and
one that waits for another says so, and gives up after ABC_PATIENCE seconds (an hour; see `abc_core.runs.processes`).
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

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
        [*torchrun, f"--shutdown-timeout={LAST_STEP}", "-m", "abc_core.jobs", str(job)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | threads, preexec_fn=end_with_parent, start_new_session=True,
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


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent process ends, so that nothing works on behind a notebook that is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
