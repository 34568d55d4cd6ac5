"""A claim of the paper: where it stands, how it is tested here, and the rule that turns logged rows into a verdict.

Steps: (1) `paired` compares two arms of a study seed by seed; (2) a rule (`above`, `below`, `alike`, `all_of`) turns a number with its
interval into a verdict; (3) `decide` makes a row of the scoreboard of a `Claim`.

Intervals are of Student's t over seeds, 95 %. They hold how weights vary with the seed of training; the backbone's own seed is left out,
as it was trained once. A rule's thresholds stand in the code that calls it, and were committed before the runs that it judges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable on this profile"
SEEDS = 3  # fewer decide nothing


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval; `low` and `high` are None for fewer than two seeds.

    `least` and `most` are the bounds that a rule wants the interval to lie between, None where it has none; rules fill them in.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Claim:
    """A row of the scoreboard before it is decided.

    Args:
        number: of the list in the scoreboard's notebook. claim: one sentence. where: in the paper. rule: in words, with its threshold.
        decide: rows of all logs -> (Estimate, verdict); a verdict is one of HOLDS, FAILS, UNTESTABLE, or UNTESTABLE with a reason after it.
        unit: of the estimate. notebook: where its runs are shown, "08_ablations#mask" for example.
    """

    number: int
    claim: str
    where: str
    rule: str
    decide: Callable[[Sequence[dict]], tuple[Estimate, str]]
    unit: str
    notebook: str


# --- 1. numbers -----------------------------------------------------------------------------------------------------------------


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one number a seed; of values that are all equal, the interval is that value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else float("nan"), None, None, len(values))
    mean, spread = float(values.mean()), float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, mean, spread) if spread > 0 else (mean, mean)
    return Estimate(mean, float(low), float(high), len(values))


def by_seed(rows: Sequence[dict], study: str, arm: str, column: str) -> dict[int, float]:
    """seed -> a column's number, of the rows of an arm that have it."""
    return {r["seed"]: r[column] for r in rows if (r["study"], r["arm"]) == (study, arm) and r.get(column) is not None}


def paired(rows: Sequence[dict], study: str, better: str, worse: str, column: str) -> Estimate:
    """`column` of the arm `better` minus that of `worse`, over the seeds that both have."""
    one, other = (by_seed(rows, study, arm, column) for arm in (better, worse))
    return estimate([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


# --- 2. rules -------------------------------------------------------------------------------------------------------------------


def enough(found: Estimate) -> str | None:
    """Why nothing can be said, or None."""
    return None if found.seeds >= SEEDS else f"{UNTESTABLE}: {found.seeds} of the {SEEDS} seeds that a verdict needs"


def above(found: Estimate, threshold: float = 0.0) -> tuple[Estimate, str]:
    """Holds if the whole interval lies above the threshold."""
    return found._replace(least=threshold), enough(found) or (HOLDS if found.low > threshold else FAILS)


def below(found: Estimate, threshold: float) -> tuple[Estimate, str]:
    """Holds if the whole interval lies below the threshold."""
    return found._replace(most=threshold), enough(found) or (HOLDS if found.high < threshold else FAILS)


def alike(found: Estimate, margin: float) -> tuple[Estimate, str]:
    """Holds if the whole interval of a difference lies within ± margin (equivalence)."""
    verdict = enough(found) or (HOLDS if -margin < found.low and found.high < margin else FAILS)
    return found._replace(least=-margin, most=margin), verdict


def all_of(*decided: tuple[Estimate, str]) -> tuple[Estimate, str]:
    """The first estimate, with the verdict of all: untestable if one is, else holds if all do."""
    verdicts = [verdict for _, verdict in decided]
    unknown = next((v for v in verdicts if v.startswith(UNTESTABLE)), None)
    return decided[0][0], unknown or (HOLDS if all(v == HOLDS for v in verdicts) else FAILS)


# --- 3. the scoreboard ----------------------------------------------------------------------------------------------------------


def decide(claim: Claim, rows: Sequence[dict]) -> dict:
    """A row of the scoreboard: {number, claim, where, rule, value, low, high, least, most, unit, seeds, verdict, notebook}."""
    found, verdict = claim.decide(rows)
    numbers = {name: getattr(found, name) for name in ("value", "low", "high", "least", "most")}
    return {
        "number": claim.number, "claim": claim.claim, "where": claim.where, "rule": claim.rule, **numbers, "unit": claim.unit,
        "seeds": found.seeds, "verdict": verdict, "notebook": claim.notebook,
    }  # fmt: skip
