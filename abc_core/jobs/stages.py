"""Work written down, a stage's training or mining: its numbers and what it reads, so that a notebook and several processes do the same.

Steps: (1) a job opens its run, whose name comes from the job's numbers and the fingerprints of what it reads; (2) its `do` reads the
data and makes the embedder, then trains or mines; (3) `run_job` does that here, or in several processes that read the job from a file in
the run's folder.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, NamedTuple, get_type_hints

import numpy as np
import torch
import yaml
from transformers import AutoConfig

from abc_core import adapters, checkpoint, train
from abc_core.batches import InstructBatches, PairBatches
from abc_core.config import InstructConfig, MiningConfig, PretrainConfig
from abc_core.ctrlbench import benchmark
from abc_core.ctrlbench.construction import held_out
from abc_core.data.karpathy import read_genome
from abc_core.data.mined import read_mined
from abc_core.data.pairs import fingerprint, has_pairs, read_pairs
from abc_core.data.vectors import embed_to_file
from abc_core.instructions import regions as instructions
from abc_core.instructions.held_out import exclude, exclude_groups
from abc_core.jobs.launch import launch
from abc_core.mining import hard_negatives as mining
from abc_core.model import Embedder
from abc_core.runs import run as runlog
from abc_core.runs.arrays import blank_rows, check_room
from abc_core.runs.files import shorten, whole_file
from abc_core.runs.paths import in_repository
from abc_core.runs.processes import rank_and_count, wait

JOB = "job.yaml"  # a run's own job, in its folder


class Work(NamedTuple):
    """What `train.train` is given."""

    embedder: Embedder
    batches: Callable
    step: Callable
    validate: Callable | None


class Job:
    """Work written down: a frozen dataclass with a `config`, an `open` that names its run, and a `do` that does it."""


class TrainingJob(Job):
    """What both stages' jobs do with what they `build`. `stage` names the parameters that train (`adapters`)."""

    stage: ClassVar[str]

    def do(self, run: runlog.Run, report: Callable = print) -> None:
        """Train in this process, which may be one of several."""
        made = self.build(run.folder, report)
        train.train(run, made.embedder.to(_device()), self.stage, made.batches, made.step, self.config, made.validate, report)


@dataclass(frozen=True, kw_only=True)
class PretrainJob(TrainingJob):
    """Stage 1: pictures and captions of the folder `pairs` (`pairs.read_pairs`). With `mined`, a Parquet file or a folder of some, the
    pairs and negatives of that instead; `pairs` may then be a mere folder of pictures.

    `validation` names folders of pairs; `validation_pairs` of each are embedded. `weights` is the type of the frozen backbone's numbers,
    "float32" or "bfloat16". `start` is a checkpoint whose adapter of this stage is gone on from, in the place of a fresh one. `name` is the
    first part of the run's folder.

    `embedder` holds options of `Embedder` (bidirectional, head, pooling); they are part of the run's name only where they are set.
    A subclass may train on other batches with another step: it overrides `varied`, and names in `variant` what its run depends on.
    """

    config: PretrainConfig
    backbone: str
    pairs: str
    mined: str | None = None
    validation: dict = field(default_factory=dict)
    validation_pairs: int = 800  # App. C
    weights: str = "float32"
    start: str | None = None
    name: str = "pretrain"
    embedder: dict = field(default_factory=dict)

    stage: ClassVar[str] = "pretrain"

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`."""
        inputs = {"backbone": runlog.fingerprint(in_repository(self.backbone))}
        if self.mined is None or has_pairs(in_repository(self.pairs)):
            inputs["pairs"] = fingerprint(in_repository(self.pairs))
        if self.mined is not None:
            inputs["mined"] = runlog.fingerprint(in_repository(self.mined))
        inputs |= {"weights": self.weights} | _started(self.start) | self.variant()
        return runlog.open_run(self.name, self.config, inputs, lock)

    def variant(self) -> dict[str, str]:
        """What the run depends on beside what every stage 1 does."""
        return {"embedder": json.dumps(self.embedder, sort_keys=True)} if self.embedder else {}

    def build(self, folder: Path, report: Callable | None = None) -> Work:
        """Read the data and make the embedder; nothing is written into the run's `folder`."""
        if self.mined is None:
            pairs = read_pairs(in_repository(self.pairs))[0].numbered()
            captions, ids, negatives = pairs.captions, pairs.caption_ids, None
        else:
            mined, _ = read_mined(in_repository(self.mined), in_repository(self.pairs))
            pairs, captions, ids, negatives = mined.queries, mined.captions, mined.caption_ids, mined.padded(self.config.negatives)
        embedder = Embedder.from_backbone(in_repository(self.backbone), weights=self.weights, **self.embedder)
        adapters.add_lora(embedder, "pretrain", **asdict(self.config.lora), seed=self.config.seed)
        _go_on(embedder, "pretrain", self.start)
        held = {name: read_pairs(in_repository(folder))[0] for name, folder in self.validation.items()}
        validate = train.validator(held, self.validation_pairs) if held else None
        return Work(embedder, *self.varied(PairBatches(pairs, captions, ids, negatives, self.config)), validate)

    def varied(self, batches: PairBatches) -> tuple[Callable, Callable]:
        """What the job trains on, and the step that does it; every stage 1 begins from `batches`."""
        return batches, train.pretrain_step


@dataclass(frozen=True, kw_only=True)
class InstructJob(TrainingJob):
    """Stage 2 on top of the stage-1 checkpoint `stage1`: regions of the folder `regions`, with its instructions.

    The folder has the layout of Visual Genome and a file instructions.jsonl, in whose place `written` may name another (as of
    `generate.generate`); or the layout of ABC-VG-Instruct, whose regions are drawn already. `start` is as for `PretrainJob`.

    A subclass may draw other batches or fewer wordings: it sets `kind` or `wordings`, and names that in `variant`.
    """

    config: InstructConfig
    stage1: str
    regions: str
    drop_largest: int = 5  # Sec. 3.2, "We exclude the 5 largest bounding boxes"
    written: str | None = None
    ctrlbench: str | None = None  # folder of a built CtrlBench; training goes without its pictures, captions and instructions
    karpathy: str | None = None  # dataset_coco.json; training goes without COCO's test pictures
    start: str | None = None
    name: str = "instruct"

    stage: ClassVar[str] = "instruct"
    kind: ClassVar[type[InstructBatches]] = InstructBatches
    wordings: ClassVar[int | None] = None  # an instruction is drawn among the first so many wordings of a question; None: among all

    def variant(self) -> dict[str, str]:
        """What the run depends on beside what every stage 2 does."""
        return {}

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`."""
        return runlog.open_run(self.name, self.config, {"stage1": runlog.fingerprint(in_repository(self.stage1))} | self.inputs(), lock)

    def inputs(self) -> dict:
        """What the run depends on beside its numbers and stage 1, by name."""
        genome = [in_repository(self.regions) / file for file in ("region_descriptions.json", "image_data.json")]
        read = instructions.instructed_files(in_repository(self.regions)) or [*genome, self._wordings_file]
        rows = self.ctrlbench and str(in_repository(self.ctrlbench) / benchmark.FILE)
        apart = (("ctrlbench", rows), ("karpathy", self.karpathy))
        held = {name: runlog.fingerprint(in_repository(path)) for name, path in apart if path}
        return {"regions": runlog.fingerprint(*read), "drop_largest": str(self.drop_largest)} | held | _started(self.start) | self.variant()

    def groups(self, report: Callable = lambda line: None) -> list[list[instructions.Instructed]]:
        """Instructed regions, picture by picture; what was left out goes to `report`."""
        groups, accounts = self._read
        for account in accounts:
            report(account)
        return groups

    @cached_property
    def _read(self) -> tuple[list[list[instructions.Instructed]], tuple]:
        """`groups`, and accounts of what was left out."""
        each = self.config.instructions_per_image
        held = held_out(*(path and in_repository(path) for path in (self.ctrlbench, self.karpathy)))
        if instructions.instructed_files(in_repository(self.regions)):
            if self.written is not None:
                raise ValueError(f"{self.regions} has its own instructions, so written = {self.written!r} would not be read")
            groups, skipped = instructions.read_instructed(in_repository(self.regions))
            groups, apart = exclude_groups([group[:each] for group in groups], held)
            return groups, (skipped, apart)
        genome, skipped = read_genome(in_repository(self.regions))
        genome, apart = exclude(genome, held)
        chosen, counts = instructions.select_regions(genome, self.drop_largest, each, self.config.seed, held.captions)
        options, _ = instructions.read_instructions(self._wordings_file)
        rows, asked = instructions.instruct(chosen, options, self.config.seed, self.wordings, without=held.instructions)
        return instructions.by_image(rows), (skipped, apart, counts, asked)

    @property
    def _wordings_file(self) -> Path:
        return in_repository(self.written or f"{self.regions}/instructions.jsonl")

    def build(self, folder: Path, report: Callable | None = None) -> Work:
        """Read the data, make the embedder, and embed the captions once, into the run's `folder`: they never change (Sec. 3.2)."""
        batches, captions = self.batches()
        embedder = Embedder.load(in_repository(self.stage1), _device())
        adapters.merge_all(embedder)
        embed_to_file(folder / "bank.npy", lambda part: embedder.embed(texts=part), captions, embedder.width, report=report)
        bank = torch.from_numpy(np.load(folder / "bank.npy"))
        adapters.add_lora(embedder, "instruct", **asdict(self.config.lora), seed=self.config.seed)
        _go_on(embedder, "instruct", self.start)
        return Work(embedder, batches, partial(train.instruct_step, bank=bank), None)

    def batches(self) -> tuple[InstructBatches, list[str]]:
        """Batches of instructed pictures, and the captions of their bank."""
        groups = self.groups()
        captions = sorted({row.caption for group in groups for row in group})
        return self.kind(groups, {caption: k for k, caption in enumerate(captions)}, self.config), captions


@dataclass(frozen=True, kw_only=True)
class MineJob(Job):
    """Steps (2) and (3) of mining (Sec. 3.2): `miner`, the checkpoint of a short stage 1, embeds all pictures and captions of the folder
    `pairs`; then hard negatives are searched and drawn.

    The embeddings have a run of their own, so that another ε or pool does not embed anew. With `pictures`, which is part of the run's name
    only then, hard negatives of captions are mined among the pictures instead.
    """

    config: MiningConfig
    miner: str
    pairs: str
    unreadable: float = 0.01  # share of the pictures that may not be decoded; not in the paper
    name: str = "mined"
    pictures: bool = False

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`. The size of the tiles is no part of its name, as the result does not depend on it."""
        numbers = {k: v for k, v in asdict(self.config).items() if k != "tile"}
        return runlog.open_run(self.name, numbers, self._inputs | ({"of": "pictures"} if self.pictures else {}), lock)

    def plan(self, processes: int = 1) -> mining.Plan:
        """What the search takes on this machine."""
        backbone = checkpoint.load(in_repository(self.miner))[1]["built"]["backbone"]
        width = AutoConfig.from_pretrained(in_repository(backbone)).get_text_config().hidden_size
        return mining.plan(len(self.rows), len(self.rows), width, self.config, processes, _device())

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """float32[N, D] twice, memory maps: pictures, and captions, once the job has embedded them."""
        folder = self._embedding_run(lock=False).folder
        return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "captions.npy", mmap_mode="r")

    def mined(self) -> mining.Mined:
        """What the job has mined; its arrays are memory maps."""
        return mining.as_mined(np.load(self.open(lock=False).folder / "mined.npy", mmap_mode="r"), self.config)

    def do(self, run: runlog.Run, report: Callable = print) -> None:
        """Embed and mine in this process, which may be one of several; what a killed call wrote is gone on with."""
        lead = rank_and_count()[0] == 0
        report = report if lead else lambda line: None
        q, c = self._embed(report, run.folder / "mined.npy")
        q, c = (c, q) if self.pictures else (q, c)
        ids, own = self.rows.caption_ids, np.arange(len(q))
        mined = mining.mine_to_file(run.folder / "mined.npy", q, c, own, ids, self.config, _device(), report)
        if lead:
            run.finish(**mined.counts)
        wait("process 0 to count what was mined")

    def _embed(self, report: Callable, result: Path) -> tuple[np.ndarray, np.ndarray]:
        """`embeddings`, made where they are missing; first of all the disk must have room for them and for `result`."""
        lead = rank_and_count()[0] == 0
        run = self._embedding_run(lock=lead)
        if not run.finished:
            try:
                images, captions = (run.folder / f"{name}.npy" for name in ("images", "captions"))
                embedder, n = Embedder.load(in_repository(self.miner), _device()), len(self.rows)
                if lead:
                    size = 4 * n * embedder.width
                    check_room({images: size, captions: size, result: n * mining.row_type(self.config).itemsize})
                see = lambda part: embedder.embed(images=[p.image for p in part])  # noqa: E731
                read = lambda part: embedder.embed(texts=[p.caption for p in part])  # noqa: E731
                embed_to_file(images, see, self.rows, embedder.width, 64, report, self.unreadable)
                embed_to_file(captions, read, self.rows, embedder.width, 512, report)
                if lead:
                    run.finish(pairs=n, unreadable=[self.rows[k].row for k in blank_rows(images).tolist()])
                wait("process 0 to count what was embedded")
            finally:
                run.release()
        return self.embeddings()

    def _embedding_run(self, lock: bool) -> runlog.Run:
        return runlog.open_run("embeddings", {}, self._inputs, lock)

    @cached_property
    def rows(self):
        """The N pairs that are embedded."""
        return read_pairs(in_repository(self.pairs))[0]

    @cached_property
    def _inputs(self) -> dict:
        """Fingerprints of the checkpoint, and of the pairs with the numbers of those that have a picture."""
        present = hashlib.sha256(self.rows.rows.tobytes()).hexdigest()
        miner, pairs = runlog.fingerprint(in_repository(self.miner)), fingerprint(in_repository(self.pairs))
        return {"miner": miner, "pairs": pairs, "present": present[:16]}


def run_job(job, processes: int = 1, report: Callable = print) -> runlog.Run:
    """Do what a job describes, or go on, in this process or in several; a finished run is returned as it is.

    Raises:
        RuntimeError: a process failed; the message has its last words. The run's last checkpoint, or what was mined, is intact.
    """
    run = job.open()
    if run.finished:
        return run
    file = write_job(job, run.folder / JOB)
    if processes > 1:
        run.release()
        launch(file, processes, report)
    else:
        job.do(run, report)
    return run


def job_of(folder: Path):
    """The job that a run's folder keeps.

    Raises:
        FileNotFoundError: the folder keeps none. ValueError: as `read_job`.
    """
    return read_job(Path(folder) / JOB)


def _started(start: str | None) -> dict:
    """What a run's name says of the checkpoint that it goes on from; nothing of a fresh start."""
    return {} if start is None else {"start": runlog.fingerprint(in_repository(start))}


def _go_on(embedder: Embedder, stage: str, start: str | None) -> None:
    """Put the adapter of a checkpoint in the place of a fresh one; the backbone may be another one of the same shape."""
    if start is not None:
        adapters.load_stage(embedder, stage, checkpoint.load(in_repository(start))[0], start)


def _device() -> str:
    """This process's own GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def write_job(job, path: Path) -> Path:
    """A job as YAML."""
    kind = f"{type(job).__module__}.{type(job).__qualname__}"
    with whole_file(path) as partial_file:
        partial_file.write_text(yaml.safe_dump({"job": kind} | json.loads(json.dumps(asdict(job))), sort_keys=False))
    return path


def read_job(path: Path):
    """The job of a file of `write_job`.

    Raises:
        ValueError: a kind of job that is none of this package, or a value that its config refuses.
    """
    try:
        fields = yaml.safe_load(Path(path).read_bytes())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    kind = _kind(fields.pop("job", None) if isinstance(fields, dict) else None, path)
    config = get_type_hints(kind)["config"].from_mapping(fields.pop("config", None), str(path))
    try:
        return kind(**fields | {"config": config})
    except TypeError as error:  # a name too many, or too few
        raise ValueError(f"{path}: {error}") from error


def _kind(name, path: Path) -> type[Job]:
    """The class of a dotted name, which has to be a job of this package."""
    module, _, own = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    try:
        kind = getattr(importlib.import_module(module), own) if module.startswith("abc_core.") else None
    except (ImportError, AttributeError):
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, Job) and is_dataclass(kind)):
        raise ValueError(f"{path}: job = {shorten(name)} is no job of this package, such as abc_core.jobs.stages.PretrainJob")
    return kind
