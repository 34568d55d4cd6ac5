"""Pages show what was retrieved, best first, and mistakes are told apart by whose caption came first."""

import numpy as np
from PIL import Image

from abc_core.ctrlbench.gallery import answered, failures, mistakes
from abc_core.ctrlbench.probes import task_ranks
from abc_core.data.tasks import Task

TEXTS = [f"caption {k}" for k in range(6)]


def made():
    """Three pictures with two questions each: all right; one answered with the picture's other caption; one tied, one with another's."""
    task = Task(
        "t", [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(3)], np.repeat(np.arange(3), 2), [f"what {k}?" for k in range(6)], TEXTS,
        [np.array([k]) for k in range(6)],
    )  # fmt: skip
    c_emb = np.eye(6, dtype=np.float32)
    q_emb = c_emb[[0, 1, 3, 3, 0, 5]] + 0.1 * c_emb
    q_emb[5] = c_emb[5] + c_emb[4]  # a tie with the picture's other caption
    return task, q_emb, c_emb, task_ranks(task, lambda first, last: q_emb[first:last] @ c_emb.T)


def test_pages_run_from_a_well_answered_picture_to_a_badly_answered_one():
    task, q_emb, c_emb, rank = made()
    page = answered(task, q_emb, c_emb, rank, quantiles=(1, 0), top=2)
    assert [entry["image"].getpixel((0, 0))[0] for entry in page] == [0, 2]
    assert page[0]["title"] == "2 of 2 right; better answered than 100 % of the pictures" and page[1]["title"].startswith("0 of 2 right")
    instruction, right, found = page[1]["asked"][0]
    assert (instruction, right) == ("what 4?", "caption 4")
    assert [(text, ok) for text, _, ok in found] == [("caption 0", False), ("caption 4", True)] and found[0][1] > found[1][1]
    assert [(text, ok) for text, _, ok in page[1]["asked"][1][2]] == [("caption 4", False), ("caption 5", True)]  # ties: wrong ones first


def test_a_missed_question_of_each_kind_is_shown_and_no_other():
    task, q_emb, c_emb, rank = made()
    page = failures(task, q_emb, c_emb, rank, ["x", "x", "place", "place", "y", "y"], seed=0)
    assert [entry["title"] for entry in page] == [
        "place: 1 of 2 missed; here the right one is number 2",
        "y: 2 of 2 missed; here the right one is number 2",
    ]
    assert all(len(entry["asked"]) == 1 and not entry["asked"][0][2][0][2] for entry in page)


def test_mistakes_are_told_apart_by_whose_caption_came_first():
    task, q_emb, c_emb, rank = made()
    rows = {row["kind"]: row for row in mistakes(task, q_emb, c_emb, rank, ["x", "x", "x", "y", "y", "y"])}
    counted = {kind: [round(row[k] * row["n"] / 100, 9) for k in ("right", "same_picture", "other_picture")] for kind, row in rows.items()}
    assert counted == {"all": [3, 2, 1], "x": [2, 1, 0], "y": [1, 1, 1]} and rows["all"]["n"] == 6
