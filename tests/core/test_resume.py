"""Resuming: whatever ends a training, and whenever, the rerun ends with the weights of an undisturbed one, bit for bit."""

import itertools
import os
import resource
import shutil
import signal
import time
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training import TIMES, small_backbone, small_batches, small_config, small_embedder, small_pictures

from abc_core import adapters, checkpoint, train
from abc_core.batches import positions
from abc_core.config import LoraConfig
from abc_core.model import Embedder
from abc_core.runs import paths
from abc_core.runs.processes import rank_and_count, wait
from abc_core.runs.run import Run, open_run

STAGES = ["pretrain", "instruct"]


class Training:
    """One stage in run folders of its own; every `go` is a notebook that starts afresh and trains, or goes on."""

    def __init__(self, world, stage: str, runs: Path):
        self.stage, self.runs, self.config = stage, runs, small_config(stage)
        self.pictures = world[1]
        self.fresh = lambda: small_embedder(world[0], stage, self.config)

    def go(self, step_fn=None, embedder=None, report=lambda line: None):
        """Train to the end; `step_fn` in place of the real step."""
        embedder = embedder or self.fresh()
        batches, step = small_batches(self.stage, self.pictures, self.config, embedder)
        step = step_fn(step) if step_fn else step
        run = open_run("train", {}, {}, lock=rank_and_count()[0] == 0)
        train.train(run, embedder, self.stage, batches, step, self.config, validate, report)
        return embedder

    @property
    def run(self) -> Run:
        """The run folder, to look at."""
        return Run(next(self.runs.glob("train-*")))

    def left(self) -> tuple[bytes, list[dict]]:
        """What a finished training leaves: model.safetensors as bytes, and its rows without times."""
        assert self.run.finished and sorted(p.name for p in self.run.folder.iterdir()) == [
            "metrics.jsonl", "model.safetensors", "params.yaml", "provenance.json", "result.json", "run.lock",
        ]  # fmt: skip
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in self.run.rows()]
        return (self.run.folder / "model.safetensors").read_bytes(), rows


def validate(embedder) -> dict:
    return {"val_accuracy": float(embedder.embed(texts=["an owl"])[0, 0])}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(backbone, pictures) on disk."""
    folder = tmp_path_factory.mktemp("world")
    return small_backbone(folder / "backbone"), small_pictures(folder)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """stage -> what an undisturbed training of it leaves."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:
            runs = tmp_path_factory.mktemp("undisturbed")
            patch.setattr(paths, "RUNS", runs)
            training = Training(world, stage, runs)
            training.go()
            out[stage] = training.left()
    return out


# --- kill -9 ------------------------------------------------------------------------------------------------------------------------


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(owner, name: str, call: int, instead=die) -> None:
    """From now on, the `call`-th call of owner.name is `instead`, which kills this process."""
    original, count = getattr(owner, name), itertools.count(1)
    setattr(owner, name, lambda *a, **k: instead(*a, **k) if next(count) == call else original(*a, **k))


def half_a_row(run, **row) -> None:
    """A row of metrics.jsonl of which only the beginning is written."""
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    die()


def half_a_checkpoint(tensors, path, **_) -> None:
    """A checkpoint of which only the beginning is written."""
    path.write_bytes(b"\x00" * 1000)
    die()


def whole_but_not_in_place(path, target):
    """The file is written and about to be renamed."""
    if target.name != "last.safetensors":
        return path.replace(target)
    return die()


# In the order in which they come in one training of 6 steps that saves every second; each entry is one more process, killed once.
MOMENTS = {
    "before the first step": lambda: dies_at(train, "one_step", 1),
    "after a step, before its row": lambda: dies_at(Run, "log", 1),
    "within a row": lambda: dies_at(Run, "log", 2, half_a_row),
    "after a row, before its checkpoint": lambda: dies_at(adapters, "save_embedder", 1),
    "within a checkpoint": lambda: dies_at(checkpoint, "save_file", 1, half_a_checkpoint),
    "before a checkpoint is in place": lambda: setattr(Path, "rename", whole_but_not_in_place),
    "after a checkpoint": lambda: dies_at(train, "one_step", 3),
    "one row after a checkpoint": lambda: dies_at(train, "one_step", 2),
    "within the step after": lambda: dies_at(torch.optim.AdamW, "step", 2),
    "after the last checkpoint": lambda: dies_at(adapters, "save_embedder", 3),
    "before the result": lambda: dies_at(Run, "finish", 1),
    "before the last checkpoint is removed": lambda: dies_at(Path, "unlink", 1),
}


def in_child(work) -> int:
    """Exit status of `work` in a process of its own; minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_that_is_killed_at_every_moment_ends_with_the_same_weights_and_rows(stage, world, runs, undisturbed):
    training = Training(world, stage, runs)
    for moment, arrange in MOMENTS.items():
        assert in_child(lambda arrange=arrange: (arrange(), training.go())) == -signal.SIGKILL, moment
        if moment != "before the last checkpoint is removed":
            assert not training.run.finished, moment
    training.go()
    assert training.left() == undisturbed[stage]


@pytest.mark.parametrize("rows", [1, 4])
def test_a_training_that_is_killed_from_outside_ends_with_the_same_weights_and_rows(rows, world, runs, undisturbed):
    training = Training(world, "pretrain", runs)
    child = os.fork()
    if child == 0:
        training.go()
        os._exit(0)
    while not list(runs.glob("train-*/metrics.jsonl")) or len(training.run.rows()) < rows:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    training.go()
    assert training.left() == undisturbed["pretrain"]


# --- Ctrl-C -------------------------------------------------------------------------------------------------------------------------


def disturbed(at: int, what):
    """step function -> one that calls what(loss, embedder) at its `at`-th call (from 0) and returns what that returns as the loss."""

    def around(step):
        count = itertools.count()

        def call(embedder, batch, config, rows):
            loss, out = step(embedder, batch, config, rows=rows)
            return (what(loss, embedder) if next(count) == at else loss), out

        return call

    return around


def interrupt(loss, embedder=None, number=signal.SIGINT):
    """Ctrl-C, or another signal, in the middle of a step."""
    signal.raise_signal(number)
    return loss


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 0), (signal.SIGTERM, 2), (signal.SIGINT, 5)])
def test_an_interrupted_training_saves_its_step_says_how_to_go_on_and_goes_on(number, at, world, runs, undisturbed):
    training = Training(world, "pretrain", runs)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    embedder = training.fresh()
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {at + 1} of 6; run again to continue"):
        training.go(disturbed(at, partial(interrupt, number=number)), embedder)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(training.run.rows()) == at + 1 and not training.run.finished
    assert checkpoint.load(training.run.folder / "last.safetensors")[1]["step"] == at + 1
    training.go(embedder=embedder)
    assert training.left() == undisturbed["pretrain"]


def test_a_second_interrupt_stops_at_once_and_the_rerun_ends_alike(world, runs, undisturbed):
    training = Training(world, "pretrain", runs)
    with pytest.raises(KeyboardInterrupt, match="stopped at once; run again to continue from the last checkpoint"):
        training.go(disturbed(3, lambda loss, _: interrupt(interrupt(loss))))
    assert checkpoint.load(training.run.folder / "last.safetensors")[1]["step"] == 2
    training.go()
    assert training.left() == undisturbed["pretrain"]


# --- failures -----------------------------------------------------------------------------------------------------------------------

BAD_STEPS = {
    "the loss is nan at step": lambda loss, _: loss * torch.nan,
    "the gradient's norm is nan at step": lambda loss, embedder: loss + (0 * embedder.head.linear_layer1.weight).sum().sqrt(),
}


@pytest.mark.parametrize(("message", "at"), [*zip(BAD_STEPS, [1, 3])])
def test_a_step_that_is_not_finite_stops_the_run_with_its_last_checkpoint_intact(message, at, world, runs, undisturbed):
    training = Training(world, "pretrain", runs)
    embedder = training.fresh()
    with pytest.raises(FloatingPointError, match=f"{message} {at}; .*last checkpoint is intact"):
        training.go(disturbed(at, BAD_STEPS[message]), embedder)
    tensors, numbers = checkpoint.load(training.run.folder / "last.safetensors")
    assert numbers["step"] == at - 1 and all(torch.isfinite(t).all() for t in tensors.values())
    training.go(embedder=embedder)  # the same embedder, as after running a cell of a notebook again
    assert training.left() == undisturbed["pretrain"]


def test_a_picture_that_is_gone_stops_the_run_with_its_name_and_the_rerun_ends_alike(world, runs, undisturbed, tmp_path):
    training = Training(world, "pretrain", runs)
    moved = training.pictures[positions(3, 3, 10, 0)[0]]
    shutil.move(moved, tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match=moved.name):
        training.go()
    shutil.move(tmp_path / "aside", moved)
    training.go()
    assert training.left() == undisturbed["pretrain"]


def test_a_broken_picture_is_replaced_counted_and_named_and_the_run_that_is_killed_ends_alike(world, runs, tmp_path):
    pictures = [Path(shutil.copy(path, tmp_path)) for path in world[1]]
    bad = positions(1, 3, 10, 0)[0]
    pictures[bad].write_bytes(pictures[bad].read_bytes()[:-60])
    said, ends = [], []
    for at in (None, 3):
        training = Training((world[0], pictures), "pretrain", runs / str(at))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paths, "RUNS", training.runs)
            if at is not None:
                with pytest.raises(KeyboardInterrupt):
                    training.go(disturbed(at, interrupt))
            training.go(report=said.append)
        ends.append(training.left())
    assert ends[0] == ends[1]
    assert [row["unreadable_pictures"] for row in ends[0][1]] == [int(bad in positions(step, 3, 10, 0)) for step in range(6)]
    assert any(f"{pictures[bad].name} is not a whole picture" in line for line in said)


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_rerun_ends_alike(world, runs, undisturbed):
    training = Training(world, "pretrain", runs)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(loss, _):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # rows still fit, checkpoints do not
        return loss

    try:
        with pytest.raises(OSError, match=r"the checkpoint .*last\.safetensors: .* disk full\? The previous checkpoint is intact"):
            training.go(disturbed(3, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.load(training.run.folder / "last.safetensors")[1]["step"] == 2
    training.go()
    assert training.left() == undisturbed["pretrain"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_is_loaded_and_not_trained_again(stage, world, runs):
    training = Training(world, stage, runs)
    trained = training.go()
    never = lambda step: pytest.fail  # noqa: E731
    again = training.go(never)
    for one in (again, Embedder.load(training.run.folder)):
        assert adapters.stage_tensors(one, stage).keys() == adapters.stage_tensors(trained, stage).keys()
        assert all(torch.equal(adapters.stage_tensors(one, stage)[k], v) for k, v in adapters.stage_tensors(trained, stage).items())
    assert (again.embed(texts=["an owl", "x"]) == trained.embed(texts=["an owl", "x"])).all()


def test_a_checkpoint_of_another_shape_is_refused(world, runs):
    training = Training(world, "pretrain", runs)
    with pytest.raises(KeyboardInterrupt):
        training.go(disturbed(2, interrupt))
    training.config = small_config("pretrain", lora=LoraConfig(8, 8))
    with pytest.raises(ValueError, match=r"last\.safetensors: .*lora_A.* has shape \(4, 32\); this model needs \(8, 32\)"):
        training.go()


def test_a_run_whose_rows_are_lost_is_refused(world, runs):
    training = Training(world, "pretrain", runs)
    with pytest.raises(KeyboardInterrupt):
        training.go(disturbed(2, interrupt))
    (training.run.folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 0 rows of 3 steps; delete .* to begin anew"):
        training.go()


# --- two processes ------------------------------------------------------------------------------------------------------------------


def together(folder: Path, work, patience: float = 60) -> list[str]:
    """What work(rank) raises in each of two processes that know each other: "" or the error with its words."""

    def one(rank: int) -> None:
        meeting, error = f"file://{folder}/meeting", ""
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=patience))
        try:
            work(rank)
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}"
        (folder / f"said-{rank}").write_text(error)
        os._exit(0)

    (folder / "meeting").unlink(missing_ok=True)
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            one(rank)
    for child in children:
        os.waitpid(child, 0)
    return [(folder / f"said-{rank}").read_text() for rank in range(2)]


def test_a_loss_that_is_not_finite_in_one_process_stops_all_with_the_last_checkpoint_intact(world, tmp_path, monkeypatch):
    left = []
    for name in ("disturbed", "undisturbed"):
        monkeypatch.setattr(paths, "RUNS", tmp_path / name)
        training = Training(world, "pretrain", paths.RUNS)
        training.config = small_config("pretrain", queries=4)
        if name == "disturbed":
            ill = lambda rank: training.go(disturbed(3, lambda loss, _: loss * torch.nan) if rank == 1 else None)  # noqa: E731, B023
            assert together(tmp_path, ill) == 2 * [
                "FloatingPointError: the loss is nan at step 3; the run stops here and its last checkpoint is intact"
            ]
            tensors, numbers = checkpoint.load(training.run.folder / "last.safetensors")
            assert numbers["step"] == 2 and all(torch.isfinite(t).all() for t in tensors.values())
        assert together(tmp_path, lambda rank: training.go()) == ["", ""]  # noqa: B023
        left.append(training.left())
    assert left[0] == left[1]


def test_a_process_that_never_comes_is_given_up_with_what_was_waited_for(tmp_path):
    def work(rank: int) -> None:
        time.sleep(6) if rank == 0 else wait("process 0 to validate and save step 3")

    first, second = together(tmp_path, work, patience=2)
    assert first == "" and second.startswith("RuntimeError: process 1 waited for process 0 to validate and save step 3, in vain: ")
