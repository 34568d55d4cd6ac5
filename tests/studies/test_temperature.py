"""The slope of τ has a closed form, a raw τ crosses zero where log τ cannot, arms differ in one setting, and every rule can come out
either way."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from launching import runs_at
from training import small_backbone

from abc_core.config import LoraConfig
from abc_core.data.mined import read_mined
from abc_core.jobs.stages import PretrainJob
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.studies import claims, miners
from abc_core.studies import study as studies
from abc_core.studies.temperature import arms as temperature
from abc_core.studies.temperature import figures as plots


def batch(own: float = 0.5, queries: int = 6, seed: int = 0):
    """float64 unit vectors: queries, and twice as many candidates, of which each query's own lies `own` of the way to it."""
    generator = torch.Generator().manual_seed(seed)
    q, c = (torch.randn(n, 8, dtype=torch.float64, generator=generator) for n in (queries, 2 * queries))
    c[::2] = own * q + (1 - own) * c[::2]
    return F.normalize(q, dim=1), F.normalize(c, dim=1)


@pytest.mark.parametrize("tau", [0.005, 0.07, 1.0, -0.05])
def test_the_closed_form_of_the_slope_is_autograd_s(tau):
    duplicates = torch.zeros(6, 12, dtype=torch.bool)
    duplicates[0, 3] = duplicates[4, 0] = True
    for left_out in (None, duplicates):
        found = temperature.along(*batch(), left_out, [tau])
        assert found["formula"] == pytest.approx(found["autograd"], rel=1e-9) and found["formula"][0] != 0
    assert temperature.along(*batch(), duplicates, [0.5])["formula"] != temperature.along(*batch(), None, [0.5])["formula"]


def test_the_slope_of_one_query_and_two_candidates_by_hand():
    q, c = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
    other = 1 / (1 + math.exp((0.6 - 0.8) / 0.1))
    assert float(temperature.gradient(q, c, 0.1)) == pytest.approx((0.6 - 0.8) * other / 0.1**2)


def test_where_all_positives_come_first_every_step_lowers_tau_and_a_wrong_one_raises_a_low_tau():
    right, wrong = batch(own=1.0), batch(own=0.0)
    assert all(slope > 0 for slope in temperature.along(*right)["formula"] if abs(slope) > 1e-12)
    assert temperature.along(*wrong)["formula"][0] < 0


def test_without_the_pictures_that_are_missed_a_batch_has_no_use_for_any_tau_above_zero():
    q, c = batch(own=0.45, queries=8, seed=1)
    duplicates = torch.zeros(8, 16, dtype=torch.bool)
    duplicates[0, 3] = True
    easy = temperature.only_right(q, c, duplicates)
    assert 1 < len(easy[0]) < 8 and len(easy[1]) == 2 * len(easy[0]) and easy[2].shape == (len(easy[0]), len(easy[1]))
    assert min(temperature.along(q, c, duplicates)["formula"]) < 0 <= min(temperature.along(*easy)["formula"])


def test_a_harsh_step_takes_a_raw_tau_below_zero_and_never_log_tau():
    raw = temperature.descend(*batch(own=0.9), None, "raw", rate=0.08)
    log = temperature.descend(*batch(own=0.9), None, "log", rate=0.08 / 0.07)
    assert raw["temperature"][1] == pytest.approx(-0.01, abs=1e-6) and max(raw["temperature"][1:]) < 0  # and it stays there
    assert min(log["temperature"]) > 0 and log["temperature"][1] == pytest.approx(0.07 * math.exp(-0.08 / 0.07), rel=1e-6)


# --- arms -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """(base, miner, file of random negatives) on eight drawn pairs."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        runs_at(folder / "runs", patch)
        pairs = draw_part(folder, "cc", 8, World(glyphs=40))
        at_random = miners.random_negatives(pairs, 3)
        assert miners.random_negatives(pairs, 3) == at_random
        files = {"backbone": small_backbone(folder / "backbone"), "pairs": str(pairs), "validation": {"val": str(pairs)}}
        numbers = {"lora": LoraConfig(2, 4), "bf16": False}
        config = studies.pretraining(2, 2, 0, negatives=1, temperature_factor=10.0, **numbers)
        miner = studies.pretraining(2, 2, 0, negatives=0, temperature_parametrisation="raw", **numbers)
        yield PretrainJob(config=config, mined=str(at_random), **files), PretrainJob(config=miner, **files), at_random


def test_random_negatives_are_captions_of_other_pairs_that_say_something_else(jobs):
    base, _, at_random = jobs
    mined, skipped = read_mined(at_random, base.pairs)
    assert len(mined.queries) == 8 and not skipped.counts
    for row in range(8):
        assert len(mined.negatives(row)) == 3 and mined.caption_ids[row] not in mined.caption_ids[mined.negatives(row)]


def test_each_arm_differs_from_its_neighbour_in_one_setting(jobs, tmp_path):
    base, miner, at_random = jobs
    found = temperature.arms(base, miner, tmp_path / "other.parquet", [0, 1], [0.01, 0.07, 0.5], [0.02], 4.0, 80.0)
    by_name = {(arm.study, arm.name, arm.seed): arm.job for arm in found}
    assert len(by_name) == len(found) == 2 * (2 + 2 + 2 + 3 + 2) + 2
    assert by_name["negatives", "mined", 0] == base and by_name["negatives", "mined", 1].config == replace(base.config, seed=1)
    assert by_name["fixed", "learned", 1] == by_name["raw", "mined", 1]  # one run
    mined, at_random = by_name["raw", "mined", 0], by_name["raw", "random", 0]
    assert mined.config == at_random.config and mined.mined != at_random.mined
    low, log = by_name["starts", "0.01", 0], by_name["starts", "0.01, log", 0]
    assert low.mined is None and low.config == replace(miner.config, temperature=0.01, validate_every=2)
    assert (log.config.temperature_parametrisation, log.config.temperature_factor) == ("log", 10.0)
    assert not by_name["fixed", "0.02", 0].config.learn_temperature
    raw, log = by_name["provoked", "raw", 0].config, by_name["provoked", "log", 0].config
    assert raw.temperature_factor == pytest.approx(log.temperature_factor * 0.07)


def test_a_row_has_what_the_rules_ask_for_and_a_batch_of_its_job_gives_slopes(jobs, tmp_path, monkeypatch):
    base, *_ = jobs
    runs_at(tmp_path / "runs", monkeypatch)
    arm = studies.Arm("raw", "mined", 0, replace(base, config=replace(base.config, temperature_parametrisation="raw")))
    studies.train_all([arm], report=lambda line: None)
    row, steps = temperature.row_of(arm), arm.job.open(lock=False).rows()
    assert row["gradient_largest"] == max(s["gradient_norm"] for s in steps) >= row["gradient_median"] > 0
    assert row["push"] == pytest.approx((steps[1]["temperature"] - steps[0]["temperature"]) / (10 * steps[1]["learning_rate"]))
    model = arm.job.open(lock=False).folder / "model.safetensors"
    q, c, duplicates = temperature.embedded_batch(base.build(tmp_path).embedder, base, 1)
    kept = temperature.row_of_curve("gradient", "mined", 0, model, temperature.along(q, c, duplicates, [0.07]))
    assert kept["run"] == row["run"] and len(c) == 2 * len(q) and kept["curve"]["formula"] == pytest.approx(kept["curve"]["autograd"])


@pytest.mark.parametrize(("after", "share"), [([0.07 - 0.01 * k for k in range(1, 5)], -1.0), ([0.06, 0.07, 0.06, 0.06], 0.0)])
def test_the_push_on_tau_is_the_share_of_the_reach_of_adam_that_it_went(after, share):
    steps = [{"temperature": t, "learning_rate": 1e-3} for t in after]
    config = studies.pretraining(4, 2, 0, temperature_parametrisation="raw", temperature_factor=10.0)
    assert temperature.push(steps, config) == pytest.approx(share)
    assert temperature.push(steps, replace(config, learn_temperature=False)) is None


# --- rules and figures --------------------------------------------------------------------------------------------------------------


SHARED = {"profile": "thorough", "run": "r", "commit": "c" * 40}


def made_up(as_in_the_paper: bool, seeds=(0, 1, 2)) -> list[dict]:
    """Rows in which every claim holds, or none does."""
    rows = []
    for seed in seeds:
        settings = [("negatives", n, 10 * (n == "mined"), 0.06) for n in ("mined", "random")]
        settings += [("raw", "mined", 10, 0.03), ("raw", "random", 0, 0.002), ("fixed", "learned", 12, 0.03)]
        settings += [("fixed", v, 8, float(v)) for v in ("0.02", "0.03", "0.07")]
        settings += [("starts", v, 10 - 20 * abs(float(v) - 0.07), float(v)) for v in ("0.01", "0.07", "0.5")]
        settings += [("provoked", "raw", 0, -0.05), ("provoked", "log", 5, 0.02)]
        for study, arm, accuracy, tau in settings:
            accuracy = 40 + (accuracy if as_in_the_paper else -accuracy) + 0.1 * seed
            wild = as_in_the_paper and (arm == "0.01" or (study, arm) == ("raw", "random"))
            norms = [2.0, 200.0 if wild else 3.0, 2.1, 2.0]
            checked = {"step": [1, 3], "val_accuracy": [accuracy / 2, accuracy], "ood_accuracy": [accuracy / 3, accuracy - 1]}
            taus = np.linspace(0.07, tau, 4).tolist()
            row = {"study": study, "arm": arm, "seed": seed, "value": float(arm) if arm[0] == "0" else None} | SHARED
            row |= {"loss": 2.5, "temperature": tau, "temperature_lowest": tau, "push": 0.05 if as_in_the_paper else -1.0}
            row |= {"gradient_largest": max(norms), "gradient_median": 2.0, "val_accuracy": accuracy, "ood_accuracy": accuracy - 1}
            row["curve"] = {"step": [0, 1, 2, 3], "temperature": taus, "gradient_norm": norms, "loss": [4, 3, 2, 2.5]}
            rows.append(row | {"validation": checked})
    curve = {"temperature": [0.01, 0.1, 1.0], "formula": [-9.0, 0.1, 0.2], "autograd": [-9.0, 0.1, 0.2], "loss": [9.0, 3.0, 4.0]}
    rows.append({"study": "gradient", "arm": "trained, mined", "seed": 0, "curve": curve} | SHARED)
    for name in ("mined, raw", "all right, raw", "all right, log"):
        curve = {"step": [0, 1], "temperature": [0.07, -0.01], "loss": [1, 2]}
        rows.append({"study": "descent", "arm": name, "seed": 0, "curve": curve} | SHARED)
    return rows


@pytest.mark.parametrize("claim", temperature.CLAIMS, ids=lambda c: str(c.number))
def test_a_claim_comes_out_either_way_and_two_seeds_decide_nothing(claim):
    assert claims.decide(claim, made_up(True))["verdict"] == claims.HOLDS
    assert claims.decide(claim, made_up(False))["verdict"] == claims.FAILS
    assert claims.decide(claim, made_up(True, seeds=(0, 1)))["verdict"].startswith(claims.UNTESTABLE)
    assert claims.decide(claim, [])["verdict"].startswith(claims.UNTESTABLE)


def test_every_part_of_a_claim_is_in_the_table():
    table = temperature.parts(made_up(True))
    assert {row["claim"] for row in table} == {3, 4, 5, 23} and all(row["verdict"] == claims.HOLDS for row in table)


@pytest.mark.parametrize("plot", [plots.plot_dynamics, plots.plot_starts, plots.plot_gradient, plots.plot_failure])
def test_a_figure_draws_whatever_arms_there_are(plot):
    rows = made_up(True)
    few = [row | {"profile": "default"} for row in rows if row["study"] == "negatives" and row["seed"] == 0]
    for some in (rows, few, []):
        fig = plot(some)
        fig.canvas.draw()
        words = [text.get_text() for axis in fig.axes for text in axis.texts]
        assert any("no run yet" in text for text in words) == (some is not rows)
    assert not plt.get_fignums()


def test_points_of_curves_are_tidy_rows():
    (first, *_), found = made_up(True), plots.points(made_up(True), "negatives")
    assert len(found) == 3 * 2 * 4
    assert found[0].items() >= {"study": "negatives", "arm": "mined", "seed": 0, "step": 0, "temperature": 0.07, "loss": 4}.items()
    assert "curve" not in plots.numbers([first])[0] and plots.numbers([first])[0]["loss"] == 2.5
