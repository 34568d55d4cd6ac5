"""Backbones of three families are of like size, learn through the same code, and their ranks decide either way."""

import shutil

import pytest
import torch
from launching import quiet, runs_at
from stage2_rows import rows_of

from abc_core import checkpoint
from abc_core.backbone import load_backbone
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.runs import paths
from abc_core.studies import claims
from abc_core.studies.ablations import backbones as families
from abc_core.studies.ablations import figures as ablation_figures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_part(tmp_path_factory.mktemp("world"), "backbone", 6, World(glyphs=40))


def test_three_families_are_of_like_size():
    sizes = [sum(p.numel() for p in families.build(family, ["an owl on a red card"], 400)[0].parameters()) for family in families.FAMILIES]
    assert max(sizes) < 1.2 * min(sizes)
    with pytest.raises(ValueError, match="unknown family 'clip'; known are qwen2_vl, internvl, llava_next"):
        families.build("clip", [])


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_taught_for_its_operations_and_loads_as_a_backbone(family, data, tmp_path, monkeypatch):
    runs_at(tmp_path, monkeypatch)
    lesson = families.Lesson(flops=1.0, pictures=1, questions=1)  # one step, the fewest
    folder = families.taught(family, data, lesson, quiet)
    assert load_backbone(folder)[0].config.model_type == family
    assert families.taught(family, data, lesson, quiet) == folder
    assert 0 <= families.generative(folder, data, families.FAMILIES[family], lesson, 1) <= 100


def test_weights_that_a_training_kept_and_whole_backbones_are_asked_beside_the_shipped_one(data, tmp_path, monkeypatch):
    runs_at(tmp_path / "runs", monkeypatch)
    monkeypatch.setattr(families, "draw_part", lambda *_, **__: data)
    shipped = paths.ROOT / "assets" / "backbone"
    weights = {name: torch.zeros_like(p) for name, p in load_backbone(shipped)[0].named_parameters()}
    checkpoint.save(tmp_path / "step-000002.safetensors", weights, step=2, data=data.name)
    shutil.copytree(shipped, tmp_path / "step-000040")
    (tmp_path / "step-000050.safetensors.partial").touch()  # of a killed training
    found = families.Backbones(shipped="assets/backbone", checkpoints=str(tmp_path), families=(), asked=2).made(quiet)
    assert set(found) == {"step 2", "step 40", "shipped"} and found["step 40"][0] == tmp_path / "step-000040"
    assert found["step 40"][2] == found["shipped"][2] > found["step 2"][2] == 0
    assert not any(p.any() for p in load_backbone(found["step 2"][0])[0].parameters())


def test_the_rule_of_backbones_comes_out_either_way_and_their_figure_is_drawn():
    names = [str(k) for k in range(6)]
    (claim,) = families.CLAIMS

    def verdict(scores) -> str:
        rows = [row | {"profile": "thorough"} for row in rows_of("backbones", dict(zip(names, [{"val_accuracy": s} for s in scores])))]
        assert ablation_figures.plot_backbones(rows).axes[0].lines
        return claims.decide(claim, rows)["verdict"]

    assert verdict([10.0, 20.0, 30.0, 40.0, 60.0, 50.0]) == claims.HOLDS
    assert verdict([60.0, 20.0, 50.0, 10.0, 40.0, 30.0]) == claims.FAILS
    assert verdict([10.0, 20.0, 30.0]).startswith(claims.UNTESTABLE)
    assert "no run yet" in ablation_figures.plot_backbones([]).axes[0].texts[0].get_text()
