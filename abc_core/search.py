"""The exact search behind mining: of all candidates below a query's limit the most similar, tile by tile, in memory that does not grow.

A score is the same bits whatever the tiles, shards, threads and device: entries are rounded to multiples of 2⁻²⁶, so every product of two
is a multiple of 2⁻⁵², and for unit vectors every sum of those, in whatever order, is exact in float64. That moves a score by about 6e-9,
less than the float32 that it becomes resolves from 0.1 on. Equal scores rank by the lower column.

Steps, for one tile of queries: (1) `read` a tile of candidates; (2) all scores; those above the worst of the pool so far and below the
limit are few once the pool is full; (3) they join the pool as integers that sort like (score, lower column first).
"""

import numpy as np
import torch

NOTHING = torch.iinfo(torch.int64).min  # a key below every other
LOW = 2**32 - 1  # the lower half of a key
STEP = 2.0**26


def read(array, rows, what: str, device: str) -> torch.Tensor:
    """float64[n, D] of some rows of a float[N, D] array, in multiples of 2⁻²⁶; ValueError names a row that is not finite."""
    tile = torch.from_numpy(np.array(array[rows])).to(device).double()
    bad = ~tile.sum(1).isfinite()
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"the embedding of {what} {row + rows.start if isinstance(rows, slice) else rows[row]} is not finite")
    return tile.mul_(STEP).round_().div_(STEP)


def search(q_emb: torch.Tensor, c, limit: torch.Tensor, allowed, pool: int, tile: int) -> torch.Tensor:
    """int64[n, pool] keys of the best candidates of n queries, best first; see `decode`.

    Args:
        q_emb: float64[n, D], as `read` gives them.
        c: float[M, D], array or memory map.
        limit: float32[n], the highest score that a candidate may have; −inf: none may.
        allowed: (rows int64[S] of q_emb, columns int64[S] of c) -> bool[S], which pairs may be taken.
    """
    n, device = len(q_emb), q_emb.device
    best, memory = torch.full((n, pool), NOTHING, device=device), torch.empty(n * min(tile, len(c)), dtype=torch.float64, device=device)
    above = limit.nextafter(torch.full_like(limit, torch.inf)).double()[:, None]  # what rounds to the limit lies below
    for columns in _steps(len(c), pool, tile):
        size = columns.stop - columns.start
        scores = torch.mm(q_emb, read(c, columns, "candidate", device).T, out=memory[: n * size].view(n, size))
        worst = decode(best[:, -1:])[1].nan_to_num(nan=-torch.inf).double()  # a later candidate of the same score ranks behind
        place = _true_places((scores > worst) & (scores < above))  # S, row by row
        row, column, found = place // size, place % size + columns.start, scores.view(-1)[place].float()
        kept = (found <= limit[row]) & allowed(row, column)
        row, keys = row[kept], _encode(found[kept], column[kept])
        if len(row):
            counts = torch.bincount(row, minlength=n)
            place = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
            fresh = torch.full((n, int(counts.max())), NOTHING, device=device)
            fresh[row, place] = keys
            best = _largest(torch.cat([best, fresh], 1), pool)
    return best


def _steps(count: int, pool: int, tile: int):
    """Slices of M candidates, as many as the pool holds, then twice as many, up to `tile`: so few of each beat the pool so far."""
    start = 0
    while start < count:
        stop = min(count, start + min(tile, max(pool, start)))
        yield slice(start, stop)
        start = stop


def _true_places(mask: torch.Tensor) -> torch.Tensor:
    """int64[S]: where a flattened mask is true. NumPy does it five times as fast on CPU."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.view(-1).nonzero()[:, 0]


def _largest(keys: torch.Tensor, count: int) -> torch.Tensor:
    """int64[n, count]: the largest of every row, the largest first. On CPU NumPy sorts in a tenth of the time of `topk`."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy(), axis=1)[:, : -count - 1 : -1].copy())
    return keys.topk(count, dim=1).values


def _encode(scores: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """int64 keys that sort as (score, then lower column first), so that ties never depend on tiles or on the sort."""
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 turns −0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    return (ordered.long() << 32) | (LOW - columns)


def decode(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64 columns, float32 scores) of keys; −1 and NaN where there was no candidate."""
    ordered = (keys >> 32).int()
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    out = keys == NOTHING
    return (LOW - (keys & LOW)).masked_fill(out, -1), scores.masked_fill(out, torch.nan)
