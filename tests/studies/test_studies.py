"""Arms train once whatever studies name them, rows come back as they were kept, and verdicts can come out either way."""

import json
from dataclasses import replace

import numpy as np
import pytest
from launching import runs_at
from training import small_backbone

from abc_core.config import LoraConfig
from abc_core.jobs.stages import PretrainJob
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.runs import paths
from abc_core.studies import claims
from abc_core.studies import study as studies


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    pairs = str(draw_part(folder, "cc", 4, World(glyphs=40)))
    return {"backbone": small_backbone(folder / "backbone"), "pairs": pairs, "validation": {"val": pairs}}


@pytest.fixture
def arms(files, tmp_path, monkeypatch):
    runs_at(tmp_path / "runs", monkeypatch)

    def arm(study, name, seed, **changes):
        numbers = {"negatives": 0, "lora": LoraConfig(2, 4), "bf16": False} | changes
        return studies.Arm(study, name, seed, PretrainJob(config=studies.pretraining(2, 2, seed, **numbers), **files))

    return [arm("rank", "2", 0), arm("temperature", "0.07", 0), arm("temperature", "0.7", 0, temperature=0.7)]


def test_a_run_that_two_studies_name_is_trained_once_and_counted_once(arms):
    said = []
    studies.train_all(arms, report=said.append)
    assert said[0].startswith("2 runs, 0 of them finished")
    assert [row["runs"] for row in studies.ledger(arms)] == [1, 1]
    assert all(row["seconds_left"] == 0 for row in studies.ledger(arms))
    rows = [studies.row_of(arm) for arm in arms]
    assert rows[0]["run"] == rows[1]["run"] != rows[2]["run"]


def test_arms_trained_in_processes_of_their_own_are_those_trained_here(arms, tmp_path, monkeypatch):
    studies.train_all(arms[:1], report=lambda line: None)
    here = studies.row_of(arms[0])
    runs_at(tmp_path / "apart", monkeypatch)
    studies.train_all(arms, at_once=2, report=lambda line: None)
    assert studies.row_of(arms[0])["loss"] == pytest.approx(here["loss"], rel=1e-5)
    assert studies.row_of(arms[2])["temperature"] > 0.5


def test_a_failed_training_says_which_arm_and_why(arms, monkeypatch):
    broken = arms[0]._replace(job=PretrainJob(**vars(arms[0].job) | {"weights": "float8"}))
    with pytest.raises(RuntimeError, match=r"rank · 2 · seed 0 ended with exit code 1(.|\n)*float8"):
        studies.train_all([broken, arms[2]], at_once=2, report=lambda line: None)
    assert studies.row_of(arms[2])["steps"] == 2  # the other one came to its end


def test_a_measure_is_taken_once(arms):
    studies.train_all(arms[:1], report=lambda line: None)
    calls = []
    measure = studies.Measure("width", "0", lambda embedder: calls.append(1) or {"width": embedder.width})
    rows = [studies.row_of(arms[0], [measure], report=lambda line: None) for _ in range(2)]
    assert rows[0] == rows[1] and rows[0]["width"] > 0 and len(calls) == 1


def test_rows_come_back_as_they_were_kept_and_own_rows_take_the_place_of_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    rows = [{"study": "rank", "arm": "4", "seed": s, "loss": s / 3, "commit": "c" * 40} for s in (0, 1)]
    studies.keep("thorough", "08_ablations", rows)
    assert studies.kept("08_ablations") == [row | {"profile": "thorough"} for row in rows]
    own = [rows[0] | {"loss": 7.0}]
    both = studies.with_kept(own, "08_ablations", "default")
    assert [(r["loss"], r["profile"]) for r in both] == [(7.0, "default"), (1 / 3, "thorough")]
    assert studies.with_kept(own, "08_ablations", "thorough") == [own[0] | {"profile": "thorough"}]
    assert studies.source(both) == {"runs of": "default, thorough", "seeds": "0 1", "commit": "c" * 10}
    studies.log_file("thorough", "08_ablations").write_text(json.dumps(rows[0]) + "\n{torn\n")
    with pytest.raises(ValueError, match=r"08_ablations.jsonl row 2 is not JSON: '\{torn'"):
        studies.kept("08_ablations")


def test_an_interval_over_seeds_is_student_s():
    found = claims.estimate([1.0, 2.0, 3.0])
    assert found.value == 2 and found.seeds == 3
    np.testing.assert_allclose([found.low, found.high], [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6)
    assert claims.estimate([5.0]) == claims.Estimate(5.0, None, None, 1)
    assert claims.estimate([5.0] * 3) == claims.Estimate(5.0, 5.0, 5.0, 3)


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        (lambda e: claims.above(e, 1), [2, 2.1, 2.2], claims.HOLDS),
        (lambda e: claims.above(e, 1), [0, 2, 4], claims.FAILS),
        (lambda e: claims.below(e, 20), [3, 3.1, 3.2], claims.HOLDS),
        (lambda e: claims.below(e, 20), [19, 20, 21], claims.FAILS),
        (lambda e: claims.alike(e, 2), [0.1, -0.1, 0.2], claims.HOLDS),
        (lambda e: claims.alike(e, 2), [3, 3.1, 3.2], claims.FAILS),
    ],
)
def test_a_rule_comes_out_either_way(rule, values, verdict):
    assert rule(claims.estimate(values))[1] == verdict


def test_two_seeds_decide_nothing():
    assert claims.above(claims.estimate([5, 6]), 0)[1] == "not testable on this profile: 2 of the 3 seeds that a verdict needs"


def test_arms_are_compared_seed_by_seed():
    rows = [{"study": "s", "arm": a, "seed": k, "val": v + k} for a, v in (("mined", 5), ("random", 2)) for k in range(3)]
    rows[0]["seed"] = 9  # without a partner
    assert claims.paired(rows, "s", "mined", "random", "val") == claims.Estimate(3.0, 3.0, 3.0, 2)
    judge = lambda r: claims.above(claims.paired(r, "s", "mined", "random", "val"))  # noqa: E731
    claim = claims.Claim(3, "Mined negatives help", "Fig. 5", "above 0", judge, "points", "08")
    assert claims.decide(claim, rows)["verdict"].startswith(claims.UNTESTABLE)


def row_with(said):
    def row(arm):
        said.append(arm.name)
        return studies.row_of(arm)

    return row


def test_rows_of_a_log_are_not_trained_again_on_another_machine(arms, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "log_file", lambda profile, name: tmp_path / profile / f"{name}.jsonl")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    made, take = [], dict(name="08", profile="thorough", report=lambda line: None)
    first = studies.study_all(arms[:2], row_with(made), **take)
    assert made == ["2", "0.07"]
    monkeypatch.setattr(paths, "RUNS", tmp_path / "other machine")
    again = studies.study_all(arms, row_with(made), **take, from_log=True)
    assert made == ["2", "0.07", "0.7"] and again[:2] == first
    assert [studies.place(row) for row in studies.kept("08")] == [("rank", "2", 0), ("temperature", "0.07", 0), ("temperature", "0.7", 0)]
    other = arms[2]._replace(job=replace(arms[2].job, config=replace(arms[2].job.config, learning_rate=1e-5)))
    studies.study_all([other], row_with(made), **take, from_log=True)
    assert made[3:] == ["0.7"], "an arm with other numbers is another arm"
    assert {studies.place(row) for row in studies.kept("08")} == {studies.place(row) for row in again}, "rows of other arms stay"
    studies.study_all([other], row_with(made), **take)
    assert made[4:] == ["0.7"], "without from_log a log is not read"


def test_a_log_grows_study_by_study(arms, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "log_file", lambda profile, name: tmp_path / profile / f"{name}.jsonl")

    def row(arm):
        if arm.study == "temperature":
            raise KeyboardInterrupt
        return studies.row_of(arm)

    with pytest.raises(KeyboardInterrupt):
        studies.study_all(arms, row, "08", "thorough", report=lambda line: None)
    assert [row["study"] for row in studies.kept("08")] == ["rank"]


def test_kept_rows_of_other_places_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "log_file", lambda profile, name: tmp_path / profile / f"{name}.jsonl")
    old = [{"study": "fair", "arm": "abc", "seed": s, "r1": 1, "profile": "thorough"} for s in (0, 1)]
    both = studies.keep_with("thorough", "10", [{"study": "fair", "arm": "abc", "seed": 1, "r1": 2}], old)
    assert [(row["seed"], row["r1"]) for row in both] == [(1, 2), (0, 1)] and "profile" not in both[1]
    assert studies.kept("10") == [row | {"profile": "thorough"} for row in both]


def test_a_pause_is_no_part_of_the_seconds_of_a_training():
    steps = [{"seconds": s} for s in (2.0, 2.0, 600.0, 2.0, 3.0)]
    assert studies.paced(steps) == 10.0
