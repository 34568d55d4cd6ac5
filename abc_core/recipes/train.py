"""Training the recipes of `abc_core.recipes.recipes`: what a run is, what its steps are fed, and how its system comes back.

Steps: (1) `RecipeJob` says what a run is, and its hash names it; (2) `make` builds its system, from the backbone or from random weights;
(3) `TextBatches`, `RegionBatches` and `InTurns` feed what `batches` does not; (4) `trained` brings back a finished system.

From the backbone every system trains the adapters of ABC's stage 1 in the towers that it uses, with what it adds to them; from random
weights it trains all numbers of these towers.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from abc_core import adapters, checkpoint, train
from abc_core.backbone import set_visual_tokens
from abc_core.batches import Batch, InstructBatches, PairBatches, positions, readable
from abc_core.config import InstructConfig, PretrainConfig
from abc_core.data.pairs import fingerprint, read_pairs
from abc_core.data.texts import caption_ids
from abc_core.data.vectors import embed_to_file
from abc_core.instructions import regions as instructions
from abc_core.jobs import stages as jobs
from abc_core.recipes.recipes import RECIPES
from abc_core.recipes.towers import System
from abc_core.runs import run as runlog
from abc_core.runs.paths import in_repository

STARTS = ("pretrained", "scratch")

# --- 1. what a run is -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecipeJob:
    """The training of one system; `jobs.run_job` does it, in one process.

    Args:
        recipe: a name in `RECIPES`. start: "pretrained" or "scratch".
        config: of its only stage, or of ABC's first. second: ABC's second stage; None for all others.
        backbone: folder of the towers, of the tokenizer, and of the architecture of those that start from random weights.
        pairs: folder of pairs (`pairs.read_pairs`). regions: folder of instructed regions (`jobs.InstructJob`).
        share: of the steps, those on instructed regions, for recipes that see both.
    Raises:
        ValueError: an unknown recipe or start, or numbers that its loss does not have.
    """

    recipe: str
    start: str
    config: PretrainConfig
    backbone: str
    pairs: str
    regions: str
    share: float = 0.5
    second: InstructConfig | None = None

    def __post_init__(self):
        if self.recipe not in RECIPES or self.start not in STARTS:
            raise ValueError(f"recipe {self.recipe!r} from {self.start!r}; known are {', '.join(RECIPES)}, from {' or '.join(STARTS)}")
        if (self.second is not None) != (self.data == "stages"):
            raise ValueError(f"the recipe {self.recipe!r} has {1 + (self.data == 'stages')} stages; second = {self.second}")
        given = (self.config.negatives, self.config.label_smoothing, self.config.chunk)
        if given != (0, 0, None):
            raise ValueError(f"negatives, label_smoothing and chunk are {given}; recipes take in-batch negatives alone, all at once")

    @property
    def data(self) -> str:
        """What the recipe may be trained on; see `abc_core.recipes.recipes`."""
        return RECIPES[self.recipe].data

    @property
    def first(self) -> "RecipeJob":
        """ABC's stage 1."""
        return replace(self, recipe="stage1", second=None)

    @property
    def parts(self) -> list["RecipeJob"]:
        """The jobs whose runs make up this training, in their order."""
        return [self] if self.second is None else [self.first, self]

    @property
    def seen(self) -> dict[str, int]:
        """How many pictures training looks at, and how many queries it makes of them."""
        pairs = self.config.steps * self.config.queries
        if self.second is None:
            return {"images": 0 if self.data == "texts" else pairs, "queries": pairs}
        images = self.second.steps * self.second.images
        return {"images": pairs + images, "queries": pairs + images * self.second.instructions_per_image}

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job, ABC's second stage if it has one; see `runlog.open_run`."""
        numbers = {"recipe": self.recipe, "start": self.start} | asdict(self.second or self.config)
        inputs = {"backbone": runlog.fingerprint(in_repository(self.backbone)), "pairs": fingerprint(in_repository(self.pairs))}
        if self.data in ("both", "stages"):
            folder = in_repository(self.regions)
            files = [folder / file for file in ("region_descriptions.json", "image_data.json", "instructions.jsonl")]
            inputs["regions"] = runlog.fingerprint(*(instructions.instructed_files(folder) or files))
        if self.data == "both":
            numbers["share"] = self.share
        if self.second is not None:
            inputs["stage1"] = self.first.open(lock=False).folder.name
        return runlog.open_run("recipe", numbers, inputs, lock)

    def do(self, run: runlog.Run, report: Callable = print) -> None:
        """Train, or go on; ABC's stage 1 comes first."""
        if self.second is not None:
            jobs.run_job(self.first, report=report)
        system = make(self)
        batches, step = self._work(system, run.folder)
        train.train(run, system, self.recipe, batches, step, self.second or self.config, None, report, KEEPER)

    def _work(self, system: System, folder: Path) -> tuple[Callable, Callable]:
        """(batches, step function)."""
        step = RECIPES[self.recipe].step
        if self.second is not None:
            captions = sorted({row.caption for group in self._groups for row in group})
            bank = embed_to_file(folder / "bank.npy", lambda part: system.embed(texts=part), captions, system.width)
            batches = InstructBatches(self._groups, {caption: k for k, caption in enumerate(captions)}, self.second)
            return batches, partial(step, bank=torch.from_numpy(np.array(bank)))
        pairs = read_pairs(in_repository(self.pairs))[0].numbered()
        if self.data == "texts":
            return TextBatches(pairs.captions, pairs.caption_ids, self.config), step
        batches = PairBatches(pairs, pairs.captions, pairs.caption_ids, None, self.config)
        if self.data == "both":
            batches = InTurns(batches, RegionBatches(self._groups, self.config), self.share)
        return batches, step

    @cached_property
    def _groups(self) -> list[list[instructions.Instructed]]:
        config = self.second or InstructConfig(seed=self.config.seed)
        return jobs.InstructJob(config=config, stage1="", regions=str(self.regions)).groups()


# --- 2. the system --------------------------------------------------------------------------------------------------------------


def make(job: RecipeJob) -> System:
    """The untrained system of a job, with what is to train unfrozen; ABC's for stage 2 stands on its finished stage 1."""
    if job.second is not None:
        system = trained(job.first)
        adapters.merge_all(system)
        adapters.add_lora(system, "instruct", **asdict(job.second.lora), seed=job.second.seed)
        return system
    config, path = job.config, in_repository(job.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        system = RECIPES[job.recipe].system.from_backbone(path)
        if job.start == "scratch":
            randomise(system, path)
    system.requires_grad_(True)
    if job.start == "pretrained":
        adapters.add_lora(system, "pretrain", **asdict(config.lora), seed=config.seed)
    unused = r"model\.(lm_head|model\.visual)\." if job.data == "texts" else r"model\.lm_head\."
    for name, parameter in system.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not re.match(unused, name))
    system.set_temperature(config)
    return system


def randomise(system: System, backbone: Path) -> None:
    """Random weights, as transformers draws them, in place of the backbone's; from torch's random numbers."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    fresh = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(backbone, local_files_only=True), dtype=torch.float32)
    system.model.load_state_dict(fresh.state_dict())


def trained(job: RecipeJob) -> System:
    """The system that a finished run left, named after its recipe and its run.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    run = job.open(lock=False)
    run.result()
    system, path = make(job), run.folder / "model.safetensors"
    _load(system, job.recipe, checkpoint.load(path)[0], path)
    system.name, system.fingerprint = job.recipe, run.folder.name
    return system.requires_grad_(False).eval()


def _trains(system: System) -> dict[str, torch.nn.Parameter]:
    """What trains, by name."""
    return {name: p for name, p in system.named_parameters() if p.requires_grad}


def _prepare(system: System, stage: str, config) -> list[str]:
    system.eval()
    set_visual_tokens(system.processor, config.min_visual_tokens, config.max_visual_tokens)
    return list(_trains(system))


def _save(system: System, path: Path, optimizers=None, **numbers) -> None:
    checkpoint.save(path, _trains(system), optimizers, **numbers)


def _load(system: System, stage: str, tensors: dict[str, torch.Tensor], source) -> None:
    own = _trains(system)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise ValueError(f"{source} does not fit {stage!r}: it holds {len(tensors)} tensors, {len(own)} of other names or shapes train")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


KEEPER = train.Keeper(_prepare, _load, _save)

# --- 3. batches -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextBatches:
    """Captions alone: `config.queries` a step, shuffled anew each epoch; no picture is read."""

    captions: Sequence[str]
    caption_ids: np.ndarray
    config: object

    def __call__(self, step: int) -> Batch:
        rows = positions(step, self.config.queries, len(self.captions), self.config.seed)
        return Batch([], [], [self.captions[r] for r in rows], torch.from_numpy(self.caption_ids[rows]))


@dataclass(frozen=True)
class RegionBatches:
    """Instructed pictures as UniIR, MagicLens and VLM2Vec draw them: `config.queries` a step, each with one of its instructions."""

    groups: list[list]  # per picture: its Instructed rows
    config: object

    def __call__(self, step: int) -> Batch:
        everyones = positions(step, self.config.queries, len(self.groups), self.config.seed)
        images, taken, unreadable = readable(everyones, lambda g: self.groups[g][0].image, len(self.groups), step)
        rng = np.random.default_rng([self.config.seed, step, 3])
        rows = [self.groups[g][rng.integers(len(self.groups[g]))] for g in taken]
        captions = [row.caption for row in rows]
        return Batch(images, [[row.instruction] for row in rows], captions, torch.from_numpy(caption_ids(captions)), unreadable)


@dataclass(frozen=True)
class InTurns:
    """Steps of `one` and, evenly among them, a `share` of steps of `other`; each counts its own."""

    one: Callable
    other: Callable
    share: float

    def __call__(self, step: int) -> Batch:
        before, now = (math.floor(k * self.share + 1e-9) for k in (step, step + 1))
        return self.other(before) if now > before else self.one(step - before)
