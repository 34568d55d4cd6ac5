"""The demo's page without the notebook: `python -m abc_core.demo.serve [PROFILE] [NAME=VALUE …] [--OPTION-OF-VOILA …]`, in the browser.

Names are those of notebook 09's parameters, such as weights=runs/instruct-… or own_pictures=holiday own_captions=holiday.txt.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from abc_core.reproduce import profiles
from abc_core.runs import paths
from abc_core.runs import run as runlog

TITLE = "# Ask the picture"
LARGEST = 200 * 2**20  # bytes of a message from the browser; a picture arrives in one


def page_notebook(profile: str, **given) -> Path:
    """A copy of notebook 09 as far as the page, its texts left out but the one about the page, with a profile's parameters; its path.

    Args:
        given: further parameters, over those of the profile.
    Raises:
        ValueError: no such profile or parameter.
        FileNotFoundError: there is no trained model yet; the message says which notebook to run.
    """
    (source,) = (n for n in profiles.find() if n.stem == "09_retrieval_demo")
    known = profiles.values(source, profile)
    for name in given:
        if name not in known:
            raise ValueError(f"{source.name} has no parameter {name!r}; it has {', '.join(known)}")
    if not (known | given)["weights"]:
        runlog.find(profile, "abc")
    book = load_notebook_node(str(source))
    last = next(k for k, cell in enumerate(book.cells) if "page" in cell.metadata.get("tags", []))
    book.cells = [cell for k, cell in enumerate(book.cells[: last + 1]) if cell.cell_type == "code" or k == last - 1]
    book = parameterize_notebook(book, profiles.parameters(source, profile) | given, kernel_name="python3", language="python")
    book.cells.insert(0, nbformat.v4.new_markdown_cell(TITLE))
    path = paths.inside(paths.RUNS, profile) / "demo.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def main(*said: str) -> None:
    """Serve the page with Voilà, in place of this process; ends with a sentence if that cannot be."""
    names = [word for word in said if not word.startswith("-")]
    profile = names.pop(0) if names and "=" not in names[0] else "default"
    given = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in names)}
    if find_spec("voila") is None:
        sys.exit("Voilà is not installed; `make demo` installs it, and so does pip install -e '.[demo]' -c requirements.lock")
    try:
        path = page_notebook(profile, **given)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = [f"--Voila.tornado_settings={{'websocket_max_message_size': {LARGEST}}}", *(word for word in said if word.startswith("-"))]
    os.execv(sys.executable, [sys.executable, "-m", "voila", str(path), *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
