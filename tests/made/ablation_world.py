"""Shared by tests of several rooms; out of test_ablations."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
from launching import quiet, runs_at
from training import small_backbone

from abc_core.config import LoraConfig, MiningConfig, PretrainConfig
from abc_core.jobs.stages import MineJob, PretrainJob, run_job
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.studies import miners as ablation_mining
from abc_core.studies.ablations import stage1 as ablations

SMALL = World(glyphs=40)


NUMBERS = {"negatives": 1, "lora": LoraConfig(64, 128), "bf16": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A miner that was trained for two steps, what it mined, and all that was drawn."""
    folder = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    runs_at(folder / "runs", patch)
    pairs, regions = (str(draw_part(folder, part, count, SMALL)) for part, count in (("cc", 12), ("vg", 6)))
    backbone = small_backbone(folder / "backbone")
    numbers = PretrainConfig(steps=2, queries=4, negatives=0, lora=LoraConfig(2, 4), bf16=False)
    job = PretrainJob(config=numbers, backbone=backbone, pairs=pairs, name="miner")
    miner = str(run_job(job, report=quiet).folder / "model.safetensors")
    mining = {"epsilon": 1.0, "pool": 3, "negatives": 3}
    mined = ablation_mining.mined_file(MineJob(config=MiningConfig(**mining), miner=miner, pairs=pairs), quiet)
    made = {"backbone": backbone, "pairs": pairs, "regions": regions, "mined": str(mined), "miner": miner}
    yield SimpleNamespace(folder=folder, job=job, mining=mining, **made)
    patch.undo()


@pytest.fixture
def base(world):
    """A base with small numbers."""
    files = {"backbone": world.backbone, "pairs": world.pairs, "mined": world.mined}
    files |= {"validation": {"val": world.pairs}, "validation_pairs": 8}
    return ablations.Stage1(
        files=files, numbers=NUMBERS, steps=4, queries=4, seeds=(0, 1), miner=world.miner, last=world.miner, mining=world.mining,
        miner_job=world.job, ranks=(2, 64), batches=((2, 8), (4, 4)), doublings=(2, 4), epsilons=(None, 1.0), negatives=(0, 1, 3),
        miner_steps=(1,),
    )  # fmt: skip


def fields_of(job) -> dict:
    found = asdict(job) | {"kind": type(job).__name__}
    return {k: v for k, v in found.items() if k != "config"} | {f"config.{k}": v for k, v in found["config"].items()}
