"""`python -m abc_core.jobs JOB` does a job; `abc_core.jobs.launch` starts several of these, which join each other and share the work."""

import argparse
import importlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from abc_core.jobs.launch import end_with_parent
from abc_core.runs.processes import PATIENCE


@record  # torch's launcher ends its report with the traceback of the process that failed first
def main(words: list[str] | None = None) -> None:
    """Do a job: in this process, or as one of those that torch's launcher started."""
    # Optimizers import this. Imported with the others joined, its default arguments keep the process group, so that destroying it ends no
    # thread, and one that still frees a tensor while the interpreter goes aborts the process (pytorch/pytorch#179291).
    importlib.import_module("torch.distributed.nn.functional")
    from abc_core.jobs.stages import read_job, run_job

    parser = argparse.ArgumentParser(prog="python -m abc_core.jobs", description=main.__doc__)
    parser.add_argument("job", type=Path, help="a file of abc_core.jobs.stages.write_job")
    job = read_job(parser.parse_args(words).job)
    if "RANK" not in os.environ:
        run_job(job)
        return
    end_with_parent()
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


if __name__ == "__main__":
    main()
