"""A few moments of the fault campaign: whatever disturbs a stage is named, and the stage then ends as undisturbed, bit for bit.

All rows, and many moments of each, are tried by `make faults` (`campaign.py`).
"""

import os

import campaign
import faults
import numpy as np
import pytest
from faults import Trial
from stages import left, stages

from abc_core.runs import run as runlog

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

HERE = {  # what is tried on every change; test_resume, test_launch and test_pretrain_backbone kill at chosen moments
    "mining": ["kill -9 at a file operation", "full disk (a small tmpfs)", "read-only folder"],
    "stage 1": ["killed within a write", "damaged checkpoint of its own", "clocks that jump"],
    "generation": ["kill -9 by the clock", "hanging and lying server"],
}
ROWS = {row.name: row for row in campaign.ROWS}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Name of a stage -> the undisturbed one, which is done once it is asked for."""
    folder, known = tmp_path_factory.mktemp("campaign"), {}
    made = stages(folder, (*HERE, "backbone"))

    def reference(name: str):
        if name not in known:
            known[name] = campaign.undisturbed(made[name], folder / f"undisturbed {name}", folder)
        return known[name]

    reference.stages = made
    return reference


@pytest.mark.parametrize(("where", "name"), [(where, name) for where, names in HERE.items() for name in names])
def test_a_disturbed_stage_says_so_and_ends_as_undisturbed(where, name, references, tmp_path):
    what, same = campaign.attempt(ROWS[name], references(where), 0, 0, tmp_path)
    if same is None:
        pytest.skip(what)
    assert same, what


def test_a_backbone_does_not_learn_from_a_gradient_that_is_not_finite(references, tmp_path):
    trial = Trial(references.stages["backbone"], tmp_path / "trial", tmp_path, np.random.default_rng(0))
    assert faults.nan_in_a_gradient(trial) == "FloatingPointError"
    assert len(list((trial.runs / "backbone").glob("last.*"))) == 1


def test_a_backbone_is_trained_by_one_process_at_a_time(references, tmp_path):
    trial = Trial(references.stages["backbone"], tmp_path / "trial", tmp_path, np.random.default_rng(0))
    (trial.runs / "backbone").mkdir()
    runlog.hold(trial.runs / "backbone")
    try:
        assert trial.must_refuse(trial.go(), "RuntimeError", f"is being written by process {os.getpid()}")
    finally:
        runlog.Run(trial.runs / "backbone").release()


def test_what_is_compared_is_all_that_a_stage_is_for(references):
    names = [name.split("/")[-1] for where in ("mining", "stage 1") for name in left(references(where).runs)]
    assert {"images.npy", "captions.npy", "mined.npy", "model.safetensors", "metrics.jsonl", "result.json"} <= set(names)


def test_every_row_of_the_table_is_of_a_known_stage_and_a_row_can_be_named():
    assert {where for row in campaign.ROWS for where in row.where} == {*campaign.ALL, "mining from shards"}
    assert len(ROWS) == len(campaign.ROWS) and sum(row.times for row in campaign.ROWS[:3]) == 20
