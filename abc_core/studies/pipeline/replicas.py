"""The whole pipeline and the fair miniature again with other seeds, and what is measured of them for the claims of `pipeline_claims`.

Steps: (1) `stage1_arms` and, once those are trained, `stage2_arms` are the published runs of both stages with another seed: their own
jobs give all numbers, so the seed that they were trained with is trained once; (2) `ctrlbench_measure` and `classification_measure` say
what is measured of them; (3) `fair_rows` does so for recipes at equal pictures; (4) `memory_row` is arithmetic.

The drawn world, the mined negatives and the backbone are the same for all seeds, which are of training alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from abc_core.ctrlbench import construction as ctrlbench
from abc_core.ctrlbench import probes
from abc_core.ctrlbench.benchmark import Benchmark
from abc_core.data import mmeb, tasks
from abc_core.data.pairs import read_pairs
from abc_core.data.texts import caption_ids
from abc_core.evaluation import metrics as evaluate
from abc_core.evaluation.zero_shot import in_memory, queries
from abc_core.jobs import memory
from abc_core.jobs.stages import job_of
from abc_core.recipes import table as fair_table
from abc_core.recipes.fair import Entry, Fair
from abc_core.recipes.recipes import TASK
from abc_core.runs import run as runlog
from abc_core.studies.study import Arm, Measure

ASKS = {"mmeb": "Represent the given image for classification", "task": TASK}  # MMEB's own words; a question as in training
BARE = "{label}"
GB = 1e9

# --- 1. arms --------------------------------------------------------------------------------------------------------------------


def missing(seeds: Sequence[int], wanted: set[tuple[str, str]], rows: Sequence[Mapping]) -> list[int]:
    """Seeds of which rows lack one of the wanted (study, arm)."""
    return [seed for seed in seeds if not wanted <= {(row["study"], row["arm"]) for row in rows if row["seed"] == seed}]


def stage1_arms(profile: str, seeds: Sequence[int], study: str = "stage 1") -> list[Arm]:
    """The run that notebook 02 published, with other seeds: same pairs, same mined negatives."""
    job = job_of(runlog.find(profile, "stage1").parent)
    return [Arm(study, "stage1", seed, replace(job, config=replace(job.config, seed=seed))) for seed in seeds]


def stage2_arms(profile: str, first: Sequence[Arm], study: str = "stage 2") -> list[Arm]:
    """The run that notebook 03 published, on each finished stage 1 of `first`, with its seed.

    Raises:
        FileNotFoundError: a stage 1 is not finished.
    """
    job, arms = job_of(runlog.find(profile, "abc").parent), []
    for arm in first:
        run = arm.job.open(lock=False)
        run.result()  # finished?
        config = replace(job.config, seed=arm.seed)
        arms.append(Arm(study, "abc", arm.seed, replace(job, config=config, stage1=str(run.folder / "model.safetensors"))))
    return arms


# --- 2. measures ----------------------------------------------------------------------------------------------------------------


def ctrlbench_measure(bench: Benchmark, choices: int, seed: int) -> Measure:
    """R@1 of `probes.probe_rows` on CtrlBench and on the same set with poor choices.

    Args:
        choices: captions of a query of the poor set. seed: of the other picture's instruction and of the choices.
    """

    def of(embedder) -> dict:
        task = ctrlbench.task(bench)
        found, c_emb = probes.embed_probes(embedder, task, seed)
        poor, named = probes.poor_choices(task, choices, seed)
        rows = probes.probe_rows(task, found, c_emb, seed)
        return probe_numbers(rows + probes.probe_rows(poor, {name: q[named] for name, q in found.items()}, c_emb, seed))

    return Measure("ctrlbench", f"{bench.card['fingerprint']} {choices} {seed}", of)


def probe_numbers(rows: Sequence[Mapping]) -> dict:
    """Rows of `probes.probe_rows` as columns.

    Returns:
        {`set`_`probe`: R@1, `set`_blind: the best R@1 of a blind probe, `set`_share: the largest share of a blind probe, `set`_verdict};
        `set` is "ctrlbench" or "poor"; numbers in per cent.
    """
    found = {}
    for name, short in (("CtrlBench", "ctrlbench"), ("Poor choices", "poor")):
        mine = [row for row in rows if row["set"] == name]
        blind = [row for row in mine if row["probe"] in probes.BLIND]
        found |= {f"{short}_{row['probe']}": float(row["r1"]) for row in mine}
        found |= {f"{short}_blind": max(float(row["r1"]) for row in blind), f"{short}_share": max(float(row["share"]) for row in blind)}
        found[f"{short}_verdict"] = next(row["verdict"] for row in mine if row["probe"] == "full")
    return found


def remember(arm: Arm, measure: Measure, numbers: Mapping) -> None:
    """Keep what an earlier notebook measured of a finished arm, so that it is not measured again."""
    run = runlog.open_run("measure", {"measure": measure.name}, {"trained": arm.job.open(lock=False).folder.name, "on": measure.key})
    if not run.finished:
        run.finish(**numbers)


def classification_measure(sets: Mapping[str, tuple[tasks.Task, tasks.Task]]) -> Measure:
    """Hit@1 in per cent, as a mean over classification sets: in a sentence (the paper's way), with bare labels, and with an instruction.

    Args:
        sets: name -> (with its labels in a sentence, with bare labels).
    Returns:
        its numbers: {sentence, bare, mmeb, task, sentence_`name`, …}; "mmeb" and "task" are in a sentence, with an instruction of ASKS.
    """

    def of(embedder) -> dict:
        parts = {name: _classified(embedder, sentence, bare) for name, (sentence, bare) in sets.items()}
        ways = {way: float(np.mean([part[way] for part in parts.values()])) for way in ("sentence", "bare", *ASKS)}
        return ways | {f"{way}_{name}": number for name, part in parts.items() for way, number in part.items()}

    key = runlog.fingerprint(*(fair_table.task_key(task) for pair in sets.values() for task in pair), json.dumps(ASKS))
    return Measure("classification", key, of)


def classification_sets(
    folder: Path | str, names: Sequence[str], template: str = mmeb.TEMPLATE
) -> dict[str, tuple[tasks.Task, tasks.Task]]:
    """The sets of a folder in MMEB's layout for `classification_measure`."""
    read = lambda name, words: mmeb.read_mmeb(folder, name, "classification", templates={"classification": words})[0]  # noqa: E731
    return {name: (read(name, template), read(name, BARE)) for name in names}


def _classified(embedder, sentence: tasks.Task, bare: tasks.Task) -> dict[str, float]:
    alone, texts = in_memory(queries, sentence, embedder), [text for text in ASKS.values() for _ in sentence.shown]
    several = {name: rows and list(rows) * len(ASKS) for name, rows in (("right", sentence.right), ("choices", sentence.choices))}
    both = replace(sentence, shown=np.tile(sentence.shown, len(ASKS)), texts=texts, **several)  # visual tokens serve all instructions
    asked = np.split(in_memory(queries, both, embedder), len(ASKS))
    labels, words = (embedder.embed(texts=list(task.candidates)) for task in (sentence, bare))
    ranked = {"sentence": (alone, labels, sentence), "bare": (alone, words, bare)}
    ranked |= {name: (q, labels, sentence) for name, q in zip(ASKS, asked)}
    hit = lambda q, c, task: evaluate.recall(evaluate.task_ranks([q @ c.T], task.right, task.choices)[0], 1)  # noqa: E731
    return {way: hit(*found) for way, found in ranked.items()}


# --- 3. recipes at equal pictures -----------------------------------------------------------------------------------------------


def pairs_task(folder: Path, count: int) -> tasks.Task:
    """Pictures of the first `count` pairs of a folder against their captions; equal captions are one."""
    pairs = read_pairs(folder)[0][:count]
    _, first, number = np.unique(caption_ids(p.caption for p in pairs), return_index=True, return_inverse=True)
    captions = [pairs[k].caption for k in first]
    return tasks.Task(folder.name, [p.image for p in pairs], np.arange(len(pairs)), [None] * len(pairs), captions, list(number[:, None]))


def fair_rows(numbers: Fair, sets: Mapping[str, Sequence[tasks.Task]], report: Callable = print) -> list[dict]:
    """A row for each recipe and seed of finished runs of the fair miniature, R@1 in per cent of each column of `sets`."""
    rows = []
    for seed in numbers.seeds:
        for found in fair_table.table(replace(numbers, seeds=(seed,)), sets, report):
            run = numbers.job(Entry(found["recipe"], found["start"], found["budget"], seed)).open(lock=False)
            origin = json.loads((run.folder / "provenance.json").read_text())
            place = {"study": "fair", "arm": found["recipe"], "value": None, "seed": seed}
            facts = {name: found[name] for name in ("steps", "images", "queries", "seconds", *sets)}
            rows.append(place | {"run": run.folder.name, "commit": origin["commit"]} | facts)
    return rows


# --- 4. arithmetic --------------------------------------------------------------------------------------------------------------


def memory_row(plan: Sequence[Mapping], logits: Mapping[str, float], profile: str = "a100") -> dict:
    """GB (1e9 bytes) of logits, in bfloat16, that a device of a profile would hold in a step of stage 1: tokens × words × 2 bytes.

    Args:
        plan: rows {profile, part, gib} of `memory.table`. logits: bytes of `memory.logits`, {pictures, captions}.
    Returns:
        a row of the study "memory": {pictures_gb, captions_gb, planned_gb: of both by the plan, peak_gb: without them}.
    """
    parts = {row["part"]: row["gib"] * memory.GIB / GB for row in plan if row["profile"] == profile}
    place = {"study": "memory", "arm": profile, "value": None, "seed": 0, "run": "", "commit": runlog.commit()["commit"]}
    return place | {
        "pictures_gb": logits["pictures"] / GB, "captions_gb": logits["captions"] / GB,
        "planned_gb": parts["logits_avoided"], "peak_gb": parts["peak"],
    }  # fmt: skip
