"""Set-up: one package list, constraints for all of it, a Makefile that installs once and says which Python it needs."""

import re
import subprocess
import tomllib
from importlib.metadata import version

import pytest
import yaml
from setuptools import find_packages

from abc_core.runs.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LISTED = PROJECT["project"]["dependencies"] + EXTRAS["dev"]
NAMES, OPTIONAL = ([re.match(r"[\w-]+", r).group() for r in part] for part in (LISTED, [r for e in EXTRAS.values() for r in e]))


def test_the_conda_environment_holds_python_pip_and_the_project_alone():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-e .[dev]"]}]


def test_every_listed_package_has_its_version_in_the_lock():
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lock), "the lock holds something other than name==version"
    locked = {line.split("==")[0].lower().replace("_", "-") for line in lock}
    assert {n.lower().replace("_", "-") for n in NAMES + OPTIONAL} <= locked
    assert not locked & {"pip", "setuptools", "uv", "abc-core"}


@pytest.mark.parametrize("name", NAMES)
def test_a_listed_package_is_installed(name):
    assert version(name)


def test_every_folder_of_the_package_is_installed():
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "abc_core").rglob("*.py")}
    assert folders == set(find_packages(str(ROOT), **PROJECT["tool"]["setuptools"]["packages"]["find"]))


def test_the_citation_file_names_the_paper_and_the_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["title"].startswith("ABC: Achieving Better Control")
    assert "CC BY-SA 4.0" in (ROOT / "LICENSE-ASSETS").read_text() and "OpenMoji" in (ROOT / "LICENSE-ASSETS").read_text()


# --- make ---------------------------------------------------------------------------------------------------------------------

# A Python that writes its calls down instead of doing them; `-m venv` copies itself into the environment.
FAKE = """#!/bin/sh
echo "$@" >> calls
case "$*" in *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""


@pytest.fixture
def make(tmp_path):
    """Calls make in a copy of the repository's set-up files, with a Python that only notes its calls."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)

    def call(*words):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(["make", "PYTHON=./python", *words], cwd=tmp_path, capture_output=True, text=True)
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        return done.returncode, calls, done.stderr

    call.folder = tmp_path
    return call


def test_make_installs_once_and_again_only_when_the_package_list_changes(make):
    code, calls, _ = make("smoke")
    assert code == 0 and calls.count("-m pip install -e . -c requirements.lock") == 1 and calls.count("-m doit") == 1
    assert "[dev]" not in calls
    assert make("smoke")[1] == "-m doit\n"
    (make.folder / "pyproject.toml").touch()
    assert make("reproduce")[1] == "-m doit\n"
    with (make.folder / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    calls = make("test")[1]
    assert re.search(r"install -e \. -c(.|\n)*install -e \.\[dev\] -c(.|\n)*-m ruff", calls) and calls.count("-m pip install") == 2
    assert "-m pip" not in make("test")[1]


def test_the_demo_installs_its_packages_once_and_takes_parameters(make):
    calls = make("demo", "WITH=top=3")[1]
    assert calls.count("[demo]") == 1 and calls.endswith("-m abc_core.demo.serve default top=3\n")
    assert make("demo", "PROFILE=smoke")[1] == "-m abc_core.demo.serve smoke\n"


def test_an_install_that_failed_is_tried_again(make):
    (make.folder / "python").write_text(FAKE + 'case "$*" in *"pip install"*) exit 1 ;; esac\n')
    assert make("smoke")[0] != 0
    (make.folder / "python").write_text(FAKE)
    code, calls, _ = make("smoke")
    assert code == 0 and "-m pip install" in calls


def test_make_test_checks_style_and_outputs_before_the_tests(make):
    (make.folder / "notebooks").mkdir()
    (make.folder / "notebooks" / "00_x.ipynb").touch()
    assert re.search(r"-m ruff check .*-m nbstripout --verify .*notebooks/00_x\.ipynb.*-m pytest", make("test")[1], re.DOTALL)


def test_an_old_python_gets_a_message_that_says_which_one_is_needed(make):
    (make.folder / "python").write_text("#!/bin/sh\nexit 1\n")
    code, _, message = make("test")
    assert code != 0 and "needs Python 3.11 or newer; './python' is not" in message
    assert not (make.folder / ".venv").exists()
    code, _, message = make("test", "PYTHON=no-such-python")
    assert code != 0 and "'no-such-python' is not" in message
