"""Plain rows in, a matplotlib figure out; `save` writes the picture and the CSV it was drawn from."""

from abc_core.figures.benchmarks import (
    plot_by_kind,
    plot_ctrlbench,
    plot_failures,
    plot_probes,
    plot_table3,
    plot_wordings,
    plot_zero_shot,
    table3,
)
from abc_core.figures.pages import plot_contact_sheet, plot_gallery, plot_mining_sample, plot_regions
from abc_core.figures.style import save
from abc_core.figures.training import plot_memory, plot_similarities, plot_training

__all__ = [
    "plot_by_kind", "plot_contact_sheet", "plot_ctrlbench", "plot_failures", "plot_gallery", "plot_memory", "plot_mining_sample",
    "plot_probes", "plot_regions", "plot_similarities", "plot_table3", "plot_training", "plot_wordings", "plot_zero_shot", "save", "table3",
]  # fmt: skip
