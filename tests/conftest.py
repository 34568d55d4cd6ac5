"""Shared by all tests: no network, no display, one thread, and run folders that are thrown away."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny

import pytest

from abc_core import paths


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A RUNS folder of the test's own."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    return paths.RUNS
