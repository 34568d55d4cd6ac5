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
from matplotlib.ticker import PercentFormatter

from abc_core.runs import paths
from abc_core.runs.files import whole_file

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






def histogram(axis, values: np.ndarray, bins: np.ndarray, colour: str, label: str | None = None) -> None:
    """Shares of all finite values that lie in each bin, as a filled outline."""
    shown = values[np.isfinite(values)]
    weights = np.full(shown.size, 1 / max(1, shown.size))
    axis.hist(shown, bins, weights=weights, histtype="stepfilled", facecolor=(colour, 0.35), edgecolor=colour, linewidth=1.0, label=label)








def bare(axis) -> None:
    """Horizontal bars need no lines but the vertical grid."""
    axis.grid(False, axis="y")
    axis.tick_params(left=False, bottom=False)
    axis.spines[["left", "bottom"]].set_visible(False)
