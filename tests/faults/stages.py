"""The stages that the campaign disturbs, on tiny models: what each does from wherever it stands, and what it leaves when it is done.

A stage is done in a process of its own (`apart`), forked from one that has everything loaded, and in a folder of runs of its own.
"""

import copy
import hashlib
import json
import os
import tarfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openai
from backbone_words import ANSWERS, WORDS
from launching import SMALL, instruct_job, mine_job, pretrain_job, quiet
from lying_server import LyingServer
from PIL import Image
from training import TIMES, small_backbone

from abc_core.backbone import load_backbone
from abc_core.data.karpathy import Region, read_pairs
from abc_core.data.mined import write_mined
from abc_core.instructions.ask import Server
from abc_core.instructions.generate import generate
from abc_core.jobs.stages import run_job
from abc_core.miniature.backbone.lessons import Lessons
from abc_core.miniature.backbone.pretrain import BackboneConfig, train
from abc_core.miniature.parts import draw_part
from abc_core.runs import paths

# file -> what of it must be the same: all its bytes, or its rows without times
RESULTS = ("model.safetensors", "last.safetensors", "step-*.safetensors", "*.npy", "instructions.jsonl", "metrics.jsonl", "result.json")


@dataclass(frozen=True)
class Stage:
    """`go` does the stage in paths.RUNS, or goes on; `inputs` are files that it reads; `job` is its description if it is a job."""

    name: str
    go: Callable[[], None]
    inputs: dict[str, Path]
    job: object = None


def left(runs: Path) -> dict[str, str]:
    """Name -> digest of every result in a folder of runs; the rows of a log count without times."""
    found = {}
    for pattern in RESULTS:
        for path in sorted(runs.glob(f"*/{pattern}")):
            content = path.read_bytes()
            if path.name == "metrics.jsonl":
                rows = [json.loads(line) for line in content.splitlines()]
                content = json.dumps([{k: v for k, v in row.items() if k not in TIMES} for row in rows]).encode()
            found[f"{path.parent.name}/{path.name}"] = hashlib.sha256(content).hexdigest()
    return found


def apart(work: Callable, said: Path, wait: bool = True) -> int:
    """Run `work` in a process of its own, whose last words go to the file `said`; returns its exit status, minus a signal, or its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            said.write_text("")
            work()
            status = 0
        except BaseException as error:
            said.write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if wait else child


# --- the small world ------------------------------------------------------------------------------------------------------------------


def stages(folder: Path, names: tuple[str, ...] = ()) -> dict[str, Stage]:
    """Name -> stage, with everything that they read made in `folder`; of `names` alone if some are given."""
    makers = {
        "mining": _mining,
        "mining from shards": _mining,
        "stage 1": _stage1,
        "stage 2": _stage2,
        "backbone": _backbone,
        "generation": _ask,
    }
    before, paths.RUNS = paths.RUNS, folder / "before"
    try:
        world = _world(folder)
        return {name: maker(folder, world, name) for name, maker in makers.items() if not names or name in names}
    finally:
        paths.RUNS = before


def _world(folder: Path) -> tuple[str, str, str, str]:
    """(backbone, pairs, mined, regions), as in test_launch."""
    pairs = draw_part(folder, "cc", 12, SMALL)
    negatives = [np.array([(k + 1) % 12, (k + 5) % 12]) for k in range(12)]
    mined = write_mined(folder / "mined.parquet", read_pairs(pairs)[0], pairs, negatives)
    return small_backbone(folder / "backbone"), str(pairs), str(mined), str(draw_part(folder, "vg", 6, SMALL))


def _first(world) -> Path:
    """The checkpoint of a short stage 1."""
    return run_job(replace(pretrain_job(world, steps=1, negatives=0), mined=None), report=quiet).folder / "model.safetensors"


def _mining(folder: Path, world, name: str) -> Stage:
    job = mine_job(world, _first(world))
    inputs = {"checkpoint": Path(job.miner)}
    if name == "mining from shards":
        shards = folder / "shards"
        shards.mkdir()
        for part in range(2):
            with tarfile.open(shards / f"cc-{part:04d}.tar", "w") as tar:
                for k, pair in enumerate(read_pairs(Path(world[1]))[0][6 * part : 6 * part + 6]):
                    (folder / "caption.txt").write_text(pair.caption)
                    tar.add(pair.image, f"{k}.jpg")
                    tar.add(folder / "caption.txt", f"{k}.txt")
        job, inputs = replace(job, pairs=str(shards)), inputs | {"shard": shards / "cc-0001.tar"}
    return Stage(name, lambda: run_job(job, report=quiet), inputs, job)


def _stage1(folder: Path, world, name: str) -> Stage:
    job = pretrain_job(world, steps=6, save_every=2, validate_every=3)
    return Stage(name, lambda: run_job(job, report=quiet), {"parquet": Path(world[2])}, job)


def _stage2(folder: Path, world, name: str) -> Stage:
    job = instruct_job(world, _first(world))
    job = replace(job, config=replace(job.config, steps=6, save_every=2))
    return Stage(name, lambda: run_job(job, report=quiet), {"checkpoint": Path(job.stage1)}, job)


def _backbone(folder: Path, world, name: str) -> Stage:
    data = draw_part(folder, "backbone", 12, SMALL)
    small, processor = load_backbone(world[0])
    config = small.config
    config.text_config.num_hidden_layers, config.text_config.layer_types = 6, 6 * config.text_config.layer_types[:1]  # those that point
    model = type(small)._from_config(config)
    lessons, numbers = Lessons(data, processor), BackboneConfig(steps=4, tokens=1, warmup=2, save_every=1, keep=(0.5,), bf16=False)
    go = lambda: train(copy.deepcopy(model), lessons, numbers, paths.RUNS / "backbone", (WORDS, ANSWERS), report=quiet)  # noqa: E731
    return Stage(name, go, {})


def _ask(folder: Path, world, name: str) -> Stage:
    return Stage(name, lambda: ask(folder), {})


def ask(folder: Path, lies: dict | None = None) -> None:
    """Have a server of this process make instructions for twelve regions; it may lie."""
    regions = []
    for k in range(12):
        image = folder / "asked" / f"{k // 4}.png"
        if not image.exists():
            image.parent.mkdir(exist_ok=True)
            Image.new("RGB", (60, 40), (80 * (k // 4), 0, 0)).save(image)
        regions.append(Region(image, k // 4, k, f"caption number {k}", 0, 0, 10, 10))
    out = paths.RUNS / "generation"
    out.mkdir(parents=True, exist_ok=True)
    openai._base_client.INITIAL_RETRY_DELAY = 0.01  # seconds; of this process, which does nothing else
    with LyingServer(lies, seconds=0.02) as server:
        asked = Server("model", server.url, 2, retries=6, pause=0.02, timeout=2)
        generate(regions, asked, out / "instructions.jsonl", out / "cache.jsonl", report=quiet)
