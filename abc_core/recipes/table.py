"""The rows of the fair miniature (`abc_core.recipes.fair`): every trained system on the same evaluation sets, each measured once.

Steps: (1) `hits` says which queries of a set a system answers; (2) `table` puts sets, and seeds, together in a row for each recipe, start
and budget; (3) `plot_fair` draws the rows of a budget.
**Caveat:** the intervals are over the pictures of the sets, not over seeds; R@1 depends on the number of candidates.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from abc_core.ctrlbench import baselines
from abc_core.data.tasks import Task
from abc_core.evaluation import zero_shot
from abc_core.evaluation.metrics import bootstrap_interval, task_ranks
from abc_core.figures.style import BLUE, GREY, INK, ORANGE, WIDTH, drawn, table_of, whiskers
from abc_core.recipes.fair import Entry, Fair
from abc_core.recipes.recipes import RECIPES
from abc_core.recipes.train import RecipeJob, trained
from abc_core.runs import run as runlog

# --- 1. one system on one set ---------------------------------------------------------------------------------------------------


def hits(task: Task, system) -> np.ndarray:
    """bool[Q]: does the best right candidate of a query score above all wrong ones? Ties are misses. No embedding is kept."""
    with TemporaryDirectory() as folder:
        (q_emb, q_row), (c_emb, c_row) = zero_shot.queries(task, system, folder), zero_shot.candidates(task, system, folder)
        return task_ranks(zero_shot.score_blocks(system, q_emb, c_emb, q_row, c_row), task.right, task.choices)[0] < 1


def images_per_second(system, pictures: Sequence, count: int = 128) -> float:
    """How many pictures a system embeds in a second, decoding included; after a few that warm it up."""
    pictures = list(pictures[:count])
    system.embed(images=pictures[:16])
    start = time.perf_counter()
    system.embed(images=pictures)
    return len(pictures) / (time.perf_counter() - start)


# --- 2. the table ---------------------------------------------------------------------------------------------------------------


def table(fair: Fair, tasks: Mapping[str, Sequence[Task]], report: Callable = print) -> list[dict]:
    """One row for each recipe, start and budget, of finished runs; what was measured is kept, so a killed call goes on.

    Args:
        tasks: column -> the evaluation sets that it puts together; their queries count alike.
    Returns:
        {recipe, after, start, budget, data, seeds, steps, images, queries, seconds, images_per_second}, and of every column R@1 in per
        cent, as `column`, with `column_low` and `column_high`: means over seeds, and the 95 % interval over pictures of this mean.
    Raises:
        FileNotFoundError: a run is not finished.
    """
    jobs = [[fair.job(Entry(r, s, b, seed)) for seed in fair.seeds] for b in fair.budgets for r in fair.recipes for s in fair.starts]
    budgets = [b for b in fair.budgets for _ in range(len(fair.recipes) * len(fair.starts))]
    return [_row(budget, seeds, tasks, report) for budget, seeds in zip(budgets, jobs)]


def chance(tasks: Mapping[str, Sequence[Task]]) -> dict:
    """What a system gets that draws a candidate: {recipe: "chance", column: per cent, …}."""
    row = {"recipe": "chance", "after": "chance"}
    for column, sets in tasks.items():
        row[column] = 100 * float(np.concatenate([baselines.chance(task, 1) for task in sets]).mean())
    return row


def _row(budget: str, seeds: list[RecipeJob], tasks: Mapping[str, Sequence[Task]], report: Callable) -> dict:
    job, measured = seeds[0], [_measured(each, tasks, report) for each in seeds]
    trainings = [[step for part in each.parts for step in part.open(lock=False).rows()] for each in seeds]
    row = {
        "recipe": job.recipe, "after": RECIPES[job.recipe].after, "start": job.start, "budget": budget, "data": job.data,
        "seeds": len(seeds), "steps": len(trainings[0]), **job.seen,
        "seconds": round(float(np.mean([sum(step["seconds"] for step in steps) for steps in trainings])), 1),
        "images_per_second": round(float(np.mean([run.result()["images_per_second"] for run in measured])), 1),
    }  # fmt: skip
    for column, sets in tasks.items():
        found = np.mean([next(r["hits"] for r in run.rows() if r["column"] == column) for run in measured], axis=0)  # Q
        groups = np.concatenate([[f"{k}/{group}" for group in task.groups] for k, task in enumerate(sets)])
        low, high = bootstrap_interval(found, groups)
        row |= {column: 100 * float(found.mean()), f"{column}_low": low, f"{column}_high": high}
    return row


def _measured(job: RecipeJob, tasks: Mapping[str, Sequence[Task]], report: Callable) -> runlog.Run:
    """The run that holds which queries of each column a trained system answers, and how many pictures it embeds a second."""
    keys = {column: [task_key(task) for task in sets] for column, sets in tasks.items()}
    run = runlog.open_run("fair", {"tasks": keys}, {"trained": job.open(lock=False).folder.name})
    if run.finished:
        return run
    system, done = trained(job), [row["column"] for row in run.rows()]
    for column in [column for column in tasks if column not in done]:
        start = time.perf_counter()
        found = np.concatenate([hits(task, system) for task in tasks[column]])
        run.log(column=column, hits=found.astype(int).tolist())
        report(f"{job.recipe} from {job.start} · {column} {100 * found.mean():.1f} % · {time.perf_counter() - start:.0f} s")
    pictures = next(task.pictures for sets in tasks.values() for task in sets if len(task.pictures))
    run.finish(images_per_second=images_per_second(system, pictures))
    return run


def task_key(task: Task) -> str:
    """16 hex digits of what a set asks; pictures by the end of their path, of which a drawn folder's name is a fingerprint."""
    names = [["/".join(Path(str(p)).parts[-3:]) for p in part] for part in (task.pictures, task.candidates)]
    numbers = [None if rows is None else [list(map(int, row)) for row in rows] for rows in (task.right, task.choices)]
    return runlog.fingerprint(repr([task.name, names, task.shown.tolist(), list(task.texts), numbers]))


# --- 3. the figure --------------------------------------------------------------------------------------------------------------


@drawn
def plot_fair(rows: Sequence[dict], columns: Mapping[str, str]):
    """A panel for each column, a line for each recipe: filled from the backbone, hollow from random weights; bars are 95 % intervals.

    Args:
        rows: of `table`, of one budget, and perhaps that of `chance`. columns: column -> its title.
    """
    table = table_of(rows, ("recipe", "after", *columns))
    recipes = [r for r in table["recipe"].unique() if r != "chance"][::-1]
    fig, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 1.0 + 0.3 * len(recipes)), sharey=True, squeeze=False)
    for axis, (column, title) in zip(axes[0], columns.items()):
        for start, shift, colour, face in (("pretrained", 0.14, BLUE, BLUE), ("scratch", -0.14, ORANGE, "white")):
            part = table[table["start"] == start] if "start" in table else table
            if part.empty:
                continue
            y = part["recipe"].map(recipes.index) + shift
            spread = whiskers(part[column], part[f"{column}_low"], part[f"{column}_high"])
            axis.errorbar(part[column], y, xerr=spread, fmt="o", color=colour, mfc=face, ms=4, elinewidth=1, label=start)
        for level in table.loc[table["recipe"] == "chance", column]:
            axis.axvline(level, color=GREY, linewidth=0.8, linestyle=":")
        axis.set_title(title, fontsize=8)
        axis.set(xlim=(0, None), ylim=(-0.6, len(recipes) - 0.4), xlabel="R@1 in per cent")
    after = table.drop_duplicates("recipe").set_index("recipe")["after"]
    axes[0, 0].set(yticks=range(len(recipes)), yticklabels=[after[r].split(" (")[0] for r in recipes])
    axes[0, 0].tick_params(axis="y", labelcolor=INK)
    if len(axes[0, -1].get_legend_handles_labels()[1]) > 1:
        fig.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return fig
