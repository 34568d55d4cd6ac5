"""The scoreboard: every claim of the paper with its rule, what the logged rows say of it, and the verdict.

Steps: (1) `gather` puts own rows, and the logs of the studies, side by side; (2) `board` has each claim decided by its rule; (3)
`plot_scoreboard` draws a row a claim, `markdown` writes the table with links to where the runs are shown.

**Caveat:** intervals are over seeds of training; the backbone's own seed is left out, as it was trained once.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt

from abc_core.figures.style import GREEN, GREY, INK, RED, WIDTH, drawn, table_of, wrap
from abc_core.studies import claims, resolution
from abc_core.studies import study as studies
from abc_core.studies.ablations import backbones as families
from abc_core.studies.ablations import stage1 as ablations
from abc_core.studies.ablations import stage2 as instruct_ablations
from abc_core.studies.claims import FAILS, HOLDS, UNTESTABLE, Claim
from abc_core.studies.pipeline import claims as pipeline_claims
from abc_core.studies.temperature import arms as temperature

OWN = "10_scoreboard"
LOGS = ("04_temperature_dynamics", "05_resolution_study", "08_ablations")  # of the other notebooks
PARTS = (temperature, resolution, ablations, families, instruct_ablations, pipeline_claims)
CLAIMS: list[Claim] = [claim for part in PARTS for claim in part.CLAIMS]
SHORT = {  # a claim in so many words as a line of the figure holds
    1: "Instructions steer retrieval past a blind 20 %",
    2: "100 steps of instruction tuning suffice",
    3: "Mined negatives raise accuracy",
    4: "Mined negatives steady τ, random ones do not",
    5: "τ = 0.07 starts stably; low spikes, high is slow",
    6: "ε keeps false negatives out",
    7: "Same-image batches make instructions needed",
    8: "Varied wordings avoid overfitting to phrasing",
    9: "Stage 2 leaves the captions' vectors alone",
    10: "More visual tokens help where pixels are many",
    11: "Bidirectional is slightly better than causal",
    12: "Adapter rank hardly matters",
    13: "A larger batch helps at equal samples",
    14: "More steps keep lowering the loss",
    15: "A better generator makes a better embedder",
    16: "Image → text beats text → image",
    17: "Skipping the logits saves about 11 GB a device",
    18: "A sentence template helps classification",
    19: "Fused dual encoders cannot use instructions",
    20: "Multimodal: neither modality alone solves it",
    21: "Even a short run mines useful negatives",
    22: "Two stages match one mixed stage, at less cost",
    23: "Learning τ beats fixing it",
    24: "Instructions are unnecessary for classification",
    25: "Head, pooling and mask are interchangeable",
    26: "Without task data: better out of distribution",
    27: "Stage 2 costs a small fraction of stage 1",
}
MARKS = {HOLDS: ("✓", GREEN), FAILS: ("✗", RED), UNTESTABLE: ("?", GREY)}


NOTE = (
    "Each line has its own scale. Green: where the rule wants the whole interval. Intervals are 95 %, over seeds of training (claim 17 is "
    "arithmetic); the backbone's own seed is left out, as it was trained once. *: the number shown keeps its bound, another part of the "
    "rule does not hold. ✗ is also what three seeds did not show. Rules and thresholds were fixed before the runs."
)


# --- 1. rows --------------------------------------------------------------------------------------------------------------------


def gather(own: Sequence[dict], profile: str, committed: bool) -> dict[str, list[dict]]:
    """Log -> its rows, `own` among them under `OWN`.

    Args:
        committed: add the rows of the thorough profile that this one has not. Only where the numbers of both are the same.
    """
    found = {OWN: list(own)} | {name: studies.kept(name, profile) for name in LOGS}
    if committed:
        return {name: studies.with_kept(rows, name, profile) for name, rows in found.items()}
    return {name: [row | {"profile": profile} for row in rows] for name, rows in found.items()}


def footer(logs: Mapping[str, Sequence[dict]]) -> str:
    """Where the rows come from."""
    facts = studies.source([row for rows in logs.values() for row in rows])
    return " · ".join(f"{name} {value}" for name, value in facts.items())


# --- 2. verdicts ----------------------------------------------------------------------------------------------------------------


def board(logs: Mapping[str, Sequence[dict]], judged: Sequence[Claim] = CLAIMS) -> list[dict]:
    """A row of `claims.decide` for each number of `SHORT`, in their order; without its study or its log a claim is not testable.

    Args:
        logs: of `gather`.
    """
    by_number = {claim.number: claim for claim in judged}
    rows = [row for part in logs.values() for row in part]
    return [_decided(number, by_number.get(number), logs, rows) for number in SHORT]


def _decided(number: int, claim: Claim | None, logs: Mapping[str, Sequence[dict]], rows: Sequence[dict]) -> dict:
    log = claim.notebook.split("#")[0] if claim else ""
    if claim and logs.get(log, rows):
        return claims.decide(claim, rows)
    why = f"{UNTESTABLE}: no rows in the log of {log}" if claim else f"{UNTESTABLE}: no study of it"
    words = {"claim": claim.claim, "where": claim.where, "rule": claim.rule} if claim else {"claim": SHORT[number], "where": "", "rule": ""}
    numbers = dict.fromkeys(("value", "low", "high", "least", "most"))
    unit, notebook = (claim.unit, claim.notebook) if claim else ("", "")
    return {"number": number, **words, **numbers, "unit": unit, "seeds": 0, "verdict": why, "notebook": notebook}


def counted(rows: Sequence[Mapping]) -> dict[str, int]:
    """Verdict -> how many claims have it."""
    return {verdict: sum(row["verdict"].startswith(verdict) for row in rows) for verdict in MARKS}


def markdown(rows: Sequence[Mapping]) -> str:
    """The table of verdicts, with links to the notebooks."""
    lines = ["| # | claim | where | rule | measured | seeds | verdict | runs |", "| ---: | --- | --- | --- | --- | ---: | --- | --- |"]
    for row in rows:
        stem, _, part = row["notebook"].partition("#")
        link = f"[{stem[:2]}]({stem}.ipynb{'#' * bool(part)}{part})" if stem else ""
        cells = (row["number"], row["claim"], row["where"], row["rule"], _measured(row), row["seeds"], row["verdict"], link)
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


# --- 3. the figure --------------------------------------------------------------------------------------------------------------

ROW, TOP = 0.28, 0.62  # inches: of a line, and above the first
LEFT, RIGHT = 3.36, 4.42  # inches from the left edge: of the strip on which a row is drawn
COLUMNS = {"Claim": 0.58, "Estimate": LEFT, "Measured": 4.5, "Wanted": 5.38}


@drawn
def plot_scoreboard(rows: Sequence[dict]):
    """A line a claim: verdict, estimate with its 95 % interval over seeds, and the part of the line where the rule wants all of it.

    Args:
        rows: of `board`. Each line has a scale of its own, from its estimate and its bounds.
    """
    rows = table_of(rows, ("number", "verdict", "value", "low", "high", "least", "most", "unit")).to_dict("records")
    high = TOP + ROW * len(rows) + 0.62
    fig, axis = plt.subplots(figsize=(WIDTH, high))
    axis.axis("off")
    axis.set(xlim=(0, WIDTH), ylim=(high, 0))
    fig.get_layout_engine().set(w_pad=0, h_pad=0)
    _heading(axis, rows)
    for k, row in enumerate(rows):
        y = TOP + ROW * (k + 0.5)
        if k % 2 == 0:
            axis.add_patch(plt.Rectangle((0, y - ROW / 2), WIDTH, ROW, color="#f5f5f5", linewidth=0))
        mark, colour = MARKS[verdict_of(row)]
        _say(axis, 0.1, y, mark, color=colour, weight="bold", fontsize=10)
        _say(axis, 0.52, y, f"{row['number']:.0f}", color=GREY, ha="right", fontsize=7)
        _say(axis, 0.58, y, SHORT[int(row["number"])])
        (_unknown if verdict_of(row) == UNTESTABLE else _estimate)(axis, y, row, colour)
    _say(axis, 0.1, high - 0.3, "\n".join(wrap(NOTE, WIDTH - 0.3, 7)), fontsize=7, color=GREY)
    return fig


def verdict_of(row: Mapping) -> str:
    """The verdict of a row without its reason."""
    return next(verdict for verdict in MARKS if row["verdict"].startswith(verdict))


def _say(axis, x: float, y: float, text: str, **style) -> None:
    axis.text(x, y, text, **{"va": "center", "fontsize": 8} | style).set_in_layout(False)


def _heading(axis, rows: Sequence[Mapping]) -> None:
    x = 0.1
    for verdict, count in counted(rows).items():
        mark, colour = MARKS[verdict]
        words = {UNTESTABLE: "not testable on this profile"}.get(verdict, verdict.replace("does", "do") if count != 1 else verdict)
        words = "hold" if verdict == HOLDS and count != 1 else words
        _say(axis, x, 0.17, f"{mark} {count} {words}", color=colour, weight="bold", fontsize=9.5)
        x += 0.4 + 0.085 * len(f"{mark} {count} {words}")
    for title, x in COLUMNS.items():
        _say(axis, x, TOP - 0.12, title, weight="bold", fontsize=7.5)


def _estimate(axis, y: float, row: Mapping, colour: str) -> None:
    """The interval on its strip, over the part where the rule wants it, and the numbers beside."""
    low, high = (row["value"] if _none(row[k]) else row[k] for k in ("low", "high"))
    bounds = [row[k] for k in ("least", "most") if not _none(row[k])]
    start, end = min(low, *bounds, high), max(low, *bounds, high)
    margin = 0.18 * (end - start) or 1.0
    at = lambda v: LEFT + (RIGHT - LEFT) * (v - start + margin) / (end - start + 2 * margin)  # noqa: E731
    left, right = (edge if _none(row[k]) else at(row[k]) for k, edge in (("least", LEFT), ("most", RIGHT)))
    axis.hlines(y, LEFT, RIGHT, color="#cccccc", linewidth=0.6)
    axis.add_patch(plt.Rectangle((left, y - 0.09), right - left, 0.18, color=GREEN, alpha=0.22, linewidth=0))
    axis.vlines([at(b) for b in bounds], y - 0.11, y + 0.11, color=INK, linewidth=0.8, linestyle=(0, (2, 1)))
    axis.hlines(y, at(low), at(high), color=colour, linewidth=2)
    axis.plot(at(row["value"]), y, marker="o", color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5)
    kept = (_none(row["least"]) or low > row["least"]) and (_none(row["most"]) or high < row["most"])
    _say(axis, COLUMNS["Measured"], y, _measured(row), fontsize=7)
    wanted = f"{_wanted(row)} {row['unit']}{' *' * (kept and verdict_of(row) == FAILS)}"
    _say(axis, COLUMNS["Wanted"], y, "\n".join(wrap(wanted, WIDTH - COLUMNS["Wanted"] - 0.12, 7)), fontsize=7, linespacing=0.95)


def _unknown(axis, y: float, row: Mapping, colour: str) -> None:
    why = row["verdict"].removeprefix(UNTESTABLE).removeprefix(": ")
    found = "" if _none(row["value"]) else f"{_measured(row)} {row['unit']} · "
    _say(axis, LEFT, y, "\n".join(wrap(f"{found}{why}", WIDTH - LEFT - 0.25, 7)[:2]), fontsize=7, color=colour, style="italic")


def _measured(row: Mapping) -> str:
    """value ± half of the interval, with as many digits as that leaves sense in."""
    if _none(row["value"]):
        return "–"
    half = 0.0 if _none(row["low"]) else (row["high"] - row["low"]) / 2
    digits = _digits(half) if half else _digits(row["value"] / 10)
    return f"{row['value']:.{digits}f}".replace("-", "−") + (f" ± {half:.{digits}f}" if half else "")


def _wanted(row: Mapping) -> str:
    least, most = (None if _none(row[k]) else f"{row[k]:.3g}".replace("-", "−") for k in ("least", "most"))
    if least and most:
        return f"± {most}" if row["least"] == -row["most"] else f"{least} to {most}"
    return f"> {least}" if least else f"< {most}" if most else ""


def _digits(number: float) -> int:
    """Decimals that show two digits of a number, three at most."""
    return max(0, min(3, 1 - math.floor(math.log10(abs(number))))) if number else 1


def _none(number) -> bool:
    return number is None or math.isnan(number)
