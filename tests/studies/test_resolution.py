"""Tokens of a picture follow from its pixels, a budget is only spent where pixels are many, and advice is that of sizes one can count."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from launching import runs_at
from PIL import Image
from training import small_backbone

from abc_core.data.tasks import Task
from abc_core.miniature.scene import enlarge, sample_scene
from abc_core.model import Embedder
from abc_core.own_pictures import visual_tokens
from abc_core.studies import claims, resolution

BUDGETS = [4, 9, 36]


@pytest.mark.parametrize(
    ("width", "height", "budget", "tokens"),
    [
        (56, 56, 512, 4),  # 2 x 2 tokens of 28 pixels
        (84, 56, 512, 6),
        (100, 56, 512, 8),  # 100 / 28 = 3.6: rounded to 4
        (168, 168, 512, 36),
        (168, 168, 9, 9),  # shrunk to 84 x 84
        (168, 168, 10, 9),  # whole tokens a side
        (336, 168, 18, 18),  # 6 x 3: the aspect ratio stays
        (28, 28, 512, 4),  # enlarged to the fewest tokens
    ],
)
def test_tokens_of_a_picture_by_hand_and_by_the_processor(width, height, budget, tokens, processor):
    assert visual_tokens.tokens_of(width, height, budget) == tokens
    resolution.set_visual_tokens(processor, 4, budget)
    grid = processor.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")["image_grid_thw"]
    assert int(grid.prod()) // 4 == tokens  # four patches a token


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return small_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def processor(backbone):
    return Embedder.from_backbone(backbone).processor


def test_an_enlarged_scene_has_more_pixels_and_the_same_things():
    scene = sample_scene(np.random.default_rng(0), [("owl", "red", "card"), ("cup", "blue", "disc")], (1, 2), 56)
    twice = enlarge(scene, 2)
    assert (twice.width, twice.height) == (2 * scene.width, 2 * scene.height)
    assert [c.meaning for c in twice.cards] == [c.meaning for c in scene.cards]
    assert twice.cards[0].box == tuple(2 * v for v in scene.cards[0].box)


# --- measured -----------------------------------------------------------------------------------------------------------------------


def task(folder, size: int) -> Task:
    """Three pictures of a size, each with two sentences."""
    folder.mkdir()
    rng, files = np.random.default_rng(size), [folder / f"{k}.png" for k in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file)
    texts = ["an owl", "a cup", "a red card", "two blue cups", "a red owl", "cards"]
    return Task("made up", files, np.arange(3), [None] * 3, texts, [np.array([2 * k, 2 * k + 1]) for k in range(3)])


def test_where_pixels_are_few_a_larger_budget_changes_nothing_and_nothing_is_embedded_again(tmp_path, backbone):
    embedder = Embedder.from_backbone(backbone)
    tasks = {"low": task(tmp_path / "low", 56), "high": task(tmp_path / "high", 168)}
    points = {name: resolution.measure(embedder, name, t, BUDGETS) for name, t in tasks.items()}
    assert [p["tokens"] for p in points["low"]] == [4, 4, 4] and len({(p["r1"], p["seconds"]) for p in points["low"]}) == 1
    assert [p["tokens"] for p in points["high"]] == [4, 9, 36] and len({p["seconds"] for p in points["high"]}) == 3
    few = embedder_at(embedder, tasks["high"], 4)
    assert not np.allclose(few, embedder_at(embedder, tasks["high"], 36), atol=1e-3)


def embedder_at(embedder, of: Task, budget: int) -> np.ndarray:
    resolution.set_visual_tokens(embedder.processor, 4, budget)
    return embedder.embed(images=of.pictures)


def test_a_model_is_measured_once_and_its_row_says_what_it_gained(tmp_path, backbone, monkeypatch):
    runs_at(tmp_path / "runs", monkeypatch)
    made = tmp_path / "trained"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "provenance.json").write_text(json.dumps({"commit": "c" * 40}))
    loaded = []
    monkeypatch.setattr(resolution.Embedder, "load", lambda *at: loaded.append(at) or Embedder.from_backbone(backbone))
    tasks = {"low": task(tmp_path / "low", 56), "high": task(tmp_path / "high", 168)}
    first, again = (resolution.row_of("mined", 3, made / "model.safetensors", tasks, BUDGETS) for _ in range(2))
    assert first == again and len(loaded) == 1 and (first["seed"], first["run"], first["low_gain"]) == (3, "trained", 0)
    at = {budget: r1 for name, budget, r1 in zip(*(first["curve"][k] for k in ("set", "budget", "r1"))) if name == "high"}
    assert first["high_gain"] == at[36] - at[4]


# --- advice -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Nineteen pictures of 4 tokens, one of 36 in a folder below, and what is no picture."""
    (tmp_path / "below").mkdir()
    for k in range(19):
        Image.new("RGB", (56, 56)).save(tmp_path / f"{k}.png")
    Image.new("RGB", (168, 168)).save(tmp_path / "below" / "large.jpg")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (5000, 10)).save(tmp_path / "strip.png")
    (tmp_path / "notes.txt").write_text("no picture either")
    return tmp_path


def test_the_recommended_budget_is_that_of_sizes_one_can_count(folder):
    nearly_all, all_of_them = visual_tokens.recommend(folder, share=0.9), visual_tokens.recommend(folder, share=1.0)
    assert (nearly_all.budget, nearly_all.pictures, nearly_all.shrunk, nearly_all.tokens) == (4, 20, 0.05, 4.0)
    assert (all_of_them.budget, all_of_them.shrunk, all_of_them.tokens) == (36, 0.0, (19 * 4 + 36) / 20)
    assert all_of_them.megapixels[1] == 56 * 56 / 1e6
    assert nearly_all.skipped.counts.total() == 2 and "broken.png" in str(nearly_all)
    assert "100 % of the pictures keep their pixels" in str(all_of_them)


def test_a_recommended_budget_stays_within_training_and_within_the_time(folder):
    assert visual_tokens.recommend(folder, share=1.0, largest=16).budget == 16
    assert "trained" in visual_tokens.recommend(folder, share=1.0, largest=16).because
    curve = {"set": ["low", "high", "high"], "tokens": [4, 4, 36], "seconds": [9.0, 0.005, 0.021]}  # 3 ms, and 0.5 ms a token
    timed = visual_tokens.recommend(folder, share=1.0, seconds=0.0131, curve=curve)
    assert timed.budget == 20 and "13.1 ms a picture" in timed.because
    with pytest.raises(ValueError, match=r"2 ms a picture is less than the 3\.0 ms"):
        visual_tokens.recommend(folder, seconds=0.002, curve=curve)
    with pytest.raises(ValueError, match="without a curve"):
        visual_tokens.recommend(folder, seconds=0.002)


def test_a_folder_without_pictures_is_refused_with_what_was_in_it(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no picture that can be used(.|\n)*broken\.png"):
        visual_tokens.recommend(tmp_path)


# --- the rule and the figure --------------------------------------------------------------------------------------------------------


def made_up(high: float, low: float = 0.5, seeds=(0, 1, 2)) -> list[dict]:
    shared = {"profile": "thorough", "run": "r", "commit": "c" * 40}
    rows = [{"study": "pixels", "arm": "low_pixel", "seed": 0, "curve": {"width": [56], "height": [84], "pictures": [9]}} | shared]
    for seed in seeds:
        points = [
            {"set": name, "budget": b, "tokens": b, "r1": 20 + seed + g * (b == 36), "r1_low": 10.0, "r1_high": 60.0, "seconds": 0.001 * b}
            for name, g in (("low", low), ("high", high)) for b in (4, 36)
        ]  # fmt: skip
        curve = {k: [p[k] for p in points] for k in points[0]}
        gains = {"low_gain": low + 0.1 * seed, "high_gain": high - 0.1 * seed}
        rows.append({"study": "resolution", "arm": "mined", "seed": seed, "curve": curve} | gains | shared)
    return rows


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [(made_up(20), claims.HOLDS), (made_up(0.2), claims.FAILS), (made_up(40, low=20), claims.FAILS), (made_up(20, seeds=(0, 1)), None)],
)
def test_the_claim_comes_out_either_way_and_two_seeds_decide_nothing(rows, verdict):
    found = claims.decide(resolution.CLAIMS[0], rows)
    assert found["verdict"] == verdict or (verdict is None and found["verdict"].startswith(claims.UNTESTABLE))


def test_the_figure_draws_whatever_rows_there_are():
    rows = made_up(20)
    for some in (rows, rows[:2], rows[:1], [rows[1] | {"arm": "notebook 02", "profile": "default"}, *rows], []):
        resolution.plot_resolution(some).canvas.draw()
    assert not plt.get_fignums()
