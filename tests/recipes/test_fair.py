"""fair: what a budget is, that nothing is trained or measured twice, and how queries become the rows of the table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recipe_world
import tiny
import yaml
from fair_world import Known

from abc_core.data.tasks import Task
from abc_core.jobs import stages as jobs
from abc_core.recipes import fair
from abc_core.recipes import table as fair_table
from abc_core.recipes.fair import Entry, Fair


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of backbone, pairs and regions."""
    return recipe_world.write(tmp_path_factory.mktemp("world"))


def fair_of(world, **changes) -> Fair:
    return Fair(**world | dict(recipes=["dual_encoder", "abc"], starts=["pretrained"], images=16, seconds=0.5, queries=4) | changes)




# --- budgets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_every_recipe_sees_as_many_pictures_and_one_that_sees_none_as_many_captions(world, share):
    table = fair_of(world, recipes=list(fair.RECIPES), budgets=["images"], images=64, share=share)
    for entry in table.entries:
        job = table.job(entry)
        assert job.seen["images"] == (0 if entry.recipe == "text_only" else 64)
        assert job.config.steps * 4 == (64 * (1 - share) if entry.recipe == "abc" else 64)
        assert job.seen["queries"] == (64 * (1 - share) + 4 * 64 * share if entry.recipe == "abc" else 64)


def test_equal_seconds_take_the_pace_of_the_recipes_own_run(world, runs, monkeypatch):
    table = fair_of(world, seconds=8.0)
    with pytest.raises(FileNotFoundError, match="not finished"):
        table.job(Entry("abc", "pretrained", "seconds", 0))
    for recipe in table.recipes:
        jobs.run_job(table.job(Entry(recipe, "pretrained", "images", 0)), report=lambda line: None)
    monkeypatch.setattr(fair, "pace", lambda job: 1.0 if job.recipe == "abc" else 0.25)
    one, two = (table.job(Entry(recipe, "pretrained", "seconds", 0)) for recipe in table.recipes)
    assert one.config.steps == 32 and (two.config.steps, two.second.steps) == (16, 4)


def test_the_ledger_counts_what_is_left_and_a_finished_run_is_not_trained_again(world, runs):
    table, said = fair_of(world, budgets=["images"]), []
    assert [row["finished"] for row in fair.ledger(table)] == [False, False]
    fair.train_all(table, said.append)
    assert said[0].startswith("2 runs, 0 of them finished") and [row["seconds"] for row in fair.ledger(table)] == [0, 0]
    again = []
    fair.train_all(table, again.append)
    assert again == ["2 runs, 2 of them finished · about 0 s of training left"]


def test_a_file_gives_the_numbers_and_an_unknown_one_is_refused(world, tmp_path):
    path = tmp_path / "fair.yaml"
    path.write_text(yaml.safe_dump(world | {"recipes": ["abc"], "images": 64}))
    assert Fair.read(path) == Fair(**world, recipes=["abc"], images=64)
    path.write_text(yaml.safe_dump(world | {"pictures": 64}))
    with pytest.raises(ValueError, match="pictures"):
        Fair.read(path)
    for wrong in ({"recipes": ["clip"]}, {"starts": []}, {"budgets": ["seconds"]}):
        with pytest.raises(ValueError, match=r"clip|starts|equal seconds"):
            fair_of(world, **wrong)


# --- rows -----------------------------------------------------------------------------------------------------------------------


def test_a_query_is_answered_if_its_best_right_candidate_beats_all_wrong_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = [Path("p0"), Path("p1")]
    for path in pictures:
        path.write_text(path.name)  # only its bytes count here
    e = np.eye(4, dtype=np.float32)
    system = Known({"p0": e[0], "p1": e[1], "what": e[2], "where": e[3], "a": e[0], "b": e[1], "c": e[2], "d": e[3], "ab": e[0] + e[1]})
    right = [np.array([k]) for k in range(4)]
    retrieval = Task("r", pictures, np.array([1, 0]), [None, None], ["a", "b", "c", "d"], [right[1], right[0]])
    assert fair_table.hits(retrieval, system).tolist() == [True, True]
    backwards = Task("t", [], np.array([-1, -1]), ["b", "c"], pictures, [right[1], right[0]])
    assert fair_table.hits(backwards, system).tolist() == [True, False]  # c ties with both
    shown, texts, wanted = np.array([1, 0, 1]), ["what", "what", "where"], [right[2], right[3], right[3]]
    asked = Task("i", pictures, shown, texts, ["a", "b", "c", "d"], wanted, [np.array([0, 2]), np.array([2, 3]), np.array([0, 3])])
    assert fair_table.hits(asked, system).tolist() == [True, False, True]
    assert fair_table.hits(replace(asked, choices=None), system).tolist() == [False, False, False]  # the picture's own vector ties
    several = Task("s", pictures[:1], np.array([0]), [None], ["a", "b", "c"], [np.array([0, 2])])
    assert fair_table.hits(several, system).tolist() == [True]
    assert fair_table.chance({"x": [asked, several]})["x"] == pytest.approx(100 * (3 * 0.5 + 2 / 3) / 4)


def test_the_table_has_a_row_for_each_start_and_measures_nothing_twice(world, runs, monkeypatch):
    table = fair_of(world, recipes=["token_wise", "abc"], starts=["scratch", "pretrained"], budgets=["images"], seeds=[0, 1])
    fair.train_all(table, lambda line: None)
    pictures, gold = tiny.pictures(4), [np.array([k]) for k in range(4)]
    sets = {
        "image_to_text": [Task("r", pictures, np.arange(4), [None] * 4, recipe_world.CAPTIONS[:4], gold)],
        "ctrlbench": [Task("c", pictures, np.arange(4), recipe_world.ASKED * 2, recipe_world.CAPTIONS[:4], gold)],
    }
    rows = fair_table.table(table, sets, lambda line: None)
    assert [(row["recipe"], row["start"]) for row in rows] == [(r, s) for r in table.recipes for s in table.starts]
    assert all(row[f"{c}_low"] <= row[c] <= row[f"{c}_high"] for row in rows for c in sets)
    assert all(row["images"] == 16 and row["seeds"] == 2 and row["seconds"] > 0 and row["images_per_second"] > 0 for row in rows)
    monkeypatch.setattr(fair_table, "trained", lambda job: pytest.fail("a measured system was loaded again"))
    assert fair_table.table(table, sets) == rows
    fair_table.plot_fair([row for row in rows if row["start"] == "pretrained"], {"ctrlbench": "CtrlBench"})
    fig = fair_table.plot_fair([*rows, fair_table.chance(sets)], {"image_to_text": "image → text", "ctrlbench": "CtrlBench"})
    assert [axis.get_title(loc="left") for axis in fig.axes] == ["image → text", "CtrlBench"]
