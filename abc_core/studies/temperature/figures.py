"""The figures of the temperature study, from rows of `temperature.row_of` and `row_of_curve`; an arm without rows is left out.

Each seed is a thin line, the mean of several a thick one, with its 95 % interval of Student's t from three seeds on. A dot at the end of a
line marks a run of this profile where others were drawn from committed logs.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator, NullFormatter

from abc_core.figures.style import BLUE, GREEN, GREY, INK, ORANGE, RED, WIDTH, drawn
from abc_core.studies import claims
from abc_core.studies.temperature.arms import SPIKE

LOOKS = {"mined": (BLUE, "-"), "random": (ORANGE, "--")}


def points(rows: Sequence[dict], *which: str) -> list[dict]:
    """A tidy row for every point of every curve of some studies, for a CSV."""
    out = []
    for row in rows:
        if row["study"] in which:
            named = {k: row[k] for k in ("study", "arm", "seed", "profile", "run")}
            out += [named | dict(zip(row["curve"], values)) for values in zip(*row["curve"].values())]
    return out


def numbers(rows: Sequence[dict]) -> list[dict]:
    """The single numbers of every arm, without its curves, for a CSV."""
    return [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows if "loss" in row]


@drawn
def plot_dynamics(rows: Sequence[dict]):
    """Figure 5: gradient norm from several starts of τ; τ with mined and with random negatives; validation accuracy with both."""
    fig, axes = _panels(3.6)
    starts = _starts(rows)
    axes[0].set(title="Gradient norm by start of τ", xlabel="step", yscale="log")
    for (value, arm), colour in zip(starts, _shades(len(starts))):
        _curve(axes[0], rows, "starts", arm, "gradient_norm", colour, "-", f"{value:g}")
    _empty(axes[0], rows, "starts")
    for name, (colour, _) in LOOKS.items():
        for study, dash, label in (("raw", "-", "τ itself"), ("negatives", "--", "log τ")):
            _curve(axes[1], rows, study, name, "temperature", colour, dash, f"{name}, {label}")
    _empty(axes[1], rows, "raw", "negatives")
    axes[1].axhline(0, color=INK, linewidth=0.8)
    axes[1].set(title="τ by negatives", xlabel="step")
    for name, (colour, _) in LOOKS.items():
        for column, marker, dash in (("val_accuracy", "o", "-"), ("ood_accuracy", "s", "--")):
            _validation(axes[2], rows, "negatives", name, column, colour, marker, dash)
    _empty(axes[2], rows, "negatives")
    axes[2].set(title="Validation accuracy (%)", xlabel="step", xlim=(0, None), ylim=(0, None))
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if axis.get_legend_handles_labels()[0]:
            _legend(axis, 3 if axis is axes[0] else 1)
    return fig


@drawn
def plot_starts(rows: Sequence[dict]):
    """τ over steps from every start; the largest gradient over the median from 0.07; accuracy at the end, with fixed τ too."""
    fig, axes = _panels(3.6)
    starts = _starts(rows)
    if starts:
        axes[0].set_yscale("log")
        axes[0].set_yticks([v for v, _ in starts], [f"{v:g}" for v, _ in starts])
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    for (value, arm), colour in zip(starts, _shades(len(starts))):
        _curve(axes[0], rows, "starts", arm, "temperature", colour, "-", f"{value:g}")
        _curve(axes[0], rows, "starts", f"{arm}, log", "temperature", colour, ":", f"{value:g}, log τ")
    axes[0].set(title="τ from every start", xlabel="step")
    median = claims.by_seed(rows, "starts", "0.07", "gradient_median")
    for suffix, colour, marker, label in (("", BLUE, "o", "τ itself"), (", log", ORANGE, "s", "log τ")):
        found = [(v, claims.by_seed(rows, "starts", arm + suffix, "gradient_largest")) for v, arm in starts]
        ratios = [(v, [np.log10(n / median[s]) for s, n in by.items() if s in median]) for v, by in found]
        _dots(axes[1], [(v, r) for v, r in ratios if r], colour, marker, label, power=True)
    axes[1].axhline(SPIKE, color=RED, linestyle="--", linewidth=1)
    axes[1].set(title="Largest gradient", ylabel="norm ÷ median from 0.07", xlabel="start of τ", yscale="log")
    sets = (("starts", "", BLUE, "o", "start, in-batch negatives"), ("starts", ", log", ORANGE, "s", "the same, log τ"),
            ("fixed", "", GREEN, "D", "fixed, mined negatives"))  # fmt: skip
    for study, suffix, colour, marker, label in sets:
        arms = starts if study == "starts" else sorted({(r["value"], r["arm"]) for r in rows if r["study"] == study and r["value"]})
        found = [(v, list(claims.by_seed(rows, study, arm + suffix, "val_accuracy").values())) for v, arm in arms]
        _dots(axes[2], [(v, f) for v, f in found if f], colour, marker, label)
    if learned := list(claims.by_seed(rows, "fixed", "learned", "val_accuracy").values()):
        axes[2].axhline(np.mean(learned), color=GREEN, linestyle=":", label="learned, mined negatives")
    axes[2].set(title="Validation accuracy (%)", xlabel="τ at the start, or fixed")
    for axis in axes[1:]:
        _log_axis(axis)
    for axis in axes:
        _empty(axis, rows, "starts")
        if axis.get_legend_handles_labels()[0]:
            _legend(axis, 2 if axis is axes[0] else 1)
    return fig


@drawn
def plot_gradient(rows: Sequence[dict]):
    """∂L/∂τ over τ on real batches, the formula as a line and PyTorch's as dots; τ · ∂L/∂τ, what log τ gets; and descents of τ alone."""
    fig, axes = _panels(3.6)
    found = [r for r in rows if r["study"] == "gradient"]
    colours = dict(zip(dict.fromkeys(r["arm"] for r in found), (BLUE, ORANGE, RED, GREEN)))
    for row in found:
        tau, formula, autograd = (np.array(row["curve"][k]) for k in ("temperature", "formula", "autograd"))
        for axis, factor in ((axes[0], 1), (axes[1], tau)):
            axis.plot(tau, factor * formula, color=colours[row["arm"]], linewidth=1.2, label=row["arm"])
            axis.plot(tau, factor * autograd, ".", color=colours[row["arm"]], markersize=4)
    for axis, title in ((axes[0], "∂L/∂τ"), (axes[1], "∂L/∂ log τ = τ · ∂L/∂τ")):
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set(title=title, xlabel="τ (line: formula; dots: autograd)")
        axis.set_yscale("symlog", linthresh=0.1)
        _log_axis(axis)
    for row in [r for r in rows if r["study"] == "descent"]:
        on, kind = row["arm"].split(", ")
        colour, dash = {"raw": RED, "log": BLUE}[kind], {"mined": "-", "all right": "--"}.get(on, ":")
        axes[2].plot(row["curve"]["step"], row["curve"]["temperature"], color=colour, linestyle=dash, linewidth=1.2, label=row["arm"])
    axes[2].axhline(0, color=INK, linewidth=0.8)
    axes[2].set(title="τ alone, by Adam", xlabel="step")
    for axis, study in zip(axes, ("gradient", "gradient", "descent")):
        _empty(axis, rows, study)
    for axis in (axes[0], axes[2]):
        if axis.get_legend_handles_labels()[0]:
            _legend(axis)
    return fig


@drawn
def plot_failure(rows: Sequence[dict]):
    """Runs whose rate of τ is far too high, with a raw τ and with log τ: τ, loss, and validation accuracy."""
    fig, axes = _panels(3.3)
    axes[1].set_yscale("log")
    for arm, colour, dash in (("raw", RED, "-"), ("log", BLUE, "--")):
        for axis, column in ((axes[0], "temperature"), (axes[1], "loss")):
            _curve(axis, rows, "provoked", arm, column, colour, dash, {"raw": "τ itself", "log": "log τ"}[arm])
        _validation(axes[2], rows, "provoked", arm, "val_accuracy", colour, "o", dash, {"raw": "τ itself", "log": "log τ"}[arm])
    _validation(axes[2], rows, "negatives", "mined", "val_accuracy", GREY, "s", ":", "log τ at the study's rate")
    axes[0].axhline(0, color=INK, linewidth=0.8)
    axes[0].set(title="τ, at a far too high rate", xlabel="step")
    axes[0].set_yscale("symlog", linthresh=0.01)
    axes[1].set(title="Loss (nats)", xlabel="step")
    axes[2].set(title="Validation accuracy (%)", xlabel="step", xlim=(0, None), ylim=(0, None))
    for axis in axes:
        _empty(axis, rows, "provoked")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if axis.get_legend_handles_labels()[0]:
            _legend(axis)
    return fig


# --- parts ------------------------------------------------------------------------------------------------------------------------


def _panels(height: float):
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, height))
    return fig, axes


def _starts(rows: Sequence[dict]) -> list[tuple[float, str]]:
    """(τ, arm) of every start of a raw τ, in order."""
    return sorted({(r["value"], r["arm"]) for r in rows if r["study"] == "starts" and not r["arm"].endswith("log")})


def _shades(count: int) -> list:
    return sns.color_palette("viridis", count).as_hex() if count else []


def _of(rows: Sequence[dict], study: str, arm: str) -> list[dict]:
    return [r for r in rows if (r["study"], r["arm"]) == (study, arm)]


def _curve(axis, rows: Sequence[dict], study: str, arm: str, column: str, colour, dash: str, label: str) -> None:
    """Thin lines of seeds, their mean and its interval; on a logarithmic axis, the geometric mean's."""
    mine = _of(rows, study, arm)
    alone = len(mine) == 1
    for row in mine:
        step, values = row["curve"]["step"], row["curve"][column]
        style = {"linewidth": 1.3} if alone else {"linewidth": 0.6, "alpha": 0.45}
        axis.plot(step, values, color=colour, linestyle=dash, label=label if alone else None, **style)
        _mark_own(axis, rows, row, step[-1], values[-1], colour)
    if len(mine) > 1:
        each = [dict(zip(row["curve"]["step"], row["curve"][column])) for row in mine]
        steps = sorted(set.intersection(*map(set, each)))
        geometric = axis.get_yscale() == "log" and all(value > 0 for by in each for value in by.values())
        to, back = (np.log, np.exp) if geometric else (np.asarray, np.asarray)
        found = [claims.estimate(to([by[s] for by in each]).tolist()) for s in steps]
        axis.plot(steps, back([e.value for e in found]), color=colour, linestyle=dash, linewidth=1.5, label=label)
        if len(mine) >= claims.SEEDS:
            axis.fill_between(steps, back([e.low for e in found]), back([e.high for e in found]), color=colour, alpha=0.12, linewidth=0)


def _validation(axis, rows: Sequence[dict], study: str, arm: str, column: str, colour, marker: str, dash: str, label: str = "") -> None:
    """Mean validation accuracy over seeds at every validation, with its interval."""
    mine = [r["validation"] for r in _of(rows, study, arm) if column in r["validation"]]
    steps = sorted(set.intersection(*(set(v["step"]) for v in mine))) if mine else []
    found = [claims.estimate([v[column][v["step"].index(s)] for v in mine]) for s in steps]
    if found:
        ends = [(e.value, e.value) if e.low is None else (e.low, e.high) for e in found]
        spread = [[e.value - low for e, (low, _) in zip(found, ends)], [high - e.value for e, (_, high) in zip(found, ends)]]
        where = {"val_accuracy": "in distribution", "ood_accuracy": "out of it"}[column]
        style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": dash, "linewidth": 1.2, "elinewidth": 1, "capsize": 2}
        axis.errorbar(steps, [e.value for e in found], yerr=spread, label=label or f"{arm}, {where}", **style)


def _dots(axis, found: Sequence[tuple[float, list]], colour, marker: str, label: str, power: bool = False) -> None:
    """Each seed's number, small, and the mean; `power`: numbers are logarithms to base 10, whose mean is drawn on the axis of the ratio."""
    shown = (lambda v: 10 ** np.asarray(v)) if power else np.asarray
    for x, values in found:
        axis.plot([x] * len(values), shown(values), marker, color=colour, markersize=2.5, alpha=0.45, linestyle="none")
    if found:
        means = shown([np.mean(values) for _, values in found])
        axis.plot([x for x, _ in found], means, marker=marker, color=colour, markersize=4.5, linewidth=0.8, label=label)


def _mark_own(axis, rows: Sequence[dict], row: dict, x: float, y: float, colour) -> None:
    if len({r["profile"] for r in rows}) > 1 and row["profile"] != "thorough":
        axis.plot(x, y, "o", color=colour, markersize=4, clip_on=False)


def _empty(axis, rows: Sequence[dict], *which: str) -> None:
    if not any(r["study"] in which for r in rows):
        text = "no run yet:\nmake reproduce\nPROFILE=thorough"
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=8, color=GREY)


def _legend(axis, columns: int = 1) -> None:
    """Below the axis, where no line is."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=7, handlelength=1.8, columnspacing=0.8)


def _log_axis(axis) -> None:
    axis.set_xscale("log")
    axis.set_xticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
    axis.xaxis.set_minor_formatter(NullFormatter())
