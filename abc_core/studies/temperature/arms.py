"""The temperature (Sec. 4.3, Figure 5): how τ moves, where its gradient comes from, and how a step that is too large breaks a run.

    ∂L/∂τ = 1/τ² · mean over queries of (s⁺ − Σ p·s),   p = softmax(s / τ),  s⁺ and s: cosines with the positive and with all candidates

It is positive, so that a step lowers τ, where the positives lie above what the softmax expects. A batch whose positives all come first
wants τ = 0, and the slope that leads there may grow like 1/τ²: of a raw τ the next step may land below zero, log τ cannot.

Steps: (1) `gradient` and `descend`, on embeddings that stay as they are; (2) `arms` of the study; (3) `row_of` a finished one;
(4) CLAIMS, whose thresholds were fixed before the runs that they judge. `temperature_figures` draws.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from abc_core.batches import PairBatches
from abc_core.data.mined import read_mined
from abc_core.jobs.stages import PretrainJob
from abc_core.loss import Temperature, duplicate_mask, info_nce
from abc_core.studies import claims
from abc_core.studies import study as studies
from abc_core.studies.claims import Claim, above, all_of, below, estimate, paired
from abc_core.studies.study import Arm

GRID = np.geomspace(0.005, 1.0, 40)  # τ


# --- 1. the gradient --------------------------------------------------------------------------------------------------------------


def gradient(q_emb: torch.Tensor, c_emb: torch.Tensor, temperature: float, duplicates: torch.Tensor | None = None) -> torch.Tensor:
    """∂L/∂τ of `loss.info_nce` in closed form.

    Args:
        q_emb, c_emb, duplicates: float[B, D], float[B·(1+K), D], bool[B, C], as `info_nce` takes them. temperature: τ, of any sign.
    """
    scores = q_emb @ c_emb.T  # B, C cosines
    own = scores[torch.arange(len(q_emb)), torch.arange(0, len(c_emb), len(c_emb) // len(q_emb))]
    logits = scores / temperature
    p = (logits if duplicates is None else logits.masked_fill(duplicates, -math.inf)).softmax(1)
    return (own - (p * scores).sum(1)).mean() / temperature**2


def along(q_emb: torch.Tensor, c_emb: torch.Tensor, duplicates: torch.Tensor | None = None, grid: Sequence[float] = GRID) -> dict:
    """{temperature, formula, autograd, loss}: ∂L/∂τ by `gradient` and by PyTorch, and the loss, at every τ of a grid."""
    out: dict[str, list] = {"temperature": [float(t) for t in grid], "formula": [], "autograd": [], "loss": []}
    for value in out["temperature"]:
        tau = torch.tensor(value, dtype=q_emb.dtype, requires_grad=True)
        loss, _ = info_nce(q_emb, c_emb, tau, duplicates)
        loss.backward()
        found = gradient(q_emb, c_emb, value, duplicates), tau.grad, loss.detach()
        for name, number in zip(("formula", "autograd", "loss"), found):
            out[name].append(float(number))
    return out


def descend(q_emb, c_emb, duplicates, parametrisation: str, rate: float, steps: int = 40, start: float = 0.07) -> dict:
    """{step, temperature, loss}: Adam on τ alone, on one batch over and over.

    Args:
        rate: of τ if the parametrisation is "raw", of log τ if it is "log"; Adam moves its parameter by about as much a step.
    """
    temperature = Temperature(start, parametrisation).to(q_emb.dtype)
    adam = torch.optim.Adam(temperature.parameters(), lr=rate)
    out: dict[str, list] = {"step": [], "temperature": [], "loss": []}
    for step in range(steps):
        loss, _ = info_nce(q_emb, c_emb, temperature(), duplicates)
        if not torch.isfinite(loss):  # τ is zero
            break
        for name, number in (("step", step), ("temperature", temperature().item()), ("loss", loss.item())):
            out[name].append(number)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return out


def embedded_batch(embedder, job: PretrainJob, negatives: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float64[B, D], float64[B·(1+K), D] and bool[B, C]: the first batch of a job that reads a mined set, with so many negatives of each
    picture, and its duplicates."""
    mined, _ = read_mined(Path(job.mined), Path(job.pairs))
    config = replace(job.config, negatives=negatives)
    batch = PairBatches(mined.queries, mined.captions, mined.caption_ids, mined.padded(config.negatives), config)(0)
    q_emb, c_emb = embedder.embed(images=batch.images), embedder.embed(texts=batch.candidates)
    duplicates = duplicate_mask(batch.candidate_ids[:: 1 + config.negatives], batch.candidate_ids)
    return torch.from_numpy(q_emb).double(), torch.from_numpy(c_emb).double(), duplicates


def only_right(q_emb: torch.Tensor, c_emb: torch.Tensor, duplicates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch without the pictures whose own caption does not come first, nor their candidates: one with negatives that are too easy."""
    scores, each = (q_emb @ c_emb.T).masked_fill(duplicates, -math.inf), len(c_emb) // len(q_emb)
    own = scores[torch.arange(len(q_emb)), torch.arange(0, len(c_emb), each)]
    right = (scores >= own[:, None]).sum(1) == 1
    columns = right.repeat_interleave(each)
    return q_emb[right], c_emb[columns], duplicates[right][:, columns]


# --- 2. the arms ------------------------------------------------------------------------------------------------------------------




def arms(
    base: PretrainJob,
    miner: PretrainJob,
    at_random: Path,
    seeds: Sequence[int],
    starts: Sequence[float],
    fixed: Sequence[float],
    raw_factor: float,
    provoked_factor: float,
) -> list[Arm]:
    """The arms of every study, seed by seed.

    study       arms
    negatives   "mined" is `base`, which learns log τ; "random" has the negatives of the file `at_random`
    raw         the same with a raw τ, whose rate is `raw_factor` times that of the others
    fixed       "learned" is "mined" of "raw"; the others hold τ at a value of `fixed`
    starts      `miner` (Figure 5 left: "while training our negative mining model") from each of `starts`; ", log": log τ from both ends
    provoked    the first seed alone: `base` with a raw τ, and with log τ, whose first steps are alike and too large
    """
    config = base.config

    def change(job: PretrainJob, mined: str | None = None, **numbers) -> PretrainJob:
        return replace(job, mined=mined or job.mined, config=replace(job.config, **numbers))

    once = {"validate_every": config.steps}  # at the end; "negatives" and "provoked" are curves
    started = change(miner, validate_every=miner.config.steps)
    raw = {"temperature_parametrisation": "raw", "temperature_factor": raw_factor}
    log = {"temperature_parametrisation": "log", "temperature_factor": config.temperature_factor}
    provoked = {"raw": raw | {"temperature_factor": provoked_factor}, "log": {"temperature_factor": provoked_factor / config.temperature}}
    found = []
    for seed in seeds:  # whole seeds, one after the other: a study that is stopped early has some
        for study, numbers in (("negatives", {}), ("raw", raw | once)):
            for name, file in (("mined", base.mined), ("random", str(at_random))):
                found.append(Arm(study, name, seed, change(base, file, seed=seed, **numbers)))
        found.append(Arm("fixed", "learned", seed, change(base, seed=seed, **raw, **once)))
        for value in fixed:
            job = change(base, seed=seed, temperature=value, learn_temperature=False, **once)
            found.append(Arm("fixed", f"{value:g}", seed, job, value))
        found += [Arm("starts", f"{v:g}", seed, change(started, seed=seed, temperature=v), v) for v in starts]
        for value in sorted({min(starts), max(starts)}):
            found.append(Arm("starts", f"{value:g}, log", seed, change(started, seed=seed, temperature=value, **log), value))
    found += [Arm("provoked", name, seeds[0], change(base, seed=seeds[0], **numbers)) for name, numbers in provoked.items()]
    return found


# --- 3. rows ----------------------------------------------------------------------------------------------------------------------


def row_of(arm: Arm, report: Callable = print) -> dict:
    """`studies.row_of`, and of all steps gradient_largest and gradient_median (norms before clipping), temperature_lowest, and `push`."""
    steps = arm.job.open(lock=False).rows()
    norms = [row["gradient_norm"] for row in steps]
    return studies.row_of(arm, report=report) | {
        "gradient_largest": max(norms),
        "gradient_median": float(np.median(norms)),
        "temperature_lowest": min(row["temperature"] for row in steps),
        "push": push(steps, arm.job.config),
    }


def push(steps: Sequence[dict], config) -> float | None:
    """How far τ (or log τ) went in the last quarter of the steps, over how far Adam could take it there.

    About −1 if every step lowered it, about 0 if it had found its place, whatever the learning rate does meanwhile; None if it is fixed.
    """
    late = steps[-max(1, len(steps) // 4) :]
    reach = config.temperature_factor * sum(row["learning_rate"] for row in late)
    if not config.learn_temperature or not reach:
        return None
    before = steps[-len(late) - 1]["temperature"] if len(steps) > len(late) else config.temperature
    after = late[-1]["temperature"]
    return (math.log(after / before) if config.temperature_parametrisation == "log" else after - before) / reach


def row_of_curve(study: str, arm: str, seed: int, model: Path, curve: dict) -> dict:
    """What `along` or `descend` gave for the model of a run, in a row that is kept beside those of the arms."""
    run = Path(model).parent
    commit = json.loads((run / "provenance.json").read_text())["commit"]
    return {"study": study, "arm": arm, "seed": seed, "run": run.name, "commit": commit, "curve": curve}


# --- 4. claims --------------------------------------------------------------------------------------------------------------------

ACCURACIES = ("val_accuracy", "ood_accuracy")
SPIKE = 10.0  # times a median norm. The gradient reaches the weights through s / τ, so from 0.01 it is seven times that from 0.07 at like
# errors of the softmax: less than ten times is no more than another scale, which clipping and Adam take out; a spike they do not.
SETTLED = 0.5  # of Adam's reach: a steady push goes about all of it, a τ that found its place goes to and fro and ends near where it was
COLLAPSED = 0.01  # τ: a third of the 0.03 at which the paper's mined run settles, and a seventh of the start


def claim_3(rows: Sequence[dict]):
    """Mined minus random, in points of validation accuracy, in distribution and out of it."""
    return all_of(*(above(paired(rows, "negatives", "mined", "random", name)) for name in ACCURACIES))


def parts_of_4(rows: Sequence[dict]) -> dict:
    """In words -> (estimate, verdict) of each part of claim 4, with a raw τ whose reach over the run is that of the paper's 4000 steps."""
    of = lambda arm, value: estimate([value(r) for r in rows if (r["study"], r["arm"]) == ("raw", arm)])  # noqa: E731
    unstable = lambda r: float(r["temperature_lowest"] <= 0 or r["gradient_largest"] > SPIKE * r["gradient_median"])  # noqa: E731
    tau = lambda r: r["temperature"]  # noqa: E731
    return {
        "τ at the end, mined minus random, is above 0": above(paired(rows, "raw", "mined", "random", "temperature")),
        f"mined: push on τ lies within ± {SETTLED}": claims.alike(of("mined", lambda r: r["push"]), SETTLED),
        f"random: τ at the end is below {COLLAPSED}": below(of("random", tau), COLLAPSED),
        f"random: in every seed τ ≤ 0, or a gradient over {SPIKE:g} × its median": above(of("random", unstable), 0.5),
        "mined: in no seed": below(of("mined", unstable), 0.5),
    }


def parts_of_5(rows: Sequence[dict]) -> dict:
    """In words -> (estimate, verdict) of each part of claim 5, with a raw τ and in-batch negatives alone (the model that mines)."""
    median = claims.by_seed(rows, "starts", "0.07", "gradient_median")

    def spike(arm: str):
        largest = claims.by_seed(rows, "starts", arm, "gradient_largest")
        return estimate([math.log10(largest[s] / median[s]) for s in sorted(largest.keys() & median.keys())])  # a ratio: means of its log

    ratio = f"largest gradient over the median from 0.07 is {{}} {SPIKE:g} ×"
    return {
        f"from 0.01: {ratio.format('above')}": above(spike("0.01"), math.log10(SPIKE)),
        f"from 0.07: {ratio.format('below')}": below(spike("0.07"), math.log10(SPIKE)),
        "from 0.07: validation accuracy is above that from 0.5": above(paired(rows, "starts", "0.07", "0.5", "val_accuracy")),
    }


def parts_of_23(rows: Sequence[dict]) -> dict:
    """In words -> (estimate, verdict) against each fixed τ. Learned is the raw τ: log τ of "negatives" goes a fifth of its start at most in
    40 steps, so it is as good as fixed."""
    arms = ("0.02", "0.03", "0.07")
    return {f"validation accuracy, learned minus fixed at {a}": above(paired(rows, "fixed", "learned", a, "val_accuracy")) for a in arms}


CLAIMS = [
    Claim(
        3, "Mined negatives raise accuracy", "Fig. 5 right", "mined minus random above 0 in and out of distribution, same steps and seeds",
        claim_3, "points of validation accuracy", "04_temperature_dynamics",
    ),
    Claim(
        4, "Mined negatives stabilise τ; random ones push it towards 0 and end in instability", "Fig. 5 middle",
        f"raw τ: mined ends above random, its push within ± {SETTLED}; random ends below {COLLAPSED} and is unstable, mined never",
        lambda rows: all_of(*parts_of_4(rows).values()), "τ, mined minus random", "04_temperature_dynamics",
    ),
    Claim(
        5, "τ = 0.07 is a stable start; a low start gives gradient spikes, a high one needs more steps", "Fig. 5 left",
        f"raw τ: from 0.01 the largest gradient is above {SPIKE:g} × the median from 0.07, from 0.07 below; accuracy from 0.5 is lower",
        lambda rows: all_of(*parts_of_5(rows).values()), "log10 of the ratio from 0.01", "04_temperature_dynamics",
    ),
    Claim(
        23, "Learning τ beats fixing it", "Sec. 4.3", "learned minus fixed above 0 for every fixed τ (0.02, 0.03, 0.07)",
        lambda rows: all_of(*parts_of_23(rows).values()), "points of validation accuracy, over τ = 0.02", "04_temperature_dynamics",
    ),
]  # fmt: skip


def parts(rows: Sequence[dict]) -> list[dict]:
    """Every part of every claim, as a table: {claim, part, value, low, high, seeds, verdict}."""
    compare = lambda name: above(paired(rows, "negatives", "mined", "random", name))  # noqa: E731
    each = {3: {f"{name}, mined minus random, is above 0": compare(name) for name in ACCURACIES}}
    each |= {4: parts_of_4(rows), 5: parts_of_5(rows), 23: parts_of_23(rows)}
    return [{"claim": n, "part": part, **found._asdict(), "verdict": v} for n, of in each.items() for part, (found, v) in of.items()]
