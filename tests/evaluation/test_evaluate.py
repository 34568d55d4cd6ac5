"""Ranks with pessimistic ties, in closed form, by hand and against brute force; intervals over pictures."""

import numpy as np
import pytest

from abc_core.evaluation.metrics import bootstrap_interval, ranks, ranks_from_embeddings, recall, share_interval, table_row, task_ranks


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_rank(scores, own, tolerance=0.0):
    """Rank of the best of the candidates `own`, one comparison after the other."""
    best = max(scores[j] for j in own)
    return sum(1 for j, s in enumerate(scores) if j not in own and s >= best - tolerance)


def test_ties_count_against_the_right_candidate():
    scores = np.array([[3, 1, 2], [1, 1, 0], [0, 0, 0], [5, 7, 7], [-1, -2, -np.inf]], dtype=np.float32)
    assert ranks(scores, np.array([0, 1, 2, 2, 2])).tolist() == [0, 1, 2, 1, 2]


def test_a_collapsed_model_hits_nothing_wherever_the_right_candidate_stands():
    same = np.full((6, 4), 0.5, dtype=np.float32)
    for gold in (np.zeros(6, int), np.arange(6)):
        rank = ranks_from_embeddings(same, same, gold)
        assert rank.tolist() == [5] * 6 and recall(rank, 5) == 0
    found = task_ranks([same[:3] @ same.T], np.arange(6).reshape(3, 2))
    assert [r.tolist() for r in found] == [[4, 4, 4], [0, 0, 0]]


def test_perfect_scores_have_rank_0():
    assert ranks(np.eye(7), np.arange(7)).tolist() == [0] * 7


def test_a_row_with_nan_is_missed_and_said():
    scores = np.eye(4)
    scores[1, 3] = np.nan
    scores[2, 2] = np.nan
    with pytest.warns(UserWarning, match="2 of 4 rows of scores hold NaN, the first is row 1"):
        rank = ranks(scores, np.arange(4), block=2)
    assert rank.tolist() == [0, 4, 4, 0] and recall(rank, 4) == 50
    with pytest.warns(UserWarning, match="2 of 4 rows of scores hold NaN, the first is row 1"):
        found = task_ranks([scores[:2], scores[2:]], np.arange(4)[:, None])
    assert [r.tolist() for r in found] == [[0, 4, 4, 0]] * 2
    chosen = [np.array([k, (k + 1) % 4]) for k in range(4)]  # of row 1 the NaN is not among them
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        assert task_ranks([scores], np.arange(4)[:, None], chosen)[0].tolist() == [0, 0, 4, 0]


@pytest.mark.parametrize("block", [1, 7, 64, 512])
def test_blocks_of_any_size_agree_with_brute_force(block):
    rng = np.random.default_rng(block)
    q_emb, c_emb, gold = unit(rng, 50, 8), unit(rng, 41, 8), rng.integers(41, size=50)
    c_emb[20:30] = c_emb[:10]  # ties
    scores = (q_emb @ c_emb.T).round(2)  # more ties
    expected = [brute_rank(s, {g}) for s, g in zip(scores.tolist(), gold, strict=True)]
    assert ranks(scores, gold, block=block).tolist() == expected
    assert ranks((scores[i : i + block] for i in range(0, 50, block)), gold).tolist() == expected
    exact = q_emb.astype(np.float64) @ c_emb.astype(np.float64).T
    assert ranks_from_embeddings(q_emb, c_emb, gold, block).tolist() == [brute_rank(s, {g}, 1e-6) for s, g in zip(exact, gold, strict=True)]


def test_equal_texts_tie_in_spite_of_rounding():
    q_emb = np.array([[1, 0]], dtype=np.float32)
    c_emb = np.array([[0.6, 0.8], [0.6 - 1e-7, 0.8], [0.5, 0.8]], dtype=np.float32)
    assert ranks_from_embeddings(q_emb, c_emb, np.array([0])).tolist() == [1]
    assert ranks_from_embeddings(q_emb, c_emb, np.array([0]), tolerance=0).tolist() == [0]


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("own_choices", [False, True])
def test_the_best_right_candidate_counts_and_agrees_with_brute_force(block, own_choices):
    rng = np.random.default_rng(0)
    scores = (unit(rng, 40, 6) @ unit(rng, 35, 6).T).round(1)  # many ties
    right = [rng.choice(35, size=rng.integers(1, 5), replace=False) for _ in range(40)]
    choices = [np.union1d(r, rng.choice(35, size=9)) for r in right] if own_choices else None
    offered = [range(35) if choices is None else choices[i] for i in range(40)]
    blocks = [scores[i : i + block] for i in range(0, 40, block)]
    high, low = task_ranks(blocks, right, choices)
    for i, row in enumerate(scores.tolist()):
        seen = [row[j] if j in offered[i] else -np.inf for j in range(35)]
        assert high[i] == brute_rank(seen, set(right[i].tolist()), 1e-6)
        assert low[i] == sum(s > max(row[j] for j in right[i]) + 1e-6 for s in seen)


def test_ties_among_right_candidates_do_not_count_and_naming_one_twice_changes_nothing():
    scores = np.array([[1, 1, 1, 0], [0, 0, 0, 1]])
    assert task_ranks([scores], [np.array([0, 1, 2]), np.array([3])])[0].tolist() == [0, 0]
    assert task_ranks([scores], [np.array([0, 2]), np.array([1, 3])])[0].tolist() == [1, 0]
    twice = [np.array([0, 2, 2]), np.array([1, 3, 3])]
    high, low = task_ranks([scores], twice, [np.array([0, 1, 2, 2, 1]), np.array([1, 3, 3])])
    assert (high.tolist(), low.tolist()) == ([1, 0], [0, 0])


def test_shapes_and_right_candidates_that_do_not_fit_are_errors_with_the_value():
    scores = np.eye(3)
    for gold, message in (
        ([0, 1, 3], "row 2 is 3, of 3 candidates"),
        ([0, -1, 2], "row 1 is -1"),
        ([0, 1], "2 right candidates"),
        ([0, 1, 2, 0], "3 rows of scores for 4"),
        ([0.0, 1.0, 2.0], "whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            ranks(scores, np.array(gold))
    with pytest.raises(ValueError, match=r"\(3, 3\) against candidates of shape \(3, 2\)"):
        ranks_from_embeddings(scores, scores[:, :2], np.arange(3))
    for blocks in ([scores[:2]], [scores, scores[:1]]):
        with pytest.raises(ValueError, match=r"(2|4) rows of scores for 3 queries"):
            task_ranks(blocks, np.arange(3)[:, None])
    with pytest.raises(ValueError, match="R@0 of 3"):
        recall(np.arange(3), 0)
    with pytest.raises(ValueError, match="R@1 of 0"):
        recall(np.arange(0), 1)
    with pytest.raises(ValueError, match="3 hits in 2 group labels"):
        bootstrap_interval(np.ones(3, bool), np.arange(2))


def test_recall_in_closed_form():
    assert [recall(np.array([0, 0, 1, 4, 9, 10, 3, 100]), k) for k in (1, 5, 10)] == [25, 62.5, 75]


def test_the_interval_of_single_queries_is_the_binomial_one():
    hits = np.arange(400) < 100
    low, high = bootstrap_interval(hits, np.arange(400), draws=4000, seed=1)
    half = 196 * np.sqrt(0.25 * 0.75 / 400)
    assert abs(low - (25 - half)) < 0.5 and abs(high - (25 + half)) < 0.5


def test_whole_pictures_are_drawn_so_equal_answers_widen_the_interval():
    hits, pictures = np.repeat(np.arange(80) < 20, 5), np.repeat(np.arange(80), 5)
    low, high = bootstrap_interval(hits, pictures, draws=4000)
    single_low, single_high = bootstrap_interval(hits, np.arange(400), draws=4000)
    assert abs((high - low) / (single_high - single_low) - np.sqrt(5)) < 0.2
    named = np.char.zfill(pictures.astype(str), 3)  # groups may be any labels
    assert bootstrap_interval(hits, named, draws=4000) == (low, high)


def test_the_interval_agrees_with_drawing_pictures_one_by_one():
    rng = np.random.default_rng(0)
    pictures = rng.integers(12, size=70)  # of unequal sizes
    hits = rng.random(70) < 0.4
    slow = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(pictures == p) for p in rng.choice(np.unique(pictures), size=len(np.unique(pictures)))])
        slow.append(100 * hits[rows].mean())
    fast = bootstrap_interval(hits, pictures, draws=3000, seed=5)
    assert np.allclose(fast, np.quantile(slow, [0.025, 0.975]), atol=1.5)


def test_intervals_are_seeded_and_degenerate_ones_are_points():
    hits, pictures = np.arange(50) % 3 == 0, np.arange(50) // 5
    first, again, other = (bootstrap_interval(hits, pictures, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert bootstrap_interval(np.ones(50), pictures) == (100, 100) and bootstrap_interval(np.zeros(50), pictures) == (0, 0)


def test_a_table_row_has_the_columns_of_the_benchmark_table():
    row = table_row("abc", np.array([0, 3, 7, 20]), np.array([1, 1, 2, 2]))
    assert list(row) == ["system", "r1", "r5", "r10", "r1_low", "r1_high", "n"]
    assert (row["r1"], row["r5"], row["r10"], row["n"]) == (25, 50, 75, 4) and row["r1_low"] <= 25 <= row["r1_high"]


def test_the_interval_of_a_share_is_wilsons():
    n, share, z = 500, 0.818, 1.959963984540054
    middle, half = (share + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / 4 / n**2) ** 0.5
    assert share_interval(share, n) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert share_interval(1.0, 10)[1] == 1.0 and share_interval(0.0, 10)[0] == 0.0
    with pytest.raises(ValueError, match=r"a share of 1\.2 among 10 answers"):
        share_interval(1.2, 10)
