"""A study: the same training in several arms that differ in one setting, seed by seed, and what is measured of each.

Steps: (1) an `Arm` is a job (`abc_core.jobs.stages`) and its place in a study; (2) `ledger` says what the arms will cost before they start;
(3) `train_all` trains those that are not finished, as many at a time as there are cores, one thread each; (4) `row_of` puts what was
logged and measured into one row; (5) `keep` writes rows as lines of logs/<profile>/NAME.jsonl, from which figures and verdicts are drawn,
and `kept` reads them; (6) `study_all` does (3) to (5) study by study, and leaves out the arms that the log has.

Runs are named by what determines them, so arms that two studies share are trained once, and a killed call goes on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abc_core.config import PretrainConfig
from abc_core.jobs import stages as jobs
from abc_core.model import Embedder
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.runs.arrays import spell
from abc_core.runs.files import whole_file

PICTURE, CAPTION, QUERY = 0.038, 0.024, 0.046  # seconds of one core for the tiny model's training on one; for the ledger alone
CURVE = ("step", "loss", "temperature", "gradient_norm", "accuracy", "learning_rate")  # what of each step a row keeps
POINTS = 100  # steps of a curve that are kept, at most


# --- 1. arms --------------------------------------------------------------------------------------------------------------------


class Arm(NamedTuple):
    """A training and its place in a study: `name` says the setting in words, `value` is its number where an axis has one."""

    study: str
    name: str
    seed: int
    job: jobs.PretrainJob | jobs.InstructJob
    value: float | None = None


def pretraining(steps: int, queries: int, seed: int, **changes) -> PretrainConfig:
    """The numbers of an arm's stage 1, so that studies whose settings agree share a run; it validates half-way and at the end."""
    half = max(1, steps // 2)
    return PretrainConfig(**{"steps": steps, "queries": queries, "seed": seed, "validate_every": half, "save_every": half} | changes)


@dataclass(frozen=True)
class Measure:
    """What is measured of a trained embedder: `of(embedder)` gives names and numbers; shares are in per cent.

    `key` is the fingerprint of what it is measured on. The numbers are kept in a run of their own, so nothing is measured twice.
    """

    name: str
    key: str
    of: Callable[[Embedder], dict[str, float]]


# --- 2. ledger ------------------------------------------------------------------------------------------------------------------


def ledger(arms: Iterable[Arm]) -> list[dict]:
    """A row for each study: runs, how many are finished, and the seconds of one core that are left, by a rough guess.

    A run that several studies share is counted in the first that names it.
    """
    rows, seen = {}, set()
    for arm in arms:
        run = arm.job.open(lock=False)
        row = rows.setdefault(arm.study, {"study": arm.study, "runs": 0, "finished": 0, "seconds_left": 0.0})
        if run.folder not in seen:
            seen.add(run.folder)
            row["runs"] += 1
            row["finished"] += run.finished
            row["seconds_left"] += 0 if run.finished else guess(arm.job.config)
    return list(rows.values())


def guess(config) -> float:
    """Seconds of one core that a training of the tiny model takes, about."""
    if isinstance(config, PretrainConfig):
        return config.steps * config.queries * (PICTURE + (1 + config.negatives) * CAPTION)
    return config.steps * config.images * config.instructions_per_image * QUERY


# --- 3. training ----------------------------------------------------------------------------------------------------------------


def train_all(arms: Sequence[Arm], at_once: int = 1, report: Callable = print, processes: int = 1) -> None:
    """Train every run that is not finished, `at_once` of them in processes of their own with an equal share of the cores; resumes.

    Args:
        processes: of each run, one for each GPU, if they are trained one after the other.
    Raises:
        ValueError: several processes of each run, and several runs at once.
        RuntimeError: a training failed; the message has its last words. The others that were under way come to their end first.
        KeyboardInterrupt: Ctrl-C; every training under way saves the step that it is in.
    """
    if processes > 1 and at_once > 1:
        raise ValueError(f"at_once = {at_once} runs of {processes} processes each; runs of several processes go one after the other")
    runs = {arm.job.open(lock=False).folder: arm for arm in arms}  # each once; naming one reads whole files
    waiting = [arm for folder, arm in runs.items() if not runlog.Run(folder).finished]
    left = sum(guess(arm.job.config) for arm in waiting)
    report(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished · about {spell(left / at_once)} of training left")
    if at_once > 1:
        return _apart(waiting, at_once, report)
    for k, arm in enumerate(waiting):
        report(f"--- {k + 1}/{len(waiting)} · {_title(arm)}")
        jobs.run_job(arm.job, processes, report)


def _apart(arms: Sequence[Arm], at_once: int, report: Callable) -> None:
    """Train in processes of their own."""
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    children: set[subprocess.Popen] = set()

    def run(arm: Arm) -> str | None:
        job = arm.job.open()
        file = jobs.write_job(arm.job, job.folder / jobs.JOB)
        job.release()
        words = [sys.executable, "-m", "abc_core.jobs", str(file)]
        env = os.environ | {"OMP_NUM_THREADS": threads}
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        children.add(child)
        said, _ = child.communicate()
        children.discard(child)
        lines = said.strip().splitlines()
        report(f"{_title(arm)} · {lines[-1] if lines else 'said nothing'}")
        return None if child.returncode == 0 else "\n".join([f"{_title(arm)} ended with exit code {child.returncode}", *lines[-20:]])

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, arm) for arm in arms]
        try:
            for future in futures:
                if failure := future.result():
                    raise RuntimeError(failure)
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, KeyboardInterrupt):
                for child in list(children):
                    child.terminate()  # as Ctrl-C: the step under way is saved
            raise


def _title(arm: Arm) -> str:
    return f"{arm.study} · {arm.name} · seed {arm.seed}"


# --- 4. rows --------------------------------------------------------------------------------------------------------------------


def row_of(arm: Arm, measures: Sequence[Measure] = (), report: Callable = print) -> dict:
    """What was logged and measured of a finished arm.

    Returns:
        {study, arm, value, seed, run, commit, steps, seconds (`paced`), loss, temperature, `name`_accuracy of the last validation in per
        cent, every number of `measures`, curve: {column: values}, validation: {column: values}}.
    Raises:
        FileNotFoundError: the run is not finished.
    """
    run = arm.job.open(lock=False)
    end, steps = run.result(), run.rows()
    origin = json.loads((run.folder / "provenance.json").read_text())
    checked = [row for row in steps if any(k.endswith("_accuracy") for k in row)]
    names = [k for k in (checked[-1] if checked else {}) if k.endswith("_accuracy")]
    stride = -(-len(steps) // POINTS)
    return {
        "study": arm.study, "arm": arm.name, "value": arm.value, "seed": arm.seed, "run": run.folder.name, "commit": origin["commit"],
        "steps": len(steps), "seconds": round(paced(steps), 1), "loss": end["loss"],
        "temperature": end["temperature"], **{name: 100 * checked[-1][name] for name in names}, **_measured(arm, run, measures, report),
        "curve": {k: [_short(row[k]) for row in steps[::stride]] for k in CURVE},
        "validation": {"step": [row["step"] for row in checked]} | {n: [_short(100 * row[n]) for row in checked] for n in names},
    }  # fmt: skip


def paced(steps: Sequence[dict]) -> float:
    """Seconds of all logged steps at the pace of the quickest quarter: pauses, and what else the machine did, are left out."""
    return len(steps) * float(np.percentile([row["seconds"] for row in steps], 25))


def _measured(arm: Arm, trained: runlog.Run, measures: Sequence[Measure], report: Callable) -> dict:
    found, embedder = {}, None
    for measure in measures:
        run = runlog.open_run("measure", {"measure": measure.name}, {"trained": trained.folder.name, "on": measure.key})
        if not run.finished:
            embedder = embedder or Embedder.load(trained.folder / "model.safetensors")
            run.finish(**measure.of(embedder))
            report(f"{_title(arm)} · measured {measure.name}")
        found |= run.result()
    return found


def _short(number: float) -> float:
    """A number with five digits, as logs are committed."""
    return number if isinstance(number, int) else float(f"{number:.5g}")


# --- 5. logs --------------------------------------------------------------------------------------------------------------------


def log_file(profile: str, name: str) -> Path:
    """Where the rows of a notebook are: logs/<profile>/NAME.jsonl; those of the profile "thorough" are committed."""
    return paths.inside(paths.ROOT / "logs", f"{profile}/{name}.jsonl")


def keep(profile: str, name: str, rows: Sequence[dict]) -> Path:
    """Write rows, one a line, whole or not at all."""
    path = log_file(profile, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def keep_with(profile: str, name: str, rows: Sequence[dict], others: Sequence[dict]) -> list[dict]:
    """`keep` rows and, of others, those of another place; all of them are returned."""
    mine = {place(row): row for row in rows}
    both = [*rows, *({k: v for k, v in row.items() if k != "profile"} for row in others if place(row) not in mine)]
    keep(profile, name, both)
    return both


def kept(name: str, profile: str = "thorough") -> list[dict]:
    """The rows of a log, each with its `profile`; none if there is no such log.

    Raises:
        ValueError: a line that is not JSON, by file and row.
    """
    path, rows = log_file(profile, name), []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            rows.append(json.loads(line) | {"profile": profile})
        except ValueError as error:
            raise ValueError(f"{path} row {number} is not JSON: {line[:100]!r}") from error
    return rows


def numbers_of(arm: Arm) -> str:
    """A fingerprint of the settings of an arm's job, without the files that it reads."""
    job = {k: v for k, v in asdict(arm.job).items() if not isinstance(v, str | dict) or k in ("config", "embedder", "weights")}
    return runlog.fingerprint(json.dumps(job, sort_keys=True))


def place(row: Mapping) -> tuple[str, str, int]:
    """(study, arm, seed) of a row: each stands once in a log."""
    return row["study"], row["arm"], row["seed"]


def logged(arms: Sequence[Arm], name: str, profile: str) -> dict[tuple[str, str, int], dict]:
    """Place -> row of those arms that a profile's log has with the same numbers."""
    numbers = {(arm.study, arm.name, arm.seed): numbers_of(arm) for arm in arms}
    rows = [{k: v for k, v in row.items() if k != "profile"} for row in kept(name, profile)]
    return {place(row): row for row in rows if row.get("numbers") and numbers.get(place(row)) == row["numbers"]}


def study_all(
    arms: Sequence[Arm], row: Callable[[Arm], dict], name: str, profile: str, at_once: int = 1, report: Callable = print,
    processes: int = 1, from_log: bool = False,
) -> list[dict]:  # fmt: skip
    """A row of every arm: train and measure those without one, study by study, and keep the log as it grows.

    Args:
        row: finished arm -> its row. name: of the log.
        from_log: an arm whose row the profile's log has, with the same numbers, is not trained again, on whatever machine and from whatever
            weights it was: for studies of many hours, whose logs are committed and whose runs are not. Rows of other arms stay in the log.
            Delete it to begin anew.
    """
    found, others = (logged(arms, name, profile), kept(name, profile)) if from_log else ({}, [])
    if found:
        report(f"{len(found)} of {len(arms)} arms are in {log_file(profile, name).relative_to(paths.ROOT)} already")
    for study in dict.fromkeys(arm.study for arm in arms):
        missing = [arm for arm in arms if arm.study == study and (arm.study, arm.name, arm.seed) not in found]
        if missing:
            report(f"--- study {study}")
            train_all(missing, at_once, report, processes)
            rows = [row(arm) | {"numbers": numbers_of(arm)} for arm in missing]
            found |= {place(one): one for one in rows}
            keep_with(profile, name, list(found.values()), others)
    return [found[arm.study, arm.name, arm.seed] for arm in arms]


def with_kept(own: Sequence[dict], name: str, profile: str) -> list[dict]:
    """`own` rows of this profile and, after them, those committed rows of the thorough one whose arm and seed are not among them."""
    here = {place(row) for row in own}
    committed = [] if profile == "thorough" else kept(name)
    return [row | {"profile": profile} for row in own] + [row for row in committed if place(row) not in here]


def source(rows: Sequence[dict]) -> dict:
    """For a figure's footer: the commits and seeds of rows, and which were trained in another profile."""
    commits, seeds = ({str(row[k])[:10] for row in rows} for k in ("commit", "seed"))
    others = sorted({row["profile"] for row in rows})
    return {"runs of": ", ".join(others), "seeds": " ".join(sorted(seeds)), "commit": ", ".join(sorted(commits))}
