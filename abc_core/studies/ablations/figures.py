"""The figures of the ablations, from rows of `ablations.row_of` and `instruct_ablations.row_of`; a study without rows says so.

A mark is the mean over seeds with its 95 % interval of Student's t, small dots are single seeds. A ring around a dot marks a run of this
profile where others were drawn from committed logs.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from abc_core.evaluation.metrics import share_interval
from abc_core.figures.style import BLUE, GREEN, GREY, INK, ORANGE, RED, WIDTH, drawn, wrap
from abc_core.studies import claims

LOOKS = ((BLUE, "o"), (GREEN, "s"), (ORANGE, "D"), (RED, "v"))  # of the columns of a panel, in their order
SETS = {"val_accuracy": "in distribution", "ood_accuracy": "out of it"}
PER_CENT = (0, 1, 2, 5, 10, 20, 50, 100)  # ticks of logarithmic shares
ASKED = {"ctrlbench": "its instruction", "another": "another picture's", "without": "none"}


def numbers(rows: Sequence[dict]) -> list[dict]:
    """The single numbers of every arm, without its curves, for a CSV."""
    return [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]


@drawn
def plot_stage1(rows: Sequence[dict]):
    """Appendix B and C: mask, read-out, rank, batch at equal samples and steps, in and out of distribution; the loss of all steps."""
    fig, axes = plt.subplots(2, 3, figsize=(WIDTH, 5.0))
    panel(axes[0, 0], rows, "mask", SETS, "Attention mask")
    panel(axes[0, 1], rows, "readout", SETS, "Head and pooling")
    panel(axes[0, 2], rows, "rank", SETS, "LoRA rank", "rank")
    panel(axes[1, 0], rows, "batch", SETS, "Batch, equal samples", "queries × steps")
    panel(axes[1, 1], rows, "steps", SETS, "Steps", "steps")
    _losses(axes[1, 2], rows)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation accuracy (%)")
    _legend(fig, axes.ravel()[:5])
    return fig


@drawn
def plot_negatives(rows: Sequence[dict]):
    """What negatives do: ε and the false negatives that it lets pass, how many, who mined them, and both directions of retrieval."""
    fig, axes = plt.subplots(2, 3, figsize=(WIDTH, 5.0))
    panel(axes[0, 0], rows, "epsilon", SETS, "ε", "share of the positive's similarity")
    _false_negatives(axes[0, 1], rows)
    panel(axes[0, 2], rows, "negatives", SETS, "Negatives of a picture", "mined negatives")
    panel(axes[1, 0], rows, "miner", SETS, "Who mined them")
    ways = {"image_to_text": "picture → caption", "text_to_image": "caption → picture"}
    for axis, name in ((axes[1, 1], "val"), (axes[1, 2], "ood")):
        columns, where = {f"{name}_{way}": said for way, said in ways.items()}, SETS[f"{name}_accuracy"]
        panel(axis, rows, "two_way", columns, f"Both ways, {where}", looks=LOOKS[2:])
    for axis in (axes[0, 0], axes[1, 0]):
        axis.set_ylabel("validation accuracy (%)")
    axes[1, 1].set_ylabel("R@1 (%)")
    _legend(fig, [axes[0, 0], axes[1, 1]])
    return fig


@drawn
def plot_stage2(rows: Sequence[dict]):
    """Stage 2 on CtrlBench: steps, grouping, wordings, one stage or two; the line is the most that a model without instructions gets."""
    fig, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.9), width_ratios=(1.5, 1, 1, 1))
    panel(axes[0], rows, "tuning", ASKED, "Steps of stage 2", "steps")
    panel(axes[1], rows, "grouping", ASKED, "Batches")
    said = {"ctrlbench": "", "first_wording": "the first wording of training", "other_wording": "another one of training"}
    panel(axes[2], rows, "wording", said, "Wordings", looks=(LOOKS[0], LOOKS[3], (GREY, "P")))
    panel(axes[3], rows, "stages", ASKED, "Stages")
    for axis in axes:
        if len(axis.get_xticks()):  # an empty panel has none
            axis.axhline(20, color=RED, linestyle="--", linewidth=0.8)
            axis.set_ylim(0, None)
    axes[0].set_ylabel("CtrlBench R@1 (%)")
    _legend(fig, axes)
    return fig


@drawn
def plot_backbones(rows: Sequence[dict]):
    """Table 4: what embedders get over what their backbones answer, in and out of distribution; a mark is a backbone."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharex=True)
    mine = sorted((r for r in rows if r["study"] == "backbones"), key=lambda r: -r["value"])
    names = list(dict.fromkeys(r["arm"] for r in mine))
    for axis, (column, where) in zip(axes, SETS.items()):
        means = {}
        for k, (name, colour) in enumerate(zip(names, sns.color_palette("colorblind", len(names)))):
            values = [r[column] for r in mine if r["arm"] == name and r.get(column) is not None]
            if not values:
                continue
            x, mean = next(r["value"] for r in mine if r["arm"] == name), claims.estimate(values)
            axis.plot([x] * len(values), values, ".", color=colour, markersize=3, alpha=0.5)
            axis.plot(x, mean.value, marker="osDv^P"[k % 6], color=colour, markersize=5, linestyle="none", label=name.replace("_", "-"))
            if len(values) >= claims.SEEDS:
                axis.vlines(x, max(0, mean.low), mean.high, color=colour, linewidth=1)
            means[name] = x, mean.value
        steps = sorted((name for name in means if name.startswith("step ")), key=lambda name: int(name[5:]))
        if steps and "shipped" in means:
            label = "steps to the shipped one"
            axis.plot(*zip(*(means[name] for name in [*steps, "shipped"])), ":", color="0.5", linewidth=1, zorder=0, label=label)
        axis.set_title(f"Validation accuracy (%), {where}", fontsize=8.5)
        if mine:
            axis.set_xlabel("questions answered by the backbone (%)")
            axis.set_xscale("symlog", linthresh=1)
            axis.set_yscale("symlog", linthresh=1)
            axis.set(xlim=(0, 110), ylim=(0, 110), xticks=PER_CENT, yticks=PER_CENT)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        else:
            _empty(axis)
    _legend(fig, axes, 4)
    return fig


# --- panels ---------------------------------------------------------------------------------------------------------------------


def panel(axis, rows: Sequence[dict], study: str, columns: Mapping[str, str], title: str, unit: str = "", looks=LOOKS) -> None:
    """Columns of every arm of a study, the arms side by side; `columns`: column -> its label, "" where another panel gives it."""
    mine = [r for r in rows if r["study"] == study]
    ordered = {r["arm"]: r.get("value") for r in mine}
    if len([v for v in ordered.values() if v is not None]) > 1:
        ordered = dict(sorted(ordered.items(), key=lambda item: (item[1] is not None, item[1] or 0)))
    mixed = len({r.get("profile") for r in rows}) > 1
    for k, ((column, label), (colour, marker)) in enumerate(zip(columns.items(), looks)):
        shift, means, places = 0.12 * (k - (len(columns) - 1) / 2), [], []
        for x, arm in enumerate(ordered):
            found = [(r[column], r.get("profile")) for r in mine if r["arm"] == arm and r.get(column) is not None]
            if not found:
                continue
            values = [value for value, _ in found]
            axis.plot([x + shift] * len(values), values, ".", color=colour, markersize=3, alpha=0.5)
            own = [value for value, profile in found if mixed and profile != "thorough"]
            axis.plot([x + shift] * len(own), own, "o", mfc="none", color=INK, markersize=6.5, markeredgewidth=0.8)
            mean = claims.estimate(values)
            if mean.low is not None and len(values) >= claims.SEEDS:
                axis.vlines(x + shift, mean.low, mean.high, color=colour, linewidth=1)
            means.append(mean.value)
            places.append(x + shift)
        joined = "-" if None not in list(ordered.values())[1:] and len(ordered) > 2 else "none"
        axis.plot(places, means, marker=marker, color=colour, markersize=4.5, linewidth=0.8, linestyle=joined, label=label or None)
    axis.set_title(title, fontsize=8.5)
    if not mine:
        return _empty(axis)
    room = (axis.get_position().width * WIDTH) / max(1, len(ordered))
    names = ["\n".join(wrap(arm, max(room, 0.1), 6.5)) for arm in ordered]
    axis.set_xticks(range(len(ordered)), names, fontsize=6.5)
    axis.set(xlabel=unit, xlim=(-0.6, len(ordered) - 0.4))
    axis.grid(False, axis="x")


def _losses(axis, rows: Sequence[dict]) -> None:
    """Figure 8: the loss of every doubling of the steps, one line a seed, smoothed over a tenth of the run."""
    mine = [r for r in rows if r["study"] == "steps"]
    values = sorted({r["value"] for r in mine})
    for value, colour in zip(values, sns.color_palette("viridis", max(1, len(values))).as_hex()):
        for k, row in enumerate(r for r in mine if r["value"] == value):
            step, loss = np.array(row["curve"]["step"]) + 1, np.array(row["curve"]["loss"])
            width = max(1, len(loss) // 10)
            smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
            axis.plot(step[width - 1 :], smooth, color=colour, linewidth=1, label=None if k else f"{value:g}")
    axis.set_title("Loss by steps", fontsize=8.5)
    if not mine:
        return _empty(axis)
    axis.set(xlabel="step", ylabel="loss (nats)", xscale="log")
    axis.legend(title="steps", fontsize=6.5, title_fontsize=6.5)


def _false_negatives(axis, rows: Sequence[dict]) -> None:
    """The share of mined pairs whose caption is true of the picture, with Wilson's interval; one miner mined for all seeds."""
    found = {r["arm"]: r for r in rows if r["study"] == "epsilon" and r.get("mined_pairs")}
    ordered = sorted(found.values(), key=lambda r: (r["value"] is not None, r["value"] or 0))
    for x, row in enumerate(ordered):
        share, n = row["false_negatives"] / row["mined_pairs"], row["mined_pairs"]
        low, high = share_interval(share, n)
        axis.bar(x, 100 * share, color=ORANGE, width=0.6)
        axis.vlines(x, 100 * low, 100 * high, color=INK, linewidth=1)
        axis.text(x, 100 * high, f"{100 * share:.2f}", ha="center", va="bottom", fontsize=7)
    axis.set_title("False negatives (%)", fontsize=8.5)
    if not ordered:
        return _empty(axis)
    axis.set_xticks(range(len(ordered)), [r["arm"] for r in ordered], fontsize=6.5)
    axis.set_xlabel("ε")
    axis.grid(False, axis="x")


def _legend(fig, axes, ncols: int | None = None) -> None:
    """One legend for all panels, above them; a label that several panels have, once."""
    known = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    if known:
        fig.legend(known.values(), known.keys(), loc="outside upper center", ncols=ncols or len(known), fontsize=7.5)


def _empty(axis) -> None:
    text = "no run yet:\nmake reproduce\nPROFILE=thorough"
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=8, color=GREY)
    axis.set(xticks=[], yticks=[])
