"""The ablations of stage 1 (Appendix B and C, Sec. 3.2, 5.2): arms that differ from one base arm in one setting each, and their claims.

study       arms                                                                          claims
mask        bidirectional (the base), causal                                              11, 25
rank        LoRA of rank 4 to 64, alpha twice the rank                                    12
batch       queries × steps at equal samples                                              13
steps       doublings of the steps                                                        14
epsilon     negatives mined with ε of several values, and without                         6
negatives   mined negatives of each picture                                               –
miner       negatives at random, and mined after 0, few, more and all steps of stage 1    21
two_way     text negatives; the loss in both directions; picture negatives as well        16
readout     the base; no head, last token, mean over visual tokens                        25

Steps: (1) `Stage1` holds the base and the values of every study; (2) `arms` makes those of a study, mining what they need; (3) `row_of` a
finished one; (4) CLAIMS. The ninth study, of backbones, is in `abc_core.studies.ablations.backbones`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from abc_core.config import LoraConfig, MiningConfig
from abc_core.data import pairs
from abc_core.jobs.stages import MineJob, PretrainJob, job_of
from abc_core.model import Embedder
from abc_core.runs import run as runlog
from abc_core.studies import claims
from abc_core.studies import study as studies
from abc_core.studies.ablations.variants import TwoWayJob
from abc_core.studies.claims import Claim, Estimate, above, alike, all_of, below, estimate, paired
from abc_core.studies.miners import by_epsilon, by_miner, false_negatives, mined_file, random_negatives
from abc_core.studies.study import Arm, Measure

# --- 1. the base and the values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage1:
    """The base arm, and what its studies change.

    Args:
        files: of `PretrainJob`: backbone, pairs, mined, validation and whatever else all arms share.
        numbers: of `PretrainConfig`, but for steps, queries and seed.
        miner: checkpoint that mined `files["mined"]`, by `mining`, numbers of `MiningConfig`; `miner_job` is its training, whose steps the
            study of miners changes. last: checkpoint of the whole stage 1.
    """

    files: dict
    numbers: dict
    steps: int
    queries: int
    seeds: Sequence[int] = (0,)
    miner: str = ""
    last: str = ""
    mining: dict = field(default_factory=dict)
    miner_job: PretrainJob | None = None
    ranks: Sequence[int] = (4, 8, 16, 32, 64)
    batches: Sequence[tuple[int, int]] = ((8, 160), (32, 40), (128, 10))  # queries × steps
    doublings: Sequence[int] = (10, 20, 40, 80, 160)
    epsilons: Sequence[float | None] = (None, 1.0, 0.95, 0.9, 0.8)
    negatives: Sequence[int] = (0, 1, 3, 7)
    miner_steps: Sequence[int] = (10,)  # beside 0, those of `miner`, and all of stage 1

    def arm(
        self, study: str, name: str, seed: int, value: float | None = None, job: dict | None = None, kind: type = PretrainJob, **numbers
    ) -> Arm:
        """The base with another seed and, by name, other fields or another kind of its job, or other numbers of its config.

        What differs from the base validates at the end alone.
        """
        given = {"steps": self.steps, "queries": self.queries, "seed": seed} | self.numbers
        base = PretrainJob(config=studies.pretraining(**given), **self.files)
        own = kind(config=studies.pretraining(**given | numbers), **self.files | (job or {}))
        if own != base:
            own = replace(own, config=replace(own.config, validate_every=own.config.steps))
        return Arm(study, name, seed, own, value)


def miner_of(mined: Path) -> tuple[PretrainJob, dict]:
    """The training of the model that mined a file in the folder of its run, and the numbers of its mining."""
    job = job_of(Path(mined).parent)
    return job_of(Path(job.miner).parent), asdict(job.config)


# --- 2. arms --------------------------------------------------------------------------------------------------------------------


def arms(base: Stage1, study: str, report: Callable = print) -> list[Arm]:
    """The arms of a study, all seeds of one setting together. What has to be mined for them is mined first, and kept.

    Raises:
        ValueError: an unknown study.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}; known are {', '.join(STUDIES)}")
    return [make(seed=seed) for make in STUDIES[study](partial(base.arm, study), base, report) for seed in base.seeds]


def _mask(arm, base, report):
    return [partial(arm, "bidirectional"), partial(arm, "causal", job={"embedder": {"bidirectional": False}})]


def _rank(arm, base, report):
    return [partial(arm, str(r), value=r, lora=LoraConfig(r, 2 * r)) for r in base.ranks]


def _batch(arm, base, report):
    return [partial(arm, f"{queries} × {steps}", value=queries, queries=queries, steps=steps) for queries, steps in base.batches]


def _steps(arm, base, report):
    return [partial(arm, str(steps), value=steps, steps=steps) for steps in base.doublings]


def _negatives(arm, base, report):
    return [partial(arm, str(k), value=k, negatives=k) for k in base.negatives]


def _epsilon(arm, base, report):
    files = {name: str(mined_file(job, report)) for name, job in mine_jobs(base, "epsilon").items()}
    return [partial(arm, name, value=None if name == "none" else float(name), job={"mined": file}) for name, file in files.items()]


def _miner(arm, base, report):
    files = {name: mined_file(job, report) for name, job in mine_jobs(base, "miner", report).items()}
    files = {"random": random_negatives(Path(base.files["pairs"]), base.numbers["negatives"])} | files
    return [partial(arm, name, job={"mined": str(file)}) for name, file in files.items()]


def _two_way(arm, base, report):
    job = MineJob(config=MiningConfig(**base.mining), miner=base.miner, pairs=base.files["pairs"], pictures=True)
    both = {"negatives": base.numbers["negatives"], "mined": str(mined_file(job, report))}
    return [
        partial(arm, "text"),
        partial(arm, "text, both directions", kind=TwoWayJob, job={"two_way": {"negatives": 0, "mined": None}}),
        partial(arm, "text and picture", kind=TwoWayJob, job={"two_way": both}),
    ]


def _readout(arm, base, report):
    options = {"no head": {"head": False}, "last token": {"pooling": "last"}, "visual tokens": {"pooling": "visual"}}
    return [partial(arm, "base"), *(partial(arm, name, job={"embedder": given}) for name, given in options.items())]


STUDIES = {
    "mask": _mask, "rank": _rank, "batch": _batch, "steps": _steps, "epsilon": _epsilon, "negatives": _negatives, "miner": _miner,
    "two_way": _two_way, "readout": _readout,
}  # fmt: skip


def mine_jobs(base: Stage1, study: str, report: Callable = print) -> dict[str, MineJob]:
    """Arm -> how its negatives are mined, in the studies of ε and of miners; none in others."""
    if study == "epsilon":
        return by_epsilon(base.miner, base.files["pairs"], base.mining, base.epsilons)
    if study == "miner":
        return by_miner(base.miner_job, base.miner, base.last, base.miner_steps, base.mining, report)
    return {}


# --- 3. rows --------------------------------------------------------------------------------------------------------------------


def row_of(base: Stage1, arm: Arm, report: Callable = print) -> dict:
    """`studies.row_of`; with R@1 of both directions in the study of these, and the measured false negatives where negatives were mined.

    samples: pictures seen in training. false_negatives, mined_pairs: of all mined pairs those whose caption is true of the picture, where
    the world knows the truth.
    """
    row = studies.row_of(arm, [directions(base.files)] if arm.study == "two_way" else [], report)
    job = mine_jobs(base, arm.study, report).get(arm.name)
    return row | {"samples": arm.job.config.steps * arm.job.config.queries} | (false_negatives(job) if job else {})


def directions(files: dict) -> Measure:
    """R@1 in per cent, {val_image_to_text, val_text_to_image, …}; one pair of each caption, so both ways have as many candidates."""
    held = {name: pairs.read_pairs(Path(folder))[0][: files["validation_pairs"]] for name, folder in files["validation"].items()}
    key = runlog.fingerprint(*(p.caption for part in held.values() for p in part))

    def measure(embedder: Embedder) -> dict[str, float]:
        out = {}
        for name, part in held.items():
            one_each = list({p.caption: p for p in part}.values())
            q, c = embedder.embed(images=[p.image for p in one_each]), embedder.embed(texts=[p.caption for p in one_each])
            for way, scores in (("image_to_text", q @ c.T), ("text_to_image", c @ q.T)):
                first = (scores >= scores.diagonal()[:, None]).sum(1) == 1  # ties are lost
                out[f"{name}_{way}"] = 100 * float(first.mean())
        return out

    return Measure("directions", key, measure)


# --- 4. claims ------------------------------------------------------------------------------------------------------------------

# Points of validation accuracy. One accuracy of 400 pairs has a standard error of up to 2.5 points, so two arms that are further apart
# than twice that would be told apart by a user with a validation set of this size; what is closer is alike for them.
ALIKE = 5.0


def _mean_loss(row: dict) -> float:
    """Of the last quarter of the logged steps, as one batch is noisy."""
    losses = row["curve"]["loss"]
    return float(np.mean(losses[-max(1, len(losses) // 4) :]))


def _by_value(rows: Sequence[dict], study: str, number: Callable) -> dict[int, dict[float, float]]:
    """seed -> value of the arm -> a number of its row."""
    found: dict[int, dict[float, float]] = {}
    for row in rows:
        if row["study"] == study and row["value"] is not None:
            found.setdefault(row["seed"], {})[row["value"]] = number(row)
    return found


def _slope(rows: Sequence[dict], study: str, column: str) -> Estimate:
    """Change of a column from the smallest to the largest value, by a line through it over the logarithm of the value, seed by seed."""
    lines = [
        np.polyfit(np.log2(list(of)), list(of.values()), 1)[0] * np.log2(max(of) / min(of))
        for of in _by_value(rows, study, lambda r: r[column]).values() if len(of) >= 3
    ]  # fmt: skip
    return estimate(lines)


def _claim_6(rows):
    """Counted false negatives are Poisson numbers; accuracy must not pay for it by more than ALIKE."""
    paired_accuracy = paired(rows, "epsilon", "0.95", "none", "val_accuracy")
    cost = above(paired_accuracy, -ALIKE)
    found = {r["arm"]: (r.get("false_negatives"), r.get("mined_pairs")) for r in rows if r["study"] == "epsilon"}
    (kept, pairs_with), (all_, pairs_without) = (found.get(name, (None, None)) for name in ("0.95", "none"))
    if not kept or not all_:
        return estimate([]), f"{claims.UNTESTABLE}: the truth about the mined pairs is not known"
    log, spread = np.log(kept / pairs_with * pairs_without / all_), 1.96 * (1 / kept + 1 / all_) ** 0.5
    value, low, high = (100 * (1 - float(np.exp(log + k * spread))) for k in (0, 1, -1))
    return all_of(above(Estimate(value, low, high, paired_accuracy.seeds), 50.0), cost)


def _claim_13(rows):
    """The paper's 4 ×, from 128 to 512 queries, as from a quarter of the base's queries to the base's: 8 × 160 to 32 × 40."""
    values = sorted({r["value"] for r in rows if r["study"] == "batch"})
    names = {r["value"]: r["arm"] for r in rows if r["study"] == "batch"}
    if len(values) < 2:
        return estimate([]), f"{claims.UNTESTABLE}: {len(values)} sizes of a batch"
    small, large = names[values[0]], names[values[1]]
    gain = {c: claims.by_seed(rows, "batch", large, c) for c in ("val_accuracy", "ood_accuracy")}
    less = {c: claims.by_seed(rows, "batch", small, c) for c in gain}
    shared = sorted(set.intersection(*map(set, (*gain.values(), *less.values()))))
    more = estimate([sum(k * (gain[c][s] - less[c][s]) for c, k in (("ood_accuracy", 1), ("val_accuracy", -1))) for s in shared])
    return all_of(above(paired(rows, "batch", large, small, "val_accuracy")), above(more))


def _claim_14(rows):
    """Every doubling lowers the loss and raises validation accuracy."""
    losses, accuracy = (_by_value(rows, "steps", of) for of in (_mean_loss, lambda r: r["val_accuracy"]))
    values = sorted({v for of in losses.values() for v in of})
    if len(values) < 2:
        return estimate([]), f"{claims.UNTESTABLE}: {len(values)} numbers of steps"
    step = lambda of, a, b: estimate([one[b] - one[a] for one in of.values() if a in one and b in one])  # noqa: E731
    doublings = list(pairwise(values))
    last = below(step(losses, *doublings[-1]), 0.0)  # the last doubling is the one that the claim is about, so its estimate is shown
    rest = [below(step(losses, a, b), 0.0) for a, b in doublings[:-1]]
    return all_of(last, *rest, *(above(step(accuracy, a, b)) for a, b in doublings))


def _claim_16(rows):
    def gap(arm):
        one, other = (claims.by_seed(rows, "two_way", arm, f"val_{way}") for way in ("image_to_text", "text_to_image"))
        return {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}

    text, both = gap("text"), gap("text and picture")
    shrinks = estimate([text[seed] - both[seed] for seed in sorted(text.keys() & both.keys())])
    return all_of(above(estimate([text[seed] for seed in sorted(text)])), above(shrinks))


def _claim_21(rows):
    """The short run is notebook 01's, a third of stage 1 as the paper's is a quarter of its own."""
    names = {r["arm"] for r in rows if r["study"] == "miner" and r["arm"].endswith(" steps")}
    short = max(names, key=lambda name: int(name.split()[0]), default="")
    useful = above(paired(rows, "miner", short, "random", "val_accuracy"))
    return all_of(useful, above(paired(rows, "miner", short, "stage 1", "val_accuracy"), -ALIKE))


def _claim_25(rows):
    differs = [paired(rows, "readout", "base", name, "val_accuracy") for name in ("no head", "last token", "visual tokens")]
    differs.append(paired(rows, "mask", "bidirectional", "causal", "val_accuracy"))
    each = [alike(found, ALIKE) for found in differs]
    return all_of(*sorted(each, key=lambda one: -abs(one[0].value)))  # the largest difference is shown


_POINTS = "points of validation accuracy"
CLAIMS = [
    Claim(
        6, "ε keeps false negatives out", "Sec. 3.2",
        f"with ε = 0.95 at most half of the false negatives that mining without ε has, at an accuracy of not {ALIKE:g} points less "
        "(written when the rates, not the accuracies, were known)",
        _claim_6, "per cent of the false negatives kept out", "08_ablations#epsilon",
    ),
    Claim(
        11, "Bidirectional is slightly better than causal", "Fig. 7 left", "bidirectional minus causal above 0",
        lambda rows: above(paired(rows, "mask", "bidirectional", "causal", "val_accuracy")), _POINTS, "08_ablations#mask",
    ),
    Claim(
        12, "Adapter rank hardly matters", "Fig. 7 right",
        f"from the lowest to the highest rank, by a line over log rank, accuracy changes by less than {ALIKE:g} points",
        lambda rows: alike(_slope(rows, "rank", "val_accuracy"), ALIKE), _POINTS, "08_ablations#rank",
    ),
    Claim(
        13, "A larger batch at equal samples seen helps, more so out of distribution", "App. C",
        "32 × 40 minus 8 × 160 above 0, and more out of distribution than in distribution", _claim_13, _POINTS, "08_ablations#batch",
    ),
    Claim(
        14, "More steps keep lowering the loss", "App. C, Fig. 8", "each doubling lowers the loss and raises validation accuracy",
        _claim_14, "nats of loss, last doubling", "08_ablations#steps",
    ),
    Claim(
        16, "Image → text beats text → image, since only text negatives are mined", "Table 1, Sec. 4.1",
        "image → text minus text → image above 0 with text negatives, and smaller with picture negatives too",
        _claim_16, "points of R@1", "08_ablations#two_way",
    ),
    Claim(
        21, "Self-mining needs no third-party embedder: even a short run mines useful negatives", "Sec. 3.2",
        f"negatives of the short run minus random ones above 0, and at most {ALIKE:g} points behind those of the whole stage 1",
        _claim_21, _POINTS, "08_ablations#miner",
    ),
    Claim(
        25, "Head, pooling and mask are nearly interchangeable", "Sec. 5.2",
        f"without head, last token, visual tokens, causal: each within ± {ALIKE:g} points of the base", _claim_25, _POINTS,
        "08_ablations#readout",
    ),
]  # fmt: skip
