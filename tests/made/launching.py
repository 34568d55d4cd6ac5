"""Shared by tests of several rooms; out of test_launch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training import small_backbone

from abc_core import checkpoint
from abc_core.config import InstructConfig, LoraConfig, MiningConfig, PretrainConfig
from abc_core.data.karpathy import read_pairs
from abc_core.data.mined import write_mined
from abc_core.jobs.stages import InstructJob, MineJob, PretrainJob, run_job
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.runs import paths

SMALL = World(glyphs=40)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(backbone, pairs, mined, regions) on disk."""
    folder = tmp_path_factory.mktemp("world")
    pairs = draw_part(folder, "cc", 12, SMALL)
    negatives = [np.array([(k + 1) % 12, (k + 5) % 12]) for k in range(12)]
    mined = write_mined(folder / "mined.parquet", read_pairs(pairs)[0], pairs, negatives)
    return small_backbone(folder / "backbone"), str(pairs), str(mined), str(draw_part(folder, "vg", 6, SMALL))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A RUNS folder of the test's own, for its child processes too."""
    return runs_at(tmp_path / "runs", monkeypatch)


def runs_at(folder, monkeypatch):
    monkeypatch.setenv("ABC_RUNS", str(folder))
    monkeypatch.setattr(paths, "RUNS", folder)
    return folder


def pretrain_job(world, **changes) -> PretrainJob:
    config = PretrainConfig(
        steps=4, queries=4, negatives=2, lora=LoraConfig(4, 8), learning_rate=1e-2, bf16=False, save_every=1, validate_every=2
    )
    return PretrainJob(config=replace(config, **changes), backbone=world[0], pairs=world[1], mined=world[2], validation={"val": world[1]})


def instruct_job(world, stage1) -> InstructJob:
    config = InstructConfig(
        steps=2, images=2, instructions_per_image=2, lora=LoraConfig(2, 4), learning_rate=1e-2, bf16=False, save_every=1
    )
    return InstructJob(config=config, stage1=str(stage1), regions=world[3])


def mine_job(world, miner, **changes) -> MineJob:
    numbers = {"epsilon": 1.0, "pool": 4, "negatives": 2, "tile": 2}
    return MineJob(config=MiningConfig(**numbers | changes), miner=str(miner), pairs=world[1])


def quiet(line: str) -> None:
    """Reports nothing."""


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.folder / "model.safetensors")[0]


@pytest.fixture(scope="module")
def miner(world, tmp_path_factory):
    """The checkpoint of a short stage 1."""
    with pytest.MonkeyPatch.context() as patch:
        runs_at(tmp_path_factory.mktemp("miner"), patch)
        return run_job(replace(pretrain_job(world, steps=1, negatives=0), mined=None), report=quiet).folder / "model.safetensors"
