"""Hard negatives mined by the model itself (Sec. 3.2): almost right captions for every picture, none of them too right.

Steps: (1) `mine` keeps, per query, the candidates whose similarity is at most ε times that of its positive, and of those the `pool` (100)
most similar, each text once: threshold first, then top-100 (`search`); (2) it draws `negatives` (7) of the pool at random, seeded
per query; (3) `random_negatives` and `similarities` give the comparison; (4) `audit` measures, where the truth is known, how many
"negatives" are true of the picture.

`mine` returns arrays; `mine_to_file` does the same tile by tile into a file, resumable, in one process or several; `plan` says before
what that takes. On CPU as many tiles are searched side by side as there are threads, up to `AT_ONCE`.

Letters: N queries · M candidates · D embedding width · K negatives per query.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from abc_core.mining.search import decode, read, search
from abc_core.runs.arrays import fill, spell, spell_bytes, tiles

AT_ONCE = 8  # tiles of queries, at most, that are searched side by side; each holds its own products


@dataclass(frozen=True)
class Mined:
    """What `mine` found; rows follow the queries, −1 and NaN fill the places that a too small pool leaves empty."""

    indices: np.ndarray  # int64[N, K], rows of the candidates, in the order drawn
    scores: np.ndarray  # float32[N, K], their similarity to the query
    positive_scores: np.ndarray  # float32[N], similarity of the query's own caption; NaN for an unreadable picture
    pool_sizes: np.ndarray  # int64[N], candidates drawn from, at most config.pool
    counts: dict  # queries, too_few (a −1 in the row), empty (nothing but −1), full_pool, unreadable (in none of the others)


# --- 1. the search ------------------------------------------------------------------------------------------------------------


def mine(q, c, positives, caption_ids, config, first_query: int = 0, device: str = "cpu") -> Mined:
    """Mine negatives for each query among the candidates.

    Args:
        q, c: float[N, D] and float[M, D], unit vectors of pictures and captions, arrays or memory maps. A query of zeros is a picture that
            could not be read: nothing is mined for it.
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
    rows = _miner(q, c, positives, caption_ids, config, first_query, device)
    with _side_by_side(device) as mapped:
        return as_mined(np.concatenate(list(mapped(rows, tiles(len(q), config.tile)))), config)


def mine_to_file(path: Path, q, c, positives, caption_ids, config, device: str = "cpu", report: Callable | None = None) -> Mined:
    """`mine`, tile by tile into the file `path`, from which the arrays of the result are mapped; a killed call goes on at its next tile.

    Of several processes, which must all call this, each takes its share of the tiles; the result is the same, bit for bit.

    Args:
        path: an .npy file; its name must change with whatever the result depends on (a run's folder does).
    Raises:
        ValueError: as `mine`, or the file holds rows of other numbers.
        OSError: no room on the disk, or the file could not be written; what was written stays.
    """
    rows = _miner(q, c, positives, caption_ids, config, 0, device)
    with _side_by_side(device) as mapped:
        return as_mined(fill(path, len(q), row_type(config), rows, config.tile, report, mapped=mapped), config)


def row_type(config) -> np.dtype:
    """What a file of `mine_to_file` holds for a query."""
    k = config.negatives
    return np.dtype([("indices", np.int64, (k,)), ("scores", np.float32, (k,)), ("positive_score", np.float32), ("pool_size", np.int64)])


def as_mined(rows: np.ndarray, config) -> Mined:
    """The rows of a file of `mine_to_file`, N of `row_type`, by name and counted."""
    sizes, read_in = rows["pool_size"], ~np.isnan(rows["positive_score"])
    counts = {
        "queries": len(sizes),
        "too_few": int((rows["indices"] < 0).any(1)[read_in].sum()),
        "empty": int((sizes[read_in] == 0).sum()),
        "full_pool": int((sizes == config.pool).sum()),
        "unreadable": int((~read_in).sum()),
    }
    return Mined(rows["indices"], rows["scores"], rows["positive_score"], sizes, counts)


@dataclass(frozen=True)
class Plan:
    """What mining takes, known before it starts; printed, it is a table."""

    queries: int  # N
    candidates: int  # M
    width: int  # D
    processes: int
    operations: int  # 2·N·M·D, floating-point, float64
    speed: float  # such operations a second, of one process
    embedding_bytes: int  # of both files of float32 vectors
    result_bytes: int  # of the file of `mine_to_file`
    reading_bytes: int  # of candidates, by one process, tile after tile; from the page cache where it holds them
    process_bytes: int  # held by one process besides its model

    @property
    def seconds(self) -> float:
        """Of the search alone, at the speed given or measured."""
        return self.operations / self.speed / self.processes

    def __str__(self) -> str:
        rows = {
            "products": f"{self.queries:,} × {self.candidates:,} × {self.width:,}: {self.operations:.3g} floating-point operations",
            "files": f"{spell_bytes(self.embedding_bytes)} of embeddings, {spell_bytes(self.result_bytes)} of mined rows",
            "memory": f"{spell_bytes(self.process_bytes)} a process, besides the model",
            "reading": f"{spell_bytes(self.reading_bytes)} of captions' embeddings a process, over all its tiles",
            "search": f"{spell(self.seconds)} at {self.speed / 1e9:,.3g} GFLOP/s a process, {self.processes} in all",
        }
        return "\n".join(f"{name:9s}{text}" for name, text in rows.items())


def plan(queries: int, candidates: int, width: int, config, processes: int = 1, device: str = "cpu", speed: float | None = None) -> Plan:
    """What `mine_to_file` takes for N queries, M candidates and embeddings of a width, in several processes.

    Args:
        speed: operations a second of one process; None: measured here, in seconds, on a few real tiles; on CPU the processes share it.

    **Caveat:** the time is that of the search: the model has to embed both sides before, and that is not in it.
    """
    n, m, wide = (min(size, count) for size, count in ((config.tile, queries), (config.tile, candidates), (2 * config.tile, candidates)))
    queries_and_scores, candidates_or_masks = n * (16 * width + 8 * m), max(14 * wide * width, 8 * n * m)
    pool = 100 * n * config.pool
    if speed is None:
        speed = _measured_speed(candidates, width, config, device) / (processes if device == "cpu" else 1)
    return Plan(
        queries, candidates, width, processes, operations=2 * queries * candidates * width, speed=speed,
        embedding_bytes=4 * (queries + candidates) * width, result_bytes=queries * row_type(config).itemsize,
        reading_bytes=4 * -(-len(tiles(queries, config.tile)) // processes) * candidates * width,
        process_bytes=_at_once(device, processes) * (queries_and_scores + candidates_or_masks + pool) + 8 * queries + 9 * candidates,
    )  # fmt: skip


def _measured_speed(candidates: int, width: int, config, device: str) -> float:
    """Operations a second of the search, reading and sorting included: tiles of random queries, as many as are searched side by side,
    against two tiles of candidates and against eight.

    The first tiles cost more, as they fill the pool; what each further one adds is carried on to all M candidates.
    """
    rng, n, many = np.random.default_rng(0), config.tile * _at_once(device), min(8 * config.tile, candidates)
    q, c = (rng.standard_normal((rows, width), dtype=np.float32) / np.float32(width**0.5) for rows in (n, many))

    def clock(m: int) -> float:
        rows = _miner(q, c[:m], np.arange(n) % m, np.arange(m), config, 0, device)
        times = []
        for _ in range(3):  # the fastest, as other work on the machine only slows it down
            start = time.perf_counter()
            with _side_by_side(device) as mapped:
                list(mapped(rows, tiles(n, config.tile)))
            times.append(time.perf_counter() - start)
        return min(times)

    few = max(1, many // 4)
    first, seconds = clock(few), clock(many)
    seconds += max(0.0, seconds - first) / max(1, many - few) * (candidates - many)
    return 2 * n * candidates * width / seconds


def _at_once(device: str, processes: int = 1) -> int:
    """Tiles of queries that each process searches side by side; several processes share the threads that this one has."""
    return max(1, min(AT_ONCE, torch.get_num_threads() // processes)) if torch.device(device).type == "cpu" else 1


@contextmanager
def _side_by_side(device: str) -> Iterator[Callable]:
    """`map`, over several tiles at a time, whose comparisons, joins and draws have one thread each and share that of their products."""
    threads, workers = torch.get_num_threads(), _at_once(device)
    if workers == 1:
        yield map
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # for threads that start later, which take what was set last


def threshold(positive_scores: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """The highest similarity that a negative may have: s − (1−ε)·|s|, which is ε·s for s ≥ 0; infinite without ε."""
    if epsilon is None:
        return torch.full_like(positive_scores, torch.inf)
    return positive_scores - (1 - epsilon) * positive_scores.abs()


def _miner(q, c, positives, caption_ids, config, first_query: int, device: str) -> Callable:
    """slice of queries -> the rows mined for them."""
    positives, caption_ids = np.asarray(positives, dtype=np.int64), np.asarray(caption_ids, dtype=np.int64)
    _check(q, c, positives, caption_ids, config)
    said, stands = torch.tensor(caption_ids, device=device), torch.zeros(len(c), dtype=torch.bool, device=device)
    stands[torch.from_numpy(np.unique(caption_ids, return_index=True)[1]).to(device)] = True

    @torch.no_grad()
    def rows(part: slice) -> np.ndarray:
        q_emb, own = read(q, part, "query", device), positives[part]
        own_ids = said[torch.tensor(own, device=device)]
        positive = torch.einsum("nd,nd->n", q_emb.double(), read(c, own, "candidate", device).double()).float()
        unreadable = ~q_emb.any(1)
        limit = threshold(positive, config.epsilon).masked_fill(unreadable, -torch.inf)
        allowed = lambda row, column: stands[column] & (said[column] != own_ids[row])  # noqa: E731
        indices, scores = (x.cpu().numpy() for x in decode(search(q_emb, c, limit, allowed, config.pool, config.tile)))
        out = np.empty(len(own), row_type(config))
        out["positive_score"], out["pool_size"] = positive.masked_fill(unreadable, torch.nan).cpu().numpy(), (indices >= 0).sum(1)
        sizes = enumerate(out["pool_size"].tolist(), first_query + part.start)
        picks = np.stack([_draw(query, size, config) for query, size in sizes])  # n, K; −1 is empty
        out["indices"] = np.where(picks >= 0, np.take_along_axis(indices, picks, 1), -1)
        out["scores"] = np.where(picks >= 0, np.take_along_axis(scores, picks, 1), np.float32(np.nan))
        return out

    return rows


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
    for rows in tiles(len(q), tile):
        named = np.asarray(indices[rows])
        found = read(c, np.maximum(named, 0).ravel(), "candidate", "cpu").double().view(*named.shape, -1)  # n, K, D
        scores = torch.einsum("nd,nkd->nk", read(q, rows, "query", "cpu").double(), found).float().numpy()
        parts.append(np.where(named >= 0, scores, np.float32(np.nan)))
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
    out = {"positive_similarity": float(np.nanmean(mined.positive_scores)), **mined.counts}
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
