"""Work written down, a stage's training or mining: its numbers and what it reads, so that a notebook and several processes do the same.

Steps: (1) a job opens its run, whose name comes from the job's numbers and the fingerprints of what it reads; (2) its `do` reads the
data and makes the embedder, then trains or mines; (3) `run_job` does that here, or in several processes that read the job from a file in
the run's folder.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
import torch
import yaml
from transformers import AutoConfig

from abc_core import adapters, benchmark, checkpoint, instructions, mining, paths, runlog, train
from abc_core.batches import InstructBatches, PairBatches
from abc_core.config import InstructConfig, MiningConfig, PretrainConfig
from abc_core.ctrlbench import held_out
from abc_core.held_out import exclude, exclude_groups
from abc_core.launch import launch
from abc_core.mined import read_mined
from abc_core.model import Embedder
from abc_core.pairs import fingerprint, has_pairs, read_pairs
from abc_core.parallel import rank_and_count, wait
from abc_core.readers import read_genome
from abc_core.resumable import blank_rows, check_room
from abc_core.vectors import embed_to_file


class Work(NamedTuple):
    """What `train.train` is given."""

    embedder: Embedder
    batches: Callable
    step: Callable
    validate: Callable | None


class _TrainingJob:
    """What both stages' jobs do with what they `build`."""

    def do(self, run: runlog.Run, report: Callable = print) -> None:
        """Train in this process, which may be one of several."""
        made = self.build(run.folder)
        train.train(run, made.embedder.to(_device()), stage_of(self), made.batches, made.step, self.config, made.validate, report)


@dataclass(frozen=True, kw_only=True)
class PretrainJob(_TrainingJob):
    """Stage 1: pictures and captions of the folder `pairs` (`pairs.read_pairs`). With `mined`, a Parquet file or a folder of some, the
    pairs and negatives of that instead; `pairs` may then be a mere folder of pictures.

    `validation` names folders of pairs; `validation_pairs` of each are embedded. `weights` is the type of the frozen backbone's numbers,
    "float32" or "bfloat16". `name` is the first part of the run's folder.
    """

    config: PretrainConfig
    backbone: str
    pairs: str
    mined: str | None = None
    validation: dict = field(default_factory=dict)
    validation_pairs: int = 800  # App. C
    weights: str = "float32"
    name: str = "pretrain"

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`."""
        inputs = {"backbone": runlog.fingerprint(_path(self.backbone))}
        if self.mined is None or has_pairs(_path(self.pairs)):
            inputs["pairs"] = fingerprint(_path(self.pairs))
        if self.mined is not None:
            inputs["mined"] = runlog.fingerprint(_path(self.mined))
        return runlog.open_run(self.name, self.config, inputs | {"weights": self.weights}, lock)

    def build(self, folder: Path) -> Work:
        """Read the data and make the embedder; nothing is written into the run's `folder`."""
        if self.mined is None:
            pairs = read_pairs(_path(self.pairs))[0].numbered()
            captions, ids, negatives = pairs.captions, pairs.caption_ids, None
        else:
            mined, _ = read_mined(_path(self.mined), _path(self.pairs))
            pairs, captions, ids, negatives = mined.queries, mined.captions, mined.caption_ids, mined.padded(self.config.negatives)
        embedder = Embedder.from_backbone(_path(self.backbone), weights=self.weights)
        adapters.add_lora(embedder, "pretrain", **asdict(self.config.lora), seed=self.config.seed)
        held = {name: read_pairs(_path(folder))[0] for name, folder in self.validation.items()}
        validate = train.validator(held, self.validation_pairs) if held else None
        return Work(embedder, PairBatches(pairs, captions, ids, negatives, self.config), train.pretrain_step, validate)


@dataclass(frozen=True, kw_only=True)
class InstructJob(_TrainingJob):
    """Stage 2 on top of the stage-1 checkpoint `stage1`: regions of the folder `regions`, with its instructions.

    The folder has the layout of Visual Genome and a file instructions.jsonl, in whose place `written` may name another (as of
    `generate.generate`); or the layout of ABC-VG-Instruct, whose regions are drawn already.
    """

    config: InstructConfig
    stage1: str
    regions: str
    drop_largest: int = 5  # Sec. 3.2, "We exclude the 5 largest bounding boxes"
    written: str | None = None
    ctrlbench: str | None = None  # folder of a built CtrlBench; training goes without its pictures, captions and instructions
    karpathy: str | None = None  # dataset_coco.json; training goes without COCO's test pictures
    name: str = "instruct"

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`."""
        genome = [_path(self.regions) / file for file in ("region_descriptions.json", "image_data.json")]
        read = instructions.instructed_files(_path(self.regions)) or [*genome, self._wordings]
        inputs = {"stage1": runlog.fingerprint(_path(self.stage1)), "regions": runlog.fingerprint(*read)}
        rows = self.ctrlbench and str(_path(self.ctrlbench) / benchmark.FILE)
        held = {name: runlog.fingerprint(_path(path)) for name, path in (("ctrlbench", rows), ("karpathy", self.karpathy)) if path}
        return runlog.open_run(self.name, self.config, inputs | {"drop_largest": str(self.drop_largest)} | held, lock)

    def groups(self, report: Callable = lambda line: None) -> list[list[instructions.Instructed]]:
        """Instructed regions, picture by picture; what was left out goes to `report`."""
        each, held = self.config.instructions_per_image, held_out(*(path and _path(path) for path in (self.ctrlbench, self.karpathy)))
        if instructions.instructed_files(_path(self.regions)):
            if self.written is not None:
                raise ValueError(f"{self.regions} has its own instructions, so written = {self.written!r} would not be read")
            groups, skipped = instructions.read_instructed(_path(self.regions))
            groups, apart = exclude_groups([group[:each] for group in groups], held)
            for account in (skipped, apart):
                report(account)
            return groups
        genome, skipped = read_genome(_path(self.regions))
        genome, apart = exclude(genome, held)
        chosen, counts = instructions.select_regions(genome, self.drop_largest, each, self.config.seed, held.captions)
        options, _ = instructions.read_instructions(self._wordings)
        rows, asked = instructions.instruct(chosen, options, self.config.seed, without=held.instructions)
        for account in (skipped, apart, counts, asked):
            report(account)
        return instructions.by_image(rows)

    @property
    def _wordings(self) -> Path:
        return _path(self.written or f"{self.regions}/instructions.jsonl")

    def build(self, folder: Path) -> Work:
        """Read the data, make the embedder, and embed the captions once, into the run's `folder`: they never change (Sec. 3.2)."""
        groups = self.groups()
        captions = sorted({row.caption for group in groups for row in group})
        embedder = Embedder.load(_path(self.stage1), _device())
        adapters.merge_all(embedder)
        embed_to_file(folder / "bank.npy", lambda part: embedder.embed(texts=part), captions, embedder.width)
        bank = torch.from_numpy(np.load(folder / "bank.npy"))
        adapters.add_lora(embedder, "instruct", **asdict(self.config.lora), seed=self.config.seed)
        batches = InstructBatches(groups, {caption: k for k, caption in enumerate(captions)}, self.config)
        return Work(embedder, batches, partial(train.instruct_step, bank=bank), None)


@dataclass(frozen=True, kw_only=True)
class MineJob:
    """Steps (2) and (3) of mining (Sec. 3.2): `miner`, the checkpoint of a short stage 1, embeds all pictures and captions of the folder
    `pairs`; then hard negatives are searched and drawn.

    The embeddings have a run of their own, so that another ε or pool does not embed anew.
    """

    config: MiningConfig
    miner: str
    pairs: str
    unreadable: float = 0.01  # share of the pictures that may not be decoded; not in the paper
    name: str = "mined"

    def open(self, lock: bool = True) -> runlog.Run:
        """The run of this job; see `runlog.open_run`. The size of the tiles is no part of its name, as the result does not depend on it."""
        numbers = {k: v for k, v in asdict(self.config).items() if k != "tile"}
        return runlog.open_run(self.name, numbers, self._inputs, lock)

    def plan(self, processes: int = 1) -> mining.Plan:
        """What the search takes on this machine."""
        backbone = checkpoint.load(_path(self.miner))[1]["built"]["backbone"]
        width = AutoConfig.from_pretrained(_path(backbone)).get_text_config().hidden_size
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
                embedder, n = Embedder.load(_path(self.miner), _device()), len(self.rows)
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
        return read_pairs(_path(self.pairs))[0]

    @cached_property
    def _inputs(self) -> dict:
        """Fingerprints of the checkpoint, and of the pairs with the numbers of those that have a picture."""
        present = hashlib.sha256(self.rows.rows.tobytes()).hexdigest()
        return {"miner": runlog.fingerprint(_path(self.miner)), "pairs": fingerprint(_path(self.pairs)), "present": present[:16]}


JOBS = {"pretrain": PretrainJob, "instruct": InstructJob, "mine": MineJob}  # stage -> what describes it


def stage_of(job) -> str:
    """ "pretrain", "instruct" or "mine"."""
    return next(stage for stage, kind in JOBS.items() if isinstance(job, kind))


def run_job(job, processes: int = 1, report: Callable = print) -> runlog.Run:
    """Do what a job describes, or go on, in this process or in several; a finished run is returned as it is.

    Raises:
        RuntimeError: a process failed; the message has its last words. The run's last checkpoint, or what was mined, is intact.
    """
    run = job.open()
    if not run.finished and processes > 1:
        run.release()
        launch(write_job(job, run.folder / "job.yaml"), processes, report)
    elif not run.finished:
        job.do(run, report)
    return run


def _device() -> str:
    """This process's own GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def write_job(job, path: Path) -> Path:
    """A job as YAML."""
    path.write_text(yaml.safe_dump({"stage": stage_of(job)} | json.loads(json.dumps(asdict(job))), sort_keys=False))
    return path


def read_job(path: Path):
    """The job of a file of `write_job`.

    Raises:
        ValueError: an unknown stage, or a value that its config refuses.
    """
    fields = yaml.safe_load(Path(path).read_text())
    kind = JOBS.get(fields.pop("stage", None))
    if kind is None:
        raise ValueError(f"{path}: the stage has to be one of {', '.join(JOBS)}")
    config = get_type_hints(kind)["config"]
    return kind(**fields | {"config": config.from_mapping(fields["config"], str(path))})


def _path(path: str) -> Path:
    """A path of a job; a relative one starts at the repository."""
    return Path(path) if Path(path).is_absolute() else paths.ROOT / path
