"""Every figure draws from plain rows, leaves no trace in global settings, keeps its texts apart, and saves the same bytes twice."""

import hashlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abc_core.figures import benchmarks, pages
from abc_core.figures import benchmarks as charts
from abc_core.figures import style as figures
from abc_core.figures import training as training_
from abc_core.runs import paths

LONG = "a photo of a joystick on a blue diamond, a red diamond showing an envelope and a tractor in front of a brown card"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", lambda profile: (tmp_path / profile).mkdir(exist_ok=True) or tmp_path / profile)
    return tmp_path


def picture(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def training():
    rows = [{"step": s, "loss": 5 - s / 50, "temperature": 0.07 - s / 5000, "accuracy": s / 200, "candidates": 256} for s in range(100)]
    rows[49] |= {"val_accuracy": 0.2, "ood_accuracy": 0.1}
    rows[99] |= {"val_accuracy": 0.3, "ood_accuracy": 0.2}
    return rows


def bench():
    numbers = {"r1": 50.0, "r5": 80.0, "r10": 90.0, "r1_low": 48.0, "r1_high": 52.0, "n": 2700}
    return [{"system": s} | numbers for s in ("abc", "abc_no_instruction", "chance", "another_model")]


def samples():
    rng = np.random.default_rng(0)
    positive = rng.uniform(0.5, 0.9, 50)
    return positive, positive[:, None] * rng.uniform(0.7, 0.95, (50, 7)), rng.uniform(-0.2, 0.4, (50, 7))


def gallery():
    found = [(LONG, 0.7, False), ("an owl", 0.6, True)]
    return [{"image": picture(), "title": LONG, "asked": [(LONG, LONG, found), ("what?", "an owl", found[::-1])]}]


def regions():
    boxes = [((2, 3, 10, 10), LONG, LONG), ((20, 12, 30, 30), "what?", "an owl")]
    return [{"image": picture(), "regions": boxes, "left_out": [(0, 0, 40, 30)]}] * 2


def probed(name="CtrlBench", text="not enough"):
    rows = {"full": (50.0, "multimodal"), "picture": (5.0, "half of it"), "text": (1.0, text), "chance": (0.1, "")}
    return [{"set": name, "probe": p, "r1": r, "r1_low": r, "r1_high": r + 2, "n": 2700, "verdict": v} for p, (r, v) in rows.items()]


def worded():
    row = {"r1": 50.0, "r1_low": 45.0, "r1_high": 55.0, "every": 30.0, "any": 70.0, "n": 1200, "wording": "all"}
    rows = [{"wordings": name, "kind": kind} | row for name in ("held out", "trained") for kind in ("all", "place", "content")]
    return [*rows, {"wordings": "trained", "kind": "place", "wording": 3, "r1": 40.0, "n": 7}]


def frame():
    ours = {"system": "abc", "r1": 55.0, "r5": 80.0, "r10": 90.0, "r1_low": 53.0, "r1_high": 57.0}
    return charts.table3({"MagicLens": (9.7, 23.9, 32.94), "ABC": (39.7, 69.1, 78.9)}, [ours], f"This run: {LONG}")


MISTAKES = [{"kind": k, "right": 50.0, "same_picture": 20.0, "other_picture": 30.0, "n": 2700} for k in ("all", "place")]
FIGURES = {
    "probes": lambda: charts.plot_probes(probed() + probed(LONG, "enough")),
    "wordings": lambda: charts.plot_wordings(worded()),
    "failures": lambda: charts.plot_failures(MISTAKES),
    "table3": lambda: charts.plot_table3(frame()),
    "gallery": lambda: pages.plot_gallery(gallery()),
    "regions": lambda: pages.plot_regions(regions()),
    "training": lambda: training_.plot_training(training()),
    "similarities": lambda: training_.plot_similarities(*samples(), 0.95),
    "similarities_without_threshold": lambda: training_.plot_similarities(*samples(), None),
    "ctrlbench": lambda: benchmarks.plot_ctrlbench(bench()),
    "by_kind": lambda: benchmarks.plot_by_kind(
        [{"kind": "content", "r1": 9.0, "n": 500}, {"kind": "place", "r1": 8.0, "n": 12}], "r1", "R@1"
    ),
    "mining_sample": lambda: pages.plot_mining_sample(picture(), (LONG, 0.9), [("an owl", 0.8), (LONG, 0.7)]),
    "contact_sheet": lambda: pages.plot_contact_sheet([picture()] * 3, ["an owl", LONG, ""], columns=2),
}


def texts(fig) -> list[str]:
    fig.draw_without_rendering()
    return [t.get_text() for t in fig.findobj(plt.Text) if t.get_visible() and t.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_leaves_global_settings_and_open_figures_alone(name):
    before = dict(plt.rcParams)
    fig = FIGURES[name]()
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []
    assert fig.get_figwidth() == figures.WIDTH


@pytest.mark.parametrize("name", ["training", "mining_sample"])
def test_the_same_rows_give_the_same_bytes_whatever_the_users_settings(folder, name):
    def digest():
        figures.save(FIGURES[name](), "06_x", "default", [{"a": 1}], "run 0")
        return hashlib.sha256((folder / "default" / "06_x.png").read_bytes()).hexdigest()

    first = digest()
    with plt.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30, "figure.figsize": (2, 2)}):
        assert digest() == first


def test_saving_puts_the_rows_beside_the_picture_and_profile_and_footer_in_it(folder):
    fig = FIGURES["ctrlbench"]()
    figures.save(fig, "06_ctrlbench", "smoke", bench(), "run 12ab, seed 0")
    assert sorted(p.name for p in (folder / "smoke").iterdir()) == ["06_ctrlbench.csv", "06_ctrlbench.png"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "smoke" / "06_ctrlbench.csv"), pd.DataFrame(bench()))
    with Image.open(folder / "smoke" / "06_ctrlbench.png") as png:
        assert png.size[0] == figures.WIDTH * figures.DPI
        assert png.info["Description"] == "run 12ab, seed 0" and png.info["Software"].startswith("matplotlib ")
    assert any("Profile: smoke · run 12ab, seed 0" in t for t in texts(fig))


@pytest.mark.parametrize("name", ["ctrlbench", "6_bench", "06_Bench", "../06_bench", "06_"])
def test_a_figure_without_a_notebook_number_is_refused(folder, name):
    with pytest.raises(ValueError, match="figure name"):
        figures.save(FIGURES["ctrlbench"](), name, "smoke", bench(), "")
    with pytest.raises(ValueError, match="no rows"):
        figures.save(FIGURES["ctrlbench"](), "06_x", "smoke", [], "")


def test_training_shows_validation_points_and_the_number_of_candidates():
    axis = FIGURES["training"]().axes[2]
    lines = {line.get_label(): line for line in axis.lines}
    assert "training batch (256 candidates)" in lines
    np.testing.assert_array_equal(lines["validation, in distribution"].get_xdata(), [49, 99])
    np.testing.assert_array_equal(lines["validation, out of distribution"].get_ydata(), [0.1, 0.2])


def test_training_without_validation_or_in_one_step_still_draws():
    rows = [{"step": 0, "loss": 5.0, "temperature": 0.07, "accuracy": 0.0}]
    assert "0.070" in texts(training_.plot_training(rows))
    with pytest.raises(ValueError, match="missing: temperature, accuracy"):
        training_.plot_training([{"step": 0, "loss": 1.0}])
    with pytest.raises(ValueError, match="0 rows"):
        training_.plot_training([])


def test_no_bin_of_the_similarities_lies_on_both_sides_of_the_threshold():
    right = FIGURES["similarities"]().axes[1]
    for patch in right.patches:
        edges = patch.get_xy()[:, 0]
        assert np.abs(edges - 0.95).min() < 1e-9
    mined = right.patches[1].get_xy()
    assert mined[mined[:, 0] > 0.95 + 1e-9, 1].max() == 0
    assert any("ε = 0.95" in t for t in texts(right.figure))


def test_ctrlbench_names_systems_in_words_and_draws_the_ceiling():
    fig = FIGURES["ctrlbench"]()
    found = texts(fig)
    assert {"ABC: picture + instruction", "ABC: picture alone", "another model", "R@10", "90.0"} <= set(found)
    assert any(t.startswith("20 %") for t in found)
    assert any(line.get_linestyle() == "--" and list(line.get_xdata()) == [20, 20] for line in fig.axes[0].lines)


def test_right_answers_are_green_with_a_tick_and_wrong_ones_are_not():
    marks = [(t.get_text(), t.get_color()) for t in FIGURES["gallery"]().findobj(plt.Text) if t.get_text() in ("✓", "✗")]
    assert marks.count(("✓", figures.GREEN)) == 2 and marks.count(("✗", figures.RED)) == 2 and len(marks) == 4


@pytest.mark.parametrize("name", ["mining_sample", "contact_sheet", "probes", "wordings", "failures", "table3", "gallery"])
def test_no_caption_runs_into_another_text_or_out_of_the_page(name):
    fig = FIGURES[name]()
    fig.draw_without_rendering()
    page = fig.bbox.padded(1)
    boxes = [(t.get_text(), t.get_window_extent()) for t in fig.findobj(plt.Text) if t.get_visible() and t.get_text().strip()]
    for i, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
        for other, second in boxes[i + 1 :]:
            assert not box.padded(-1).overlaps(second.padded(-1)), (text, other)


def test_every_region_has_its_number_at_its_box_and_at_its_text():
    fig = FIGURES["regions"]()
    assert [t for t in texts(fig) if t in "12"] == ["1", "2"] * 4  # two pictures, their boxes and their lists
    picture_axis, sheet = fig.axes[:2]
    boxes = [p for p in picture_axis.patches if p.get_edgecolor()[:3] != (1, 1, 1)]
    assert [(*p.get_xy(), p.get_width(), p.get_height()) for p in boxes] == [(0, 0, 40, 30), (2, 3, 10, 10), (20, 12, 30, 30)]
    assert boxes[0].get_linestyle() != "-" and len({p.get_edgecolor() for p in boxes}) == 3
    assert picture_axis.get_xlim() == (-0.5, 39.5)  # a box that sticks out does not shrink the picture
    assert any("what?" in t.get_text() for t in sheet.texts) and any("left out" in t.get_text() for t in sheet.texts)


def test_a_probe_that_is_enough_is_marked_and_the_set_called_by_its_verdict():
    fig = FIGURES["probes"]()
    marks = {t.get_text(): t.get_color() for t in fig.findobj(plt.Text) if t.get_text()[:1] in ("✓", "✗")}
    assert marks == {"✗ half of it": figures.ORANGE, "✓ not enough": figures.GREY, "✗ enough": figures.RED}
    assert "CtrlBench: multimodal" in texts(fig) and "BM25: instruction alone" not in texts(fig)


def test_published_figures_stand_apart_from_the_runs_own():
    found = texts(FIGURES["table3"]())
    assert {"MagicLens", "32.9", "ABC", "39.7", "69.1", "78.9", "53.0 – 57.0"} <= set(found) and found.count("–") == 2
    assert any(t.startswith("As published: photographs") for t in found) and any(t.startswith("This run") for t in found)


def test_wrapping_keeps_every_word_and_the_width():
    lines = figures.wrap(LONG, 2.0)
    assert " ".join(lines) == LONG and len(lines) > 2
    assert figures.wrap("", 1.0) == [""] and figures.wrap("incomprehensibilities", 0.1) == ["incomprehensibilities"]


def test_a_contact_sheet_needs_a_caption_per_picture():
    with pytest.raises(ValueError, match="1 pictures and 2 captions"):
        pages.plot_contact_sheet([picture()], ["a", "b"])
