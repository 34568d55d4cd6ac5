"""How many visual tokens a picture needs (Sec. 4.2, Figure 4): pixels of sets of pictures, accuracy and time at every budget of tokens.

One visual token is 28 × 28 pixels (two by two patches of 14, merged). A budget is the largest number of tokens of a picture: one with more
pixels is shrunk to it, with its sides rounded to whole tokens; one with fewer stays as it is, so a budget costs only where pixels are many.

Steps: (1) `tokens_of` is the rule, `sizes` reads pictures' sizes from their headers; (2) `row_of` measures a model at every budget;
(3) `recommend` a budget for a folder of pictures; (4) CLAIMS; (5) the figure.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from abc_core import claims, mmeb, paths, runlog
from abc_core.backbone import set_visual_tokens
from abc_core.data import Member, Skipped
from abc_core.evaluate import table_row, task_ranks
from abc_core.figures import BLUE, GREEN, GREY, INK, ORANGE, WIDTH, drawn
from abc_core.model import Embedder
from abc_core.openmoji.world import PARTS, World, data_folder
from abc_core.readers import karpathy_tasks
from abc_core.tasks import Task

SIDE = 28  # pixels of a token's side; Qwen2-VL
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


# --- 1. pixels and tokens -----------------------------------------------------------------------------------------------------------


def tokens_of(width: int, height: int, largest: int, smallest: int = 4, side: int = SIDE) -> int:
    """Visual tokens of a picture of so many pixels across and down, under a budget of `largest` of them.

    ValueError: a picture more than 200 times as long as wide, which the processor refuses.
    """
    high, wide = smart_resize(height, width, side, smallest * side**2, largest * side**2)
    return high * wide // side**2


def size_of(picture) -> tuple[int, int]:
    """(width, height) in pixels, from the header of a file or of a member of a zip file or shard; nothing is decoded."""
    with Image.open(BytesIO(picture.read()) if isinstance(picture, Member) else picture) as image:
        return image.size


def sizes(pictures: Sequence) -> np.ndarray:
    """int64[N, 2]: width and height of every picture."""
    return np.array([size_of(picture) for picture in pictures], dtype=np.int64)


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


@dataclass(frozen=True)
class Recommendation:
    """A budget of visual tokens for a folder of pictures; printed, it says why."""

    budget: int
    because: str
    pictures: int
    megapixels: tuple[float, float, float]  # 5 %, median, 95 %
    tokens: float  # of a picture on average, under this budget
    shrunk: float  # share of the pictures that lose pixels
    skipped: Skipped

    def __str__(self) -> str:
        low, median, high = (f"{1e6 * m:,.0f}" for m in self.megapixels)
        return (
            f"{self.budget} visual tokens: {self.because}\n{self.pictures:,} pictures, half above {median} pixels ({low} – {high}); "
            f"{self.tokens:.0f} tokens each, {100 * self.shrunk:.0f} % are shrunk\n{self.skipped}"
        )


def recommend(
    folder: Path | str, share: float = 0.95, smallest: int = 4, largest: int = 512, seconds: float | None = None, curve: dict | None = None
) -> Recommendation:
    """The smallest budget that leaves a `share` of the pictures of a folder as they are, if it is affordable.

    Args:
        smallest, largest: bounds of the budget; of Sec. 4, a model that was trained with at most 512 tokens.
        seconds: that a picture may take; then `curve` is that of a row of `row_of`, measured on the machine that will do the work.
    Raises:
        ValueError: no picture in the folder, seconds without a curve, or none of its budgets in that time.
    """
    skipped, found = Skipped(), []
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            width, height = size_of(path)
            tokens_of(width, height, largest, smallest)
            found.append((width, height))
        except (OSError, ValueError, ZeroDivisionError, Image.DecompressionBombError) as error:  # OSError: no picture that PIL knows, too
            skipped.leave_out(f"no picture that can be used ({type(error).__name__})", path, "header", str(error))
    if not found:
        raise ValueError(f"{folder} has no picture that can be used\n{skipped}")
    free = np.array([tokens_of(w, h, 1 << 30, smallest) for w, h in found])
    wanted = int(np.quantile(free, share, method="higher"))
    options = {wanted: f"{100 * share:g} % of the pictures keep their pixels", largest: "the model was trained with no more"}
    if seconds is not None:
        options[_affordable(curve, seconds)] = f"more would take longer than {1000 * seconds:g} ms a picture"
    budget = max(smallest, min(options))
    tokens = np.array([tokens_of(w, h, budget, smallest) for w, h in found])
    pixels = np.quantile(np.prod(np.array(found, dtype=float), axis=1) / 1e6, [0.05, 0.5, 0.95])
    because = options.get(budget, "the fewest that are allowed")
    return Recommendation(budget, because, len(found), tuple(pixels.tolist()), float(tokens.mean()), float((free > budget).mean()), skipped)


def _affordable(curve: dict | None, seconds: float) -> int:
    """Tokens of a picture in a given time, by the line through the slowest set's points."""
    if curve is None:
        raise ValueError("seconds were given without a curve of `row_of` to tell what a token takes")
    high = [k for k, name in enumerate(curve["set"]) if name == "high"]
    tokens, took = (np.array([curve[column][k] for k in high]) for column in ("tokens", "seconds"))
    slope, start = np.polyfit(tokens, took, 1)
    if slope <= 0:  # of so few tokens that their time drowns in what every picture takes
        return 1 << 30
    if seconds <= start:
        raise ValueError(f"{1000 * seconds:g} ms a picture is less than the {1000 * start:.1f} ms that a picture takes whatever its tokens")
    return int((seconds - start) / slope)


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
