"""Going on from what is trained: a stage starts from a checkpoint's adapter, a backbone from the one that is there."""

from dataclasses import replace

import pytest
import torch
from launching import instruct_job, pretrain_job, quiet, runs, weights, world  # noqa: F401

from abc_core import adapters
from abc_core.jobs.stages import run_job
from abc_core.miniature.backbone.pretrain import BackboneConfig
from abc_core.own_pictures.adaptation import adapt_backbone
from abc_core.runs import paths


def test_both_stages_go_on_from_the_adapters_of_one_checkpoint_and_their_runs_have_other_names(world, runs, tmp_path):
    stage1 = run_job(pretrain_job(world), report=quiet).folder / "model.safetensors"
    abc = run_job(instruct_job(world, stage1), report=quiet)
    trained, found = weights(abc), {}
    for stage, fresh in (("pretrain", pretrain_job(world)), ("instruct", instruct_job(world, stage1))):
        job = replace(fresh, start=str(abc.folder / "model.safetensors"))
        assert job.open(lock=False).folder != fresh.open(lock=False).folder
        made = [adapters.stage_tensors(j.build(tmp_path).embedder, stage) for j in (job, fresh)]
        found[stage] = made[0]
        assert any(not torch.equal(made[0][name], made[1][name]) for name in made[0]), "a fresh adapter is the trained one"
    assert {name for tensors in found.values() for name in tensors} == set(trained)
    assert all(torch.equal(tensor, trained[name]) for tensors in found.values() for name, tensor in tensors.items())


def test_a_checkpoint_of_another_size_is_refused(world, runs, tmp_path):
    stage1 = run_job(pretrain_job(world, steps=1), report=quiet).folder / "model.safetensors"
    job = pretrain_job(world, lora=replace(pretrain_job(world).config.lora, rank=2))
    with pytest.raises(ValueError, match=r"model\.safetensors: pretrain/.* has shape .*; this model needs"):
        replace(job, start=str(stage1)).build(tmp_path)


def test_a_backbone_that_would_only_ever_learn_words_is_refused():
    with pytest.raises(ValueError, match="words = 5 of 5 steps"):
        adapt_backbone(paths.ASSETS / "backbone", paths.ROOT, 5, BackboneConfig(steps=5))
