"""Run folders: RUNS/<kind>-<hash of what determines the run>, so that two notebooks that need the same run make it once.

file              content
params.yaml       kind, config and the fingerprints of the inputs: what the folder's name is the hash of
provenance.json   versions, commit, seed, machine and time at which the run was started
metrics.jsonl     one row per step; a last row torn by a crash is dropped
result.json       there if, and only if, the run is finished
run.lock          locked by the process that writes; the lock ends with that process

Steps: (1) `open_run` makes or finds the folder and locks it; (2) `Run.log` appends rows; (3) `Run.finish` writes the result, whole or not
at all, and unlocks.
"""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import yaml

from abc_core.runs import paths

_locks: dict[tuple[int, Path], TextIO] = {}  # (process, folder) -> open lock file; a process may open its run again, a forked child not


class Run:
    """A run folder. Reading needs no lock: Run(folder) looks at a run that another process writes."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def finished(self) -> bool:
        """Did the run come to its end?"""
        return (self.folder / "result.json").exists()

    def log(self, **row) -> None:
        """Append one row to metrics.jsonl; it is handed to the system before this returns."""
        _write(self.folder / "metrics.jsonl", json.dumps(row) + "\n", "a")

    def rows(self) -> list[dict]:
        """All whole rows; ValueError names the file and the row of a broken one before the last."""
        path = self.folder / "metrics.jsonl"
        *whole, _torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
        rows = []
        for n, line in enumerate(whole):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path} row {n} is not JSON, or no object: {line[:100]!r}")
            rows.append(row)
        return rows

    def truncate(self, step: int) -> None:
        """Drop the rows whose "step" is `step` or later, and a torn last row, before a run goes on from `step`."""
        kept = [row for row in self.rows() if row.get("step", -1) < step]
        _replace(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def finish(self, **result) -> None:
        """Write result.json, whole or not at all, and release the lock."""
        _replace(self.folder / "result.json", json.dumps(result, indent=1) + "\n")
        self.release()

    def release(self) -> None:
        """Let another process write this run."""
        if lock := _locks.pop((os.getpid(), self.folder), None):
            lock.close()

    def result(self) -> dict:
        """What `finish` was given; FileNotFoundError if the run is not finished."""
        if not self.finished:
            raise FileNotFoundError(f"{self.folder} is not finished: it has no result.json")
        return json.loads((self.folder / "result.json").read_text())


def open_run(kind: str, config: Any, inputs: Mapping[str, str], lock: bool = True) -> Run:
    """The run that kind, config and inputs determine: a finished one, one to go on with, or a new one.

    Args:
        kind: what the run is, "pretrain" for example; the folder's name starts with it.
        config: dataclass or mapping of plain values.
        inputs: name -> fingerprint of everything else that the result depends on.
        lock: lock it for this process and make what is missing; without, another process of the same training does.
    Raises:
        RuntimeError: another process is writing this run.
    """
    plain = asdict(config) if is_dataclass(config) else dict(config)
    params = json.loads(json.dumps({"kind": kind, "config": plain, "inputs": dict(inputs)}, sort_keys=True))
    name = f"{kind}-{hashlib.sha256(json.dumps(params).encode()).hexdigest()[:12]}"
    run = Run(paths.inside(paths.RUNS, name))
    if run.finished or not lock:
        return run
    run.folder.mkdir(parents=True, exist_ok=True)
    hold(run.folder)
    if not (run.folder / "provenance.json").exists():
        _replace(run.folder / "params.yaml", yaml.safe_dump(params, sort_keys=False))
        _replace(run.folder / "provenance.json", json.dumps(provenance(params), indent=1) + "\n")
    run.truncate(sys.maxsize)  # drops no more than a torn last row
    return run


def provenance(params: dict) -> dict:
    """Where a run comes from: its seed and inputs, and what it runs on now."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": params["config"].get("seed"),
        "inputs": params["inputs"],
        **commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "peft")},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def commit() -> dict:
    """The commit of the repository and whether files differ from it; both None where git, or the repository, is missing."""
    try:
        git = lambda *words: subprocess.run(["git", *words], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout  # noqa: E731
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def fingerprint(*parts: Path | str) -> str:
    """16 hex digits of all parts: a Path stands for its file's content, or for all files below it with their names; a str for itself."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(b"text" + hashlib.sha256(part.encode()).digest())
            continue
        if not part.exists():
            raise FileNotFoundError(f"{part} is missing; it cannot be fingerprinted")
        for path in sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]:
            digest.update(b"file" + hashlib.sha256(path.relative_to(part).as_posix().encode()).digest())
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


# --- files --------------------------------------------------------------------------------------------------------------------


def hold(folder: Path) -> None:
    """Lock a run folder for this process, until `Run.release`; RuntimeError names the process that holds it."""
    key = (os.getpid(), folder)
    if key in _locks:
        return
    handle = (folder / "run.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        holder = handle.read().strip()
        handle.close()
        advice = "wait for it, or stop it (a notebook: shut its kernel down)"
        raise RuntimeError(f"{folder} is being written by process {holder}; {advice}") from error
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    _locks[key] = handle


def _write(path: Path, text: str, mode: str) -> None:
    """Write text; an OSError names the file."""
    try:
        with path.open(mode) as handle:
            handle.write(text)
            handle.flush()
            if mode == "w":
                os.fsync(handle.fileno())
    except OSError as error:
        raise OSError(f"could not write {path}: {error}. Is the disk full?") from error


def _replace(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is whole or absent."""
    partial = path.with_name(path.name + ".partial")
    _write(partial, text, "w")
    partial.rename(path)


# --- from one notebook to the next ----------------------------------------------------------------------------------------------


def publish(profile: str, name: str, path: Path) -> None:
    """Say under which path later notebooks of a profile find `name` ("mined", "stage1", "abc")."""
    pointer = paths.inside(paths.RUNS, f"{profile}/{name}.path")
    pointer.parent.mkdir(parents=True, exist_ok=True)
    _replace(pointer, str(Path(path).resolve()) + "\n")


def publish_json(profile: str, name: str, value: Any) -> None:
    """Keep a plain value for later notebooks of a profile, in a file that `find` finds."""
    path = paths.inside(paths.RUNS, f"{profile}/{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(value) + "\n")
    publish(profile, name, path)


def find(profile: str, name: str) -> Path:
    """What an earlier notebook published.

    Raises:
        FileNotFoundError: nothing was, or it is gone; the message says how to make it.
    """
    makers = {
        "01_mining": ("mined", "pairs"), "02_pretraining": ("stage1", "memory_plan"), "03_instruction_tuning": ("abc", "trained_on"),
        "06_ctrlbench": ("ctrlbench", "probes"),
    }  # fmt: skip
    maker = next((notebook for notebook, names in makers.items() if name in names), name)
    pointer = paths.inside(paths.RUNS, f"{profile}/{name}.path")
    path = Path(pointer.read_text().strip()) if pointer.exists() else None
    if path is None or not path.exists():
        advice = f"run notebooks/{maker}.ipynb, or `make reproduce PROFILE={profile}`"
        raise FileNotFoundError(f"no {name!r} of the profile {profile!r} yet: {advice}")
    return path


def footer(run: Run | None = None, **facts) -> str:
    """Where a figure's numbers come from: the logged run and its commit, or this commit where nothing was logged."""
    if run is None:
        facts |= {"commit": commit()["commit"]}
    else:
        origin = json.loads((run.folder / "provenance.json").read_text())
        facts |= {"run": run.folder.name, "seed": origin["seed"], "commit": origin["commit"]}
    return " · ".join(f"{k} {v[:10] if k == 'commit' and v else v}" for k, v in facts.items())
