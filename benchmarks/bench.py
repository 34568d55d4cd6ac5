"""Ours beside the peers: one table and one figure, bench.csv and bench.png; every row by itself if wanted.

Each row times ours and the peer's in turn in one run, several pairs, after their results were found equal (`side_by_side`). A second run
of a work replaces its rows. Works: mining, stage1, stage2, embedding, readers; beside them the studies scaling, profile, mining_profile
and settings, each with a table and a figure of its own.

`make bench`, or `python benchmarks/bench.py [work …] [--pairs 3] [--toy]`
"""

import argparse
import os
import sys
from importlib import import_module

import side_by_side as side

from abc_core.figures import style as figures

WORKS = ("mining", "stage1", "stage2", "embedding", "readers")
STUDIES = {"scaling": "bench_scaling", "profile": "step_profile", "mining_profile": "mining_profile", "settings": "settings"}


def main() -> None:
    """Measure, print, write, draw."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if sys.argv[1:2] == ["--peak"]:
        return import_module(sys.argv[2]).peak(*sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, *STUDIES, []], default=[])  # argparse wants the empty list among them
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="sizes of a test; nothing is written")
    args = parser.parse_args()
    for work in args.works or [*WORKS, *STUDIES]:
        if work in STUDIES:
            import_module(STUDIES[work]).main(args.toy)
            continue
        rows = import_module(f"bench_{work}").bench(args.pairs, args.toy)
        if not args.toy:
            draw(side.write(rows, side.FOLDER / "bench.csv"))


def draw(rows: list[dict]) -> None:
    """bench.png: each row's ratio with its range, on a logarithmic axis, and its goal."""
    fig = plot(rows)
    versions = "; ".join(dict.fromkeys(row["versions"] for row in rows))
    threads = " and ".join(sorted({row["threads"] for row in rows}))
    save(fig, "bench", f"ours beside the peer in turn, {threads} thread(s) · {versions}")


def save(fig, name: str, footer: str) -> None:
    """benchmarks/<name>.png with a footer."""
    fig.supxlabel("\n".join(figures.wrap(footer, figures.WIDTH - 0.6, 6.5)), x=0.008, ha="left", fontsize=6.5, color=figures.GREY)
    fig.savefig(side.FOLDER / f"{name}.png", dpi=figures.DPI, metadata={"Software": None})


@figures.drawn
def plot(rows: list[dict]):
    """Ratios of the table's rows (side_by_side.compare), a line each."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(figures.WIDTH, 0.9 + 0.36 * len(rows)))
    for y, row in enumerate(reversed(rows)):
        ratio, low, high = (float(row[k]) for k in ("ratio", "low", "high"))
        colour, marker = (figures.GREY, "o") if not row["goal"] else (figures.BLUE, "o") if row["met"] == "true" else (figures.ORANGE, "X")
        axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
        axis.plot(ratio, y, marker, color=colour, markersize=6)
        if row["goal"]:
            axis.plot(float(row["goal"].split()[1]), y, "|", color=figures.INK, markersize=13, markeredgewidth=1.6)
        axis.text(1.02, y, f"{ratio:.2f}" + (f"  ({row['goal'].replace('>=', '≥').replace('<=', '≤')})" if row["goal"] else ""),
                  transform=axis.get_yaxis_transform(), va="center", fontsize=8)  # fmt: skip
    axis.axvline(1, color=figures.PALE, linewidth=1.2, zorder=0)
    labels = [f"{row['work']}, {row['size']}\nagainst {row['peer_name']}" for row in reversed(rows)]
    axis.set_yticks(range(len(rows)), labels, fontsize=6.5)
    axis.set_xscale("log")
    ticks = [2.0**k for k in range(-5, 8) if axis.get_xlim()[0] <= 2.0**k <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    says = "how many times better ours is; memory: its share of the peer's"
    axis.set_xlabel(f"{says}\nbar: the goal · cross: the goal is missed", fontsize=7.5)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.grid(axis="y", visible=False)
    return fig


if __name__ == "__main__":
    main()
