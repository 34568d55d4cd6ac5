"""The tiny model goes on learning: from drawn glyphs to the pictures of a folder, and what that brings on held-out scenes.

The tiny backbone knows 300 glyphs; a picture of something else is for it a picture of the nearest one, and no contrastive step of a few
dozen tells it otherwise. A large VLM has seen photographs and needs no more than the two stages.

Steps: (1) `adapt_backbone`: the vision tower learns which words the regions of drawn scenes show, then the whole model answers questions
about them (`abc_core.miniature.backbone.pretrain`); (2) `adapt`: that, and both stages, a few dozen steps each; (3) `compare`: before and
after.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from abc_core import checkpoint
from abc_core.backbone import load_backbone
from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.ctrlbench import baselines, gallery
from abc_core.ctrlbench import construction as ctrlbench
from abc_core.ctrlbench.benchmark import Benchmark
from abc_core.data.karpathy import karpathy_tasks, read_genome
from abc_core.data.pairs import Pair
from abc_core.data.tasks import Task
from abc_core.evaluation import metrics as evaluate
from abc_core.evaluation import zero_shot
from abc_core.instructions.regions import all_texts
from abc_core.jobs.stages import InstructJob, PretrainJob, run_job
from abc_core.miniature.backbone.lessons import Lessons, Stage
from abc_core.miniature.backbone.pretrain import BackboneConfig, train
from abc_core.miniature.parts import data_folder
from abc_core.miniature.world import World, pools
from abc_core.runs import paths
from abc_core.runs import run as runlog

GREY = Image.new("RGB", (168, 168), (128, 128, 128))  # in the place of a picture, for what the instruction alone can do
PICTURES = {"single": 0.25, "small": 0.4, "full": 0.35}
KINDS = {
    "content": 2, "place": 2, "property": 2, "neighbour": 1, "look": 0.3, "where": 0.7, "dense": 1,
    "content_described": 0.7, "place_described": 0.7, "property_described": 0.7, "neighbour_described": 0.5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How much of everything, under the names that notebook 11 has for it."""

    conversations: int  # drawn pictures for the backbone
    drawn_pairs: int  # for stage 1
    drawn_regions: int  # pictures for stage 2
    adapt_words: int  # steps of the vision tower alone, of `adapt_steps`
    adapt_steps: int
    stage1_steps: int
    stage1_queries: int
    stage2_steps: int
    stage2_images: int
    tokens: int = 4000  # of a step of the backbone
    seed: int = 0


# --- 1. the backbone ----------------------------------------------------------------------------------------------------------


def adapt_backbone(backbone: Path, conversations: Path, words: int, config: BackboneConfig, report: Callable = print) -> runlog.Run:
    """Train a backbone further on conversations about pictures; a killed run goes on, a finished one is returned as it is.

    Args:
        backbone: its folder; the tokenizer stays, so new words are spelled in pieces.
        conversations: folder in the layout of `lessons.read_conversations`.
        words: the first so many of `config.steps` train the vision tower alone.
    Returns:
        the run; the adapted backbone is in its folder "model".
    Raises:
        ValueError: not fewer `words` than steps.
    """
    if not 0 <= words < config.steps:
        raise ValueError(f"words = {words} of {config.steps} steps; the whole model has to learn in at least one")
    backbone, said = Path(backbone), Path(conversations) / "conversations.jsonl"
    read = {"backbone": runlog.fingerprint(backbone), "conversations": runlog.fingerprint(said)}
    run = runlog.open_run("adapted", asdict(config) | {"words": words}, read)
    if run.finished:
        return run
    model, processor = load_backbone(backbone)
    curriculum = (Stage(words, PICTURES, {}, words=True), Stage(config.steps, PICTURES, KINDS))
    lessons = Lessons(conversations, processor, config.seed, dense=True, relight=0.15)
    train(model.requires_grad_(True), lessons, config, run.folder, curriculum, report)
    model.save_pretrained(run.folder / "model")
    processor.save_pretrained(run.folder / "model")
    run.finish(steps=config.steps, **{name: run.rows()[-1][name] for name in ("loss", "accuracy")})
    return run


# --- 2. and the stages --------------------------------------------------------------------------------------------------------


def adapt(world: World, backbone: Path, start: Path, how: Adaptation, report: Callable = print) -> runlog.Run:
    """Train backbone, stage 1 and stage 2 on scenes of a world, drawn first if they are not there; returns the run of stage 2.

    Args:
        start: checkpoint of stage 2, trained on `backbone`; both of its adapters are gone on from, on the adapted backbone.
    """
    parts = {"backbone": how.conversations, "cc": how.drawn_pairs, "vg": how.drawn_regions}
    said, pairs, regions = (str(data_folder(part, count, world, report)) for part, count in parts.items())
    config = BackboneConfig(
        steps=how.adapt_steps, tokens=how.tokens, learning_rate=1e-3, warmup=10, save_every=10, keep=(), seed=how.seed
    )
    learned = adapt_backbone(backbone, said, how.adapt_words, config, report)
    lora = {stage: LoraConfig(**numbers) for stage, numbers in checkpoint.load(start)[1]["lora"].items()}
    common = {"learning_rate": 1e-3, "save_every": 5, "seed": how.seed}
    config = PretrainConfig(
        steps=how.stage1_steps, queries=how.stage1_queries, negatives=0, lora=lora["pretrain"], temperature_factor=10.0, **common
    )
    files = {"backbone": str(learned.folder / "model"), "pairs": pairs, "start": str(start)}
    stage1 = run_job(PretrainJob(config=config, **files, name="own-pretrain"), 1, report)
    config = InstructConfig(steps=how.stage2_steps, images=how.stage2_images, negatives=19, lora=lora["instruct"], **common)
    files = {"stage1": str(stage1.folder / "model.safetensors"), "regions": regions, "start": str(start)}
    return run_job(InstructJob(config=config, **files, name="own-instruct"), 1, report)


# --- 3. before and after ------------------------------------------------------------------------------------------------------


def compare(before, after, world: World, how: Adaptation, pictures: int, cut_outs: Sequence[Pair]) -> dict:
    """Two embedders on scenes of held-out meanings, and on the pictures of a folder themselves.

    Args:
        pictures: of each of the two sets of scenes. cut_outs: pairs of the folder; those that stand in no scene are left out.
    Returns:
        {"sets": rows for `charts.plot_zero_shot`, "ctrlbench": rows for `figures.plot_ctrlbench` with blind baselines and the oracle,
        "gallery": entries for `pages.plot_gallery`, with the name of a picture of the part "vg_test" in place of the picture,
        "numbers": how much of everything}.
    """
    bench, truth = _bench(world, how, pictures)
    task = ctrlbench.task(bench)
    grey, nothing = replace(task, pictures=[GREY], shown=np.zeros_like(task.shown)), replace(task, texts=[None] * len(task.texts))
    asked = {"abc": task, "abc_no_instruction": nothing, "abc_instruction_only": grey}
    ranks = {name: _ranks(after, of) for name, of in asked.items()} | {"before_adaptation": _ranks(before, task)}
    ranks["bm25"] = evaluate.ranks(baselines.bm25(bench.instructions, bench.captions), bench.gold)
    ranks["chance"] = baselines.random_ranks(len(bench.rows), len(bench.rows), how.seed)
    ranks["oracle"] = evaluate.ranks(baselines.oracle(bench.rows, truth), bench.gold)
    page = gallery.answered(task, _queries(after, task), after.embed(texts=bench.captions), ranks["abc"])
    for entry in page:
        asked_for = bench.captions.index(entry["asked"][0][1])  # captions are unique
        entry["image"] = bench.rows[asked_for].image.name
    sets = _rows("CtrlBench, instructed", task, {"before": ranks["before_adaptation"], "after": ranks["abc"]}, how.seed)
    scenes, _, _ = karpathy_tasks(data_folder("retrieval", pictures, world) / "dataset_openmoji.json")
    for task in (replace(scenes, name="scenes, five captions each"), _of_cut_outs(world, cut_outs)):
        sets += _rows(task.name, task, {"before": _ranks(before, task), "after": _ranks(after, task)}, how.seed)
    table = [evaluate.table_row(name, rank, bench.groups, how.seed) for name, rank in ranks.items()]
    numbers = asdict(how) | {"sprites": world.glyphs, "test_pictures": pictures}
    return {"sets": sets, "ctrlbench": table, "gallery": page, "numbers": numbers}


def _bench(world: World, how: Adaptation, pictures: int) -> tuple[Benchmark, Path]:
    """CtrlBench of held-out meanings, which shares nothing with stage 2's training, and the truth about its pictures."""
    shown, seen = (data_folder(part, n, world) for part, n in (("vg_test", pictures), ("vg", how.drawn_regions)))
    known, out = read_genome(seen)[0], paths.RUNS / f"ctrlbench-own-{shown.name}-{how.seed}"
    ctrlbench.build(
        read_genome(shown)[0], shown / "instructions.jsonl", out, how.seed, training_images=[g.image for g in known],
        training_captions=[r.caption for g in known for r in g.regions], training_instructions=all_texts(seen / "instructions.jsonl"),
        source="drawn scenes with cut-out pictures", licence="as stated beside the pictures",
    )  # fmt: skip
    return ctrlbench.load(out), shown / "truth.jsonl"


def _of_cut_outs(world: World, rows: Sequence[Pair]) -> Task:
    """The pictures that stand in scenes, among their own captions."""
    rows = [row for row in rows if row.image.stem.replace("_", " ").lower() in pools(world).sprites]
    texts = list(dict.fromkeys(row.caption for row in rows))
    right = [np.array([texts.index(row.caption)]) for row in rows]
    return Task("cut-outs, own captions", [row.image for row in rows], np.arange(len(rows)), [None] * len(rows), texts, right)


def _queries(embedder, task: Task) -> np.ndarray:
    """float32[Q, D]."""
    return zero_shot.in_memory(zero_shot.queries, task, embedder)


def _ranks(embedder, task: Task) -> np.ndarray:
    """int64[Q], ties lost."""
    return evaluate.task_ranks([_queries(embedder, task) @ embedder.embed(texts=task.candidates).T], task.right)[0]


def _rows(name: str, task: Task, ranks: dict[str, np.ndarray], seed: int) -> list[dict]:
    """Rows of a set, chance the last."""
    of = {"task": name, "candidates": len(task.candidates)}
    chance = 100 * float(np.mean([len(right) for right in task.right])) / len(task.candidates)
    exact = {"system": "chance", "r1": chance, "r1_low": chance, "r1_high": chance, "n": len(task.shown)}
    return [evaluate.table_row(system, rank, task.groups, seed) | of for system, rank in ranks.items()] + [exact | of]
