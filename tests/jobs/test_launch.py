"""Training jobs in one and in several processes, started as a notebook starts them."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from launching import SMALL, instruct_job, mine_job, miner, pretrain_job, quiet, runs, runs_at, weights, world  # noqa: F401
from training import TIMES

from abc_core import checkpoint
from abc_core.data.karpathy import read_pairs
from abc_core.jobs import launch
from abc_core.jobs.stages import read_job, run_job, write_job
from abc_core.miniature.parts import draw_part
from abc_core.model import Embedder
from abc_core.runs import arrays as resumable


def rows_of(run) -> list[dict]:
    """Rows of the log without times, and without the padding, which depends on which rows a process has."""
    return [{k: v for k, v in row.items() if k not in {*TIMES, "padded_tokens"}} for row in run.rows()]




@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_two_processes_train_what_one_trains(stage, world, runs, monkeypatch, tmp_path):
    job = pretrain_job(world)
    if stage == "instruct":
        job = instruct_job(world, run_job(job, report=quiet).folder / "model.safetensors")
    one = run_job(job, report=quiet)
    runs_at(tmp_path / "two", monkeypatch)
    said = []
    two = run_job(job, 2, said.append)
    assert two.folder.name == one.folder.name and two.folder != one.folder and two.finished
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(two)[name], rtol=0, atol=1e-4, msg=name)
    assert any(line.startswith(f"step {job.config.steps}/{job.config.steps}") for line in said)
    assert sum(line.startswith(f"{stage}: ") for line in said) == 1  # the first process alone reports
    assert Embedder.load(two.folder).embed(texts=["an owl"]).shape == (1, 32)
    assert run_job(job, 2, said.append).finished




def test_two_processes_mine_what_one_mines_and_another_threshold_embeds_nothing_anew(world, miner, runs, monkeypatch, tmp_path):
    job = mine_job(world, miner)
    plan = job.plan()
    one = run_job(job, report=quiet)
    (q, c), mined = job.embeddings(), job.mined()
    assert q.shape == c.shape == (12, 32) == (plan.queries, plan.width) and mined.counts == one.result()
    assert plan.result_bytes < (one.folder / "mined.npy").stat().st_size < plan.result_bytes + 400
    again = run_job(mine_job(world, miner, tile=5), report=pytest.fail)
    assert again.folder == one.folder, "the size of the tiles is not in the name of the run"
    other = mine_job(world, miner, epsilon=0.5)
    monkeypatch.setattr(Embedder, "load", pytest.fail)
    assert run_job(other, report=quiet).folder != one.folder and other.mined().pool_sizes.sum() < mined.pool_sizes.sum()
    runs_at(tmp_path / "two", monkeypatch)
    two = run_job(job, 2, quiet)
    assert two.finished and two.folder.name == one.folder.name and two.folder != one.folder
    assert (two.folder / "mined.npy").read_bytes() == (one.folder / "mined.npy").read_bytes()
    for file in ("images.npy", "captions.npy"):
        name = next(p.parent.name for p in (tmp_path / "two").glob(f"embeddings-*/{file}"))
        assert (runs / name / file).read_bytes() == (tmp_path / "two" / name / file).read_bytes()


def test_an_unreadable_picture_does_not_stop_mining_and_is_named(world, miner, runs, tmp_path):
    pairs = draw_part(tmp_path, "cc", 110, SMALL)
    row = read_pairs(pairs)[0][7]
    row.image.write_bytes(row.image.read_bytes()[:200])
    said, job = [], replace(mine_job(world, miner), pairs=str(pairs))
    counts = run_job(job, report=said.append).result()
    assert counts["unreadable"] == 1 and (job.mined().indices[7] == -1).all() and not job.embeddings()[0][7].any()
    assert (job.mined().indices == 7).any(), "its caption stays a candidate"
    assert any("1 of 110 items are unreadable" in line and row.image.name in line for line in said)
    (embedded,) = runs.glob("embeddings-*/result.json")
    assert '"unreadable": [\n  7\n ]' in embedded.read_text()


def test_mining_is_refused_if_the_disk_has_no_room_for_all_its_files(world, miner, runs, monkeypatch):
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3_000))
    with pytest.raises(OSError, match=r"3 kB free; images\.npy, captions\.npy, mined\.npy need 3\.504 kB more"):
        run_job(mine_job(world, miner), report=quiet)
    assert not list(runs.glob("embeddings-*/*.npy"))


# --- faults -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Run folder of 40 steps in two processes that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        runs_at(tmp_path_factory.mktemp("undisturbed"), patch)
        return run_job(pretrain_job(world, steps=40), 2, quiet)


def workers(runs) -> dict[int, int]:
    """Rank -> process id of the processes that train in a folder of runs."""
    found = subprocess.run(["pgrep", "-f", "--", f"-u -m abc_core.jobs {runs}"], capture_output=True, text=True).stdout.split()
    ranks = {pid: re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()) for pid in found}
    return {int(rank[1]): int(pid) for pid, rank in ranks.items() if rank}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[1])


def fill_the_disk(runs) -> None:
    """From now on rows still fit, checkpoints do not."""
    resource.prlimit(workers(runs)[0], resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def press_ctrl_c(_=None) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a test run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


FAULTS = {
    "a killed process": (
        lambda runs: os.kill(workers(runs)[1], signal.SIGKILL),
        r"2 processes failed with exit code 1; what they saved is intact\n(.*\n)*.*SIGKILL",
    ),
    "torch's launcher killed": (
        lambda runs: os.kill(parent(workers(runs)[1]), signal.SIGKILL),
        r"2 processes were ended by SIGKILL; .*\n(.*\n)*stopped after step \d+ of 40; run again to continue",
    ),
    "a full disk": (fill_the_disk, r"could not write the checkpoint .*last\.safetensors: .*disk full\? The previous checkpoint is intact"),
    "Ctrl-C": (press_ctrl_c, r"^stopped after step \d+ of 40; run again to continue$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_all_processes_with_a_message_and_the_rerun_ends_as_undisturbed(fault, world, runs, undisturbed):
    job, (provoke, message), provoked = pretrain_job(world, steps=40), FAULTS[fault], []

    def report(line: str) -> None:
        if line.startswith("step 4/") and not provoked:
            provoked.append(line)
            provoke(runs)

    with pytest.raises(KeyboardInterrupt if fault == "Ctrl-C" else RuntimeError, match=message):
        run_job(job, 2, report)
    assert not workers(runs)
    run = job.open()
    run.release()
    step = checkpoint.load(run.folder / "last.safetensors")[1]["step"]
    assert provoked and not run.finished and 3 <= step < 40 and step <= len(run.rows()) <= step + 1
    assert rows_of(run_job(job, 2, quiet)) == rows_of(undisturbed)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(undisturbed).items())


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_to_the_same_result(before, after, world, runs, undisturbed):
    job = pretrain_job(world, steps=40)
    with pytest.raises(KeyboardInterrupt, match="stopped after step"):
        run_job(job, before, lambda line: press_ctrl_c() if line.startswith("step 20/") else None)
    run = run_job(job, after, quiet)
    for row, other in zip(rows_of(run), rows_of(undisturbed), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, weights(undisturbed)[name], rtol=0, atol=1e-4, msg=name)


def test_a_process_that_hangs_while_it_validates_is_told_of_and_its_death_ends_the_others(world, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ABC_PATIENCE", "60")  # seconds: a word every 5
    held = draw_part(tmp_path, "cc_val", 3, SMALL)
    job = replace(pretrain_job(world, steps=40, validate_every=20, save_every=5), validation={"val": str(held)})
    said = []

    def report(line: str) -> None:
        said.append(line)
        if line.startswith("step 2/"):  # opening the picture never ends, as on a dead network disk
            picture = read_pairs(held)[0][0].image
            picture.unlink()
            os.mkfifo(picture)
        if "process 1 of 2 waits for process 0 to validate and save step 20" in line and 0 in workers(runs):
            os.kill(workers(runs)[0], signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"SIGKILL"):
        run_job(job, 2, report)
    assert any("waits for process 0 to validate and save step 20 for 0.1 min now" in line for line in said) and not workers(runs)
    assert checkpoint.load(next(runs.glob("pretrain-*")) / "last.safetensors")[1]["step"] == 15


def test_a_process_that_is_done_leaves_no_thread_that_could_abort_it(world, runs, tmp_path):
    file = write_job(pretrain_job(world), tmp_path / "job.yaml")
    threads = "{open(name).read().strip() for name in glob.glob('/proc/self/task/*/comm')}"
    code = f"import glob; from abc_core.jobs import __main__; __main__.main([{str(file)!r}]); print({threads})"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python" in (said := done.stdout.splitlines()[-1]) and "gloo" not in said


def test_nothing_trains_on_behind_a_notebook_that_is_gone(world, runs):
    job = pretrain_job(world, steps=5_000)
    run = job.open()
    run.release()
    file = write_job(job, run.folder / "job.yaml")
    notebook = subprocess.Popen([sys.executable, "-c", f"from abc_core.jobs.launch import launch; launch({str(file)!r}, 2)"], stdout=-1)
    try:
        until(lambda: len(run.rows()) >= 2, notebook)
    finally:
        notebook.kill()
    until(lambda: not subprocess.run(["pgrep", "-f", str(file)], stdout=-1).stdout.strip())
    step = checkpoint.load(run.folder / "last.safetensors")[1]["step"]
    assert 2 <= step == len(run.rows()) < 5_000


def until(true, process=None, seconds: float = 90) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and (process is None or process.poll() is None), "it never happened"
        time.sleep(0.2)


def test_a_job_comes_back_from_its_file_and_an_impossible_one_is_named(world, tmp_path):
    for job in (pretrain_job(world), instruct_job(world, "somewhere"), mine_job(world, "somewhere")):
        assert read_job(write_job(job, tmp_path / "job.yaml")) == job
    fields = yaml.safe_load((tmp_path / "job.yaml").read_text())
    wrong = [({"job": "os.system"}, "job = 'os.system' is no job of this package"), ({"config": {"pool": "1e3"}}, "pool = '1e3'")]
    for change, message in wrong:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(fields | change))
        with pytest.raises(ValueError, match=message):
            read_job(tmp_path / "job.yaml")


def test_a_process_that_cannot_start_says_why(tmp_path):
    (tmp_path / "job.yaml").write_text("job: both\n")
    with pytest.raises(RuntimeError, match=r"(.*\n)*.*job = 'both' is no job of this package"):
        launch.launch(tmp_path / "job.yaml", 1, quiet)
