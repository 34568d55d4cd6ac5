"""runlog: one folder per run, torn rows, a lock between processes, fingerprints; and the paths that runs live under."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from abc_core.config import MiningConfig
from abc_core.runs import paths
from abc_core.runs.run import Run, commit, find, fingerprint, footer, open_run, publish


def test_the_folder_is_a_function_of_kind_config_and_inputs(runs):
    run = open_run("mine", MiningConfig(), {"data": "ab"})
    assert run.folder.parent == runs and run.folder.name.startswith("mine-") and len(run.folder.name) == len("mine-") + 12
    assert open_run("mine", MiningConfig(), {"data": "ab"}).folder == run.folder
    others = [open_run("embed", MiningConfig(), {"data": "ab"}), open_run("mine", MiningConfig(pool=99), {"data": "ab"})]
    others.append(open_run("mine", MiningConfig(), {"data": "ac"}))
    assert len({r.folder for r in [run, *others]}) == 4


def test_a_run_knows_where_it_comes_from(runs):
    run = open_run("mine", MiningConfig(seed=3), {"data": "ab"})
    params = yaml.safe_load((run.folder / "params.yaml").read_text())
    assert params["kind"] == "mine" and params["inputs"] == {"data": "ab"}
    assert MiningConfig.from_mapping(params["config"]) == MiningConfig(seed=3)
    origin = json.loads((run.folder / "provenance.json").read_text())
    assert origin["seed"] == 3 and origin["inputs"] == {"data": "ab"}
    assert {"started", "commit", "dirty", "python", "torch", "transformers", "peft", "platform", "cpus"} <= origin.keys()
    open_run("mine", MiningConfig(seed=3), {"data": "ab"})
    assert json.loads((run.folder / "provenance.json").read_text()) == origin


def test_rows_come_back_and_a_torn_last_row_is_dropped(runs):
    run = open_run("t", {}, {})
    run.log(step=0, loss=1.5)
    run.log(step=1, loss=1.25)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.rows() == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.25}]
    again = open_run("t", {}, {})
    again.log(step=2, loss=1.0)
    assert [r["step"] for r in again.rows()] == [0, 1, 2]


def test_a_broken_row_in_the_middle_is_named(runs):
    run = open_run("t", {}, {})
    (run.folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": \n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl row 1 is not JSON"):
        run.rows()


def test_truncate_drops_the_rows_from_a_step_on(runs):
    run = open_run("t", {}, {})
    for step in range(5):
        run.log(step=step)
    run.truncate(3)
    assert [r["step"] for r in run.rows()] == [0, 1, 2]


def test_a_run_is_finished_once_its_result_is_whole(runs):
    run = open_run("t", {}, {})
    assert not run.finished
    with pytest.raises(FileNotFoundError, match="is not finished"):
        run.result()
    run.finish(r1=0.5)
    assert run.finished and Run(run.folder).result() == {"r1": 0.5}
    assert not list(run.folder.glob("*.partial"))


def test_a_second_process_is_refused_while_the_first_writes_and_welcome_once_it_has_finished(runs):
    run = open_run("t", {"a": 1}, {})
    call = "from abc_core.runs.run import open_run; print(open_run('t', {'a': 1}, {}).finished)"
    other = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "-c", call], env={"ABC_RUNS": str(runs), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    refused = other()
    assert refused.returncode != 0
    assert f"{run.folder.name} is being written by process" in refused.stderr
    run.finish()
    assert other().stdout == "True\n"


def test_the_lock_ends_with_its_process(runs):
    call = "import os; from abc_core.runs.run import open_run; open_run('t', {}, {}).log(step=0); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", call], env={"ABC_RUNS": str(runs), "PATH": "/usr/bin:/bin"})
    assert killed.returncode == -9
    assert open_run("t", {}, {}).rows() == [{"step": 0}]


def test_a_fingerprint_follows_content_and_names_not_places(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("one")
    a, b = tmp_path / "a", tmp_path / "b"
    assert fingerprint(a) == fingerprint(b) and fingerprint(a / "x.txt") == fingerprint(b / "x.txt")
    assert len(fingerprint(a)) == 16
    assert fingerprint("one") != fingerprint(a / "x.txt") and fingerprint("ab", "c") != fingerprint("a", "bc")
    (b / "x.txt").rename(b / "y.txt")
    assert fingerprint(a) != fingerprint(b)
    with pytest.raises(FileNotFoundError, match="nothing is missing"):
        fingerprint(tmp_path / "nothing")


def test_a_path_stays_inside_its_folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "out").symlink_to(tmp_path)
    assert paths.inside(folder, "in/a.jpg") == folder / "in" / "a.jpg"
    assert paths.inside(folder, ".") == folder
    for bad, why in (("/etc/x", "is absolute"), ("../x", "leaves its folder"), ("in/out/x", "leaves its folder"), ("a\0b", "null")):
        with pytest.raises(ValueError, match=why):
            paths.inside(folder, bad)


def test_the_repository_is_found_from_below_it_and_from_nowhere_else(tmp_path):
    assert paths.find_root(paths.ROOT / "abc_core" / "miniature") == paths.ROOT == Path(__file__).resolve().parents[2]
    with pytest.raises(FileNotFoundError, match="pip install -e"):
        paths.find_root(tmp_path)


def test_data_and_runs_may_live_elsewhere(tmp_path):
    call = "from abc_core.runs import paths; print(paths.DATA, paths.RUNS)"
    env = {"ABC_DATA": str(tmp_path / "d"), "ABC_RUNS": str(tmp_path / "r")}
    out = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, check=True).stdout
    assert out == f"{tmp_path / 'd'} {tmp_path / 'r'}\n"


def test_what_a_notebook_publishes_is_found_by_later_ones_of_the_same_profile(runs, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    publish("smoke", "stage1", tmp_path / "one")
    assert find("smoke", "stage1") == tmp_path / "one"
    publish("smoke", "stage1", tmp_path / "two")
    assert find("smoke", "stage1") == tmp_path / "two"
    with pytest.raises(FileNotFoundError, match="no 'stage1' of the profile 'default' yet"):
        find("default", "stage1")


def test_what_nobody_published_or_what_is_gone_is_asked_for_with_the_notebook_that_makes_it(runs, tmp_path):
    makers = {"mined": "01_mining", "pairs": "01_mining", "stage1": "02_pretraining", "abc": "03_instruction_tuning"}
    for name, notebook in makers.items():
        with pytest.raises(FileNotFoundError, match=f"no '{name}' .*: run notebooks/{notebook}.ipynb, or `make reproduce PROFILE=smoke`"):
            find("smoke", name)
        assert (paths.ROOT / "notebooks" / f"{notebook}.ipynb").exists()
    (tmp_path / "weights").write_text("")
    publish("smoke", "abc", tmp_path / "weights")
    (tmp_path / "weights").unlink()
    with pytest.raises(FileNotFoundError, match="no 'abc' of the profile 'smoke' yet"):
        find("smoke", "abc")


def test_a_profile_or_a_name_cannot_leave_the_folder_of_runs(runs, tmp_path):
    for profile, name in (("..", "abc"), ("smoke", "../../abc")):
        with pytest.raises(ValueError, match="leaves its folder"):
            publish(profile, name, tmp_path)
        with pytest.raises(ValueError, match="leaves its folder"):
            find(profile, name)


def test_a_footer_names_the_logged_run_and_its_commit_or_this_commit_where_nothing_was_logged(runs):
    run = open_run("mine", MiningConfig(seed=3), {})
    origin = json.loads((run.folder / "provenance.json").read_text()) | {"commit": "0123456789abcdef"}
    (run.folder / "provenance.json").write_text(json.dumps(origin))
    assert footer(run, profile="smoke") == f"profile smoke · run {run.folder.name} · seed 3 · commit 0123456789"
    here = commit()["commit"]
    assert footer(profile="smoke") == f"profile smoke · commit {here[:10] if here else None}"
