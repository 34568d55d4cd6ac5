"""The fair miniature: every recipe from the same towers, at equal pictures seen and at equal seconds of training.

Steps: (1) `Fair` is all numbers of the table, and `job` the training that one of its entries needs; (2) `ledger` says what that will cost
before it starts; (3) `train_all` trains what is not trained yet, or goes on after a kill. `fair_table.table` then measures every system on
the same tasks. `python -m abc_core.recipes.fair FILE.yaml` does (2) and (3) in the background; the file has the fields of `Fair`.

Equal pictures: every recipe looks at `images` pictures in training; ABC's are those of both stages; one that sees no picture reads as many
captions. Equal seconds: as many steps as fit into `seconds` at the pace of the recipe's own run of the other budget, so that the number of
steps, and with it the run, is fixed once measured.
**Caveat:** seconds are those of one machine and one process.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.jobs import stages as jobs
from abc_core.recipes.recipes import RECIPES
from abc_core.recipes.train import STARTS, RecipeJob
from abc_core.runs.arrays import spell

BUDGETS = ("images", "seconds")
WARM = 2  # steps that are left out of a pace


class Entry(NamedTuple):
    """A run of the table."""

    recipe: str
    start: str
    budget: str
    seed: int


# --- 1. numbers -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fair:
    """Folders and numbers of the table.

    Args:
        backbone, pairs, regions: folders, as of `RecipeJob`.
        images: pictures that each recipe sees. seconds: of training, for the other budget.
        queries: pictures a step. share: of the pictures, those with instructions, for recipes that are trained on any.
        learning_rate: the highest, of all but ABC's second stage, which has its own.
        negatives: further captions of the bank for each query of ABC's second stage.
    Raises:
        ValueError: an unknown recipe, start or budget, or seconds alone.
    """

    backbone: str
    pairs: str
    regions: str
    recipes: Sequence[str] = tuple(RECIPES)
    starts: Sequence[str] = STARTS
    budgets: Sequence[str] = BUDGETS
    seeds: Sequence[int] = (0,)
    images: int = 4096
    seconds: float = 100.0
    queries: int = 32
    share: float = 0.5
    learning_rate: float = 1e-3
    instruct_learning_rate: float = 4e-3
    negatives: int = 19

    def __post_init__(self):
        for name, known in (("recipes", RECIPES), ("starts", STARTS), ("budgets", BUDGETS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} = {list(getattr(self, name))}; known are {', '.join(known)}")
        if "images" not in self.budgets:
            raise ValueError("budgets = ['seconds']; equal seconds take their pace from equal pictures, so name both")

    @classmethod
    def read(cls, path: Path) -> "Fair":
        """From a YAML file with these fields; ValueError: it has another."""
        given, known = yaml.safe_load(Path(path).read_text()), [f.name for f in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{path} has {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**given)

    @property
    def entries(self) -> list[Entry]:
        """All runs: those of equal pictures first, as the others take their pace from them."""
        budgets = sorted(self.budgets, key=BUDGETS.index)
        return [Entry(r, start, b, seed) for b in budgets for seed in self.seeds for start in self.starts for r in self.recipes]

    def job(self, entry: Entry) -> RecipeJob:
        """The training of an entry.

        Raises:
            FileNotFoundError: it needs the pace of a run that is not finished.
        """
        if entry.budget == "images":
            return self._job(entry, self.images / self.queries, self.images / self.queries)
        measured = self.job(entry._replace(budget="images", seed=self.seeds[0]))
        steps = [self.seconds / pace(part) for part in measured.parts]
        return self._job(entry, steps[0], steps[-1])

    def _job(self, entry: Entry, steps: float, second_steps: float) -> RecipeJob:
        """A job of so many steps; of ABC's two stages each has its share of what it would have alone."""
        shared = dict(seed=entry.seed, save_every=20)
        first = 1 - self.share if RECIPES[entry.recipe].data == "stages" else 1
        second = InstructConfig(
            steps=max(1, round(second_steps * self.share)), images=self.queries, negatives=self.negatives,
            learning_rate=self.instruct_learning_rate, **shared,
        )  # fmt: skip
        config = PretrainConfig(
            steps=max(1, round(steps * first)), queries=self.queries, negatives=0, learning_rate=self.learning_rate,
            temperature_factor=10.0, lora=LoraConfig(64, 128), **shared,
        )  # fmt: skip
        folders = dict(backbone=self.backbone, pairs=self.pairs, regions=self.regions)
        second = second if RECIPES[entry.recipe].data == "stages" else None
        return RecipeJob(recipe=entry.recipe, start=entry.start, config=config, share=self.share, second=second, **folders)


def pace(job: RecipeJob) -> float:
    """Mean seconds of a step of a finished run; the first ones are slower, and left out."""
    run = job.open(lock=False)
    run.result()  # finished?
    seconds = [row["seconds"] for row in run.rows()]
    return float(np.mean(seconds[WARM:] or seconds))


# --- 2, 3. training -------------------------------------------------------------------------------------------------------------


def ledger(fair: Fair) -> list[dict]:
    """A row for each run: recipe, start, budget, seed, whether it is finished, and the seconds that are left of it, by a rough guess."""
    rows = []
    for entry in fair.entries:
        try:
            finished = fair.job(entry).open(lock=False).finished
        except FileNotFoundError:
            finished = False
        guess = fair.images / 32 * RECIPES[entry.recipe].seconds if entry.budget == "images" else fair.seconds
        rows.append(entry._asdict() | {"finished": finished, "seconds": 0.0 if finished else guess})
    return rows


def train_all(fair: Fair, report: Callable = print) -> None:
    """Train every run of the table that is not finished; the ledger comes first."""
    rows = ledger(fair)
    left = sum(row["seconds"] for row in rows)
    report(f"{len(rows)} runs, {sum(row['finished'] for row in rows)} of them finished · about {spell(left)} of training left")
    for entry in fair.entries:
        job = fair.job(entry)
        if not job.open(lock=False).finished:
            report(f"--- {' · '.join(map(str, entry))}")
            jobs.run_job(job, report=report)


if __name__ == "__main__":
    train_all(Fair.read(Path(sys.argv[1])))
