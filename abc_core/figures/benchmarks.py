"""Figures about a benchmark: what blind probes get of it, the spread over wordings, what comes first instead, and the paper's Table 3.

Plain rows in, a matplotlib figure out, in the look of `abc_core.figures.style`, whose `save` writes them.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from abc_core.evaluation.metrics import share_interval
from abc_core.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, WIDTH, bare, drawn, per_cent, table_of, whiskers, wrap

PHOTOGRAPHS = "As published: photographs, Visual Genome, 1000 pictures × 5 (version 1 of the paper, Table 3)"
PROBES = {  # rows of `probes.probe_rows` in words
    "full": "picture + instruction",
    "shuffled": "another picture's instruction",
    "picture": "picture alone",
    "instruction": "instruction, grey picture",
    "text": "instruction as a text",
    "bm25": "BM25: instruction alone",
    "prior": "likeness to all other queries",
    "answers": "most frequent answer",
    "chance": "chance",
}


@drawn
def plot_probes(rows: Sequence[dict]):
    """What blind probes get of one set or several, a panel each, with the verdict; the band is the interval of the full query.

    Args:
        rows: of `probes.probe_rows`, those of several sets one after the other.
    """
    table = table_of(rows, ("set", "probe", "r1", "r1_low", "r1_high", "n", "verdict"))
    sets = [part.iloc[::-1].reset_index(drop=True) for _, part in table.groupby("set", sort=False)]
    heights = [1.1 + 0.25 * len(part) for part in sets]
    fig, axes = plt.subplots(len(sets), 1, figsize=(WIDTH, sum(heights) + 0.3), height_ratios=heights, squeeze=False)
    colours = {"enough": RED, "half of it": ORANGE}
    for axis, part in zip(axes[:, 0], sets):
        full = part[part["probe"] == "full"].iloc[0]
        axis.axvspan(full["r1_low"], full["r1_high"], color=BLUE, alpha=0.15, linewidth=0)
        pairs = zip(part["probe"], part["verdict"])
        bars = [BLUE if p == "full" else PALE if p == "chance" else colours.get(v, "#9db7cc") for p, v in pairs]
        axis.barh(part.index, part["r1"], color=bars, height=0.66)
        spread = whiskers(part["r1"], part["r1_low"], part["r1_high"])
        axis.errorbar(part["r1"], part.index, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for y, row in part.iterrows():
            weight = "bold" if row["probe"] == "full" else "normal"
            axis.text(114, y, f"{row['r1']:.1f}", ha="right", va="center", fontsize=8, weight=weight)
            if row["probe"] != "full":
                mark = "✗ " if row["verdict"] in colours else {"not enough": "✓ ", "unclear": "? "}.get(row["verdict"], "")
                axis.text(118, y, mark + row["verdict"], va="center", fontsize=8, color=colours.get(row["verdict"], GREY))
        axis.set_title("\n".join(wrap(f"{full['set']}: {full['verdict']}", WIDTH - 2.1, 9.5, "bold")))
        axis.set(yticks=part.index, yticklabels=[PROBES.get(p, p.replace("_", " ")) for p in part["probe"]])
        axis.set(xlim=(0, 142), ylim=(-0.6, len(part) - 0.4), xticks=range(0, 101, 20))
        axis.set_xlabel(f"R@1 in per cent with 95 % interval over pictures; n = {full['n']:,} queries", loc="left")
        bare(axis)
    return fig


@drawn
def plot_zero_shot(rows: Sequence[dict]):
    """R@1 of every system on every evaluation set, with 95 % intervals over pictures; the number of candidates stands beside.

    Args:
        rows: of `zero_shot.score`.
    """
    table = table_of(rows, ("system", "task", "r1", "r1_low", "r1_high", "candidates", "n"))
    tasks, systems = table["task"].unique()[::-1].tolist(), table["system"].unique().tolist()
    fig, axis = plt.subplots(figsize=(WIDTH, 0.9 + (0.16 + 0.13 * len(systems)) * len(tasks)))
    for k, system in enumerate(systems):
        part = table[table["system"] == system]
        y = part["task"].map(tasks.index) + 0.26 * (0.5 - (k + 0.5) / len(systems))
        spread = whiskers(part["r1"], part["r1_low"], part["r1_high"])
        colour = (BLUE, ORANGE, GREEN, RED)[k % 4]
        axis.errorbar(part["r1"], y, xerr=spread, fmt="osDv"[k % 4], color=colour, ms=4.5, elinewidth=1.2, capsize=2, label=system)
    for y, task in enumerate(tasks):
        row = table[table["task"] == task].iloc[0]
        axis.text(103, y, f"{row['n']:,} of {row['candidates']:,}", va="center", fontsize=8, color=GREY)
    axis.set(yticks=range(len(tasks)), yticklabels=tasks, xlim=(0, 122), ylim=(-0.6, len(tasks) - 0.4), xticks=range(0, 101, 20))
    axis.set_xlabel("R@1 in per cent with 95 % interval over pictures; queries, of so many candidates", loc="left")
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    bare(axis)
    return fig


@drawn
def plot_wordings(rows: Sequence[dict]):
    """R@1 of the same questions in several wordings: mean with its interval, each single wording, and from the worst to the best wording.

    Args:
        rows: of `wordings.wording_spread`.
    """
    table = table_of(rows, ("wordings", "kind", "wording", "r1", "r1_low", "r1_high", "every", "any", "n"))
    sets, kinds = list(dict.fromkeys(table["wordings"])), list(dict.fromkeys(table["kind"]))
    looks = dict(zip(sets, ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"))))
    fig, axis = plt.subplots(figsize=(WIDTH, 1.1 + (0.12 + 0.26 * len(sets)) * len(kinds)))
    lines = {}  # (kind, set) -> height
    for kind in kinds[::-1]:
        for name in sets[::-1]:
            lines[kind, name] = len(lines) + 0.5 * (len(lines) // len(sets))
    for name, (colour, marker) in looks.items():
        mine = table[table["wordings"] == name]
        for _, row in mine.iterrows():
            y = lines[row["kind"], name]
            if row["wording"] == "all":
                axis.hlines(y, row["every"], row["any"], color=colour, linewidth=7, alpha=0.18)
                spread = whiskers(*row[["r1", "r1_low", "r1_high"]])[:, None]
                axis.errorbar(row["r1"], y, xerr=spread, fmt=marker, color=colour, markersize=6,
                              markeredgecolor="white", elinewidth=1.4, capsize=2.5, zorder=4)  # fmt: skip
                weight = "bold" if row["kind"] == "all" else "normal"
                axis.text(110, y, f"{row['r1']:.1f}", ha="right", va="center", fontsize=8, weight=weight)
                axis.text(131, y, f"{row['every']:.0f} – {row['any']:.0f}", ha="right", va="center", fontsize=8)
                axis.text(141, y, f"{row['n']:,}", ha="right", va="center", fontsize=8, color=GREY)
            else:
                axis.plot(row["r1"], y + 0.24, marker="|", color=colour, markersize=5, alpha=0.9, linestyle="none")
        axis.plot([], [], color=colour, marker=marker, label=f"{name} wordings", markeredgecolor="white", linewidth=1.4)
    axis.plot([], [], color=GREY, marker="|", linestyle="none", label="one wording")
    axis.plot([], [], color=GREY, linewidth=7, alpha=0.25, label="right in every … in some wording")
    top = max(lines.values()) + 0.6
    for x, title in ((110, "R@1"), (131, "every – some"), (141, "n")):
        axis.text(x, top, title, ha="right", va="bottom", fontsize=8, weight="bold")
    middle = {kind: np.mean([lines[kind, name] for name in sets]) for kind in kinds}
    axis.set(yticks=list(middle.values()), yticklabels=["all kinds" if k == "all" else k.replace("_", ", ") for k in kinds])
    axis.set(xlim=(0, 142), ylim=(-0.6, top + 0.6), xticks=range(0, 101, 20))
    axis.set_xlabel("right caption first (R@1) in per cent, 95 % intervals over pictures; n questions", loc="left")
    bare(axis)
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.5)
    return fig


@drawn
def plot_failures(rows: Sequence[dict]):
    """For each kind of question what comes first: the right caption, another one of the same picture, or one of another picture.

    Args:
        rows: of `gallery.mistakes`.
    """
    parts = {"right": (BLUE, "the right caption"), "same_picture": (ORANGE, "another caption of the picture"),
             "other_picture": (PALE, "a caption of another picture")}  # fmt: skip
    table = table_of(rows, ("kind", *parts, "n")).iloc[::-1].reset_index(drop=True)
    fig, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.3 * len(table)))
    left = np.zeros(len(table))
    for key, (colour, label) in parts.items():
        axis.barh(table.index, table[key], left=left, color=colour, height=0.66, label=label)
        for y, (value, start) in enumerate(zip(table[key], left)):
            if value >= 5:  # room for the figure
                ink = "white" if key == "right" else INK
                axis.text(start + value / 2, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        left += table[key].to_numpy()
    for y, n in table["n"].items():
        axis.text(114, y, f"n = {n:,}", ha="right", va="center", fontsize=8, color=GREY)
    axis.set(yticks=table.index, yticklabels=["all kinds" if k == "all" else k.replace("_", ", ") for k in table["kind"]])
    axis.set(xlim=(0, 114), xticks=range(0, 101, 20))
    axis.set_xlabel("what comes first, in per cent of the questions", loc="left")
    bare(axis)
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def table3(published: Mapping[str, Sequence[float]], ours: Sequence[dict], world: str) -> list[dict]:
    """Rows of `plot_table3`: system -> (R@1, R@5, R@10) as the paper prints them, then a run's rows under the name of its world."""
    paper = [{"world": PHOTOGRAPHS, "system": name, **dict(zip(("r1", "r5", "r10"), row))} for name, row in published.items()]
    return paper + [{"world": world} | row for row in ours]


@drawn
def plot_table3(rows: Sequence[dict]):
    """The paper's Table 3 and this run's rows in one frame, each under the world it was measured in; worlds are never compared row by row.

    Args:
        rows: dicts with world, system, r1, r5, r10 (per cent) and perhaps r1_low, r1_high; those of a world follow each other.
    """
    table = table_of(rows, ("world", "system", "r1", "r5", "r10"))
    worlds = [(world, part) for world, part in table.groupby("world", sort=False)]
    titles = [wrap(world, WIDTH - 0.4, 8.5, "bold") for world, _ in worlds]
    lines = 1.6 + sum(1.5 * len(part) + 1.2 * len(title) + 1.2 for (_, part), title in zip(worlds, titles))
    fig, axis = plt.subplots(figsize=(WIDTH, 0.145 * lines + 0.2))
    axis.axis("off")
    axis.set(xlim=(0, 1), ylim=(lines, 0))
    say = lambda x, at, text, **style: axis.text(x, at, text, va="top", fontsize=8.5, **style).set_in_layout(False)  # noqa: E731
    columns = {"r1": (0.56, "R@1"), "interval": (0.72, "95 % interval"), "r5": (0.85, "R@5"), "r10": (0.98, "R@10")}
    for x, title in columns.values():
        say(x, 0.2, title, ha="right", weight="bold")
    y = 1.6
    for (_, part), title, colour in zip(worlds, titles, ("#f1f1f1", "#e3edf5", "#f7ede0")):
        tall = 1.5 * len(part) + 1.2 * len(title) + 0.7
        axis.add_patch(plt.Rectangle((0, y), 1, tall, facecolor=colour, edgecolor="none"))
        say(0.012, y + 0.3, "\n".join(title), weight="bold")
        for k, row in enumerate(part.to_dict("records")):
            at = y + 1.2 * len(title) + 0.4 + 1.5 * k
            best = "bold" if row["system"] in ("abc", "ABC") else "normal"
            say(0.025, at, SYSTEMS.get(row["system"], row["system"]), weight=best)
            low, high = row.get("r1_low", np.nan), row.get("r1_high", np.nan)
            said = {key: f"{row[key]:.1f}" for key in ("r1", "r5", "r10")}
            for key, text in (said | {"interval": "–" if pd.isna(low) else f"{low:.1f} – {high:.1f}"}).items():
                say(columns[key][0], at, text, ha="right", weight=best)
        y += tall + 0.5
    return fig


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
