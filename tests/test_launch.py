"""Training jobs in one and in several processes, started as a notebook starts them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from test_train import TIMES, small_backbone

from abc_core import checkpoint, launch, paths
from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.jobs import InstructJob, PretrainJob, read_job, run_job, write_job
from abc_core.mined import write_mined
from abc_core.model import Embedder
from abc_core.openmoji.world import World, draw_part
from abc_core.readers import read_pairs

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


def quiet(line: str) -> None:
    """Reports nothing."""


def rows_of(run) -> list[dict]:
    """Rows of the log without times, and without the padding, which depends on which rows a process has."""
    return [{k: v for k, v in row.items() if k not in {*TIMES, "padded_tokens"}} for row in run.rows()]


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.folder / "model.safetensors")[0]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_two_processes_train_what_one_trains(stage, world, runs, monkeypatch, tmp_path):
    job = pretrain_job(world)
    if stage == "instruct":
        job = instruct_job(world, run_job(job, report=quiet).folder / "model.safetensors")
    one = run_job(job, report=quiet)
    runs_at(tmp_path / "two", monkeypatch)
    said = []
    two = run_job(job, 2, said.append)
    assert two.folder.name == one.folder.name and two.folder != one.folder and two.finished
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(two)[name], rtol=0, atol=1e-4, msg=name)
    assert any(line.startswith(f"step {job.config.steps}/{job.config.steps}") for line in said)
    assert sum(line.startswith(f"{stage}: ") for line in said) == 1  # the first process alone reports
    assert Embedder.load(two.folder).embed(texts=["an owl"]).shape == (1, 32)
    assert run_job(job, 2, said.append).finished


def test_a_killed_process_ends_the_training_with_a_message_and_the_rerun_ends_as_undisturbed(world, runs, monkeypatch, tmp_path):
    job = pretrain_job(world, steps=40)
    killed = []

    def kill_a_worker(line: str) -> None:
        if line.startswith("step 4/") and not killed:
            workers = subprocess.run(["pgrep", "-f", "--", f"-u -m abc_core.launch {runs}"], capture_output=True, text=True).stdout.split()
            killed.append(int(workers[-1]))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"training in 2 processes failed with exit code 1\n(.*\n)*.*SIGKILL"):
        run_job(job, 2, kill_a_worker)
    run = job.open()
    assert killed and not run.finished and 4 <= len(run.rows()) < 40
    run.release()
    ended = rows_of(run_job(job, 2, quiet))
    runs_at(tmp_path / "again", monkeypatch)
    undisturbed = run_job(job, 2, quiet)
    assert rows_of(undisturbed) == ended
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(undisturbed).items())


def test_nothing_trains_on_behind_a_notebook_that_is_gone(world, runs):
    job = pretrain_job(world, steps=5_000)
    run = job.open()
    run.release()
    file = write_job(job, run.folder / "job.yaml")
    notebook = subprocess.Popen([sys.executable, "-c", f"from abc_core.launch import launch; launch({str(file)!r}, 2)"], stdout=-1)
    until(lambda: len(run.rows()) >= 2, notebook)
    notebook.kill()
    until(lambda: not subprocess.run(["pgrep", "-f", str(file)], stdout=-1).stdout.strip())
    step = checkpoint.load(run.folder / "last.safetensors")[1]["step"]
    assert 2 <= step == len(run.rows()) < 5_000


def until(true, process=None, seconds: float = 90) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and (process is None or process.poll() is None), "it never happened"
        time.sleep(0.2)


def test_a_job_comes_back_from_its_file_and_an_impossible_one_is_named(world, tmp_path):
    for job in (pretrain_job(world), instruct_job(world, "somewhere")):
        assert read_job(write_job(job, tmp_path / "job.yaml")) == job
    fields = yaml.safe_load((tmp_path / "job.yaml").read_text())
    wrong = [({"stage": "both"}, "the stage has to be one of pretrain, instruct"), ({"config": {"steps": "1e3"}}, "steps = '1e3'")]
    for change, message in wrong:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(fields | change))
        with pytest.raises(ValueError, match=message):
            read_job(tmp_path / "job.yaml")


def test_a_process_that_cannot_start_says_why(tmp_path):
    (tmp_path / "job.yaml").write_text("stage: both\n")
    with pytest.raises(RuntimeError, match=r"(.*\n)*.*the stage has to be one of"):
        launch.launch(tmp_path / "job.yaml", 1, quiet)
