"""What systems that miss something get: shared words, a random order, other instructions; and the oracle, which misses nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from abc_core.ctrlbench.baselines import bm25, chance, oracle, random_ranks, shuffled_instructions
from abc_core.data.tasks import Task
from abc_core.evaluation.metrics import ranks, recall
from abc_core.instructions.regions import Instructed


def test_bm25_scores_shared_words_and_nothing_else():
    scores = bm25(["Where is the owl?", "what is it", "a turquoise owl"], ["an owl on a card", "a cat on a card", "a turquoise owl"])
    assert scores.shape == (3, 3) and scores.dtype == np.float32
    assert scores[0, 0] > 0 and scores[0, 1] == 0 and (scores[1] == 0).all() and scores[2].argmax() == 2
    assert (bm25(["the owl"], ["the is", "of a"]) == 0).all()
    assert ranks(scores, np.array([1, 1, 1])).tolist() == [2, 2, 2]  # no shared word: ties count against it


def test_random_ranks_are_uniform_over_the_candidates():
    rank = random_ranks(20_000, 50, seed=0)
    assert rank.min() == 0 and rank.max() == 49
    assert all(abs(recall(rank, k) - 2 * k) < 1 for k in (1, 5, 10)) and (rank == random_ranks(20_000, 50, seed=0)).all()


def test_chance_counts_several_right_candidates_and_own_choices():
    shown, right = np.array([0, 0, 0]), [np.array([0]), np.array([0, 1, 1]), np.array([2])]
    task = Task("t", ["p"], shown, [None] * 3, list("abcd"), right, [np.arange(4), np.arange(3), np.array([2, 3])])
    assert chance(task, 1) == pytest.approx([1 / 4, 2 / 3, 1 / 2])
    assert chance(task, 2) == pytest.approx([1 / 2, 1, 1]) and chance(task, 10) == pytest.approx([1, 1, 1])


def test_the_oracle_scores_100_per_cent_unless_two_captions_have_one_meaning(tmp_path):
    rows = [Instructed(Path("p"), 1 + k // 5, k, (0, 0, 1, 1), "place", f"what is {k}?", f"thing {k}") for k in range(10)]
    truth, gold = tmp_path / "truth.jsonl", np.arange(10)

    def write(**same):  # region -> region whose meaning it has
        regions = {str(k): ["owl", "red", same.get(f"r{k}", k)] for k in range(10)}
        truth.write_text("".join(json.dumps({"image_id": i, "regions": regions}) + "\n" for i in (1, 2)))

    write()
    assert recall(ranks(oracle(rows, truth), gold), 1) == 100
    write(r3=7)
    assert ranks(oracle(rows, truth), gold).tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    truth.write_text(truth.read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"truth\.jsonl has no meaning for region 5 of image 2 \(row 5"):
        oracle(rows, truth)


def test_a_shuffled_instruction_is_always_one_of_another_picture():
    texts, groups = [f"what is {k}?" for k in range(40)], np.arange(40) // 5
    home = dict(zip(texts, groups))
    for seed in range(5):
        shuffled = shuffled_instructions(texts, groups, seed)
        assert all(home[text] != group for text, group in zip(shuffled, groups, strict=True))
        assert sorted(shuffled) == sorted(texts)  # each once
    assert shuffled_instructions(texts, groups, 0) == shuffled_instructions(texts, groups, 0) != shuffled_instructions(texts, groups, 1)
    assert len(shuffled_instructions(texts[:8], groups[:8], 0)) == 8  # five queries of one picture, three of the other
    with pytest.raises(ValueError, match="5 queries of 1 picture"):
        shuffled_instructions(texts[:5], groups[:5], 0)
