"""Examples of retrieval, well and badly answered, as entries of `pages.plot_gallery`, and what goes wrong by kind of question.

(1) `answered` shows pictures with all their instructions (the paper's Appendix E, with what was retrieved); (2) `failures` shows one missed
question of each kind; (3) `mistakes` counts what came first instead. All take a `Task`, its vectors and its ranks.
"""

from collections.abc import Sequence

import numpy as np

from abc_core.data.pictures import open_image
from abc_core.data.tasks import Task


def answered(
    task: Task, q_emb: np.ndarray, c_emb: np.ndarray, rank: np.ndarray, quantiles: Sequence[float] = (0.9, 0.5, 0.1), top: int = 2
) -> list[dict]:
    """Pictures at these quantiles of mean reciprocal rank, each with all its instructions.

    Args:
        q_emb, c_emb: float32[Q, D] and float32[C, D], unit vectors; candidates are texts. rank: int[Q]. top: candidates shown each.
    Returns:
        dicts {image, title, asked: [(instruction, right candidate, [(candidate, score, right)])]}.
    """
    groups, reciprocal = np.asarray(task.groups), 1 / (1 + np.asarray(rank))
    pictures = np.unique(groups)
    mean = np.array([reciprocal[groups == p].mean() for p in pictures])
    order = np.argsort(mean, kind="stable")
    page = []
    for quantile in quantiles:
        at = order[round(quantile * (len(order) - 1))]
        mine = np.flatnonzero(groups == pictures[at])
        right = int((np.asarray(rank)[mine] < 1).sum())
        title = f"{right} of {len(mine)} right; better answered than {100 * quantile:.0f} % of the pictures"
        page.append(_entry(task, mine, title, q_emb, c_emb, top))
    return page


def failures(
    task: Task, q_emb: np.ndarray, c_emb: np.ndarray, rank: np.ndarray, kinds: Sequence[str], seed: int, top: int = 2
) -> list[dict]:
    """Of each kind of question one that was missed, drawn at random, in the layout of `answered`; kinds without a miss are left out."""
    rng, kinds, missed = np.random.default_rng(seed), np.asarray(kinds), np.asarray(rank) > 0
    page = []
    for kind in np.unique(kinds):
        own = kinds == kind
        wrong = np.flatnonzero(own & missed)
        if len(wrong):
            query = wrong[rng.integers(len(wrong))]
            title = f"{kind}: {len(wrong):,} of {own.sum():,} missed; here the right one is number {rank[query] + 1:,}"
            page.append(_entry(task, [query], title, q_emb, c_emb, top))
    return page


def mistakes(task: Task, q_emb: np.ndarray, c_emb: np.ndarray, rank: np.ndarray, kinds: Sequence[str]) -> list[dict]:
    """What comes first, for all questions and for each kind: rows {kind, right, same_picture, other_picture, n}, in per cent.

    "same_picture": the right answer to another question about the picture, so the instruction was not obeyed; "other_picture": an answer
    to a question about another one, so its content was mistaken. A tie with the right one counts as missed, by what stands against it.
    """
    groups, kinds = np.asarray(task.groups), np.asarray(kinds)
    asks: dict[int, set[int]] = {}  # candidate -> groups that it answers
    for group, right in zip(groups.tolist(), task.right):
        for candidate in map(int, right):
            asks.setdefault(candidate, set()).add(group)
    same = np.zeros(len(rank), dtype=bool)
    for i in np.flatnonzero(np.asarray(rank) > 0):
        first = next(j for j in _best(task, i, c_emb @ q_emb[i]) if j not in task.right[i])
        same[i] = groups[i] in asks.get(int(first), ())
    right = np.asarray(rank) < 1
    rows = []
    for kind in ("all", *np.unique(kinds)):
        mine = np.ones(len(kinds), dtype=bool) if kind == "all" else kinds == kind
        shares = {"right": right, "same_picture": ~right & same, "other_picture": ~right & ~same}
        rows.append({"kind": str(kind)} | {k: 100 * float(v[mine].mean()) for k, v in shares.items()} | {"n": int(mine.sum())})
    return rows


def _entry(task: Task, queries: Sequence[int], title: str, q_emb: np.ndarray, c_emb: np.ndarray, top: int) -> dict:
    """One picture with some of its queries."""
    asked = []
    for q in queries:
        scores, own = c_emb @ q_emb[q], set(map(int, task.right[q]))
        found = [(task.candidates[j], float(scores[j]), j in own) for j in _best(task, q, scores)[:top].tolist()]
        asked.append((task.texts[q], task.candidates[task.right[q][0]], found))
    return {"image": open_image(task.pictures[task.shown[queries[0]]]), "title": title, "asked": asked}


def _best(task: Task, query: int, scores: np.ndarray) -> np.ndarray:
    """int64: what a query chooses from, best first; among equals those that are wrong come first, as in the ranks."""
    among = np.arange(len(scores)) if task.choices is None else np.asarray(task.choices[query])
    among = among[np.argsort(np.isin(among, task.right[query]), kind="stable")]
    return among[np.argsort(-scores[among], kind="stable")]
