"""CtrlBench (Sec. 4.4): built from regions and instructions, loaded, scored by kind and probed."""

from abc_core.ctrlbench.benchmark import load
from abc_core.ctrlbench.construction import build, compare_with_training, per_kind, task

__all__ = ["build", "compare_with_training", "load", "per_kind", "task"]
