"""The notebook graph for doit: one task per notebook, each after the one before it; what is up to date is skipped.

ABC_PROFILE names the profile. `doit` runs everything, `doit notebook:01_mining` one notebook with what it needs, `doit list --all` lists.
The parameters of all notebooks are checked before the first one starts. Each profile has its own state file beside the runs.
"""

import os

from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.tools import config_changed

from abc_core.reproduce import profiles
from abc_core.reproduce import run as notebooks
from abc_core.runs import paths

PROFILE = os.environ.get("ABC_PROFILE") or "default"
paths.RUNS.mkdir(parents=True, exist_ok=True)
DOIT_CONFIG = {"dep_file": str(paths.RUNS / f".doit-{PROFILE}.db"), "backend": "sqlite3", "verbosity": 2}


def task_notebook():
    """Run the notebooks in their order."""
    shared = [*(paths.ROOT / "abc_core").rglob("*.py"), *(p for p in (paths.ASSETS / "backbone").glob("*") if p.is_file())]
    before = []
    for notebook in profiles.find():
        try:
            values = profiles.parameters(notebook, PROFILE)
        except ValueError as error:
            raise InvalidDodoFile(str(error)) from error
        output = notebooks.executed(notebook, PROFILE)
        yield {
            "name": notebook.stem,
            "actions": [(run, [notebook])],
            "file_dep": [str(p) for p in (notebook, *sorted(shared), *before)],
            "uptodate": [config_changed(values)],
            "targets": [str(output)],
        }
        before = [output]


def run(notebook):
    """Run one notebook; a failure shows the cell's error instead of the runner's, and ends the graph."""
    try:
        notebooks.run_notebook(notebook, PROFILE)
    except (notebooks.NotebookFailed, OSError, KeyboardInterrupt) as error:
        return TaskFailed(str(error))
