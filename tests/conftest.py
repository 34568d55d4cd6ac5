"""Shared by all tests: no network, no display, one thread, and run folders that are thrown away."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny

import pytest

from abc_core.runs import paths


@pytest.fixture(scope="session", autouse=True)
def _runs_of_the_session(tmp_path_factory):
    """What is read leaves its index in RUNS, which is not the repository's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path_factory.mktemp("runs"))
        yield


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A RUNS folder of the test's own."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    return paths.RUNS
