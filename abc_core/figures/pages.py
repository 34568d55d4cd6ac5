"""Figures of pictures with their captions: a mined sample, a page of retrieval, regions, a contact sheet; right ones green, wrong ones not.

Plain rows in, a matplotlib figure out, in the look of `abc_core.figures.style`, whose `save` writes them.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.patches import FancyBboxPatch, Rectangle

from abc_core.figures.style import BLUE, GREEN, GREY, PALE, RED, WIDTH, drawn, wrap

LINE = 0.158  # inches per line of a list of captions
RIGHT, WRONG, OTHER = (GREEN, "#ddf2ea"), (RED, "#fae6da"), (GREY, "#f1f1f1")  # mark and background of a caption


def show(axis, image, anchor: str = "N") -> None:
    """A picture without axes, in a thin frame."""
    axis.imshow(np.asarray(image.convert("RGB")))
    axis.set(xticks=[], yticks=[], anchor=anchor)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=PALE)


def blank(axis, lines: float) -> None:
    """An empty sheet of `lines` lines, counted from the top, for `write` and `list_captions`."""
    axis.axis("off")
    axis.set(xlim=(0, 1), ylim=(lines, 0))


def write(axis, x: float, y: float, text: str, **kwargs) -> None:
    """Text of 8 points at line y, which the layout does not make room for."""
    axis.text(x, y, text, **({"fontsize": 8, "va": "top", "linespacing": 1.25} | kwargs)).set_in_layout(False)


def list_captions(axis, lines: Sequence[tuple], inches: float, top: float) -> None:
    """(caption, score, look) in boxes one below the other; a look is RIGHT, WRONG or OTHER; captions are `inches` wide."""
    y = top
    for caption, score, (colour, background) in lines:
        wrapped = wrap(caption, inches)
        corners = {"boxstyle": "round,pad=0,rounding_size=0.008", "mutation_aspect": 0.75 * WIDTH / LINE}
        axis.add_patch(FancyBboxPatch((0, y), 1, len(wrapped) + 0.3, facecolor=background, edgecolor="none", **corners))
        write(axis, 0.012, y + 0.18, "✓" if colour == GREEN else "✗", color=colour, weight="bold")
        write(axis, 0.045, y + 0.18, "\n".join(wrapped))
        write(axis, 1 - 0.012, y + 0.18, f"{score:.2f}", ha="right", color=colour)
        y += len(wrapped) + 0.5


def height(lines: Sequence[tuple], inches: float) -> float:
    """The number of lines that `list_captions` takes."""
    return sum(len(wrap(line[0], inches)) + 0.5 for line in lines)


@drawn
def plot_mining_sample(image, positive: tuple, negatives: Sequence[tuple]):
    """The paper's Figure 3: a picture, its caption in green, its mined negatives in red, each with its similarity.

    Args:
        image: a PIL picture. positive: (caption, score). negatives: K pairs (caption, score).
    """
    lines = [(*positive, RIGHT)] + [(caption, score, WRONG) for caption, score in negatives]
    inches = 4.05
    rows = max(13.0, 1.5 + height(lines, inches))
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, LINE * rows + 0.35), width_ratios=(2.1, 4.9))
    show(left, image)
    blank(right, rows)
    write(right, 0, 0, "The picture's caption, and the negatives mined for it", weight="bold")
    write(right, 1 - 0.012, 0, "cosine", color=GREY, ha="right")
    list_captions(right, lines, inches, 1.5)
    return fig


@drawn
def plot_gallery(examples: Sequence[dict]):
    """Pictures with their instructions, the right caption of each and the best retrieved ones (Appendix E); hits are green with a tick.

    Args:
        examples: dicts with image (PIL), title, and asked: list of (instruction, right caption, [(caption, score, right)], best first).
    """
    inches, narrow, gap = 5.2, 4.7, 0.5  # of a line, of one with a mark and a score; lines
    sheets = []
    for example in examples:
        blocks = []  # (instruction, right caption, found, lines that the block takes)
        for instruction, right, found in example["asked"]:
            asked, gold = wrap(f"Q: {instruction}", inches, 8, "bold"), wrap(f"A: {right}", inches)
            looks = [(caption, score, RIGHT if ok else WRONG) for caption, score, ok in found]
            blocks.append((asked, gold, looks, len(asked) + len(gold) + 0.2 + height(looks, narrow) + gap))
        sheets.append((wrap(example["title"], inches, 8.5, "bold"), blocks))
    tall = [0.2 * WIDTH / LINE * min(1.4, e["image"].height / e["image"].width) for e in examples]
    rows = [0.6 + max(t, len(title) + 0.5 + sum(b[3] for b in blocks)) for t, (title, blocks) in zip(tall, sheets)]
    size = (WIDTH, LINE * sum(rows) + 0.3)
    fig, axes = plt.subplots(len(rows), 2, figsize=size, width_ratios=(1, 4), height_ratios=rows, squeeze=False)
    for (picture, sheet), example, (title, blocks), lines in zip(axes, examples, sheets, rows):
        show(picture, example["image"])
        blank(sheet, lines)
        write(sheet, 0, 0, "\n".join(title), color=BLUE, weight="bold", fontsize=8.5)
        y = len(title) + 0.5
        for asked, gold, looks, taken in blocks:
            write(sheet, 0, y, "\n".join(asked), weight="bold")
            write(sheet, 0, y + len(asked), "\n".join(gold), color=GREY)
            list_captions(sheet, looks, narrow, y + len(asked) + len(gold) + 0.2)
            y += taken
    return fig


@drawn
def plot_regions(examples: Sequence[dict]):
    """The paper's Figure 2: pictures with the boxes that were drawn, each with its instruction and caption; boxes left out are dashed.

    Args:
        examples: dicts with image (PIL), regions: list of (box, instruction, caption), and perhaps left_out: list of boxes; a box is
            (x, y, width, height) in pixels.
    """
    colours = sns.color_palette("colorblind").as_hex()
    inches, dashed = 4.3, "dashed: the largest boxes, left out"
    lists = [[(wrap(asked, inches, 8.5, "bold"), wrap(said, inches, 8.5)) for _, asked, said in e["regions"]] for e in examples]
    taken = [sum(len(asked) + len(said) + 0.9 for asked, said in entries) + 1.2 for entries in lists]
    tall = [0.28 * WIDTH / LINE * e["image"].height / e["image"].width + 0.4 for e in examples]
    lines = [max(both) for both in zip(tall, taken)]
    size = (WIDTH, LINE * sum(lines) + 0.3)
    fig, axes = plt.subplots(len(examples), 2, figsize=size, width_ratios=(2.1, 4.9), height_ratios=lines, squeeze=False)
    for (picture, sheet), example, said, rows in zip(axes, examples, lists, lines):
        show(picture, example["image"])
        for box in example.get("left_out", ()):
            picture.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor="white", linewidth=1.8))
            picture.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=GREY, linewidth=0.9, linestyle=(0, (4, 3))))
        picture.set(xlim=(-0.5, example["image"].width - 0.5), ylim=(example["image"].height - 0.5, -0.5))
        blank(sheet, rows)
        y = 0.0
        for k, ((box, _, _), (instruction, caption)) in enumerate(zip(example["regions"], said)):
            colour = colours[k % len(colours)]
            picture.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor="white", linewidth=3.4))
            picture.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=colour, linewidth=1.8))
            chip = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
            style = {"color": "white", "weight": "bold", "fontsize": 8, "bbox": chip, "clip_on": True}
            picture.text(box[0], box[1], str(k + 1), ha="left", va="top", **style).set_in_layout(False)
            write(sheet, 0.025, y + 0.1, str(k + 1), ha="center", **(style | {"clip_on": False}))
            write(sheet, 0.075, y, "\n".join(instruction), weight="bold", fontsize=8.5)
            write(sheet, 0.075, y + 1.08 * len(instruction), "\n".join(caption), fontsize=8.5)
            y += len(instruction) + len(caption) + 0.9
        if example.get("left_out"):
            write(sheet, 0.075, y, dashed, color=GREY)
    return fig


@drawn
def plot_contact_sheet(images: Sequence, captions: Sequence[str], columns: int = 5):
    """Pictures in a grid with their captions below."""
    if len(images) != len(captions) or not images:
        raise ValueError(f"{len(images)} pictures and {len(captions)} captions; a contact sheet needs as many of both, and one at least")
    rows = -(-len(images) // columns)
    wrapped = [wrap(c, WIDTH / columns - 0.15, 7) for c in captions]
    lines = max(len(w) for w in wrapped)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (WIDTH / columns * 0.85 + 0.13 * lines)), squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, wrapped):
        show(axis, image, anchor="S")
        axis.set_xlabel("\n".join(text), fontsize=7)
    return fig
