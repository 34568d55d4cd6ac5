"""All figures in one look: plain rows in, a matplotlib figure out, and `save` puts a picture and the CSV it was drawn from side by side.

Colours are seaborn's colour-blind palette, and never carry meaning alone: right and wrong also have a mark. Widths are those of a text
column (7 inches at 150 dots). No global setting is read or changed, so the bytes depend on the rows and on the installed versions alone.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL
import seaborn as sns
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator, PercentFormatter

from abc_core import paths
from abc_core.data import whole_file
from abc_core.evaluate import share_interval

BLUE, ORANGE, GREEN, RED, *_ = sns.color_palette("colorblind").as_hex()
INK, GREY, PALE = "#222222", "#6e6e6e", "#dddddd"
WIDTH, DPI = 7.0, 150  # inches across, dots per inch
SOFTWARE = f"matplotlib {matplotlib.__version__}, Pillow {PIL.__version__}"  # on which a picture's bytes depend
STYLE = sns.axes_style("ticks") | {
    "figure.dpi": DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True, "font.family": "DejaVu Sans", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.labelsize": 8.5, "axes.titlesize": 9.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#eeeeee", "lines.linewidth": 1.6, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
}  # fmt: skip
SYSTEMS = {  # rows of CtrlBench in words
    "abc": "ABC: picture + instruction",
    "abc_no_instruction": "ABC: picture alone",
    "abc_instruction_only": "ABC: instruction alone",
    "abc_shuffled_instruction": "ABC: another picture's instruction",
    "stage1": "stage 1: picture alone",
    "stage1_with_instruction": "stage 1: picture + instruction",
    "bm25": "BM25: instruction alone",
    "chance": "chance",
    "oracle": "oracle (knows the truth)",
}


def save(fig, name: str, profile: str, rows, footer: str) -> None:
    """Write figures/<profile>/<name>.png and .csv, each whole or not at all.

    Args:
        name: number of the notebook and a word, such as "06_ctrlbench".
        rows: what was drawn, as a list of dicts or a DataFrame.
        footer: where the numbers come from (run, commit, seed) and whom the pictures belong to; printed below, after the profile.

    Raises:
        ValueError: a name of another form, or no rows.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r} must be the notebook's two digits, an underscore and lower-case words")
    table = pd.DataFrame(rows)
    if table.empty:
        raise ValueError(f"figure {name}: no rows to write beside it")
    write_picture(fig, paths.figures(profile) / f"{name}.png", profile, footer)
    with whole_file(paths.figures(profile) / f"{name}.csv") as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def write_picture(fig, path: Path, profile: str, footer: str) -> None:
    """Write a PNG with its footer below, which `redraw` reads back from the file's own text, with the version that drew it."""
    with plt.style.context(["default", STYLE]):
        lines = wrap(f"Profile: {profile} · {footer}", fig.get_figwidth() - 0.6, 6.5)
        fig.supxlabel("\n".join(lines), x=0.008, ha="left", fontsize=6.5, color=GREY)
        with whole_file(path) as partial:
            fig.savefig(partial, format="png", dpi=DPI, metadata={"Software": SOFTWARE, "Description": footer})


def wrap(text: str, inches: float, size: float = 8, weight: str = "normal") -> list[str]:
    """Lines of whole words that are at most `inches` wide in letters of `size` points; at least one line."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] <= 72 * inches
        if fits or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def drawn(plot):
    """A plot function in the common style, whose figure is closed, so that a notebook shows it once: as the value of its cell."""

    @functools.wraps(plot)
    def wrapper(*args, **kwargs):
        with plt.style.context(["default", STYLE]):
            fig = plot(*args, **kwargs)
            plt.close(fig)
        return fig

    return wrapper


def table_of(rows, columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a DataFrame; ValueError if there are none or a column is missing."""
    table = pd.DataFrame(rows)
    missing = [c for c in columns if c not in table]
    if table.empty or missing:
        raise ValueError(f"nothing to draw: {len(table)} rows with the columns {list(table)}; missing: {', '.join(missing) or 'rows'}")
    return table


def whiskers(value, low, high) -> np.ndarray:
    """float[2, N]: intervals as matplotlib's error bars want them, distances below and above a value; rounding makes none negative."""
    return np.clip([value - low, high - value], 0, None)


def per_cent(axis) -> None:
    """Ticks of shares as per cent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


# --- curves and bars ----------------------------------------------------------------------------------------------------------


@drawn
def plot_training(rows: Sequence[dict]):
    """Loss, temperature and accuracy over steps; validation accuracies are points where a row has them.

    Args:
        rows: dicts with step, loss, temperature, accuracy (share of 1), perhaps candidates, and in some val_accuracy and ood_accuracy.

    **Caveat:** accuracies among different numbers of candidates must not be compared; the label says how many a batch has.
    """
    table = table_of(rows, ("step", "loss", "temperature", "accuracy")).sort_values("step", kind="stable")
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.5))
    batch = f"training batch ({table['candidates'].max():,.0f} candidates)" if "candidates" in table else "training batch"
    for axis, (key, title) in zip(axes, {"loss": "Loss (nats)", "temperature": "Temperature τ", "accuracy": "Accuracy"}.items()):
        line = table[["step", key]].dropna()
        noisy = key != "temperature" and len(line) > 60
        smooth = line[key].rolling(max(5, len(line) // 25), center=True, min_periods=1).mean() if noisy else line[key]
        axis.plot(line["step"], line[key], color=BLUE, alpha=0.25, linewidth=0.8)
        axis.plot(line["step"], smooth, color=BLUE, label=batch)
        axis.set(title=title, xlabel="step", xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    tau = table.dropna(subset=["temperature"]).set_index("step")["temperature"]
    free = -12 if tau.iloc[-1] < tau.iloc[0] else 5  # points below a falling line, above a rising one
    axes[1].annotate(f"{tau.iloc[-1]:.3f}", (tau.index[-1], tau.iloc[-1]), (0, free), textcoords="offset points", ha="right", fontsize=8)
    axes[1].set_ylim(0, tau.max() * 1.1)
    for key, label, colour, marker in (("val_accuracy", "in", ORANGE, "o"), ("ood_accuracy", "out of", GREEN, "s")):
        if key in table:
            seen = table[["step", key]].dropna()
            style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 0.8}
            axes[2].plot(seen["step"], seen[key], label=f"validation, {label} distribution", **style)
    per_cent(axes[2].yaxis)
    axes[2].set_ylim(0, None)
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


@drawn
def plot_similarities(positive, mined, random, epsilon: float | None):
    """Similarities of positives, mined and random negatives, and those of the negatives relative to their query's positive, with ε.

    Args:
        positive: float[N]. mined, random: float[N, K], NaN where there is none. epsilon: the threshold, None without.

    **Caveat:** the right panel leaves out queries whose positive has no similarity above zero.
    """
    positive, mined, random = (np.asarray(x, dtype=float) for x in (positive, mined, random))
    groups = {"random negatives": (random, GREY), "mined negatives": (mined, RED), "positives": (positive, GREEN)}
    ratios = {k: v[positive > 0] / positive[positive > 0, None] for k, (v, _) in groups.items() if v.ndim == 2}
    low = min(0.0, np.nanquantile(ratios["random negatives"], 0.005))
    high = max(1.25, np.nanquantile(ratios["mined negatives"], 0.995))
    edge = 1.0 if epsilon is None else epsilon  # no bin straddles the threshold
    shown = np.linspace(*np.quantile(np.concatenate([v[np.isfinite(v)] for v, _ in groups.values()]), [0.001, 1]), 60)
    bins = edge + 0.02 * np.arange(np.floor((low - edge) / 0.02), np.ceil((high - edge) / 0.02) + 1)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    for label, (values, colour) in groups.items():
        histogram(left, values, shown, colour, f"{label}, mean {np.nanmean(values):.2f}")
        if label in ratios:
            histogram(right, ratios[label], bins, colour)
    marks = [(1, GREEN, "-", " positive", "left")] + ([] if epsilon is None else [(epsilon, INK, "--", f"ε = {epsilon:g} ", "right")])
    for x, colour, style, text, side in marks:
        right.axvline(x, color=colour, linestyle=style, linewidth=1.2)
        right.text(x, 0.99, text, color=colour, fontsize=8, transform=right.get_xaxis_transform(), va="top", ha=side)
    left.set(title="Similarity", xlabel="cosine to the picture", ylabel="share of pairs")
    right.set(title="Relative to the query's positive", xlabel="cosine ÷ cosine of the positive", xlim=(bins[0], bins[-1]))
    right.set_ylim(0, right.get_ylim()[1] * 1.15)  # room for the labels
    per_cent(left.yaxis)
    per_cent(right.yaxis)
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def histogram(axis, values: np.ndarray, bins: np.ndarray, colour: str, label: str | None = None) -> None:
    """Shares of all finite values that lie in each bin, as a filled outline."""
    shown = values[np.isfinite(values)]
    weights = np.full(shown.size, 1 / max(1, shown.size))
    axis.hist(shown, bins, weights=weights, histtype="stepfilled", facecolor=(colour, 0.35), edgecolor=colour, linewidth=1.0, label=label)


@drawn
def plot_ctrlbench(rows: Sequence[dict]):
    """R@1 with its interval, R@5 and R@10 as figures beside, in the order of the rows, and the ceiling of a blind model.

    Args:
        rows: dicts with system, r1, r5, r10, r1_low, r1_high (per cent) and n (queries).
    """
    table = table_of(rows, ("system", "r1", "r5", "r10", "r1_low", "r1_high", "n")).iloc[::-1].reset_index(drop=True)
    fig, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.29 * len(table)))
    colours = [BLUE if s == "abc" else PALE if s in ("oracle", "chance") else "#9db7cc" for s in table["system"]]
    axis.barh(table.index, table["r1"], color=colours, height=0.66)
    spread = whiskers(table["r1"], table["r1_low"], table["r1_high"])
    axis.errorbar(table["r1"], table.index, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    axis.axvline(20, color=RED, linestyle="--", linewidth=1.2)
    top = len(table) - 0.45
    axis.text(21, top, "20 %: the most that a blind model can reach", color=RED, fontsize=8, va="bottom")
    for x, key, title in ((114, "r1", "R@1"), (128, "r5", "R@5"), (142, "r10", "R@10")):
        axis.text(x, top, title, ha="right", va="bottom", fontsize=8, weight="bold")
        for y, value in table[key].items():
            weight = "bold" if key == "r1" and table["system"][y] == "abc" else "normal"
            axis.text(x, y, "–" if np.isnan(value) else f"{value:.1f}", ha="right", va="center", fontsize=8, weight=weight)
    axis.set(yticks=table.index, yticklabels=[SYSTEMS.get(s, s.replace("_", " ")) for s in table["system"]])
    axis.set(xlim=(0, 143), ylim=(-0.6, len(table) + 0.15), xticks=range(0, 101, 20))
    n = " / ".join(f"{n:,}" for n in sorted(set(table["n"])))
    axis.set_xlabel(f"R@1 in per cent with 95 % interval over pictures; n = {n} queries", loc="left")
    bare(axis)
    return fig


@drawn
def plot_by_kind(rows: Sequence[dict], column: str, label: str):
    """How often something is right, per kind of question, with Wilson's intervals.

    Args:
        rows: dicts with kind, n (questions), and `column`: a share of 1, or R@k in per cent (r1, r5, r10).
    """
    table = table_of(rows, ("kind", column, "n")).sort_values(column, kind="stable").reset_index(drop=True)
    shares = table[column] / (100 if column in ("r1", "r5", "r10") else 1)
    fig, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.26 * len(table)))
    low, high = zip(*(share_interval(share, n) for share, n in zip(shares, table["n"])))
    axis.barh(table.index, shares, color=BLUE, height=0.66)
    axis.hlines(table.index, low, high, color=INK, linewidth=1)
    for y, (share, n) in enumerate(zip(shares, table["n"])):
        axis.text(high[y] + 0.01, y, f"{100 * share:.1f} %", va="center", fontsize=8)
        axis.text(1.2, y, f"n = {n:,}", va="center", ha="right", fontsize=8, color=GREY)
    axis.set(yticks=table.index, yticklabels=[k.replace("_", ", ") for k in table["kind"]], xlim=(0, 1.2), xticks=np.linspace(0, 1, 6))
    axis.set_xlabel(label, loc="left")
    per_cent(axis.xaxis)
    bare(axis)
    return fig


@drawn
def plot_memory(rows: Sequence[dict], limit: float):
    """What a step holds on each device, by part, one bar a profile, against the device's memory.

    Args:
        rows: dicts with profile, part, gib; "peak" is the sum of a profile's parts, "logits_avoided" is drawn behind it, hatched.
        limit: GiB of a device.
    """
    table = table_of(rows, ("profile", "part", "gib")).pivot(index="profile", columns="part", values="gib")
    order = list(dict.fromkeys(row["profile"] for row in rows))[::-1]
    parts = [part for part in dict.fromkeys(row["part"] for row in rows) if part not in ("peak", "logits_avoided")]
    table = table.loc[order]
    fig, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.42 * len(order)))
    left = np.zeros(len(order))
    for part, colour in zip(parts, sns.color_palette("colorblind", len(parts))):
        if table[part].max() > 0.005 * table["peak"].max():  # thinner than a line
            axis.barh(order, table[part], left=left, color=colour, height=0.6, label=part.replace("_", " "))
        left += table[part].to_numpy()
    logits = table["logits_avoided"].to_numpy()
    axis.barh(order, logits, left=left, color="none", edgecolor=GREY, hatch="////", height=0.6, label="logits, avoided")
    for y, (peak, extra) in enumerate(zip(left, logits)):
        axis.text(1, y, f"{peak:.1f} + {extra:.1f}", va="center", ha="right", fontsize=8, transform=axis.get_yaxis_transform())
    axis.axvline(limit, color=RED, linestyle="--", linewidth=1.2)
    axis.text(limit, len(order) - 0.5, f"{limit:g} GiB ", color=RED, fontsize=8, ha="right", va="bottom")
    axis.set(xlabel="GiB on one device at the fullest moment of a step", xlim=(0, 1.3 * max(limit, (left + logits).max())))
    axis.set_ylim(-0.6, len(order) - 0.2)
    bare(axis)
    fig.legend(loc="outside upper center", ncols=4)
    return fig


def bare(axis) -> None:
    """Horizontal bars need no lines but the vertical grid."""
    axis.grid(False, axis="y")
    axis.tick_params(left=False, bottom=False)
    axis.spines[["left", "bottom"]].set_visible(False)
