"""Diversity in closed form; every wording of a question is found; the spread over wordings is what counting by hand gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from abc_core.ctrlbench.wordings import diversity, draw_wordings, trained_wordings, wording_spread
from abc_core.data.tasks import Task
from abc_core.data.texts import normalise
from abc_core.instructions.regions import Instructed
from abc_core.miniature.parts import draw_part
from abc_core.miniature.words import HELD_OUT, TRAIN
from abc_core.miniature.world import World


def test_diversity_counts_ngrams_and_what_training_has_seen_of_them():
    row = diversity(["What is  on the owl?", "what is on the cup", "What is on the cup."], ["what  is on the cup ", "The owl!"])
    assert row["texts"] == 3 and row["distinct"] == 3 and row["words"] == 5
    assert row["distinct_1"] == pytest.approx(100 * 6 / 15) and row["distinct_2"] == pytest.approx(100 * 5 / 12)
    assert row["distinct_3"] == pytest.approx(100 * 4 / 9) and row["in_training"] == pytest.approx(100 / 3)
    assert row["seen_1"] == row["seen_2"] == 100 and row["seen_3"] == pytest.approx(100 * 8 / 9)  # not "on the owl"
    assert set(diversity(["a"])) == {"texts", "distinct", "words", "distinct_1", "distinct_2", "distinct_3"}
    assert diversity(["a"])["distinct_3"] == 0
    with pytest.raises(ValueError, match="no texts"):
        diversity([])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(region, kind, *texts):
    return {"image_id": 1, "region_id": region, "kind": kind, "instructions": list(texts)}


@pytest.fixture
def files(tmp_path):
    held = [question(5, "place", "a?", "b?"), question(5, "beside", "left?", "l?"), question(5, "beside", "right?", "r?", "known?")]
    trained = [question(5, "place", "A?"), question(5, "beside", "L?"), question(5, "beside", "R?", "RR?")]
    return write(tmp_path / "instructions.jsonl", held), write(tmp_path / "trained.jsonl", trained)


def row(kind, text):
    return Instructed(Path(), 1, 5, (0, 0, 1, 1), kind, text, "an owl")


def test_the_question_of_a_row_is_found_in_trainings_wordings(files):
    assert trained_wordings([row("beside", "r?"), row("place", "a?"), row("beside", "left?")], *files) == [["R?", "RR?"], ["A?"], ["L?"]]


def test_files_that_do_not_belong_together_are_named(files):
    with pytest.raises(ValueError, match=r"instructions\.jsonl has no place question 'c\?' for region 5 \(row 0"):
        trained_wordings([row("place", "c?")], *files)
    write(files[1], [question(6, "place", "A?")])
    with pytest.raises(ValueError, match=r"trained\.jsonl row 0 is not the question of .*instructions\.jsonl row 0"):
        trained_wordings([row("place", "a?")], *files)
    with pytest.raises(ValueError, match=r"trained\.jsonl row 2 is not the question"):
        trained_wordings([row("beside", "r?")], *files)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl is missing"):
        trained_wordings([], files[0], files[0].with_name("nowhere.jsonl"))


def test_few_wordings_of_few_pictures_are_drawn_by_the_seed():
    every = {name: [[f"{name} {q} {k}" for k in range(6)] for q in range(20)] for name in ("held out", "trained")}
    groups = np.repeat(np.arange(10), 2)
    drawn = draw_wordings(every, groups, pictures=4, most=3, seed=0)
    for name, said in drawn.items():
        assert {len(s) for s in said} == {0, 3} and sum(map(bool, said)) == 8
        assert all(text == every[name][q][k] for q, s in enumerate(said) for k, text in s.items())
        assert all(bool(said[q]) == bool(said[q + 1]) for q in range(0, 20, 2))  # whole pictures
    assert [bool(s) for s in drawn["trained"]] == [bool(s) for s in drawn["held out"]]
    assert drawn == draw_wordings(every, groups, 4, 3, 0) != draw_wordings(every, groups, 4, 3, 1)


def test_the_drawn_benchmark_has_every_question_in_trained_wordings_too(tmp_path):
    folder = draw_part(tmp_path, "vg_test", 4, World(glyphs=60))
    lines = {n: [json.loads(line) for line in (folder / f"{n}.jsonl").open()] for n in ("instructions", "instructions_trained")}
    assert len(lines["instructions"]) == len(lines["instructions_trained"]) > 100
    for held, trained in zip(*lines.values()):
        assert all(held[name] == trained[name] for name in ("image_id", "region_id", "kind"))
        assert not {*map(normalise, held["instructions"])} & {*map(normalise, trained["instructions"])}
        asked = referents(held["instructions"], HELD_OUT[held["kind"]]) | referents(trained["instructions"], TRAIN[held["kind"]])
        assert len(asked) == 1, (held, trained)
    assert not (draw_part(tmp_path, "vg", 2, World(glyphs=60)) / "instructions_trained.jsonl").exists()


def referents(texts, templates):
    """What stands for {x} in texts that were made of templates, one each."""
    found = [re.fullmatch(re.escape(t).replace(r"\{x\}", "(?P<x>.+)"), text) for text, t in zip(texts, templates, strict=True)]
    assert all(found), texts
    return {m.groupdict().get("x", "") for m in found}


class Told:
    """Gives an instruction that says "yes" the right caption's vector, another one the next caption's; a picture's width is its number."""

    name = fingerprint = "told"

    def embed(self, images=None, texts=None, instructions=None):
        told = [(p.width + ("yes" not in t)) % 4 for p, lines in zip(images, instructions) for t in lines]
        return np.eye(4, dtype=np.float32)[told]


def test_the_spread_is_what_counting_gives():
    pictures = [Image.new("L", (4 + k, 1)) for k in range(4)]
    task = Task("t", pictures, np.arange(4), ["?"] * 4, ["a", "b", "c", "d"], [np.array([k]) for k in range(4)])
    held = [{0: "yes", 1: "yes 1"}, {0: "yes", 1: "no"}, {0: "no", 2: "no 2"}, {}]
    trained = [{}, {0: "yes"}, {}, {}]
    rows = wording_spread(Told(), task, {"held out": held, "trained": trained}, np.eye(4, dtype=np.float32), ["x", "x", "y", "y"])
    by = {(r["wordings"], r["kind"], r["wording"]): r for r in rows}
    every = by["held out", "all", "all"]
    assert (every["r1"], every["n"], every["asked"]) == (50, 3, 6)
    assert every["every"] == pytest.approx(100 / 3) and every["any"] == pytest.approx(200 / 3)
    assert every["r1_low"] <= 50 <= every["r1_high"] and every["every_low"] <= every["every"] <= every["every_high"]
    assert by["held out", "x", 0]["r1"] == 100 and by["held out", "x", 1]["r1"] == 50 and by["held out", "x", "all"]["std"] == 25
    assert by["held out", "y", "all"]["r1"] == 0 and every["std"] == pytest.approx(2 / 3 * 25)
    assert by["trained", "all", "all"]["r1"] == 100 and ("trained", "y", "all") not in by
    with pytest.raises(ValueError, match="no question has a wording of the set 'trained'"):
        wording_spread(Told(), task, {"trained": [{}] * 4}, np.eye(4, dtype=np.float32), ["x"] * 4)
