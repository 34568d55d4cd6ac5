"""The figure of the retrieval demo: one picture under several instructions, as in the paper's Figure 1, and how long the parts take."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from abc_core.figures.pages import LINE, OTHER, RIGHT, blank, height, list_captions, show, write
from abc_core.figures.style import BLUE, INK, RED, WIDTH, bare, drawn

INCHES = 4.2  # of a caption
AIM = 300  # ms; a longer answer feels like waiting


def rows_of(answers: Sequence, right: dict[str, str], seconds: dict[str, Sequence[float]]) -> list[dict]:
    """What `plot_demo` draws, as rows: every caption that was found, then the milliseconds of every part.

    Args:
        answers: of `Demo.ask`. right: instruction -> right caption, where it is known. seconds: part -> how long it took, several times.
    """
    found = [
        {"instruction": a.instruction, "rank": rank, "caption": caption, "cosine": score, "right": right.get(a.instruction) == caption}
        for a in answers
        for rank, (caption, score) in enumerate(a.found, start=1)
    ]
    took = [{"part": part, "ms": 1000 * s} for part, times in seconds.items() for s in times]
    return found + took


@drawn
def plot_demo(answers: Sequence, maps: Sequence, right: dict[str, str], seconds: dict[str, Sequence[float]]):
    """One row for the picture alone and for each instruction: its heat map and its captions; below, medians of the times.

    Args:
        maps: a PIL picture for each answer. The others are as in `rows_of`.
    """
    found = [[(c, s, RIGHT if c == right.get(a.instruction) else OTHER) for c, s in a.found[:3]] for a in answers]
    rows = [max(0.25 * WIDTH / LINE, 1.6 + height(lines, INCHES)) for lines in found]
    tall = 2.2 + 1.2 * len(seconds)
    fig, axes = plt.subplots(
        len(rows) + 1, 2, figsize=(WIDTH, LINE * (sum(rows) + tall) + 0.4), width_ratios=(1, 3), height_ratios=(*rows, tall)
    )
    for (picture, sheet), answer, image, lines, room in zip(axes, answers, maps, found, rows):
        show(picture, image)
        blank(sheet, room)
        write(sheet, 0, 0, "Picture alone" if answer.instruction is None else f"“{answer.instruction}”", weight="bold", fontsize=8.5)
        list_captions(sheet, lines, INCHES, 1.5)
    axes[-1, 0].axis("off")
    _times(axes[-1, 1], seconds)
    return fig


def _times(axis, seconds: dict[str, Sequence[float]]) -> None:
    """Horizontal bars of medians, in ms, with a line over the middle 80 %."""
    spans = [1000 * np.quantile(times, [0.1, 0.5, 0.9]) for times in reversed(seconds.values())]
    longest = max(AIM, *(high for _, _, high in spans))
    for y, (low, middle, high) in enumerate(spans):
        axis.barh(y, middle, color=BLUE, height=0.6)
        axis.hlines(y, low, high, color=INK, linewidth=1)
        axis.text(high + 0.01 * longest, y, f"{middle:.0f} ms", va="center", fontsize=8)
    axis.axvline(AIM, color=RED, linestyle="--", linewidth=1.2)
    axis.text(AIM, len(spans) - 0.5, f"at most {AIM} ms are wanted", color=RED, fontsize=8, ha="center", va="bottom")
    axis.set(yticks=range(len(spans)), yticklabels=[*seconds][::-1], xlim=(0, 1.25 * longest))
    axis.set_xlabel(f"milliseconds, median and middle 80 % of {max(map(len, seconds.values()))}", loc="left")
    bare(axis)
