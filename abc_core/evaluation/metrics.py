"""Retrieval scores: ranks with pessimistic ties, R@k, bootstrap intervals over pictures.

(1) `ranks` of given scores; (2) `ranks_from_embeddings` in blocks, without a matrix of all scores; (3) `task_ranks` with several right
candidates and choices of a query's own (`tasks.Task`); (4) `recall`, `bootstrap_interval`, `share_interval`, and a `table_row`. A rank is
the number of *other* candidates that score as high as the right one or higher, so 0 is best, a collapsed model has the worst ranks, and a
hit at k is rank < k.
**Caveat:** R@k falls with the number of candidates; compare it only between systems that chose among the same ones.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.stats import binomtest

KS = (1, 5, 10)


# --- ranks ----------------------------------------------------------------------------------------------------------------------


def ranks(scores: np.ndarray | Iterable[np.ndarray], gold: np.ndarray, block: int = 512, tolerance: float = 0.0) -> np.ndarray:
    """Rank of each query's right candidate.

    Args:
        scores: float[Q, C], or an iterable of its blocks of rows, float[b, C].
        gold: int[Q], the right candidate of each query.
        tolerance: scores lower by no more than this are ties as well.
    Returns:
        int64[Q], 0 to C - 1; and C, worse than any, for a row that holds NaN (a warning says how many).
    Raises:
        ValueError: shapes that do not fit, or a gold that is no candidate.
    """
    gold = np.asarray(gold)
    if gold.ndim != 1 or gold.dtype.kind not in "iu":
        raise ValueError(f"right candidates should be whole numbers in one row, not {gold.dtype} of shape {gold.shape}")
    out, done = np.empty(len(gold), dtype=np.int64), 0
    broken = []
    for part in _blocks(np.asarray(scores), block) if hasattr(scores, "ndim") else scores:
        right = _gold_of(part, gold[done : done + len(part)], done)
        at_gold = part[np.arange(len(part)), right]  # b
        out[done : done + len(part)] = (part >= (at_gold - tolerance)[:, None]).sum(1) - 1
        nan = np.flatnonzero(np.isnan(part).any(1)) + done
        out[nan] = part.shape[1]
        broken += nan.tolist()
        done += len(part)
    if done != len(gold):
        raise ValueError(f"{done} rows of scores for {len(gold)} right candidates")
    if broken:
        warnings.warn(f"{len(broken)} of {done} rows of scores hold NaN, the first is row {broken[0]}: all count as missed", stacklevel=2)
    return out


def _blocks(scores: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Views of `block` rows."""
    return (scores[i : i + block] for i in range(0, len(scores), block))


def _gold_of(scores: np.ndarray, gold: np.ndarray, first: int) -> np.ndarray:
    """`gold` of the rows of one block, checked."""
    if scores.ndim != 2 or len(gold) != len(scores):
        raise ValueError(f"scores of shape {scores.shape} from row {first} for {len(gold)} right candidates")
    wrong = np.flatnonzero((gold < 0) | (gold >= scores.shape[1]))
    if len(wrong):
        raise ValueError(f"the right candidate of row {first + wrong[0]} is {gold[wrong[0]]}, of {scores.shape[1]} candidates")
    return gold


def ranks_from_embeddings(q_emb: np.ndarray, c_emb: np.ndarray, gold: np.ndarray, block: int = 512, tolerance: float = 1e-6) -> np.ndarray:
    """Ranks of q_emb · c_embᵀ, `block` queries at a time.

    Args:
        q_emb, c_emb: float32[Q, D] and float32[C, D], unit vectors.
        gold: int[Q].
        tolerance: about the rounding of a float32 product, so that equal texts tie although they were embedded in other batches.
    Returns:
        int64[Q], as `ranks`.
    """
    return ranks(_products(q_emb, c_emb, block), gold, tolerance=tolerance)


def _products(q_emb: np.ndarray, c_emb: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """float32[b, C] after float32[b, C] of q_emb · c_embᵀ."""
    if q_emb.ndim != 2 or c_emb.ndim != 2 or q_emb.shape[1] != c_emb.shape[1]:
        raise ValueError(f"queries of shape {q_emb.shape} against candidates of shape {c_emb.shape}")
    return (q_emb[i : i + block] @ c_emb.T for i in range(0, len(q_emb), block))


# --- several right candidates, or choices of one's own --------------------------------------------------------------------------


def task_ranks(
    scores: Iterable[np.ndarray], right: Sequence[np.ndarray], choices: Sequence[np.ndarray] | None = None, tolerance: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best right candidate of each query: how many wrong ones score as high or higher, and how many score higher.

    Args:
        scores: blocks of rows, float[b, C], Q rows in all.
        right: Q times int[≥ 1]. choices: Q times the candidates that a query chooses among; None: all. Both as in `tasks.Task`.
        tolerance: scores that differ by no more than this are ties.
    Returns:
        (int64[Q], int64[Q]): ties count against the right candidate, and in its favour. A query whose scores hold NaN has the rank C, worse
        than any, in both (a warning says how many).
    Raises:
        ValueError: another number of rows than queries.
    """
    found, done, broken = np.empty((2, len(right)), dtype=np.int64), 0, []
    for part in scores:
        if done + len(part) > len(right):
            raise ValueError(f"{done + len(part)} rows of scores for {len(right)} queries")
        for row, own in zip(part, right[done : done + len(part)]):
            own, offered = np.unique(own), row if choices is None else row[np.unique(choices[done])]
            best = row[own].max()
            as_high = np.count_nonzero(offered >= best - tolerance) - np.count_nonzero(row[own] >= best - tolerance)
            found[:, done] = as_high, np.count_nonzero(offered > best + tolerance)
            if np.isnan(offered).any():
                broken.append(done)
                found[:, done] = len(row)
            done += 1
    if done != len(right):
        raise ValueError(f"{done} rows of scores for {len(right)} queries")
    if broken:
        warnings.warn(f"{len(broken)} of {done} rows of scores hold NaN, the first is row {broken[0]}: all count as missed", stacklevel=2)
    return found[0], found[1]


# --- figures of merit -----------------------------------------------------------------------------------------------------------


def recall(rank: np.ndarray, k: int) -> float:
    """R@k in per cent: the share of queries with fewer than k other candidates at or above the right one."""
    if k < 1 or len(rank) == 0:
        raise ValueError(f"R@{k} of {len(rank)} queries; at least R@1 of one query was expected")
    return 100 * float(np.mean(np.asarray(rank) < k))


def bootstrap_interval(hits: np.ndarray, groups: np.ndarray, draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean of `hits`, in per cent; whole groups are drawn, as the queries of one picture hang together.

    Args:
        hits: bool[Q]. groups: [Q], the picture of each query.
        level: share of the draws inside the interval.
    Returns:
        (low, high). **Caveat:** of this set of pictures alone; how weights vary with the seed of training is not in it.
    """
    hits, (_, group) = np.asarray(hits), np.unique(groups, return_inverse=True)
    if len(hits) != len(group) or len(hits) == 0 or not 0 < level < 1:
        raise ValueError(f"{len(hits)} hits in {len(group)} group labels at level {level}")
    size = np.bincount(group)  # G: queries of each group
    found = np.bincount(group, weights=hits)  # G: hits of each group
    times = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), size=draws)  # draws, G
    means = 100 * (times @ found) / (times @ size)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of n answers, as shares; answers are taken as independent of each other."""
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share of {share} among {n} answers; 0 to 1 of at least one was expected")
    interval = binomtest(round(share * n), n).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


def table_row(system: str, rank: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict:
    """One row of a results table: system, r1, r5, r10, the 95 % interval r1_low to r1_high (all per cent), and n queries."""
    low, high = bootstrap_interval(np.asarray(rank) < 1, groups, seed=seed)
    found = {f"r{k}": recall(rank, k) for k in KS}
    return {"system": system, **found, "r1_low": low, "r1_high": high, "n": len(rank)}
