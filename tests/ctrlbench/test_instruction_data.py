"""instruction_data: one made-up folder of Visual Genome, with all its oddities, and a server that misbehaves, up to a scored benchmark."""

import openai
import pytest
from genome_folder import make
from lying_server import LyingServer, cuts, honest, refuses, says, sends

from abc_core.config import InstructConfig
from abc_core.ctrlbench import baselines, benchmark
from abc_core.ctrlbench import construction as ctrlbench
from abc_core.ctrlbench.instruction_data import BENCHMARK, TRAINING, Wanted, plan, prepare
from abc_core.data.genome import read_genome
from abc_core.evaluation import metrics as evaluate
from abc_core.instructions import held_out
from abc_core.instructions.ask import Server
from abc_core.instructions.regions import read_instructions
from abc_core.jobs.stages import InstructJob

local = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


def at(server) -> Server:
    return Server("model", server.url, concurrent=4, retries=2, pause=0.01, timeout=20)


def job(made, written, bench) -> InstructJob:
    """Stage 2 on what was made."""
    held = {"ctrlbench": str(bench), "karpathy": str(made.karpathy)}
    return InstructJob(config=InstructConfig(seed=3), stage1="", regions=str(made.folder), written=str(written), **held)


@local
def test_a_folder_becomes_a_benchmark_and_training_data_that_add_up_whatever_the_server_does_and_nothing_is_asked_twice(tmp_path):
    made = make(tmp_path / "vg", pictures=200, of_each=3)
    wanted = Wanted(made.folder, seed=3, pictures=40, test_pictures=20, spare=0.8, karpathy=made.karpathy)
    out, bench, cache, told = tmp_path / "out", tmp_path / "bench", tmp_path / "answers.jsonl", []
    with LyingServer({None: [honest] * 50 + [refuses(401)]}) as server:
        expected = plan(wanted, bench, at(server), cache)
        assert not server.asked and not cache.exists() and set(expected) == {"ctrlbench", "training"}
        with pytest.raises(RuntimeError, match="401"):
            prepare(wanted, out, bench, at(server), cache, report=told.append)
        answered = server.answered
    assert not out.exists() and not bench.exists() and 50 <= answered < 60

    trouble = [cuts, sends(b"<html>"), refuses(429), refuses(500), says("I'm sorry, I can't help with that."), says(""), says(refusal="no")]
    with LyingServer({None: trouble}) as server:
        told.clear()
        written, built = prepare(wanted, out, bench, at(server), cache, source="made up", licence="none", report=told.append)
        calls = sum(server.asked.values())
    assert (written, built) == (out / TRAINING, bench)
    asked = [account.counts for account in told if hasattr(account, "counts") and "asked" in account.counts]
    assert [counts["regions"] for counts in asked] == [expected["ctrlbench"]["regions"], asked[1]["regions"]]
    for counts in asked:  # unreadable: three pictures are cut in half
        rest = counts["kept"] + sum(counts[rule] for rule in ("refusal", "empty", "repeats the caption", "failed"))
        assert counts["regions"] - counts["unreadable picture"] == counts["from cache"] + counts["asked"] == rest
    assert asked[0]["refusal"] == 2 and asked[0]["empty"] == 1 and asked[0]["from cache"] >= answered
    assert sum(counts["asked"] for counts in asked) + 4 == calls  # four had to be asked again

    # the benchmark and what training sees of the rest
    card = ctrlbench.load(bench).card
    drawn = next(line["for CtrlBench"] for line in told if isinstance(line, dict) and "for CtrlBench" in line)
    assert card["pictures"]["kept"] == 20 and sum(card["pictures"].values()) == drawn["images"] == 36
    apart = next(line["for training"] for line in told if isinstance(line, dict) and "for training" in line)
    genome, _ = read_genome(made.folder)
    assert len(genome) == apart["images"] == apart["kept"] + apart["coco_test"] + apart["in_ctrlbench"] + apart["copy_of_ctrlbench"]
    assert apart["drawn"]["images"] == 40 and asked[1]["regions"] == 4 * apart["drawn"]["kept"]
    groups = job(made, written, bench).groups()
    rows = [row for group in groups for row in group]
    assert {len(group) for group in groups} == {4} and 25 < len(groups) <= apart["drawn"]["kept"]
    options, _ = read_instructions(written)
    assert all(options[row.image_id, row.region_id] == {"generated": [row.instruction]} for row in rows)
    assert ctrlbench.compare_with_training(bench, rows)["shared_with_training"] == {"images": 0, "captions": 0, "instructions": 0}
    task = ctrlbench.task(ctrlbench.load(bench))
    assert len(task.texts) == 100 and not {held_out.comparable(c) for c in task.candidates} & {held_out.comparable(r.caption) for r in rows}
    assert evaluate.recall(baselines.random_ranks(100, 100, 0), 1) < 10

    # once more, with a server that would refuse everything: nothing is asked
    with LyingServer({None: [refuses(500)] * 99}) as server:
        before = written.read_bytes(), (out / BENCHMARK).read_bytes(), (bench / benchmark.FILE).read_bytes()
        prepare(wanted, out, bench, at(server), cache, report=told.append)
        assert not server.asked and all(counts["calls"] == 0 for counts in plan(wanted, bench, at(server), cache).values())
    assert before == (written.read_bytes(), (out / BENCHMARK).read_bytes(), (bench / benchmark.FILE).read_bytes())


def test_without_a_generator_the_folders_own_instructions_serve_and_nothing_is_made_where_nothing_is_wanted(tmp_path):
    made = make(tmp_path / "vg", pictures=120, of_each=1)
    assert prepare(Wanted(made.folder, seed=0), tmp_path, tmp_path / "bench") == (None, None)
    wanted, told = Wanted(made.folder, seed=0, test_pictures=10, spare=0), []
    with pytest.raises(FileNotFoundError, match=r"instructions\.jsonl is missing"):
        prepare(wanted, tmp_path, tmp_path / "bench", report=lambda line: None)
    lines = [
        f'{{"image_id": {image.image_id}, "region_id": {r.region_id}, "kind": "made", "instructions": ["What is {r.region_id}?"]}}\n'
        for image in read_genome(made.folder)[0]
        for r in image.regions
    ]
    for name in (TRAINING, BENCHMARK):
        (made.folder / name).write_text("".join(lines).replace("What", "What" if name == TRAINING else "Say what"))
        assert prepare(wanted, tmp_path, tmp_path / "bench", report=lambda line: None) == (None, tmp_path / "bench")
        first = ctrlbench.load(tmp_path / "bench").instructions[0]
        prepare(wanted, tmp_path, tmp_path / "bench", report=told.append)
        assert "wanted" not in told[-1]  # all ten were found
        assert first.startswith("Say") == (name == BENCHMARK)
    with_odd_ones = Wanted(make(tmp_path / "odd", pictures=60, of_each=3).folder, seed=0, test_pictures=50, spare=0)
    (with_odd_ones.folder / TRAINING).write_text("".join(
        f'{{"image_id": {image.image_id}, "region_id": {r.region_id}, "kind": "made", "instructions": ["What is {r.region_id}?"]}}\n'
        for image in read_genome(with_odd_ones.folder)[0] for r in image.regions
    ))  # fmt: skip
    prepare(with_odd_ones, tmp_path, tmp_path / "bench", report=told.append)
    assert told[-1].startswith("CtrlBench has 3") and "of the 50 wanted; with a larger `spare`" in told[-1]
