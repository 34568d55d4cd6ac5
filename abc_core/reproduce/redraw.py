"""Draw the committed figures again from committed rows: `python -m abc_core.reproduce.redraw`, or `make figures`.

Steps: (1) every picture in figures/<profile> of the committed profiles is looked up, in FROM_CSV by the table beside it, or in FROM_LOG by
a log of logs/<profile>; (2) the function that its notebook calls draws these rows; (3) it is written with the footer that the picture holds
as text, and compared with what was there. Pages with pictures of the world, and histograms, need the data and stay as they are.

The bytes depend on rows and versions alone: a picture says which ones drew it.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from abc_core.figures import benchmarks, training
from abc_core.figures import benchmarks as charts
from abc_core.figures import style as figures
from abc_core.jobs import memory
from abc_core.recipes import table as fair_table
from abc_core.runs import paths
from abc_core.studies import study as studies

COMMITTED = "thorough"  # whose logs are committed
PROFILES = ("default", COMMITTED)  # whose figures are
EXACT = "answers that match word for word on held-out scenes, 95 % intervals"
KINDS = "right caption first (R@1), 95 % intervals over queries"
FAIR = {"image_to_text": "image → text", "text_to_image": "text → image", "classification": "classification", "vqa": "VQA",
        "ctrlbench": "CtrlBench"}  # fmt: skip


def _fair(rows: Sequence[dict]):
    return fair_table.plot_fair(rows, FAIR)


FROM_CSV: dict[str, str | Callable] = {  # figure -> what draws the rows of its table: a function, or module:function
    "00_exact_match": lambda rows: benchmarks.plot_by_kind(rows, "exact_match", EXACT),
    "02_memory_plan": lambda rows: training.plot_memory(rows, memory.LIMIT),
    "02_training": training.plot_training,
    "03_training": training.plot_training,
    "06_ctrlbench": benchmarks.plot_ctrlbench,
    "06_failures": charts.plot_failures,
    "06_kinds": lambda rows: benchmarks.plot_by_kind(rows, "r1", KINDS),
    "06_probes": charts.plot_probes,
    "06_table3": charts.plot_table3,
    "06_wordings": charts.plot_wordings,
    "07_fair_miniature": _fair,
    "07_fair_seconds": _fair,
    "07_zero_shot": charts.plot_zero_shot,
    "10_scoreboard": "abc_core.studies.scoreboard:plot_scoreboard",
}
FROM_LOG: dict[str, tuple[str, str]] = {  # figure of the thorough profile -> (log, module:function that draws its rows)
    "04_failure": ("04_temperature_dynamics", "abc_core.studies.temperature.figures:plot_failure"),
    "04_gradient": ("04_temperature_dynamics", "abc_core.studies.temperature.figures:plot_gradient"),
    "04_starts": ("04_temperature_dynamics", "abc_core.studies.temperature.figures:plot_starts"),
    "04_temperature_dynamics": ("04_temperature_dynamics", "abc_core.studies.temperature.figures:plot_dynamics"),
    "05_resolution": ("05_resolution_study", "abc_core.studies.resolution:plot_resolution"),
    "08_ablations": ("08_ablations", "abc_core.studies.ablations.figures:plot_stage1"),
    "08_backbones": ("08_ablations", "abc_core.studies.ablations.figures:plot_backbones"),
    "08_instructions": ("08_ablations", "abc_core.studies.ablations.figures:plot_stage2"),
    "08_negatives": ("08_ablations", "abc_core.studies.ablations.figures:plot_negatives"),
}


class Redrawn(NamedTuple):
    """What became of a committed figure: "same", "changed" or "left out", and why."""

    path: Path
    what: str
    why: str = ""


# --- 1. what there is -----------------------------------------------------------------------------------------------------------


def redraw(profiles: Sequence[str] = PROFILES, into: Callable[[Path], Path] = lambda path: path) -> Iterator[Redrawn]:
    """Draw all committed figures of some profiles again, one after the other.

    Args:
        into: path of a committed picture -> where to write; its own place by default.
    """
    for profile in profiles:
        for path in sorted((paths.ROOT / "figures" / profile).glob("*.png")):
            yield _redrawn(path, profile, into(path))


def _redrawn(path: Path, profile: str, target: Path) -> Redrawn:
    draw, rows = FROM_CSV.get(path.stem), []
    if draw is not None and path.with_suffix(".csv").exists():
        rows = read_rows(path.with_suffix(".csv"))
    elif path.stem in FROM_LOG:
        log, draw = FROM_LOG[path.stem]
        rows = studies.kept(log, profile) if profile == COMMITTED else []
    if not rows:
        return Redrawn(path, "left out", "its rows are not committed" if draw else "it shows more than its table holds")
    said = text_of(path)
    if "Description" not in said:
        return Redrawn(path, "left out", "it does not hold its footer; its notebook draws it anew")
    # --- 2, 3. the same function, the same footer
    fig, before = _function(draw)(rows), path.read_bytes()
    figures.write_picture(fig, target, profile, said["Description"])
    if target.read_bytes() == before:
        return Redrawn(path, "same")
    drawn_by = said.get("Software", "another version")
    return Redrawn(path, "changed", "" if drawn_by == figures.SOFTWARE else f"drawn by {drawn_by}, here by {figures.SOFTWARE}")


def text_of(path: Path) -> dict[str, str]:
    """The texts that a PNG holds: "Description", its footer, and "Software"."""
    with Image.open(path) as picture:
        picture.load()
        return {name: value for name, value in picture.info.items() if isinstance(value, str)}


def read_rows(path: Path) -> list[dict]:
    """Rows of a table as `figures.save` was given them: numbers to the last digit, NaN where one is missing, words as they are."""
    with path.open(newline="") as file:
        names, *lines = csv.reader(file)
    columns = [_numbers(column) for column in zip(*lines)]
    return [dict(zip(names, row)) for row in zip(*columns)]


def _numbers(words: Sequence[str]) -> Sequence:
    """Whole numbers or floats if a column holds nothing else, otherwise the words."""
    for number in (int, lambda word: float(word or "nan")):
        try:
            return [number(word) for word in words]
        except ValueError:
            pass
    return words


def _function(draw: str | Callable) -> Callable:
    if callable(draw):
        return draw
    module, name = draw.split(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    for found in redraw(sys.argv[1:] or PROFILES):
        print(f"{found.path.relative_to(paths.ROOT)} · {found.what}{found.why and f': {found.why}'}", flush=True)
