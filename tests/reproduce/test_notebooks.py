"""notebooks: parameters are checked before anything runs, a copy is whole or partial, the graph skips and resumes; and the contract."""

import ast
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain

from abc_core import checkpoint
from abc_core.config import InstructConfig, MiningConfig, PretrainConfig
from abc_core.reproduce import profiles
from abc_core.reproduce import run as notebooks
from abc_core.runs import paths
from abc_core.runs import run as runlog

kernel = pytest.mark.allow_hosts(["127.0.0.1"])  # Jupyter talks to its kernel over the loopback interface
PARAMETERS = 'profile = "default"\nsteps = 100  # how many\nrate = 0.5\nnames = ["a", "b"]\nlimit = None\nfast = False'


@pytest.fixture
def root(tmp_path, runs, monkeypatch):
    """A repository with one notebook, 00_small, whose cell writes its parameters down."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    write(tmp_path, "00_small", 'print("profile", profile, "steps", steps)')
    return tmp_path


def write(root: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)]), path)
    return path


def override(root: Path, text: str, profile: str = "smoke", name: str = "00_small") -> Path:
    path = root / "params" / profile / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root / "notebooks" / f"{name}.ipynb"


def test_the_literals_of_the_parameters_cell_are_read_without_running_it(root):
    (notebook,) = profiles.find()
    assert profiles.literals(notebook) == {
        "profile": "default", "steps": 100, "rate": 0.5, "names": ["a", "b"], "limit": None, "fast": False,
    }  # fmt: skip


@pytest.mark.parametrize("line", ["steps = 2 * 50", "import os", "a = b = 1", "steps: int = 3", "print(1)"])
def test_a_parameters_cell_holds_literals_only(root, line):
    notebook = write(root, "01_bad", parameters=f'profile = "default"\n{line}')
    with pytest.raises(ValueError, match=r"01_bad\.ipynb, parameters cell, line 2: .* is not `name = literal`"):
        profiles.literals(notebook)


def test_a_profile_lays_its_numbers_over_the_notebooks(root):
    notebook = override(root, "steps: 3\nrate: 1\nnames: [c]\nlimit: 0.5\n")
    assert profiles.parameters(notebook, "smoke") == {"steps": 3, "rate": 1, "names": ["c"], "limit": 0.5, "profile": "smoke"}
    assert profiles.parameters(notebook, "default") == {"profile": "default"}


def test_a_profile_may_change_numbers_of_another_one(root):
    notebook = override(root, "steps: 3\nrate: 2.5\n", "a100")
    override(root, "base: a100\nsteps: 1\n", "rehearse")
    assert profiles.parameters(notebook, "rehearse") == {"steps": 1, "rate": 2.5, "profile": "rehearse"}
    override(root, "base: a10\n", "rehearse")
    with pytest.raises(ValueError, match="unknown profile 'a10'; known are a100, default, rehearse"):
        profiles.parameters(notebook, "rehearse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: smoke", r"00_small\.yaml: base = 'smoke' is the profile itself"),
        ("stepz: 3", r"00_small\.yaml: 00_small\.ipynb has no parameter 'stepz'; it has profile, steps, rate, names, limit, fast"),
        ("rate: 1e-4", r"00_small\.yaml: rate = '1e-4' is of type str .*1\.0e-4.* own value is 0\.5 is of type float"),
        ("steps: 2.5", r"steps = 2\.5 is of type float"),
        ("steps: true", r"steps = True is of type bool"),
        ("fast: 1", r"fast = 1 is of type int"),
        ("names: [1]", r"names = \[1\] is of type list"),
        ("profile: a100", r"profile = 'a100', but its folder says 'smoke'"),
        ("- steps", r"00_small\.yaml holds \['steps'\]"),
        ("a: [", r"00_small\.yaml is not YAML"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_with_file_name_and_value(root, text, message):
    with pytest.raises(ValueError, match=message):
        profiles.parameters(override(root, text), "smoke")


def test_an_unknown_profile_is_refused_with_the_known_ones(root):
    notebook = override(root, "steps: 3")
    with pytest.raises(ValueError, match="unknown profile 'smok'; known are default, smoke"):
        profiles.parameters(notebook, "smok")


@kernel
def test_a_notebook_runs_with_the_profiles_parameters_and_shows_what_it_prints(root, capsys):
    output = notebooks.run_notebook(override(root, "steps: 3"), "smoke")
    assert output == paths.RUNS / "smoke" / "notebooks" / "00_small.ipynb"
    assert "profile smoke steps 3" in output.read_text()
    shown = capsys.readouterr().out
    assert "profile smoke steps 3" in shown and "00_small (smoke) done in 0:" in shown
    assert [p.name for p in output.parent.iterdir()] == ["00_small.ipynb"]


@kernel
def test_a_failing_cell_stops_the_notebook_with_its_error_and_leaves_only_a_partial_copy(root):
    notebook = write(root, "00_small", "rows = []", 'raise ValueError("row 7 has no caption")', "open('after', 'w')")
    stale = notebooks.executed(notebook, "default")
    stale.parent.mkdir(parents=True)
    stale.write_text("an older, whole copy")
    with pytest.raises(notebooks.NotebookFailed, match=r"00_small\.ipynb stopped .*raised ValueError: row 7 has no caption"):
        notebooks.run_notebook(notebook)
    assert [p.name for p in stale.parent.iterdir()] == ["00_small.partial.ipynb"]
    assert not (notebook.parent / "after").exists()


@kernel
def test_a_dead_kernel_is_a_failure(root):
    notebook = write(root, "00_small", "import os\nos._exit(3)")
    with pytest.raises(notebooks.NotebookFailed, match=r"DeadKernelError.*run again to go on"):
        notebooks.run_notebook(notebook)
    assert not notebooks.executed(notebook, "default").exists()


@kernel
def test_ctrl_c_ends_the_notebook_and_leaves_only_a_partial_copy(root):
    notebook = write(root, "00_small", "import time\nprint('waiting', flush=True)\ntime.sleep(60)")
    call = f"from pathlib import Path; from abc_core.reproduce import run; run.run_notebook(Path({str(notebook)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", call], env=os.environ | {"ABC_RUNS": str(paths.RUNS)}, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    shown = process.stdout.readline() + process.stdout.readline()
    assert "waiting" in shown
    process.send_signal(signal.SIGINT)
    shown = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "00_small.ipynb stopped after" in shown and "interrupted; run again to go on" in shown
    assert not notebooks.executed(notebook, "default").exists()


# --- the graph ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def doit(root, monkeypatch):
    """Runs the graph of the real dodo.py over the notebooks of `root`; returns (exit code, notebooks that ran)."""
    ran = []

    def run_notebook(notebook, profile):
        ran.append(notebook.stem)
        if "raise" in notebook.read_text():
            raise notebooks.NotebookFailed(f"{notebook.name} stopped: what the cell said")
        output = notebooks.executed(notebook, profile)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(notebook.read_text())

    monkeypatch.setattr(notebooks, "run_notebook", run_notebook)

    def call(profile="default"):
        ran.clear()
        monkeypatch.setenv("ABC_PROFILE", profile)
        dodo = runpy.run_path(str(Path(__file__).parents[2] / "dodo.py"))
        return DoitMain(ModuleTaskLoader(dodo)).run(["run", "-o", str(root / "report")]), list(ran)

    return call


def test_the_graph_runs_in_order_skips_what_is_up_to_date_and_goes_on_where_it_failed(root, doit):
    write(root, "01_next", "raise ValueError")
    write(root, "02_last", "x = 1")
    assert doit() == (1, ["00_small", "01_next"])
    assert "01_next.ipynb stopped: what the cell said" in (root / "report").read_text()
    write(root, "01_next", "x = 1")
    assert doit() == (0, ["01_next", "02_last"])
    assert doit() == (0, [])


def test_an_edit_of_a_parameter_runs_the_notebook_again_and_other_profiles_not(root, doit):
    override(root, "steps: 3")
    assert doit("smoke") == (0, ["00_small"])
    assert doit("default") == (0, ["00_small"])
    override(root, "# a remark\nsteps: 3")
    assert doit("smoke") == (0, [])
    override(root, "steps: 4")
    assert doit("smoke") == (0, ["00_small"])
    assert doit("default") == (0, [])


def test_a_parameter_of_the_last_notebook_that_does_not_fit_stops_the_graph_before_the_first(root, doit, capsys):
    write(root, "01_next", "x = 1")
    override(root, "steps: few", name="01_next")
    code, ran = doit("smoke")
    assert code != 0 and ran == []
    assert "01_next.yaml: steps = 'few' is of type str" in capsys.readouterr().err


# --- the notebooks of this repository -----------------------------------------------------------------------------------------

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_follows_the_contract(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    first, second, last = cells[0], cells[1], cells[-1]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {notebook.stem[:2]} · ")
    for word in ("**Question", "**Reads", "**Writes", "**Cost"):
        assert word in first.source, f"the first cell does not say {word}"
    assert second.metadata.get("tags") == ["parameters"], "the second cell is not tagged 'parameters'"
    assert profiles.literals(notebook)["profile"] == "default"
    assert last.cell_type == "markdown" and "What we saw" in last.source
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {number} carries outputs"
            assert len(cell.source.splitlines()) <= 25, f"cell {number} is longer than 25 lines"
            assert not any(line.lstrip().startswith(("!", "%")) for line in cell.source.splitlines()), f"cell {number} leaves Python"
            ast.parse(cell.source)


@pytest.mark.parametrize("profile", ["a100", "gpu1"])
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_profiles_of_the_paper_have_a_file_for_every_notebook_and_the_papers_numbers(notebook, profile):
    assert profiles.params_file(notebook, profile).exists()
    values = profiles.values(notebook, profile)
    papers = {
        "01_mining": [MiningConfig(), PretrainConfig(steps=1000, queries=256)],
        "02_pretraining": [PretrainConfig()],
        "03_instruction_tuning": [InstructConfig()],
    }.get(notebook.stem, [])
    for config in papers:
        numbers = asdict(config)
        lora = numbers.pop("lora", {})
        numbers |= {f"lora_{k}": lora[k] for k in lora}
        of_the_machine = ("chunk", "activation_checkpointing", "validate_every", "tile")
        theirs = {k: v for k, v in numbers.items() if k in values and k not in of_the_machine}
        assert {k: values[k] for k in theirs} == theirs and len(theirs) > 2
    if papers and profile == "gpu1":
        assert values["chunk"] is not None and values["processes"] == 1


@pytest.mark.parametrize("path", sorted((paths.ROOT / "params").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_numbers_of_every_profile_fit_their_notebook(path):
    notebook = paths.ROOT / "notebooks" / f"{path.stem}.ipynb"
    assert notebook.exists(), f"{path} is of no notebook"
    assert json.loads(json.dumps(profiles.parameters(notebook, path.parent.name)))["profile"] == path.parent.name


# --- several processes from inside a notebook ---------------------------------------------------------------------------------

SMALL = {
    "01_mining": "pairs: 48\nvalidation: 8\nsteps: 3\nqueries: 8\npool: 4\nnegatives: 2\nleast_margin: -1.0\n",
    "02_pretraining": "validation: 8\nsteps: 3\nqueries: 8\nnegatives: 2\nleast_accuracy: 0.0\nmust_fall: false\n",
}


@pytest.fixture
def small_profile(tmp_path, monkeypatch):
    """A copy of two notebooks, with the profile "of_a_test" for them; its figures go into the repository.

    They compute in float32: where the CPU multiplies bfloat16, its rounding depends on which rows a process has (0.2 per cent of the loss).
    """
    figures = paths.ROOT / "figures" / "of_a_test"
    (tmp_path / "notebooks").mkdir()
    for name in SMALL:
        text = (paths.ROOT / "notebooks" / f"{name}.ipynb").read_text()
        assert text.count("chunk=chunk,") == 1
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(text.replace("chunk=chunk,", "chunk=chunk, bf16=False,"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("ABC_DATA", str(tmp_path / "data"))
    for name, text in SMALL.items():
        override(tmp_path, text, "of_a_test", name)
    yield tmp_path
    shutil.rmtree(figures, ignore_errors=True)


@kernel
@pytest.mark.timeout(600)
def test_two_processes_that_a_notebook_starts_train_what_one_trains(small_profile, monkeypatch):
    mining, pretraining = (small_profile / "notebooks" / f"{name}.ipynb" for name in SMALL)
    losses, weights, published = [], [], {}
    for processes in (1, 2):
        monkeypatch.setattr(paths, "RUNS", small_profile / f"runs-{processes}")
        monkeypatch.setenv("ABC_RUNS", str(paths.RUNS))
        if processes == 1:
            notebooks.run_notebook(mining, "of_a_test")
            published = {name: runlog.find("of_a_test", name) for name in ("mined", "pairs")}
        for name, path in published.items():
            runlog.publish("of_a_test", name, path)
        override(small_profile, SMALL["02_pretraining"] + f"processes: {processes}\n", "of_a_test", "02_pretraining")
        notebooks.run_notebook(pretraining, "of_a_test")
        (folder,) = paths.RUNS.glob("pretrain-*")
        assert (folder / "job.yaml").exists()
        losses.append([row["loss"] for row in runlog.Run(folder).rows()])
        weights.append(checkpoint.load(folder / "model.safetensors")[0])
    one, two = weights
    largest = max((one[name] - two[name]).abs().max().item() for name in one)
    print(f"losses {losses}; largest difference of a weight {largest:.1e}")
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4) and one.keys() == two.keys() and largest < 1e-3
