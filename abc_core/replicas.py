"""The whole pipeline and the fair miniature again with other seeds, and what is measured of them for the claims of `pipeline_claims`.

Steps: (1) `stage1_arms` and, once those are trained, `stage2_arms` are the runs of notebooks 02 and 03 with another seed: the published
runs give all numbers, so the seed that they were trained with is trained once; (2) `ctrlbench_measure` and `classification_measure` say
what is measured of them; (3) `fair_rows` does so for recipes at equal pictures; (4) `memory_row` is arithmetic.

The drawn world, the mined negatives and the backbone are the same for all seeds, which are of training alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from abc_core import cost, ctrlbench, evaluate, fair_table, instruction_data, memory, mmeb, notebooks, paths, probes, runlog, tasks
from abc_core.benchmark import Benchmark
from abc_core.config import InstructConfig, PretrainConfig
from abc_core.data import caption_ids
from abc_core.fair import Entry, Fair
from abc_core.jobs import InstructJob, PretrainJob
from abc_core.openmoji.world import World, data_folder
from abc_core.pairs import read_pairs
from abc_core.recipes import TASK
from abc_core.studies import Arm, Measure
from abc_core.zero_shot import in_memory, queries

ASKS = {"mmeb": "Represent the given image for classification", "task": TASK}  # MMEB's own words; a question as in training
BARE = "{label}"
GB = 1e9

# --- 1. arms --------------------------------------------------------------------------------------------------------------------


def missing(seeds: Sequence[int], wanted: set[tuple[str, str]], rows: Sequence[Mapping]) -> list[int]:
    """Seeds of which rows lack one of the wanted (study, arm)."""
    return [seed for seed in seeds if not wanted <= {(row["study"], row["arm"]) for row in rows if row["seed"] == seed}]


def stage1_arms(profile: str, seeds: Sequence[int], study: str = "stage 1") -> list[Arm]:
    """The run that notebook 02 published, with other seeds: same pairs, same mined negatives.

    Raises:
        ValueError: the published run is not what the notebook's numbers name.
    """
    given, published = _values("02_pretraining", profile), runlog.find(profile, "stage1")
    world = World(seed=given["seed"])
    held = {name: str(data_folder(part, given["validation"], world)) for name, part in given["validation_data"].items()}
    job = PretrainJob(
        config=_config(published, PretrainConfig), backbone=given["backbone"], pairs=str(runlog.find(profile, "pairs")),
        mined=str(runlog.find(profile, "mined")), validation=held, validation_pairs=given["validation"], weights=given["weights"],
    )  # fmt: skip
    _check(job, published)
    return [Arm(study, "stage1", seed, replace(job, config=replace(job.config, seed=seed))) for seed in seeds]


def stage2_arms(profile: str, first: Sequence[Arm], study: str = "stage 2") -> list[Arm]:
    """The run that notebook 03 published, on each finished stage 1 of `first`, with its seed.

    Raises:
        FileNotFoundError: a stage 1 is not finished. ValueError: as `stage1_arms`.
    """
    given, published = _values("03_instruction_tuning", profile), runlog.find(profile, "abc")
    folder = data_folder(given["data"], given["pictures"], World(seed=given["seed"]))
    written = paths.RUNS / profile / instruction_data.TRAINING if given["generator"] != "written" else None
    bench = runlog.find(profile, "ctrlbench") if given["test_pictures"] else None
    job = InstructJob(
        config=_config(published, InstructConfig), stage1=str(runlog.find(profile, "stage1")), regions=str(folder),
        drop_largest=given["drop_largest"], written=written and str(written), ctrlbench=bench and str(bench), karpathy=given["karpathy"],
    )  # fmt: skip
    _check(job, published)
    arms = []
    for arm in first:
        run = arm.job.open(lock=False)
        run.result()  # finished?
        config = replace(job.config, seed=arm.seed)
        arms.append(Arm(study, "abc", arm.seed, replace(job, config=config, stage1=str(run.folder / "model.safetensors"))))
    return arms


def _values(stem: str, profile: str) -> dict:
    return notebooks.values(paths.ROOT / "notebooks" / f"{stem}.ipynb", profile)


def _config(published: Path, kind: type):
    """The numbers that a published run was trained with."""
    path = published.parent / "params.yaml"
    return kind.from_mapping(yaml.safe_load(path.read_text())["config"], str(path))


def _check(job, published: Path) -> None:
    named = job.open(lock=False).folder
    if named.name != published.parent.name:
        raise ValueError(f"the notebooks published {published.parent.name}, but their numbers name {named.name}: run them again")


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
    """Rows of `probes.probe_rows`, of notebook 06's CSV for example, as columns.

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


def memory_row(plan: Sequence[Mapping], profile: str = "a100") -> dict:
    """GB (1e9 bytes) of logits, in bfloat16, that a device of a profile would hold in a step of stage 1: tokens × words × 2 bytes.

    Args:
        plan: rows {profile, part, gib} of `memory.table`, of notebook 02's CSV for example.
    Returns:
        a row of the study "memory": {pictures_gb, captions_gb, planned_gb: of both by the plan, peak_gb: without them}.
    """
    given = _values("02_pretraining", profile)
    config = notebooks.config_of("02_pretraining", given)
    words = cost.backbone_config(paths.ROOT / given["backbone"]).get_text_config().vocab_size
    shapes, own = memory.Shapes(config.max_visual_tokens), config.queries // given["processes"]
    size = lambda rows, tokens: 2 * rows * tokens * words / GB  # noqa: E731
    parts = {row["part"]: row["gib"] * memory.GIB / GB for row in plan if row["profile"] == profile}
    place = {"study": "memory", "arm": profile, "value": None, "seed": 0, "run": "", "commit": runlog.commit()["commit"]}
    return place | {
        "pictures_gb": size(own, shapes.visual + shapes.around), "captions_gb": size(own * (1 + config.negatives), shapes.text),
        "planned_gb": parts["logits_avoided"], "peak_gb": parts["peak"],
    }  # fmt: skip
