"""Figures of training: curves of a run, similarities of positives and negatives, and the memory plan by part."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from abc_core.figures.style import BLUE, GREEN, GREY, INK, ORANGE, RED, WIDTH, bare, drawn, histogram, per_cent, table_of


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
