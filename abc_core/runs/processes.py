"""Processes that work on one thing: who am I, my share, waiting for the others and saying so."""

import os
import threading
from contextlib import contextmanager

import torch
import torch.distributed as dist

PATIENCE = float(os.environ.get("ABC_PATIENCE") or 3600)  # seconds that processes wait for each other before they give up


WORD = PATIENCE / 12  # seconds after which one that waits says so, again and again


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside of `torch.distributed`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def any_process(flag: bool) -> bool:
    """Is the flag set in any process? All must ask."""
    if rank_and_count()[1] == 1:
        return flag
    raised = torch.tensor(float(flag), device=_device())
    dist.all_reduce(raised)
    return raised.item() > 0


def wait(what: str = "the others") -> None:
    """Until every process is here; `what` is waited for: "process 0 to save step 100".

    Raises:
        RuntimeError: another process ended, or did not come within PATIENCE.
    """
    with aloud(f"waits for {what}"):
        try:
            any_process(False)
        except RuntimeError as error:
            raise RuntimeError(f"process {rank_and_count()[0]} waited for {what}, in vain: {error}") from error


@contextmanager
def aloud(what: str):
    """While the block of one of several processes lasts, print every WORD seconds that it still `what`, so that a hang is seen at once."""
    rank, count = rank_and_count()
    over = threading.Event()

    def speak():
        told = 1
        while not over.wait(WORD):
            print(f"process {rank} of {count} {what} for {told * WORD / 60:.1f} min now", flush=True)
            told += 1

    if count > 1:
        threading.Thread(target=speak, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _device() -> str:
    """Where the processes' tensors have to be."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def share(rows, rank: int, count: int):
    """The rows of process `rank` of `count`: consecutive, the same number for each.

    Raises:
        ValueError: the rows cannot be divided evenly.
    """
    if len(rows) % count:
        raise ValueError(f"{len(rows)} rows of a batch cannot be shared evenly by {count} processes")
    size = len(rows) // count
    return rows[rank * size : (rank + 1) * size]
