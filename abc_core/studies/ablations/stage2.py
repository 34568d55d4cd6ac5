"""The ablations of stage 2 (Sec. 3.2, 5.1, 5.3): arms that differ from one base arm in one setting each, and their claims.

study       arms                                                                               claims
tuning      steps of stage 2, doubled; step 0 is stage 1 with instructions                     2
grouping    a picture's four instructions in one batch (the base), one of each of more         7, 9
wording     many wordings of each question (the base), the first one alone                     8
stages      two stages, and one stage with instructed pictures in every batch, equal samples   22, 27

Steps: (1) `Stage2` holds the base and the values; (2) `arms` makes those of a study; (3) measures on CtrlBench, and `row_of` a finished
arm; (4) CLAIMS.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from abc_core import adapters
from abc_core.config import InstructConfig, PretrainConfig
from abc_core.ctrlbench import baselines, benchmark
from abc_core.ctrlbench.benchmark import Benchmark
from abc_core.ctrlbench.wordings import trained_wordings
from abc_core.evaluation import metrics as evaluate
from abc_core.instructions.regions import by_image
from abc_core.jobs import cost
from abc_core.jobs.stages import InstructJob, run_job
from abc_core.model import Embedder
from abc_core.runs import run as runlog
from abc_core.studies import claims
from abc_core.studies import study as studies
from abc_core.studies.ablations.stage1 import Stage1
from abc_core.studies.ablations.variants import MixedJob, OneWordingJob, UngroupedJob
from abc_core.studies.claims import Claim, above, all_of, below, estimate, paired
from abc_core.studies.study import Arm, Measure

# --- 1. the base and the values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage2:
    """The base arm, and what its studies change.

    Args:
        files: of `InstructJob`: stage1, regions and whatever else all arms share.
        numbers: of `InstructConfig`, but for steps and seed.
        bench: folder of a CtrlBench, of which `pictures` are asked.
        mixed_steps: of stage 2 in the study "stages", on top of stage 1's base; one stage spreads its pictures over all of its own steps.
    """

    files: dict
    numbers: dict
    steps: int
    bench: str
    pictures: int
    mixed_steps: int
    seeds: Sequence[int] = (0,)
    tuning: Sequence[int] = (10, 25, 50, 100, 200)  # steps

    def arm(
        self, study: str, name: str, seed: int, value: float | None = None, job: dict | None = None, kind: type = InstructJob, **numbers
    ) -> Arm:
        """The base with another seed and, by name, other fields or another kind of its job, or other numbers of its config."""
        config = InstructConfig(**{"steps": self.steps, "seed": seed} | self.numbers | numbers)
        return Arm(study, name, seed, kind(config=config, **self.files | (job or {})), value)

    @cached_property
    def asked(self) -> Benchmark:
        """The first pictures of the benchmark, whose captions are the candidates."""
        whole = benchmark.load(Path(self.bench))
        kept = set(list(dict.fromkeys(whole.groups.tolist()))[: self.pictures])
        rows = [(row, said) for row, said, group in zip(whole.rows, whole.wordings, whole.groups.tolist()) if group in kept]
        return replace(whole, rows=[row for row, _ in rows], wordings=[said for _, said in rows])


# --- 2. arms --------------------------------------------------------------------------------------------------------------------


def arms(base: Stage2, study: str, first: Stage1, report: Callable = print) -> list[Arm]:
    """The arms of a study, all seeds of one setting together; for "stages" the base of stage 1, `first`, is trained here if it is not yet.

    Raises:
        ValueError: an unknown study.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}; known are {', '.join(STUDIES)}")
    return STUDIES[study](partial(base.arm, study), base, first, report)


def _tuning(arm, base, first, report):
    return [arm(str(steps), seed, steps, steps=steps) for steps in base.tuning for seed in base.seeds]


def _grouping(arm, base, first, report):
    options = {"grouped": InstructJob, "ungrouped": UngroupedJob}
    return [arm(name, seed, kind=kind) for name, kind in options.items() for seed in base.seeds]


def _wording(arm, base, first, report):
    options = {"many": InstructJob, "one": OneWordingJob}
    return [arm(name, seed, kind=kind) for name, kind in options.items() for seed in base.seeds]


def _stages(arm, base, first, report):
    found = []
    for seed in base.seeds:
        stage1 = run_job(first.arm("stages", "stage 1", seed).job, report=report).folder / "model.safetensors"
        found.append(arm("two stages", seed, job={"stage1": str(stage1)}, steps=base.mixed_steps))
    config = found[0].job.config
    images, left = divmod(config.images * base.mixed_steps, first.steps)
    if left or not images:
        seen = f"{config.images} × {base.mixed_steps} pictures"
        raise ValueError(f"{seen} of stage 2 cannot be spread evenly over the {first.steps} steps of stage 1")
    regions = {k: v for k, v in base.files.items() if k != "stage1"}
    given = {"images": images, "instructions_per_image": config.instructions_per_image} | regions
    return found + [first.arm("stages", "one stage", seed, kind=MixedJob, job={"instructed": given}) for seed in base.seeds]


STUDIES = {"tuning": _tuning, "grouping": _grouping, "wording": _wording, "stages": _stages}


# --- 3. measures and rows -------------------------------------------------------------------------------------------------------


def row_of(base: Stage2, first: Stage1, arm: Arm, report: Callable = print) -> dict:
    """`studies.row_of` with R@1 on CtrlBench, and what the studies need beside: wordings, frozen texts, seconds and samples of all stages.

    samples: queries of the run itself. all_seconds (study "stages"): of both stages and of embedding the bank of captions.
    """
    measures = [controlled(base)]
    measures += [worded(base)] if arm.study == "wording" else [frozen(base)] if (arm.study, arm.name) == ("grouping", "grouped") else []
    row, config = studies.row_of(arm, measures, report), arm.job.config
    if not isinstance(config, PretrainConfig):
        row["samples"] = config.steps * config.images * config.instructions_per_image
    if arm.study == "stages":
        row["all_seconds"] = row["seconds"]
        if arm.name == "two stages":
            stage1 = first.arm("stages", "stage 1", arm.seed).job.open(lock=False)
            bank = len(np.load(arm.job.open(lock=False).folder / "bank.npy", mmap_mode="r"))
            row["all_seconds"] += studies.paced(stage1.rows()) + bank * row.pop("seconds_a_caption")
    return row


def start_row(base: Stage2) -> dict:
    """Step 0 of the study "tuning": stage 1 as it is, given the same instructions."""
    path, measure = Path(base.files["stage1"]), controlled(base)
    run = runlog.open_run("measure", {"measure": measure.name}, {"trained": path.parent.name, "on": measure.key})
    if not run.finished:
        run.finish(**measure.of(Embedder.load(path)))
    commit = json.loads((path.parent / "provenance.json").read_text())["commit"]
    where = {"study": "tuning", "arm": "0", "value": 0, "seed": base.seeds[0], "run": path.parent.name, "commit": commit}
    return where | run.result()


def controlled(base: Stage2) -> Measure:
    """R@1 in per cent: {ctrlbench, without (an instruction), another (picture's instruction)}, and seconds_a_caption."""
    bench = base.asked
    others = baselines.shuffled_instructions(bench.instructions, bench.groups, 0)

    def measure(embedder: Embedder) -> dict[str, float]:
        started = time.perf_counter()
        c_emb = embedder.embed(texts=bench.captions)
        pace = (time.perf_counter() - started) / len(bench.rows)
        pictures = list(dict.fromkeys(row.image for row in bench.rows))
        shown = [pictures.index(row.image) for row in bench.rows]
        said = {"ctrlbench": _asked(embedder, bench, bench.instructions), "another": _asked(embedder, bench, others)}
        said["without"] = embedder.embed(images=pictures)[shown]
        return {name: _first(q_emb, c_emb, bench) for name, q_emb in said.items()} | {"seconds_a_caption": pace}

    return Measure("ctrlbench", _key(bench), measure)


def worded(base: Stage2) -> Measure:
    """R@1 in per cent of the same questions in wordings that training has: {first_wording, other_wording}; the first is that of "one"."""
    bench = base.asked
    said = trained_wordings(bench.rows, bench.folder / "instructions.jsonl", bench.folder / "instructions_trained.jsonl")
    rng = np.random.default_rng(0)
    texts = {"first_wording": [each[0] for each in said], "other_wording": [each[int(rng.integers(1, len(each)))] for each in said]}

    def measure(embedder: Embedder) -> dict[str, float]:
        c_emb = embedder.embed(texts=bench.captions)
        return {name: _first(_asked(embedder, bench, asked), c_emb, bench) for name, asked in texts.items()}

    return Measure("wordings", _key(bench), measure)


def frozen(base: Stage2) -> Measure:
    """{texts, differing_texts, differing_pictures}: how many of the benchmark's captions, and of its pictures with an instruction, have
    another vector than stage 1 gives them, in any bit. That pictures do shows that the comparison can fail."""
    bench, stage1 = base.asked, Path(base.files["stage1"])

    def measure(embedder: Embedder) -> dict[str, float]:
        before = Embedder.load(stage1)
        adapters.merge_all(before)
        texts = [one.embed(texts=bench.captions) for one in (before, embedder)]
        seen = [_asked(one, bench, bench.instructions) for one in (before, embedder)]
        differing = [int((one != other).any(1).sum()) for one, other in (texts, seen)]
        return {"texts": len(bench.captions), "differing_texts": differing[0], "differing_pictures": differing[1]}

    return Measure("frozen", f"{_key(bench)} {stage1.parent.name}", measure)


def _key(bench: Benchmark) -> str:
    return runlog.fingerprint(bench.card["fingerprint"], str(len(bench.rows)))


def _asked(embedder: Embedder, bench: Benchmark, texts: Sequence[str]) -> np.ndarray:
    """float32[Q, D] of the rows, whose pictures stand together; a model of one stage has no adapter to switch on."""
    groups = by_image([row._replace(instruction=text) for row, text in zip(bench.rows, texts)])
    adapter = None if adapters.has_adapter(embedder.model, "instruct") else False
    return embedder.embed(images=[g[0].image for g in groups], instructions=[[r.instruction for r in g] for g in groups], adapter=adapter)


def _first(q_emb: np.ndarray, c_emb: np.ndarray, bench: Benchmark) -> float:
    return evaluate.recall(evaluate.ranks_from_embeddings(q_emb, c_emb, bench.gold), 1)


def paper_flops() -> dict:
    """Floating-point operations of both stages with the paper's model and numbers, by the arithmetic of `cost`; a row of the study "cost".

    512 visual tokens (Sec. 4) and, as typical lengths, 12 tokens of a caption and 12 of an instruction.
    """
    one, two = PretrainConfig(), InstructConfig()
    flops = [c.steps * sum(cost.flops_of_step(c, cost.QWEN2_VL_7B, 512, 12, 12).values()) for c in (one, two)]
    where = {"study": "cost", "arm": "paper", "value": None, "seed": 0, "run": "arithmetic", "commit": runlog.commit()["commit"]}
    return where | {"stage1_flops": flops[0], "stage2_flops": flops[1]}


# --- 4. claims ------------------------------------------------------------------------------------------------------------------

MOST = 90.0  # per cent: "suffice" may leave a tenth of the gain to twice the steps; a plateau leaves less, a climb as log steps leaves more
# Points of R@1. 500 questions of 100 pictures have a standard error of about 2.5 points, as questions of one picture go together.
ALIKE = 5.0
SMALL = 10.0  # per cent: a part that no plan of a training would count


def _claim_2(rows):
    """Of the gain of 200 steps over stage 1, the share that 100 steps have."""
    start = next((r["ctrlbench"] for r in rows if (r["study"], r["arm"]) == ("tuning", "0")), 0.0)
    half, whole = (claims.by_seed(rows, "tuning", steps, "ctrlbench") for steps in ("100", "200"))
    gained = {s: whole[s] - start for s in half.keys() & whole.keys()}
    if any(gain <= 0 for gain in gained.values()):
        return estimate([]), f"{claims.UNTESTABLE}: 200 steps gain nothing over stage 1"
    return above(estimate([100 * (half[s] - start) / gained[s] for s in sorted(gained)]), MOST)


def _claim_7(rows):
    """Grouped training answers more, and more of what it answers is the instruction's doing."""
    use = {arm: claims.by_seed(rows, "grouping", arm, "ctrlbench") for arm in ("grouped", "ungrouped")}
    alone = {arm: claims.by_seed(rows, "grouping", arm, "another") for arm in use}
    shared = sorted(set.intersection(*map(set, (*use.values(), *alone.values()))))
    more = [sum(k * (use[arm][s] - alone[arm][s]) for arm, k in (("grouped", 1), ("ungrouped", -1))) for s in shared]
    return all_of(above(paired(rows, "grouping", "grouped", "ungrouped", "ctrlbench")), above(estimate(more)))


def _claim_8(rows):
    """Many wordings answer more in wordings never trained on, and lose less on the way there from the first wording."""
    lost = {}
    for arm in ("one", "many"):
        first, held = (claims.by_seed(rows, "wording", arm, column) for column in ("first_wording", "ctrlbench"))
        lost[arm] = {s: first[s] - held[s] for s in first.keys() & held.keys()}
    less = estimate([lost["one"][s] - lost["many"][s] for s in sorted(lost["one"].keys() & lost["many"].keys())])
    return all_of(above(paired(rows, "wording", "many", "one", "ctrlbench")), above(less))


def _claim_9(rows):
    texts, pictures = (claims.by_seed(rows, "grouping", "grouped", column) for column in ("differing_texts", "differing_pictures"))
    return all_of(below(estimate(list(texts.values())), 0.5), above(estimate(list(pictures.values()))))


def _claim_22(rows):
    two, one = (claims.by_seed(rows, "stages", arm, "all_seconds") for arm in ("two stages", "one stage"))
    ratio = estimate([100 * two[s] / one[s] for s in sorted(two.keys() & one.keys())])
    return all_of(above(paired(rows, "stages", "two stages", "one stage", "ctrlbench"), -ALIKE), below(ratio, 100.0))


def _claim_27(rows):
    """Seconds of a query as measured here, times the paper's queries; at this profile's own numbers stage 2 is no small part of stage 1."""

    def pace(study, arm):
        found, seconds = (claims.by_seed(rows, study, arm, column) for column in ("samples", "seconds"))
        return {s: seconds[s] / found[s] for s in found}

    one, two, paper1, paper2 = pace("mask", "bidirectional"), pace("grouping", "grouped"), PretrainConfig(), InstructConfig()
    queries = paper2.steps * paper2.images * paper2.instructions_per_image / (paper1.steps * paper1.queries)
    seconds = below(estimate([100 * queries * two[s] / one[s] for s in sorted(one.keys() & two.keys())]), SMALL)
    flops = next((100 * r["stage2_flops"] / r["stage1_flops"] for r in rows if r["study"] == "cost"), None)
    if flops is None:
        return seconds[0], f"{claims.UNTESTABLE}: the operations of both stages are not counted"
    return all_of(seconds, below(claims.Estimate(flops, flops, flops, claims.SEEDS), SMALL))


CLAIMS = [
    Claim(
        2, "100 steps of instruction tuning suffice", "Sec. 3.2, 5.1",
        f"of what 200 steps gain over stage 1 in CtrlBench R@1, 100 steps gain more than {MOST:g} %", _claim_2, "per cent of the gain",
        "08_ablations#tuning",
    ),
    Claim(
        7, "Same-image grouping is what makes instructions necessary", "Sec. 3.2, 4.1",
        "grouped minus ungrouped above 0 in CtrlBench R@1, and in what an instruction of the picture gains over another's", _claim_7,
        "points of R@1", "08_ablations#grouping",
    ),
    Claim(
        8, "Varied instructions avoid overfitting to phrasing", "Sec. 1, 5.3",
        "many minus one wording above 0 on wordings never trained on; from the first wording to these, one loses more than many", _claim_8,
        "points of R@1", "08_ablations#wording",
    ),
    Claim(
        9, "Freezing the candidate side keeps the features", "Sec. 3.2",
        "no caption's vector differs from stage 1's in any bit, while those of pictures with an instruction do", _claim_9,
        "captions whose vector differs", "08_ablations#grouping",
    ),
    Claim(
        22, "Decoupled stages match instructions mixed in from the start, at less cost", "Sec. 1, 5.1",
        f"two stages are at most {ALIKE:g} points behind one stage in CtrlBench R@1 at equal samples, and take less time", _claim_22,
        "points of R@1", "08_ablations#stages",
    ),
    Claim(
        27, "Stage 2 costs a small fraction of stage 1", "Sec. 5.1",
        f"below {SMALL:g} % with the paper's numbers of queries: by seconds of a query here, and by arithmetic in operations", _claim_27,
        "per cent of the seconds", "08_ablations#stages",
    ),
]  # fmt: skip
