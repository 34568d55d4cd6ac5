"""Work written down, a stage's training or mining, so that a notebook and several processes do the same; and what it will take."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abc_core.jobs.stages import InstructJob, MineJob, PretrainJob, job_of, run_job

__all__ = ["InstructJob", "MineJob", "PretrainJob", "job_of", "run_job"]


def __getattr__(name: str):
    """The jobs load torch and transformers when they are first named; `jobs.cost` and `jobs.memory` go without them."""
    if name in __all__:
        return getattr(import_module("abc_core.jobs.stages"), name)
    raise AttributeError(f"module 'abc_core.jobs' has no attribute {name!r}")
