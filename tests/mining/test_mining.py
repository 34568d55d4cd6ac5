"""The mining rule against brute force, its independence of tiles and shards, its threshold, its bookkeeping and its audit."""

import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from abc_core.config import MiningConfig
from abc_core.mining import hard_negatives as mining
from abc_core.mining import search
from abc_core.mining.hard_negatives import (
    Mined,
    as_mined,
    audit,
    mine,
    mine_to_file,
    plan,
    random_negatives,
    row_type,
    similarities,
    threshold,
)
from abc_core.runs import arrays as resumable


@dataclass(frozen=True)
class Numbers:
    epsilon: float | None = 0.95
    pool: int = 10
    negatives: int = 3
    tile: int = 2048
    strata: int | None = None
    seed: int = 0


def vectors(seed, n, d=6, steps=None):
    """Unit vectors; with `steps`, small integers instead, so that many scores tie exactly."""
    rng = np.random.default_rng(seed)
    if steps:
        return rng.integers(-steps, steps + 1, (n, d)).astype(np.float32)
    x = rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def fixed(x):
    """float64 of embeddings as the search takes them, in multiples of 2⁻²⁶."""
    return np.round(x.astype(np.float64) * 2**26) / 2**26


def brute_force_pool(q, c, positives, ids, config):
    """Ranked candidates below the threshold, ties by index, one query at a time."""
    scores = (fixed(q) @ fixed(c).T).astype(np.float32)
    out = []
    for n, own in enumerate(positives):
        s = scores[n, own]
        limit = np.float32(s - np.float32(1 - config.epsilon) * abs(s))
        left = [m for m in range(len(c)) if scores[n, m] <= limit and ids[m] != ids[own] and ids[m] not in ids[:m]]
        out.append(sorted(left, key=lambda m, n=n: (-scores[n, m], m))[: config.pool])
    return out, scores


def same(a: Mined, b: Mined) -> bool:
    return all(np.array_equal(getattr(a, k), getattr(b, k), equal_nan=True) for k in ("indices", "scores", "positive_scores", "pool_sizes"))


@pytest.mark.parametrize("steps", [None, 1])
@pytest.mark.parametrize("strata", [None, 3])
def test_equals_brute_force_with_and_without_ties(steps, strata):
    q, c = vectors(1, 40, steps=steps), vectors(2, 90, steps=steps)
    positives, ids = np.arange(40) * 2, np.random.default_rng(3).integers(0, 60, 90)
    config = Numbers(tile=16, strata=strata)
    mined = mine(q, c, positives, ids, config)
    pools, scores = brute_force_pool(q, c, positives, ids, config)
    assert mined.pool_sizes.tolist() == [len(p) for p in pools]
    for n, (row, pool) in enumerate(zip(mined.indices, pools, strict=True)):
        drawn = row[row >= 0]
        assert set(drawn) <= set(pool) and len(set(drawn)) == len(drawn)
        np.testing.assert_array_equal(mined.scores[n][row >= 0], scores[n, drawn])
        if strata:
            groups = [pool[3 * g : 3 * g + 3] for g in range(3)]
            assert all(m in g if g else m == -1 for m, g in zip(row.tolist(), groups, strict=True))
    everything = mine(q, c, positives, ids, replace(config, negatives=10, strata=None))
    assert [sorted(r[r >= 0].tolist()) for r in everything.indices] == [sorted(p) for p in pools]


@pytest.mark.parametrize("steps", [None, 1])
def test_the_size_of_the_tiles_changes_nothing(steps):
    q, c = vectors(1, 50, 300, steps), vectors(2, 70, 300, steps)
    results = [mine(q, c, np.arange(50), np.arange(70), Numbers(tile=t)) for t in (1, 7, 64, 2048)]
    assert all(same(results[0], r) for r in results[1:])


def test_mining_in_shards_gives_the_rows_of_mining_at_once():
    q, c, positives, ids = vectors(1, 30), vectors(2, 60), np.arange(30), np.arange(60)
    whole = mine(q, c, positives, ids, Numbers())
    for a, b in ((0, 11), (11, 30)):
        shard = mine(q[a:b], c, positives[a:b], ids, Numbers(tile=5), first_query=a)
        np.testing.assert_array_equal(shard.indices, whole.indices[a:b])
    assert not np.array_equal(mine(q, c, positives, ids, Numbers(seed=1)).indices, whole.indices)


@pytest.mark.parametrize("order", ["any", "best first", "best last"])
def test_guesses_that_the_order_of_the_candidates_deceives_change_nothing(order, monkeypatch):
    q, c = np.repeat(vectors(1, 1, 24), 30, 0) + np.float32(0.05) * vectors(3, 30, 24), vectors(2, 900, 24)
    if order != "any":
        c = c[np.argsort((c @ q[0]) * (1 if order == "best last" else -1))]
    again, sift = [], search._sift
    monkeypatch.setattr(search, "_sift", lambda *args: (args[-1] or again.append(len(args[0])), sift(*args))[1])
    config, own = Numbers(tile=32, epsilon=1.0, negatives=10), (q @ c.T).argmax(1)
    mined = mine(q, c, own, np.arange(900), config)
    pools, _ = brute_force_pool(q, c, own, np.arange(900), config)
    assert [sorted(row.tolist()) for row in mined.indices] == [sorted(pool) for pool in pools]
    assert bool(again) == (order == "best first")


@pytest.mark.parametrize("rough", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "epsilon"), [("unit", 0.95), ("unit", 0.2), ("clustered", 0.95), ("ties", 0.95), ("opposite", 0.95)])
def test_a_rough_first_product_changes_no_bit(rough, kind, epsilon, monkeypatch):
    q, c = vectors(1, 70, 24, steps=1 if kind == "ties" else None), vectors(2, 900, 24, steps=1 if kind == "ties" else None)
    if kind == "clustered":
        c = c[:30].repeat(30, 0) + np.float32(1e-3) * c
    if kind == "opposite":  # every score is negative, and so is every bound
        q[:, 0], c[:, 0] = 5, -5
    q[5] = 0
    settings = Numbers(epsilon=epsilon, tile=32)
    monkeypatch.setattr(search, "rough_type", lambda device: None)
    exact = mine(q, c, np.arange(70), np.arange(900) // 2, settings)
    monkeypatch.setattr(search, "rough_type", lambda device: rough)
    monkeypatch.setattr(search, "FEW", 1)  # no tile is left to the exact product for having many pairs
    assert same(exact, mine(q, c, np.arange(70), np.arange(900) // 2, settings))


@pytest.mark.parametrize("rough", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 256, 3584])
def test_the_rough_product_passes_every_pair_that_lies_between_the_bounds_and_few_others(rough, width):
    q, c = (torch.from_numpy(vectors(s, 200, width)) for s in (1, 2))
    scores = (q.double() @ c.double().T).float()
    worst, limit = scores.quantile(0.98, dim=1), scores.quantile(0.99, dim=1)
    wanted = (scores > worst[:, None]) & (scores <= limit[:, None])
    memory = torch.empty(len(q) * len(c), dtype=rough)
    row, column, _ = search._near(search._rounded(q, rough), search._rounded(c, rough), worst, limit, memory)
    passed = torch.zeros_like(wanted)
    passed[row, column] = True
    assert passed[wanted].all() and passed.float().mean() < 0.06


def test_a_worked_case():
    """One query at 0 degrees: the positive scores 0.8, so with ε = 0.5 only what scores at most 0.4 is left, the best two first."""
    c = np.array([[0.8, 0.6], [0.6, 0.8], [0.4, 0.9], [0.4, -0.9], [0.3, 0.9], [-1, 0]], dtype=np.float32)
    mined = mine(np.array([[1, 0]], dtype=np.float32), c, [0], np.arange(6), Numbers(epsilon=0.5, pool=2, negatives=2))
    assert sorted(mined.indices[0].tolist()) == [2, 3]
    np.testing.assert_array_equal(mined.scores, np.float32([[0.4, 0.4]]))
    assert mined.positive_scores == np.float32(0.8)
    assert mined.counts == {"queries": 1, "too_few": 0, "empty": 0, "full_pool": 1, "unreadable": 0}


def test_the_threshold_comes_before_the_top_of_the_ranking():
    """Twelve captions lie above the threshold: the ten best overall are all too good, yet five good negatives are found below."""
    cosines = np.array([0.9] + [0.89] * 12 + [0.5, 0.4, 0.3, 0.2, 0.1])
    c = np.stack([cosines, np.sqrt(1 - cosines**2)], 1).astype(np.float32)
    mined = mine(np.float32([[1, 0]]), c, [0], np.arange(18), Numbers(negatives=5))
    top_ten_first = [m for m in np.argsort(-cosines, kind="stable")[:10] if cosines[m] <= 0.95 * 0.9]
    assert top_ten_first == []
    assert sorted(mined.indices[0].tolist()) == [13, 14, 15, 16, 17]


def test_a_negative_positive_score_admits_nothing_above_it():
    s = torch.tensor([0.8, -0.8, 0.0])
    torch.testing.assert_close(threshold(s, 0.95), torch.tensor([0.76, -0.84, 0.0]))
    assert (threshold(s, 0.95) <= s).all() and threshold(s, 1.0).equal(s)
    assert threshold(s, None).isinf().all()


def test_captions_that_say_the_same_are_excluded():
    c = vectors(2, 20)
    ids = np.array([7] * 10 + list(range(100, 110)))
    mined = mine(c[:10], c, np.arange(10), ids, Numbers(epsilon=None, pool=20, negatives=10))
    assert all(sorted(row) == list(range(10, 20)) for row in mined.indices.tolist())


def test_queries_with_too_few_candidates_are_counted_and_kept():
    q = np.float32([[1, 0], [0, 1], [1, 0]])
    c = np.float32([[1, 0], [0, 1], [0.9, 0.1], [0.99, 0.2], [0.2, 0.3]])
    mined = mine(q, c, [0, 1, 2], [0, 1, 2, 2, 3], Numbers(epsilon=0.95, pool=3, negatives=3))
    assert mined.indices.shape == (3, 3) and 3 not in mined.indices, "row 3 says what row 2 says"
    assert mined.pool_sizes.tolist() == [3, 3, 2]
    assert (mined.indices >= 0).sum(1).tolist() == [3, 3, 2]
    assert np.isnan(mined.scores).tolist() == (mined.indices < 0).tolist()
    assert mined.counts == {"queries": 3, "too_few": 1, "empty": 0, "full_pool": 2, "unreadable": 0}


def test_a_query_of_zeros_is_a_picture_that_could_not_be_read():
    q, c = vectors(1, 30), vectors(2, 60)
    whole = mine(q, c, np.arange(30), np.arange(60), Numbers(tile=8, epsilon=None))
    q[[4, 29]] = 0
    mined = mine(q, c, np.arange(30), np.arange(60), Numbers(tile=8, epsilon=None))
    assert mined.counts == {"queries": 30, "too_few": 0, "empty": 0, "full_pool": 28, "unreadable": 2}
    assert (mined.indices[[4, 29]] == -1).all() and np.isnan(mined.positive_scores).nonzero()[0].tolist() == [4, 29]
    rest = np.delete(np.arange(30), [4, 29])
    np.testing.assert_array_equal(mined.indices[rest], whole.indices[rest])
    assert {4, 29} & set(whole.indices[rest].ravel().tolist()), "their captions stay candidates"


def test_a_score_is_the_same_bits_in_whatever_order_it_is_summed():
    q, c = vectors(1, 40, 3584), vectors(2, 50, 3584)
    order = np.random.default_rng(3).permutation(3584)
    a, b = (search.read(x, slice(0, len(x)), "row", "cpu").double() for x in (q, c))
    assert torch.equal(a @ b.T, a[:, order] @ b[:, order].T)
    plain_a, plain_b = torch.from_numpy(q).double(), torch.from_numpy(c).double()
    assert not torch.equal(plain_a @ plain_b.T, plain_a[:, order] @ plain_b[:, order].T), "float64 alone does not give that"
    assert abs(a @ b.T - plain_a @ plain_b.T).max() < 3e-8


# --- into a file -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    """(q, c, positives, ids) with ties, equal captions and a picture that could not be read."""
    q, c = vectors(1, 50, 8, steps=1), vectors(2, 70, 8, steps=1)
    q[17] = 0
    return q, c, np.arange(50), np.random.default_rng(3).integers(0, 60, 70)


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_mining_into_a_file_gives_what_mining_gives(tile, corpus, tmp_path):
    whole, mined = mine(*corpus, Numbers()), mine_to_file(tmp_path / "m.npy", *corpus, Numbers(tile=tile))
    assert same(whole, mined) and mined.counts == whole.counts and isinstance(mined.indices, np.memmap)
    assert same(as_mined(np.load(tmp_path / "m.npy"), Numbers()), whole)


def test_tiles_side_by_side_give_the_same_and_leave_the_threads_as_they_were(corpus, tmp_path, monkeypatch):
    whole, threads, seen = mine(*corpus, Numbers()), torch.get_num_threads(), set()
    monkeypatch.setattr(mining, "search", lambda *args: (seen.add(threading.current_thread().name), search.search(*args))[1])
    broken = corpus[1].copy()
    broken[5] = np.nan
    try:
        torch.set_num_threads(3)
        assert same(mine_to_file(tmp_path / "m.npy", *corpus, Numbers(tile=1)), whole)
        assert len(seen) > 1 and "MainThread" not in seen
        assert same(mine(*corpus, Numbers(tile=7)), whole)
        with pytest.raises(ValueError, match="candidate 5 is not finite"):
            mine(corpus[0], broken, *corpus[2:], Numbers(tile=1))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("where", ["inside a tile", "before its rows are written", "before they are recorded"])
@pytest.mark.parametrize("tile", [7, 3])
def test_a_killed_call_goes_on_at_its_next_tile_to_the_same_bytes(where, tile, corpus, tmp_path, monkeypatch):
    undisturbed = tmp_path / "u.npy"
    mine_to_file(undisturbed, *corpus, Numbers(tile=7))
    calls = []

    def die(function, at):
        def dying(*args):
            calls.append(args)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args)

        return dying

    with monkeypatch.context() as patch:
        module, name, at = {
            "inside a tile": (mining, "search", 4),
            "before its rows are written": (resumable, "_write", 7),  # two calls a tile: rows, record
            "before they are recorded": (resumable, "_write", 8),
        }[where]
        patch.setattr(module, name, die(getattr(module, name), at))
        with pytest.raises(KeyboardInterrupt):
            mine_to_file(tmp_path / "k.npy", *corpus, Numbers(tile=7))
    before = np.fromfile(tmp_path / "k.done", dtype=np.uint8)
    assert before.tolist() == [1] * 21 + [0] * 29
    searched = []
    monkeypatch.setattr(mining, "search", lambda *args: (searched.append(len(args[0])), search.search(*args))[1])
    mine_to_file(tmp_path / "k.npy", *corpus, Numbers(tile=tile))
    assert (tmp_path / "k.npy").read_bytes() == undisturbed.read_bytes()
    assert sum(searched) == 29, "what was recorded is not searched again"


def test_a_file_of_other_numbers_is_refused(corpus, tmp_path):
    mine_to_file(tmp_path / "m.npy", *corpus, Numbers())
    with pytest.raises(ValueError, match=r"m\.npy holds .*; 50 rows of .* are wanted. Delete it to begin anew"):
        mine_to_file(tmp_path / "m.npy", *corpus, Numbers(negatives=4))


MINE = """
import sys
import numpy as np, torch.distributed as dist
from abc_core.config import MiningConfig
from abc_core.mining.hard_negatives import mine_to_file
folder = sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=int(sys.argv[2]), world_size=int(sys.argv[3]))
q, c, positives, ids = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("q", "c", "positives", "ids"))
mine_to_file(f"{folder}/m.npy", q, c, positives, ids, MiningConfig(pool=10, negatives=3, tile=int(sys.argv[4])))
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("processes", "tile"), [(2, 7), (3, 16)])
def test_several_processes_mine_what_one_mines(processes, tile, corpus, tmp_path):
    for name, array in zip(("q", "c", "positives", "ids"), corpus, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    words = [[sys.executable, "-c", MINE, str(tmp_path), str(rank), str(processes), str(tile)] for rank in range(processes)]
    children = [subprocess.Popen(w, stderr=subprocess.PIPE, text=True) for w in words]
    assert [(child.communicate()[1], child.returncode)[1] for child in children] == [0] * processes
    assert same(as_mined(np.load(tmp_path / "m.npy"), Numbers()), mine(*corpus, Numbers()))


# --- the plan --------------------------------------------------------------------------------------------------------------------


def test_the_plan_of_the_papers_size_is_plain_arithmetic():
    found = plan(10**6, 10**6, 3584, MiningConfig(), processes=8, speed=10e12)
    assert found.operations == 7_168_000_000_000_000 and found.seconds == pytest.approx(89.6)
    assert found.embedding_bytes == 2 * 14_336_000_000
    assert found.result_bytes == 10**6 * (7 * 8 + 7 * 4 + 4 + 8)
    assert found.reading_bytes == 123 * 14_336_000_000  # 977 tiles of queries for 8 processes
    assert found.process_bytes < 0.2e9
    assert "7.17e+15 floating-point operations" in str(found) and "90 s at 1e+04 GFLOP/s a process, 8 in all" in str(found)


def test_the_plan_has_the_bytes_of_the_files_and_measures_a_speed(corpus, tmp_path):
    mined = mine_to_file(tmp_path / "m.npy", *corpus, Numbers())
    found = plan(50, 70, 8, Numbers())
    header = 128 * -(-len(str(row_type(Numbers()))) // 64)
    assert 0 < (tmp_path / "m.npy").stat().st_size - found.result_bytes <= header and found.embedding_bytes == 4 * 120 * 8
    assert found.speed > 0 and found.seconds == found.operations / found.speed
    assert plan(50, 70, 8, Numbers(), processes=2, speed=1e9).seconds == found.operations / 2e9
    assert len(mined.indices) == found.queries


def test_processes_that_share_the_cores_search_fewer_tiles_side_by_side(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    sizes = (plan(50, 70, 8, Numbers(), processes, speed=1.0).process_bytes for processes in (1, 2, 4, 8))
    one, two, four, eight = (size - (8 * 50 + 9 * 70) for size in sizes)
    assert one == 2 * two == 4 * four == 4 * eight > 0


class Held(TorchDispatchMode):
    """The most bytes that tensors made while it is on held at one time."""

    now = most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        dense = (t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.layout == torch.strided)  # a sparse one is made of such
        for storage in {id(s): s for s in (t.untyped_storage() for t in dense)}.values():
            if not hasattr(storage, "counted"):
                storage.counted = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def free(self, size: int) -> None:
        self.now -= size


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    held = {}
    for m in (500, 4000, 16_000):
        vectors(2, m).tofile(tmp_path / f"{m}.bin")
        c = np.memmap(tmp_path / f"{m}.bin", dtype=np.float32, mode="r", shape=(m, 6))
        rows = mining._miner(vectors(1, 100), c, np.arange(100), np.arange(m), Numbers(tile=32), 0, "cpu")  # with 9 bytes a candidate
        with Held() as watch:
            rows(slice(0, 32))
        held[m] = watch.most
    assert held[4000] <= 1.05 * held[500]
    assert held[16_000] == pytest.approx(held[4000], rel=0.05)


@pytest.mark.parametrize(("n", "width", "pool"), [(256, 16, 10), (256, 600, 10), (64, 16, 60)])
def test_the_plan_knows_the_memory_that_the_search_holds(n, width, pool):
    config = Numbers(tile=n, pool=pool)
    q, c = vectors(1, n, width), vectors(2, 2000, width)
    with Held() as watch:
        mine(q, c, np.arange(n), np.arange(2000), config)
    planned = plan(n, 2000, width, config, speed=1).process_bytes
    assert 0.5 * planned < watch.most <= planned


def test_random_negatives_avoid_equal_captions_and_repeat_with_the_seed():
    ids = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    drawn = random_negatives(np.arange(8), ids, 5, seed=3)
    assert all(ids[m] != ids[n] for n, row in enumerate(drawn) for m in row)
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    np.testing.assert_array_equal(drawn[3:], random_negatives(np.arange(3, 8), ids, 5, seed=3, first_query=3))
    assert random_negatives([0], np.array([0, 0, 1]), 2, seed=0).tolist() == [[2, -1]]
    often = random_negatives(np.zeros(4000, dtype=int), ids, 1, seed=0).ravel()
    assert np.bincount(often, minlength=8)[3:].min() > 700, "every allowed candidate about equally often"


def test_similarities_are_those_of_the_matrix_product():
    q, c = vectors(1, 9), vectors(2, 12)
    indices = np.array([[0, 11, -1]] * 9)
    found = similarities(q, c, indices, tile=4)
    np.testing.assert_array_equal(found[:, :2], (fixed(q) @ fixed(c).T).astype(np.float32)[:, [0, 11]])
    assert np.isnan(found[:, 2]).all()


def test_the_audit_counts_negatives_that_are_true_of_the_picture():
    shows = [[["owl", "red"], ["key", "blue"]], [["cat", "pink"]]]
    claims = [[["owl", "red"]], [["cat", "pink"]], [["key", "blue"], ["cat", "pink"]], [["key", "blue"]]]
    scores = np.float32([[0.6, 0.4], [0.2, np.nan]])
    mined = Mined(np.array([[3, 2], [2, -1]]), scores, np.float32([0.9, 0.7]), np.array([2, 1]), {"too_few": 1})
    found = audit(mined, np.array([[1, 2], [0, 3]]), np.float32([[0.0, 0.1], [0.1, 0.2]]), shows, claims)
    assert (found["mined_false_negatives"], found["mined_pairs"]) == (1, 3)
    assert found["mined_false_negative_rate"] == pytest.approx(1 / 3)
    assert found["random_false_negative_rate"] == 0
    assert found["mined_similarity"] == pytest.approx(0.4) and found["random_similarity"] == pytest.approx(0.1)
    assert found["positive_similarity"] == pytest.approx(0.8) and found["too_few"] == 1
    unknown = audit(mined, np.array([[1, 2], [0, 3]]), np.float32([[0.0, 0.1], [0.1, 0.2]]))
    assert unknown == {k: v for k, v in found.items() if "false" not in k and "pairs" not in k}
    with pytest.raises(ValueError, match="caption 1 claims nothing"):
        audit(mined, np.zeros((2, 2), dtype=int), scores, shows, [claims[0], [], *claims[2:]])


def broken(row):
    x = vectors(1, 4)
    x[row] = np.nan
    return x


@pytest.mark.parametrize(
    ("q", "c", "positives", "ids", "change", "message"),
    [
        (vectors(1, 4), vectors(1, 4, 5), range(4), range(4), {}, r"\[4, 6\].*\[4, 5\]"),
        (vectors(1, 4), vectors(1, 4), [0, 1, 2, 4], range(4), {}, "query 3 has caption 4; there are 4"),
        (vectors(1, 4), vectors(1, 4), range(4), range(3), {}, "4 candidates as many ids"),
        (broken(2), vectors(1, 4), range(4), range(4), {}, "query 2 is not finite"),
        (vectors(1, 4), broken(3), [0, 1, 2, 0], range(4), {"tile": 2}, "candidate 3 is not finite"),
        (vectors(1, 4), broken(1), [0, 1, 2, 0], range(4), {}, "candidate 1 is not finite"),
        (vectors(1, 4), vectors(1, 4), range(4), range(4), {"epsilon": 1.5}, "epsilon is 1.5"),
        (vectors(1, 4), vectors(1, 4), range(4), range(4), {"strata": 5}, "pool 10, negatives 3, strata 5"),
    ],
)
def test_bad_input_is_named(q, c, positives, ids, change, message):
    with pytest.raises(ValueError, match=message):
        mine(q, c, list(positives), list(ids), replace(Numbers(), **change))
