"""Every benchmark runs at a toy size, finds equal results before it times anything, and its table keeps the rows of other works."""

import csv
import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from abc_core.runs import paths

FOLDER = paths.ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    """The benchmarks find each other as scripts do."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("TQDM_DISABLE", "1")


def row(work="mining", **values):
    side = import_module("side_by_side")
    return side.compare(work, "3 × 3", [(1.0, 2.0), (2.0, 6.0), (1.0, 1.0)], "a peer", ">= 1.5", "s") | values


@pytest.mark.parametrize("work", ["mining", "stage1", "stage2", "embedding", "readers"])
def test_a_benchmark_runs_at_toy_size_and_finds_equal_results(work, monkeypatch):
    pytest.importorskip("sentence_transformers")
    side = import_module("side_by_side")
    monkeypatch.setattr(side, "peak_of", lambda module, *words: float(callable(import_module(module).peak)))  # a process takes seconds
    rows = import_module(f"bench_{work}").bench(pairs=1, toy=True)
    assert rows and all(r["ours"] > 0 and r["peer"] > 0 and r["low"] <= r["ratio"] <= r["high"] for r in rows)


def test_a_ratio_says_how_many_times_better_with_its_range():
    assert [row()[k] for k in ("ratio", "low", "high", "met")] == [2.0, 1.0, 3.0, "true"]
    side = import_module("side_by_side")
    memory = side.compare("memory", "", [(60.0, 100.0)], "a peer", "<= 0.5", "MB")
    assert (memory["ratio"], memory["met"]) == (0.6, "false")


def test_a_second_run_replaces_its_rows_and_leaves_the_others(tmp_path):
    side, path = import_module("side_by_side"), tmp_path / "bench.csv"
    side.write([row("mining"), row("stage 1")], path)
    side.write([row("mining", size="4 × 4")], path)
    with path.open() as lines:
        assert [(r["work"], r["size"]) for r in csv.DictReader(lines)] == [("stage 1", "3 × 3"), ("mining", "4 × 4")]


def test_unequal_results_are_refused_before_anything_is_timed(monkeypatch):
    pytest.importorskip("sentence_transformers")
    mining = import_module("bench_mining")
    broken = mining.ours
    monkeypatch.setattr(mining, "ours", lambda q, c, config=mining.CONFIG: broken(q, np.roll(c, 1, axis=0), config))
    with pytest.raises(ValueError, match="differ"):
        mining.bench(pairs=1, toy=True)


def test_the_exponent_of_a_power_is_found_and_the_small_studies_run(monkeypatch):
    scaling = import_module("bench_scaling")
    assert scaling.slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    monkeypatch.setattr(scaling, "STUDIES", {k: v for k, v in scaling.STUDIES.items() if k in ("corpus", "visual tokens")})
    rows = scaling.measure(repeats=1, toy=True)
    assert {r["work"] for r in rows} == {"corpus", "visual tokens"}
    scaling.plot(rows)


def test_the_parts_of_a_profiled_step_of_both_stages_make_up_all_of_it_and_none_of_the_main_ones_is_empty():
    profile = import_module("step_profile")
    rows = profile.measure(toy=True)
    works = {r["work"] for r in rows}
    assert {"stage 1, float32", "stage 2, float32"} <= works
    for work in works:
        took = {r["part"]: r["ms"] for r in rows if r["work"] == work}
        assert set(took) == {*profile.PARTS, profile.REST}
        assert all(took[k] > 0 for k in ("attention", "matrix products", "optimizer", "data", profile.REST))
        assert sum(r["share"] for r in rows if r["work"] == work) == pytest.approx(1)
    profile.plot(rows)


def test_the_parts_of_profiled_mining_make_up_all_of_it_and_none_is_empty():
    profile = import_module("mining_profile")
    rows = profile.measure(toy=True)
    assert {r["part"] for r in rows} == {*profile.PARTS, profile.REST} and all(r["ms"] > 0 for r in rows)
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    import_module("step_profile").plot(rows)


@pytest.mark.parametrize("words", [[], ["readers"]])
def test_all_works_run_unless_some_are_named(words, monkeypatch):
    bench, ran = import_module("bench"), []
    monkeypatch.setattr(bench, "import_module", lambda name: ran.append(name) or import_module("readers_of_nothing"))
    monkeypatch.setitem(sys.modules, "readers_of_nothing", SimpleNamespace(bench=lambda pairs, toy: [], main=lambda toy: None))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--toy", *words])
    bench.main()
    assert ran == ([f"bench_{w}" for w in words] or [*(f"bench_{w}" for w in bench.WORKS), *bench.STUDIES.values()])


def test_the_peak_of_a_process_is_at_least_what_its_work_allocates():
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import side_by_side as side, numpy as np;"
        "side.report_peak(lambda: (lambda: np.ones(30 * 2**17).sum()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 29 <= json.loads(said) < 45


def test_the_figure_has_a_line_for_each_row():
    bench = import_module("bench")
    rows = [{k: str(v) for k, v in r.items()} for r in (row("mining"), row("stage 1", goal="", met=""))]
    assert len(bench.plot(rows).axes[0].get_yticks()) == 2
