"""Run notebooks with the numbers of a profile, so that nothing half-run is ever taken for finished.

Steps: (1) `literals` reads a notebook's parameters cell; (2) `parameters` lays the profile's YAML over it and checks names and types;
(3) `run_notebook` executes a copy through papermill and renames it once every cell has run.
"""

import re
import sys
import time
from pathlib import Path

from abc_core.reproduce.profiles import parameters
from abc_core.runs import paths


class NotebookFailed(RuntimeError):
    """A notebook stopped before its end; the message has the cell's error and the name of the partial copy."""




def executed(notebook: Path, profile: str) -> Path:
    """Where the executed copy goes."""
    return paths.inside(paths.RUNS, profile) / "notebooks" / notebook.name




# --- 1, 2. parameters ---------------------------------------------------------------------------------------------------------












# --- 3. running ---------------------------------------------------------------------------------------------------------------


def run_notebook(notebook: Path, profile: str = "default") -> Path:
    """Execute a copy of a notebook with a profile's parameters, showing what it prints; returns the executed copy.

    The copy is NAME.partial.ipynb until every cell has run. Whether it did is told by the exception alone: after a dead kernel the
    copy still says that every cell completed.

    Raises:
        ValueError: the parameters do not fit; nothing has run. NotebookFailed: a cell failed, or the kernel died.
        KeyboardInterrupt: with the same kind of message.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    given, output = parameters(notebook, profile), executed(notebook, profile)
    partial = output.with_suffix(".partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    started = time.perf_counter()
    print(f"{notebook.stem} ({profile}) starts", flush=True)
    try:
        papermill.execute_notebook(
            notebook, partial, parameters=given, kernel_name="python3", language="python", cwd=str(notebook.parent),
            progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, iopub_timeout=60,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else every kernel warns that it does not encrypt its loopback traffic
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        what = f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}\n\n{trace}\n"
        raise NotebookFailed(_stopped(notebook, started, what, partial)) from error
    except (DeadKernelError, CellTimeoutError) as error:
        raise NotebookFailed(_stopped(notebook, started, f"{type(error).__name__}: {error}; run again to go on", partial)) from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_stopped(notebook, started, "interrupted; run again to go on", partial)) from stop
    partial.rename(output)
    print(f"{notebook.stem} ({profile}) done in {_clock(started)}", flush=True)
    return output


def _stopped(notebook: Path, started: float, what: str, partial: Path) -> str:
    return f"{notebook.name} stopped after {_clock(started)}: {what}\nWhat it did until then: {partial}"


def _clock(started: float) -> str:
    """Time since `started`, as minutes:seconds."""
    seconds = round(time.perf_counter() - started)
    return f"{seconds // 60}:{seconds % 60:02d} min"
