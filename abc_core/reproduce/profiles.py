"""Profiles: the parameters of notebooks, and the numbers that `params/<profile>` puts in their place."""

import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from abc_core.config import InstructConfig, LoraConfig, PretrainConfig, describe
from abc_core.runs import paths


def find() -> list[Path]:
    """All numbered notebooks, in their order."""
    return sorted((paths.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def params_file(notebook: Path, profile: str) -> Path:
    """Where a profile's overrides are, if it has any."""
    return paths.inside(paths.ROOT / "params", profile) / f"{notebook.stem}.yaml"


def literals(notebook: Path) -> dict[str, Any]:
    """Names and values of the cell tagged "parameters".

    Raises:
        ValueError: not exactly one such cell, or a line of it that is not `name = literal`.
    """
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name}: {len(tagged)} cells are tagged 'parameters'; exactly one must be")
    source = "".join(tagged[0]["source"])
    found = {}
    for node in ast.parse(source, notebook.name).body:
        try:
            (target,) = node.targets
            found[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError) as error:
            line = ast.get_source_segment(source, node)
            raise ValueError(f"{notebook.name}, parameters cell, line {node.lineno}: {line!r} is not `name = literal`") from error
    return found


def parameters(notebook: Path, profile: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is injected into a notebook: the profile's overrides, if any, and the profile's name.

    A profile's file may name another profile as its `base`, whose numbers it then changes ("rehearse" is "a100" with a tiny model).
    `above`: the profiles whose base this one is, directly or not.

    Raises:
        ValueError: an unknown profile or parameter, or a value whose type is not that of the notebook's literal.
    """
    folder, source = paths.ROOT / "params", params_file(notebook, profile)
    if profile != "default" and not source.parent.is_dir():
        known = sorted({"default", *(p.name for p in folder.iterdir() if p.is_dir())} if folder.is_dir() else {"default"})
        raise ValueError(f"unknown profile {profile!r}; known are {', '.join(known)}")
    try:
        given = (yaml.safe_load(source.read_bytes()) or {}) if source.exists() else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{source} holds {describe(given)}; it must be a list of lines `name: value`")
    base = given.pop("base", None)
    if not isinstance(base, str | None):
        raise ValueError(f"{source}: base = {describe(base)}; the name of a profile was expected")
    if base in (profile, *above):
        raise ValueError(f"{source}: base = {base!r} is the profile itself" + " again" * (base != profile))
    known = literals(notebook)
    for name, value in ({"profile": profile} | given).items():
        if name not in known:
            raise ValueError(f"{source}: {notebook.name} has no parameter {name!r}; it has {', '.join(known)}")
        if not _alike(value, known[name]):
            raise ValueError(f"{source}: {name} = {describe(value)}; the notebook's own value is {describe(known[name])}")
    if given.get("profile", profile) != profile:
        raise ValueError(f"{source}: profile = {given['profile']!r}, but its folder says {profile!r}")
    return ({} if base is None else parameters(notebook, base, (*above, profile))) | given | {"profile": profile}


def values(notebook: Path, profile: str) -> dict[str, Any]:
    """All parameters of a notebook under a profile: its literals, and the profile's numbers over them."""
    return literals(notebook) | parameters(notebook, profile)


def config_of(stem: str, given: dict) -> PretrainConfig | InstructConfig | None:
    """The config of a notebook's training, from its `values`; None for a notebook that trains nothing."""
    kind = {"01_mining": PretrainConfig, "02_pretraining": PretrainConfig, "03_instruction_tuning": InstructConfig}.get(stem)
    if kind is None:
        return None
    own = {f.name: given[f.name] for f in fields(kind) if f.name in given} | ({"negatives": 0} if stem == "01_mining" else {})
    return kind(**own | {"lora": LoraConfig(given["lora_rank"], given["lora_alpha"])})


def _alike(value: Any, default: Any) -> bool:
    """May `value` stand where `default` does? An int may for a float, anything for None, a list for a list of its kinds."""
    if default is None:
        return True
    if isinstance(default, list | tuple):
        return isinstance(value, list) and all(not default or any(_alike(v, d) for d in default) for v in value)
    if isinstance(default, float) and type(value) is int:
        return True
    return type(value) is type(default)
