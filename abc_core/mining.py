"""Hard negatives mined by the model itself (Sec. 3.2): almost right captions for every picture, none of them too right.

Steps: (1) `mine` keeps, per query, the candidates whose similarity is at most ε times that of its positive, and of those the `pool` (100)
most similar, each text once: threshold first, then top-100; (2) it draws `negatives` (7) of the pool at random, seeded per query;
(3) `random_negatives` and `similarities` give the comparison; (4) `audit` measures, where the truth is known, how many "negatives" are
true of the picture.

The search is exact and tiled: the embeddings may be memory maps, and what is held besides them does not grow with the corpus.

Letters: N queries · M candidates · D embedding width · K negatives per query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

NOTHING = torch.iinfo(torch.int64).min  # a key below every other
LOW = 2**32 - 1  # the lower half of a key


@dataclass(frozen=True)
class Mined:
    """What `mine` found; rows follow the queries, −1 and NaN fill the places that a too small pool leaves empty."""

    indices: np.ndarray  # int64[N, K], rows of the candidates, in the order drawn
    scores: np.ndarray  # float32[N, K], their similarity to the query
    positive_scores: np.ndarray  # float32[N], similarity of the query's own caption
    pool_sizes: np.ndarray  # int64[N], candidates drawn from, at most config.pool
    counts: dict  # queries, too_few (a −1 in the row), empty (nothing but −1), full_pool


# --- 1. the search ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mine(q, c, positives, caption_ids, config, first_query: int = 0, device: str = "cpu") -> Mined:
    """Mine negatives for each query among the candidates.

    Args:
        q, c: float[N, D] and float[M, D], unit vectors of pictures and captions, arrays or memory maps.
        positives: int64[N], the row of each query's own caption in `c`.
        caption_ids: int64[M]; captions that share an id say the same: they are never each other's negatives, and one of them, the first,
            stands for all, so that no query is given one negative twice.
        config: numbers with the fields of `config.MiningConfig`: epsilon (None: no threshold), pool, negatives, tile, strata, seed.
        first_query: number of the first row of `q` in the whole set, if `q` is a shard: draws depend on that number alone.
        device: where the tiles are multiplied.

    Raises:
        ValueError: shapes that do not fit, a row out of range, an embedding that is not finite, or numbers out of range.

    **Paper:** Sec. 3.2, step (3). **Authors' code:** not released; its list has one negative from each of the first seven groups of
    five (`strata=5`). **Caveat:** for a positive score s < 0 the threshold is s − (1−ε)·|s|, as ε·s would lie above s.
    """
    positives, caption_ids = np.asarray(positives, dtype=np.int64), np.asarray(caption_ids, dtype=np.int64)
    _check(q, c, positives, caption_ids, config)
    parts, stands = [], np.zeros(len(c), dtype=bool)
    stands[np.unique(caption_ids, return_index=True)[1]] = True
    for rows in _tiles(len(q), config.tile):
        own = positives[rows]
        keys, positive_scores = _search(_read(q, rows, "query", device), c, own, caption_ids, stands, config, device)
        indices, scores = _decode(keys)
        numbers = np.arange(rows.start, rows.stop) + first_query
        sizes = (indices >= 0).sum(1)
        picks = np.stack([_draw(int(n), int(size), config) for n, size in zip(numbers, sizes, strict=True)])  # tile, K; −1 is empty
        taken = np.where(picks >= 0, np.take_along_axis(indices, picks, 1), -1)
        parts.append((taken, np.where(picks >= 0, np.take_along_axis(scores, picks, 1), np.nan), positive_scores, sizes))
    indices, scores, positive_scores, sizes = (np.concatenate(x) for x in zip(*parts, strict=True))
    counts = {
        "queries": len(sizes),
        "too_few": int((indices < 0).any(1).sum()),
        "empty": int((sizes == 0).sum()),
        "full_pool": int((sizes == config.pool).sum()),
    }
    return Mined(indices, scores.astype(np.float32), positive_scores, sizes, counts)


def threshold(positive_scores: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """The highest similarity that a negative may have: s − (1−ε)·|s|, which is ε·s for s ≥ 0; infinite without ε."""
    if epsilon is None:
        return torch.full_like(positive_scores, torch.inf)
    return positive_scores - (1 - epsilon) * positive_scores.abs()


def _search(q_emb, c, own, caption_ids, stands, config, device) -> tuple[torch.Tensor, np.ndarray]:
    """Keys int64[n, pool] of the best candidates below the threshold, best first, and the positive scores float32[n] of n queries."""
    positive = (q_emb * _read(c, own, "candidate", device)).sum(1).float()
    limit = threshold(positive, config.epsilon)[:, None]
    own_ids = torch.from_numpy(caption_ids[own]).to(device)[:, None]
    best = torch.full((len(q_emb), config.pool), NOTHING, device=device)
    for columns in _tiles(len(c), config.tile):
        scores = (q_emb @ _read(c, columns, "candidate", device).T).float()  # n, tile
        said, first = (torch.from_numpy(x[columns]).to(device) for x in (caption_ids, stands))
        out = (scores > limit) | (own_ids == said) | ~first
        keys = _encode(scores.masked_fill_(out, -torch.inf), columns.start)
        best = torch.cat([best, keys], 1).topk(config.pool, dim=1).values
    return best, positive.cpu().numpy()


def _encode(scores: torch.Tensor, first: int) -> torch.Tensor:
    """int64 keys that sort as (score, then lower column first), so that ties never depend on tiles or on the sort."""
    bits = scores.add_(0.0).view(torch.int32)  # adding 0.0 turns −0.0 into 0.0
    keys = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).long()  # integers in the order of the floats
    columns = torch.arange(first, first + scores.shape[1], device=scores.device)
    return keys.bitwise_left_shift_(32).bitwise_or_(LOW - columns)


def _decode(keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(int64 columns, float32 scores) of keys; −1 and NaN where there was no candidate."""
    ordered = (keys >> 32).int()
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    out = ~scores.isfinite()  # left out, or `NOTHING`, whose upper half reads as NaN
    return (LOW - (keys & LOW)).masked_fill(out, -1).cpu().numpy(), scores.masked_fill(out, torch.nan).cpu().numpy()


def _tiles(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _read(array, rows, what: str, device: str) -> torch.Tensor:
    """float64 copy of some rows: in double precision a float32 score is the same whatever the tiles, shards and threads."""
    tile = torch.from_numpy(np.array(array[rows], dtype=np.float64)).to(device)
    bad = ~tile.isfinite().all(1)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"the embedding of {what} {row + rows.start if isinstance(rows, slice) else rows[row]} is not finite")
    return tile


def _check(q, c, positives, caption_ids, config) -> None:
    if q.ndim != 2 or c.ndim != 2 or q.shape[1] != c.shape[1] or not len(q):
        raise ValueError(f"queries {list(q.shape)} and candidates {list(c.shape)} must be [N, D] and [M, D] with N ≥ 1")
    if positives.shape != (len(q),) or caption_ids.shape != (len(c),):
        raise ValueError(
            f"{len(q)} queries need as many positives ({positives.shape}), {len(c)} candidates as many ids ({caption_ids.shape})"
        )
    wrong = np.flatnonzero((positives < 0) | (positives >= len(c)))
    if len(wrong):
        raise ValueError(f"query {wrong[0]} has caption {positives[wrong[0]]}; there are {len(c)} captions")
    if config.epsilon is not None and not 0 <= config.epsilon <= 1:
        raise ValueError(f"epsilon is {config.epsilon}; it must be in [0, 1], or None for no threshold")
    groups_of = 1 if config.strata is None else config.strata
    if min(config.negatives, config.tile, groups_of) < 1 or config.pool < config.negatives * groups_of:
        raise ValueError(
            f"pool {config.pool}, negatives {config.negatives}, strata {config.strata}, tile {config.tile}: all must be at least 1 "
            "and the pool must hold as many candidates as are drawn, one from each group"
        )


# --- 2. the draw --------------------------------------------------------------------------------------------------------------


def _draw(query: int, size: int, config) -> np.ndarray:
    """int64[K]: ranks drawn without replacement from a pool of `size`, by the seed and the query's number alone; −1 fills up."""
    rng = np.random.default_rng([config.seed, query])
    picks = np.full(config.negatives, -1)
    if config.strata is None:
        drawn = rng.permutation(size)[: config.negatives]
        picks[: len(drawn)] = drawn
        return picks
    for group in range(config.negatives):
        members = np.arange(group * config.strata, min((group + 1) * config.strata, size))
        if len(members):
            picks[group] = rng.choice(members)
    return picks


# --- 3. comparison ------------------------------------------------------------------------------------------------------------


def random_negatives(positives, caption_ids, k: int, seed: int, first_query: int = 0) -> np.ndarray:
    """int64[N, K]: candidates drawn evenly from all that do not share the positive's caption id; −1 where there are too few."""
    positives, caption_ids = np.asarray(positives, dtype=np.int64), np.asarray(caption_ids, dtype=np.int64)
    ids, counts = np.unique(caption_ids, return_counts=True)
    out = np.full((len(positives), k), -1)
    for row, own in enumerate(caption_ids[positives]):
        rng = np.random.default_rng([seed, first_query + row])
        equal = int(counts[np.searchsorted(ids, own)])  # so many of the drawn may have to be left out
        drawn = rng.choice(len(caption_ids), size=min(k + equal, len(caption_ids)), replace=False)
        kept = drawn[caption_ids[drawn] != own][:k]
        out[row, : len(kept)] = kept
    return out


def similarities(q, c, indices, tile: int = 256) -> np.ndarray:
    """float32[N, K]: similarity of each query with the candidates that `indices` int64[N, K] names; NaN at −1."""
    parts = []
    for rows in _tiles(len(q), tile):
        named = np.asarray(indices[rows])
        found = np.array(c[np.maximum(named, 0).ravel()], dtype=np.float64).reshape(*named.shape, -1)  # n, K, D
        scores = np.einsum("nd,nkd->nk", np.array(q[rows], dtype=np.float64), found)
        parts.append(np.where(named >= 0, scores, np.nan).astype(np.float32))
    return np.concatenate(parts)


# --- 4. the audit -------------------------------------------------------------------------------------------------------------


def audit(
    mined: Mined, random: np.ndarray, random_scores: np.ndarray, shows: Sequence | None = None, claims: Sequence | None = None
) -> dict:
    """Mean similarities of mined against random negatives, and false-negative rates where the truth is known.

    Args:
        random, random_scores: int64[N, K] and float32[N, K], as `random_negatives` and `similarities` give them.
        shows: for each query, the meanings that its picture shows.
        claims: for each candidate, the meanings that the caption claims; it is true of a picture that shows all of them.

    Raises:
        ValueError: lists of another length, or a caption that claims nothing (of which nothing can be said).
    """
    out = {"positive_similarity": float(mined.positive_scores.mean()), **mined.counts}
    if shows is None:
        return out | {f"{name}_similarity": float(np.nanmean(s)) for name, s in (("mined", mined.scores), ("random", random_scores))}
    if len(shows) != len(mined.indices) or len(random) != len(mined.indices):
        raise ValueError(f"{len(mined.indices)} mined queries, {len(random)} random ones and {len(shows)} truths must be as many")
    shown, claimed = [_meanings(s) for s in shows], [_meanings(s) for s in claims]
    if frozenset() in claimed:
        raise ValueError(f"caption {claimed.index(frozenset())} claims nothing; the audit cannot say of which pictures it is true")
    for name, indices, scores in (("mined", mined.indices, mined.scores), ("random", random, random_scores)):
        pairs = [(n, m) for n, row in enumerate(indices.tolist()) for m in row if m >= 0]
        true = sum(claimed[m] <= shown[n] for n, m in pairs)
        out[f"{name}_pairs"], out[f"{name}_false_negatives"] = len(pairs), true
        out[f"{name}_false_negative_rate"] = true / len(pairs) if pairs else float("nan")
        out[f"{name}_similarity"] = float(np.nanmean(scores)) if pairs else float("nan")
    return out


def _meanings(entries) -> frozenset:
    """Meanings as a set; a meaning read from JSON is a list."""
    return frozenset(tuple(m) if isinstance(m, list) else m for m in entries)
