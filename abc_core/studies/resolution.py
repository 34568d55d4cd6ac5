"""How many visual tokens a picture needs (Sec. 4.2, Figure 4): pixels of sets of pictures, accuracy and time at every budget of tokens.

One visual token is 28 × 28 pixels (two by two patches of 14, merged). A budget is the largest number of tokens of a picture: one with more
pixels is shrunk to it, with its sides rounded to whole tokens; one with fewer stays as it is, so a budget costs only where pixels are many.

Steps: (1) `tokens_of` is the rule, `sizes` reads pictures' sizes from their headers; (2) `row_of` measures a model at every budget;
(3) `recommend` a budget for a folder of pictures; (4) CLAIMS; (5) the figure.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from abc_core.backbone import set_visual_tokens
from abc_core.data import mmeb
from abc_core.data.karpathy import karpathy_tasks
from abc_core.data.tasks import Task
from abc_core.evaluation.metrics import table_row, task_ranks
from abc_core.figures.style import BLUE, GREEN, GREY, INK, ORANGE, WIDTH, drawn
from abc_core.miniature.parts import PARTS, data_folder
from abc_core.miniature.world import World
from abc_core.model import Embedder
from abc_core.own_pictures.visual_tokens import SIDE, sizes, tokens_of
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.studies import claims

# --- 1. pixels and tokens -----------------------------------------------------------------------------------------------------------








def task_of(name: str, count: int, world: World, folder: str = "", report: Callable | None = None) -> Task:
    """An evaluation set: a part of the drawn world with `count` pictures (image to text), a Karpathy file, or a classification set of
    `folder`, which is in MMEB's layout."""
    if name in PARTS:
        return karpathy_tasks(data_folder(name, count, world, report) / "dataset_openmoji.json")[0]
    if name.endswith(".json"):
        return karpathy_tasks(paths.ROOT / name)[0]
    return mmeb.read_mmeb(paths.ROOT / folder, name, "classification")[0]


# --- 2. accuracy and time at every budget -------------------------------------------------------------------------------------------


def row_of(arm: str, seed: int, model: Path, tasks: Mapping[str, Task], budgets: Sequence[int], device: str = "cpu", report=None) -> dict:
    """What a trained model gets of every set at every budget; measured once, and kept in a run of its own.

    Args:
        arm: what the model is, in words. model: its model.safetensors. tasks: "low" and "high", of few and of many pixels.
    Returns:
        {study, arm, seed, run, commit, low_gain, high_gain, curve}: gains are in points of R@1 from the smallest to the largest budget;
        curve has the columns set, budget, tokens (a picture's, on average), r1, r1_low, r1_high (per cent), seconds (a picture's).
    """
    sets = {name: _fingerprint(task) for name, task in tasks.items()}
    run = runlog.open_run("resolution", {"budgets": list(budgets)}, {"model": runlog.fingerprint(Path(model))} | sets)
    if not run.finished:
        embedder = Embedder.load(model, device)
        run.finish(points=[point for name, task in tasks.items() for point in measure(embedder, name, task, budgets, report)])
    points = run.result()["points"]
    r1 = {(point["set"], point["budget"]): point["r1"] for point in points}
    gains = {f"{name}_gain": r1[name, max(budgets)] - r1[name, min(budgets)] for name in tasks}
    commit = json.loads((Path(model).parent / "provenance.json").read_text())["commit"]
    row = {"study": "resolution", "arm": arm, "seed": seed, "run": Path(model).parent.name, "commit": commit, **gains}
    return row | {"curve": {k: [point[k] for point in points] for k in points[0]}}


def measure(embedder, name: str, task: Task, budgets: Sequence[int], report=None) -> list[dict]:
    """Points of the curve of one set. Where a larger budget changes no picture, the last point stands for it too."""
    smallest, c_emb = embedder.built.get("min_visual_tokens", 4), embedder.embed(texts=list(task.candidates))
    side, points, before = _side(embedder), [], None
    for budget in sorted(budgets):
        tokens = [tokens_of(w, h, max(budget, smallest), smallest, side) for w, h in sizes(task.pictures)]
        if tokens != before:
            set_visual_tokens(embedder.processor, smallest, max(budget, smallest))
            start = time.perf_counter()
            q_emb = embedder.embed(images=list(task.pictures))
            seconds = (time.perf_counter() - start) / len(task.pictures)
            rank, _ = task_ranks([q_emb[task.shown] @ c_emb.T], task.right, task.choices)
            found = {k: v for k, v in table_row("", rank, task.groups).items() if k in ("r1", "r1_low", "r1_high")}
            before = tokens
            if report:
                mean = np.mean(tokens)
                report(f"{name}: at most {budget} tokens, {mean:.0f} on average · R@1 {found['r1']:.1f} · {1000 * seconds:.0f} ms")
        points.append({"set": name, "budget": budget, "tokens": float(np.mean(tokens)), **found, "seconds": seconds})
    return points


def _fingerprint(task: Task) -> str:
    """Of its texts, and of its pictures' names and sizes."""
    shown = (f"{p.name} {w} {h}" for p, (w, h) in zip(task.pictures, sizes(task.pictures).tolist()))
    return runlog.fingerprint(task.name, *task.candidates, *(str(list(r)) for r in task.right), *shown)


def _side(embedder) -> int:
    images = embedder.processor.image_processor
    if not hasattr(images, "merge_size"):
        raise ValueError(f"a {embedder.family} cuts pictures into square tiles: the number of its tokens is no matter of pixels alone")
    return images.patch_size * images.merge_size


# --- 3. a budget for a folder -------------------------------------------------------------------------------------------------------








# --- 4. the claim -------------------------------------------------------------------------------------------------------------------

NEAR = 5.0  # points: a fifth of the 23.4 that ObjectNet gains in the paper (Sec. 4.2)


def parts_of_10(rows: Sequence[dict]) -> dict:
    """In words -> (estimate, verdict) of each part of claim 10, over models of several stage-1 seeds."""
    mined = [r for r in rows if (r["study"], r["arm"]) == ("resolution", "mined")]
    low, high = ([r[f"{name}_gain"] for r in mined] for name in ("low", "high"))
    return {
        "gain of the high-pixel set minus that of the low-pixel set, above 0": claims.above(claims.estimate(np.subtract(high, low))),
        f"gain of the low-pixel set, within ± {NEAR:g}": claims.alike(claims.estimate(low), NEAR),
    }


CLAIMS = [
    claims.Claim(
        10, "More visual tokens at test time help where pixels are many, not where they are few", "Sec. 4.2, Fig. 4",
        f"points of R@1 from the fewest to the most tokens: high-pixel set minus low-pixel set above 0, low-pixel set within ± {NEAR:g}",
        lambda rows: claims.all_of(*parts_of_10(rows).values()), "points of R@1, high minus low", "05_resolution_study",
    ),
]  # fmt: skip


# --- 5. the figure ------------------------------------------------------------------------------------------------------------------

LOOKS = {"low": (ORANGE, "s", "--", "few pixels"), "high": (BLUE, "o", "-", "many pixels")}


def pixels_of(name: str, pictures: Sequence) -> dict:
    """How many pictures of a set have which size, in a row that is kept beside those of the models."""
    found, counts = np.unique(sizes(pictures), axis=0, return_counts=True)
    curve = {"width": found[:, 0].tolist(), "height": found[:, 1].tolist(), "pictures": counts.tolist()}
    return {"study": "pixels", "arm": name, "seed": 0, "run": "", "commit": runlog.commit()["commit"], "curve": curve}


def tidy(rows: Sequence[dict], study: str) -> list[dict]:
    """A row for every point of every curve of a study, for a CSV."""
    named = ("study", "arm", "seed", "profile", "run")
    mine = [row for row in rows if row["study"] == study]
    return [{k: r[k] for k in named} | dict(zip(r["curve"], point)) for r in mine for point in zip(*r["curve"].values())]


@drawn
def plot_resolution(rows: Sequence[dict]):
    """Figure 4: pixels of the sets; and R@1 against the budget of tokens, with what a picture takes on a second axis.

    Args:
        rows: of `row_of` and `pixels_of`, each with its `profile`. Several seeds of an arm are drawn as their mean and its interval over
            seeds; a single model with its interval over pictures.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.5), width_ratios=(1, 1.25))
    _plot_pixels(left, [row for row in rows if row["study"] == "pixels"])
    points = tidy(rows, "resolution")
    arms = list(dict.fromkeys(p["arm"] for p in points))
    for arm in arms:
        for name, (colour, marker, dash, label) in LOOKS.items():
            mine = [p for p in points if (p["arm"], p["set"]) == (arm, name)]
            _plot_accuracy(right, mine, colour, marker, dash, f"{label}, {arm}", faint=arm != arms[0])
    times = right.twinx()
    high = [p for p in points if p["set"] == "high" and p["arm"] == arms[0]] if arms else []
    budgets = sorted({p["budget"] for p in high})
    times.plot(budgets, [1000 * np.mean([p["seconds"] for p in high if p["budget"] == b]) for b in budgets], ":", color=GREY, linewidth=1.2)
    times.set(ylabel="ms a picture, many pixels (dotted)", ylim=(0, None))
    times.grid(False)
    times.spines["right"].set_visible(True)
    right.set(title="Accuracy and time by budget", xlabel="visual tokens at most", ylabel="R@1 (%)", xscale="log", ylim=(0, None))
    right.set_xticks(budgets, [str(b) for b in budgets])
    right.xaxis.set_minor_formatter(NullFormatter())
    if points:
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
    return fig


def _plot_pixels(axis, rows: Sequence[dict]) -> None:
    """A line for each set: dots at the pixel counts that it has, as large as their share, and a bar at the median."""
    labels = []
    for y, row in enumerate(rows):
        counts = np.array(row["curve"]["pictures"])
        pixels = np.multiply(row["curve"]["width"], row["curve"]["height"])
        median = np.median(np.repeat(pixels, counts))
        if len(pixels) > 30:  # photographs have nearly all different sizes
            counts, edges = np.histogram(pixels, np.geomspace(pixels.min(), pixels.max() * 1.01, 31), weights=counts)
            pixels = np.sqrt(edges[1:] * edges[:-1])
        axis.scatter(pixels, np.full(len(pixels), y), s=250 * counts / counts.sum(), color=GREEN, alpha=0.5, linewidth=0)
        axis.plot(median, y, "|", color=INK, markersize=11)
        labels.append(f"{row['arm'].replace('_', ' ')}\n({median / SIDE**2:.0f} tokens)")
    axis.set(title="Pixels of the sets", xscale="log", xlabel="pixels (bar, and number in brackets: median)", ylim=(-0.6, len(rows) - 0.4))
    axis.set_yticks(range(len(rows)), labels)
    axis.margins(x=0.15)
    axis.grid(False, axis="y")


def _plot_accuracy(axis, points: Sequence[dict], colour, marker: str, dash: str, label: str, faint: bool) -> None:
    xs, means, ends = sorted({p["budget"] for p in points}), [], []
    for x in xs:
        here = [p for p in points if p["budget"] == x]
        found = claims.estimate([p["r1"] for p in here])
        means.append(found.value)
        ends.append((here[0]["r1_low"], here[0]["r1_high"]) if found.low is None else (found.low, found.high))
    if xs:
        spread = np.clip([[m - low for m, (low, _) in zip(means, ends)], [high - m for m, (_, high) in zip(means, ends)]], 0, None)
        style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": dash, "linewidth": 1.2, "capsize": 2, "elinewidth": 1}
        axis.errorbar(xs, means, yerr=spread, label=label, alpha=0.45 if faint else 1, **style)
