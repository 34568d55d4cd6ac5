"""The committed figures come out of the committed rows again, to the byte where the versions agree."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from abc_core.figures import style as figures
from abc_core.reproduce import redraw
from abc_core.runs import paths
from abc_core.studies import study as studies

MISTAKES = [{"kind": kind, "right": 49.73, "same_picture": 100 / 3, "other_picture": 16.9, "n": 2700} for kind in ("all", "place")]
PROBES = [
    {"set": "CtrlBench", "probe": probe, "r1": 100 / k, "r1_low": 1.0, "r1_high": 99.0, "n": 7, "verdict": verdict}
    for k, (probe, verdict) in enumerate([("full", "multimodal"), ("picture", "not enough"), ("chance", "")], 1)
]
COMMITTED = sorted((paths.ROOT / "figures" / "default").glob("*.png"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with two figures, saved as a notebook saves them, and one page of pictures."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    figures.save(redraw.FROM_CSV["06_failures"](MISTAKES), "06_failures", "default", MISTAKES, "run abc · τ 0.07")
    figures.save(redraw.FROM_CSV["06_probes"](PROBES), "06_probes", "default", PROBES, "run abc")
    shutil.copy(tmp_path / "figures/default/06_probes.png", tmp_path / "figures/default/06_gallery.png")
    return tmp_path


def test_two_figures_drawn_twice_have_the_same_bytes_and_keep_their_footers(root):
    before = {path.name: path.read_bytes() for path in (root / "figures/default").iterdir()}
    for _ in range(2):
        assert [(f.path.stem, f.what) for f in redraw.redraw()] == [
            ("06_failures", "same"), ("06_gallery", "left out"), ("06_probes", "same"),
        ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in (root / "figures/default").iterdir()} == before
    said = redraw.text_of(root / "figures/default/06_failures.png")
    assert said == {"Description": "run abc · τ 0.07", "Software": figures.SOFTWARE}


def test_a_figure_whose_rows_changed_is_drawn_from_the_new_ones_and_said_to_have_changed(root):
    table = root / "figures/default/06_failures.csv"
    table.write_text(table.read_text().replace("49.73", "9.73"))
    (found, *_) = redraw.redraw()
    assert (found.what, found.why) == ("changed", "")


def test_a_figure_that_another_version_drew_is_said_to_be(root, monkeypatch):
    monkeypatch.setattr(figures, "SOFTWARE", "matplotlib 99")
    (found, *_) = redraw.redraw()
    assert found.what == "changed" and found.why.endswith("here by matplotlib 99")


def test_a_figure_without_its_rows_or_its_footer_is_left_out_with_the_reason(root):
    folder = root / "figures/default"
    (folder / "06_probes.csv").unlink()
    Image.open(folder / "06_failures.png").save(folder / "06_failures.png")
    failures, gallery, probes = redraw.redraw()
    assert "does not hold its footer" in failures.why and "more than its table holds" in gallery.why
    assert probes.why == "its rows are not committed"


def test_figures_of_a_study_are_drawn_from_its_log(root, monkeypatch):
    monkeypatch.setitem(redraw.FROM_LOG, "08_rank", ("08_ablations", "abc_core.figures.benchmarks:plot_failures"))
    figures.save(redraw.FROM_CSV["06_failures"](MISTAKES), "08_rank", "thorough", MISTAKES, "seeds 0 1 2")
    studies.keep("thorough", "08_ablations", MISTAKES)
    assert [found.what for found in redraw.redraw(["thorough"])] == ["same"]


def test_rows_come_back_from_a_table_with_all_their_digits(tmp_path):
    rows = [{"name": "a", "share": 0.1 + 0.2, "n": 3, "low": None}, {"name": "", "share": 1 / 3, "n": 4, "low": 2.5}]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    first, second = redraw.read_rows(tmp_path / "rows.csv")
    assert (first["share"], second["share"], second["name"], second["n"]) == (0.1 + 0.2, 1 / 3, "", 4) and np.isnan(first["low"])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_committed_figure_of_the_default_profile_is_what_its_rows_draw(path, tmp_path):
    said = redraw.text_of(path)
    if path.stem not in redraw.FROM_CSV or "Description" not in said:
        pytest.skip("its table does not hold all that it shows, or it does not hold its footer")
    if said["Software"] != figures.SOFTWARE:
        pytest.skip(f"drawn by {said['Software']}, here is {figures.SOFTWARE}")
    again = redraw._redrawn(path, "default", tmp_path / path.name)
    assert again.what == "same"
