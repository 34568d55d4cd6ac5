"""The house's one rule: a room imports only rooms that stand before it."""

import ast
from pathlib import Path

import pytest

from abc_core.runs.paths import ROOT

ROOMS = ["runs", "data", "mining", "core", "evaluation", "instructions", "figures", "ctrlbench", "miniature", "systems", "verify", "jobs"]
ROOMS += ["own_pictures", "recipes", "studies", "reproduce", "demo"]


def room(module: str) -> str:
    """The room of a dotted name; what stands at the top of the package is the core."""
    return next((part for part in module.split(".")[1:2] if part in ROOMS), "core")


def arrows_up(path: Path, module: str) -> list[str]:
    """Imports of a file, also those inside functions, that lead to a later room."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found += [n for n in names if n.startswith("abc_core.") and ROOMS.index(room(n)) > ROOMS.index(room(module))]
    return found


MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "abc_core").rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_before_it(module):
    if module != "abc_core.__init__":  # the face of the package names its core
        assert arrows_up(MODULES[module], module) == []


def test_an_import_of_a_later_room_is_found(tmp_path):
    planted = tmp_path / "planted.py"
    late = ("from abc_core.studies import claims", "import abc_core.jobs", "from abc_core.runs import paths")
    planted.write_text("def late():\n" + "".join(f"    {line}\n" for line in late))
    assert arrows_up(planted, "abc_core.model") == ["abc_core.studies.claims", "abc_core.jobs"]
    assert arrows_up(planted, "abc_core.demo.page") == []


def test_every_folder_is_a_room():
    folders = {p.name for p in (ROOT / "abc_core").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set(ROOMS)
