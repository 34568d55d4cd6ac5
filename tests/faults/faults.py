"""The faults of the campaign: each disturbs one stage once, lets it go on, and says what happened.

A fault is called with a `Trial` and returns what it saw, in a few words; the trial then goes on to the end and compares what is left.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lying_server import cuts, hangs, refuses, says, sends
from stages import Stage, apart, ask, left

from abc_core.model import Embedder
from abc_core.runs import paths


class Skip(Exception):
    """This machine cannot be disturbed in this way."""


class Trial:
    """One disturbance of a stage, in a folder of its own.

    seconds, operations (on files) and largest (bytes of a file) are of the undisturbed stage, whose runs are in `undisturbed`.
    """

    def __init__(self, stage: Stage, folder: Path, world: Path, rng: np.random.Generator):
        self.stage, self.folder, self.world, self.rng = stage, folder, world, rng
        self.seconds, self.operations, self.largest, self.undisturbed = 0.0, 0, 0, folder
        self.runs, self.said = folder / "runs", folder / "said"
        self.runs.mkdir(parents=True)

    def like(self, undisturbed: "Trial") -> "Trial":
        """Take over what is known of the undisturbed stage."""
        self.seconds, self.operations, self.largest = undisturbed.seconds, undisturbed.operations, undisturbed.largest
        self.undisturbed = undisturbed.runs
        return self

    def go(self, arrange: Callable = lambda: None, wait: bool = True, work: Callable | None = None) -> int:
        """The stage in a process of its own, in which `arrange` is called first; as `apart`."""

        def inside():
            paths.RUNS = self.runs
            os.environ["ABC_RUNS"] = str(self.runs)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            arrange()
            (work or self.stage.go)()

        return apart(inside, self.said, wait)

    @property
    def words(self) -> str:
        """The first line of what the process said last."""
        return self.said.read_text().split("\n")[0] if self.said.exists() else ""

    def must_refuse(self, status: int, *words: str) -> str:
        """The kind of error that a process ended with, once it is known to say all `words`."""
        if status != 1 or not all(word in self.words for word in words):
            raise AssertionError(f"{self.stage.name} ended with {status}: {self.said.read_text()[-2000:]!r}; expected {words}")
        return self.words.split(":")[0]


def ended(status: int) -> str:
    return "done before" if status == 0 else f"ended by {signal.Signals(-status).name}" if status < 0 else "ended with an error"


# --- kill -9 --------------------------------------------------------------------------------------------------------------------------


def killed_by_the_clock(trial: Trial) -> str:
    """kill -9 from outside, at any time."""
    child = trial.go(wait=False)
    time.sleep(trial.rng.uniform(0, trial.seconds))
    os.kill(child, signal.SIGKILL)
    return ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def counted(runs: Path, call: Callable[[int], None]) -> None:
    """Call `call` with the number of every operation that writes, renames or removes a file below `runs`, before it is done."""
    number, prefix = iter(range(1, 1 << 30)), str(runs)

    def hook(event: str, args: tuple) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.truncate", "os.mkdir")) and str(args[0]).startswith(prefix):
            call(next(number))

    sys.addaudithook(hook)


def killed_at_a_file_operation(trial: Trial) -> str:
    """kill -9 as a file is about to be opened for writing, renamed or removed."""
    at = trial.rng.integers(1, trial.operations + 1)
    return ended(trial.go(lambda: counted(trial.runs, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == at else None)))


def killed_within_a_write(trial: Trial) -> str:
    """The system ends the process as a file grows beyond a number of bytes: a write, often of a checkpoint, is cut in two."""

    def arrange():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    limit = int(trial.rng.integers(1, trial.largest))
    return ended(trial.go(arrange))


def interrupted(trial: Trial) -> str:
    """Ctrl-C or SIGTERM at any time."""
    child = trial.go(wait=False)
    time.sleep(trial.rng.uniform(0, trial.seconds))
    os.kill(child, trial.rng.choice([signal.SIGINT, signal.SIGTERM]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        assert "KeyboardInterrupt" in trial.said.read_text(), trial.said.read_text()
    return {1: "KeyboardInterrupt"}.get(status, ended(status))


# --- disks ----------------------------------------------------------------------------------------------------------------------------


def full_disk(trial: Trial) -> str:
    """No file may grow beyond a number of bytes; the write that would fails as on a full disk."""
    limit = int(trial.rng.integers(1, trial.largest))
    return trial.must_refuse(trial.go(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))), "could not write", "disk full?")


def mounted(trial: Trial, size: int) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(trial.runs)], capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"no file system can be mounted here: {done.stderr.strip()}")


def remount(trial: Trial, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(trial.runs)], check=True)


def full_tmpfs(trial: Trial) -> str:
    """A file system of too few bytes, which is made larger afterwards."""
    needed = sum(path.stat().st_size for path in trial.undisturbed.rglob("*") if path.is_file())
    size = 4 * needed + (1 << 24)
    mounted(trial, size)
    with (trial.runs / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size - int(trial.rng.uniform(0.2, 0.8) * needed) // 4096 * 4096)
    status = trial.go()
    (trial.runs / "ballast").unlink()
    words = ("free",) if "need" in trial.words else ("No space left", "disk full?")
    return trial.must_refuse(status, *words)


def read_only(trial: Trial) -> str:
    """A folder that can no longer be written to when a killed stage goes on."""
    mounted(trial, 1 << 29)
    killed_at_a_file_operation(trial)
    remount(trial, "ro")
    status = trial.go()
    remount(trial, "rw")
    return "done before" if status == 0 else trial.must_refuse(status, "Read-only file system", str(trial.runs))


# --- numbers and bytes ----------------------------------------------------------------------------------------------------------------


def nan_in_a_gradient(trial: Trial) -> str:
    """One number of one gradient is NaN at one step."""
    at, original = int(trial.rng.integers(1, 4)), torch.nn.utils.clip_grad_norm_
    calls = iter(range(1, 1 << 30))

    def clip(parameters, *rest):
        parameters = list(parameters)
        if next(calls) == at:
            gradient = next(p.grad for p in parameters[trial.rng.integers(len(parameters)) :] + parameters if p.grad is not None)
            gradient.view(-1)[trial.rng.integers(gradient.numel())] = torch.nan
        return original(parameters, *rest)

    return trial.must_refuse(
        trial.go(lambda: setattr(torch.nn.utils, "clip_grad_norm_", clip)), "FloatingPointError", "checkpoint is intact"
    )


def nan_in_an_embedding(trial: Trial) -> str:
    """One number of one embedding is NaN."""
    original = Embedder.embed

    def embed(self, *args, **options):
        vectors = original(self, *args, **options)
        vectors[trial.rng.integers(len(vectors)), trial.rng.integers(vectors.shape[1])] = np.nan
        return vectors

    return trial.must_refuse(trial.go(lambda: setattr(Embedder, "embed", embed)), "ValueError", "not finite")


def damaged_input(trial: Trial, name: str) -> str:
    """A file that the stage reads has one bit turned, or is cut off; then it is put back."""
    path, cut = trial.stage.inputs[name], bool(trial.rng.integers(2))
    whole = path.read_bytes()
    try:
        damage(path, trial.rng, cut)
        how = trial.must_refuse(trial.go(), path.name)
    finally:
        path.write_bytes(whole)
    return f"{'cut off' if cut else 'a bit turned'}: {how}"


def damage(path: Path, rng: np.random.Generator, cut: bool) -> None:
    raw = bytearray(path.read_bytes())
    at = int(rng.integers(1, len(raw)))
    raw[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw[:at] if cut else raw)


def truncated_shard(trial: Trial) -> str:
    """A shard breaks off: what lies before is read, the rest is counted; then the shard is put back."""
    path = trial.stage.inputs["shard"]
    whole, then = path.read_bytes(), path.stat()
    try:
        path.write_bytes(whole[: int(trial.rng.uniform(0.3, 0.9) * len(whole))])
        status = trial.go()
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert status == 0, trial.said.read_text()
    return "mined without the rest"


def damaged_checkpoint(trial: Trial) -> str:
    """The last checkpoint of a killed training has one bit turned, or is cut off; it is refused, and then deleted."""
    child = trial.go(wait=False)
    until(lambda: list(trial.runs.glob("*/last.safetensors")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (path,) = trial.runs.glob("*/last.safetensors")
    cut = bool(trial.rng.integers(2))
    damage(path, trial.rng, cut)
    how = trial.must_refuse(trial.go(), "ValueError", str(path))
    path.unlink()
    return f"{'cut off' if cut else 'a bit turned'}: {how}"


def damaged_cache_line(trial: Trial) -> str:
    """A line of the answers' cache is broken, which is refused by its row and then deleted; or the last one is half there, and dropped."""
    child, cache = trial.go(wait=False), trial.runs / "generation" / "cache.jsonl"
    until(lambda: cache.exists() and cache.read_bytes().count(b"\n") >= 3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lines = cache.read_bytes().splitlines(keepends=True)
    if trial.rng.integers(2):
        cache.write_bytes(b"".join(lines)[: -int(trial.rng.integers(2, len(lines[-1])))])
        return "the last line cut off: dropped"
    row = int(trial.rng.integers(len(lines) - 1))
    cache.write_bytes(b"".join([*lines[:row], lines[row][: len(lines[row]) // 2] + b"\n", *lines[row + 1 :]]))
    how = trial.must_refuse(trial.go(), "ValueError", f"cache.jsonl row {row}")
    cache.write_bytes(b"".join([*lines[:row], *lines[row + 1 :]]))
    return f"a line broken: {how}"


# --- time and company -----------------------------------------------------------------------------------------------------------------


def jumping_clock(trial: Trial) -> str:
    """Every look at a clock jumps: the wall clock by days both ways, the others ahead."""

    def jumping(clock: Callable) -> Callable:
        ahead = [0.0]

        def now() -> float:
            ahead[0] += trial.rng.exponential(99)  # seconds
            return clock() + ahead[0]

        return now

    def arrange() -> None:
        wall, wall_ns = time.time, time.time_ns
        time.perf_counter, time.monotonic = jumping(time.perf_counter), jumping(time.monotonic)
        time.time = lambda: wall() + trial.rng.uniform(-1e6, 1e6)
        time.time_ns = lambda: wall_ns() + int(trial.rng.uniform(-1e15, 1e15))

    status = trial.go(arrange)
    assert status == 0, trial.said.read_text()
    return "done"


def two_at_once(trial: Trial) -> str:
    """A second process starts the same stage in the same folder while the first is at it."""
    second = Trial(trial.stage, trial.folder / "second", trial.world, trial.rng)
    second.runs, refused = trial.runs, trial.folder / "refused"
    hold = lambda n: until(refused.exists) if n == trial.operations // 2 else None  # noqa: E731
    child = trial.go(lambda: counted(trial.runs, hold), wait=False)
    try:
        until(lambda: list(trial.runs.glob("*/run.lock")) and list(trial.runs.glob("*/*.jsonl")) + list(trial.runs.glob("*/*.npy")))
        how = second.must_refuse(second.go(), "RuntimeError", "is being written by process")
    finally:
        refused.touch()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, trial.said.read_text()
    return f"the second: {how}"


def lying_server(trial: Trial) -> str:
    """The server hangs, breaks off, refuses for a while and answers in no protocol, in any order."""
    lies = [
        hangs,
        cuts,
        refuses(429),
        refuses(500),
        refuses(503),
        sends(b"<html>", kind="text/html"),
        sends([]),
        sends({"choices": []}),
        says(7),
    ]
    told = {f"caption number {k}": [lies[i] for i in trial.rng.integers(len(lies), size=2)] for k in range(12)}
    status = trial.go(work=lambda: ask(trial.world, told))
    assert status == 0, trial.said.read_text()
    return "asked again until it was answered"


def until(true: Callable, seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.time() + seconds
    while not true():
        assert time.time() < end, "it never happened"
        time.sleep(0.002)


def differs(trial: Trial) -> list[str]:
    """Go on to the end; the names of the results that are other than the undisturbed stage's. What a fault made besides does not count."""
    status, wanted = trial.go(), left(trial.undisturbed)
    if status:
        raise AssertionError(f"{trial.stage.name} did not go on: {trial.said.read_text()[-2000:]}")
    if not wanted:
        raise AssertionError(f"the undisturbed {trial.stage.name} left nothing")
    found = left(trial.runs)
    return [name for name, digest in wanted.items() if found.get(name) != digest]
