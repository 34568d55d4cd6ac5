"""The exact search behind mining: of all candidates below a query's limit the most similar, tile by tile, in memory that does not grow.

A score is the same bits whatever the tiles, shards, threads and device: entries are rounded to multiples of 2⁻²⁶, so every product of two
is a multiple of 2⁻⁵², and for unit vectors every sum of those, in whatever order, is exact in float64. That moves a score by about 6e-9,
less than the float32 that it becomes resolves from 0.1 on. Equal scores rank by the lower column.

Steps, for one tile of queries: (1) `read` a tile of candidates; (2) a rough product, in bfloat16 where the CPU multiplies it and in float32
elsewhere, whose error has a bound (`_near`): pairs that may lie above the worst of the pool so far and below the limit are few once the
pool is full, and only they are multiplied in float64 (`_products`); where they are many, all are (`_dense`); (3) they join the pool as
integers that sort like (score, lower column first).

The best of the tiles so far foretell the worst that will stay in the pool (`_rank`), and what is below that is left out too. A query whose
pool ends below what was left out is searched again without: no guess changes a result.
"""

import math
import warnings
from functools import partial

import numpy as np
import torch

NOTHING = torch.iinfo(torch.int64).min  # a key below every other
LOW = 2**32 - 1  # the lower half of a key
STEP = 2.0**26
FEW = 8  # one pair in so many is worth its own product in float64


def read(array, rows, what: str, device: str) -> torch.Tensor:
    """float[n, D] of some rows of a float[N, D] array, in multiples of 2⁻²⁶, which float32 holds if the array does; else float64.

    ValueError names a row that is not finite.
    """
    tile = torch.from_numpy(np.array(array[rows])).to(device)
    tile = tile if tile.dtype == torch.float32 else tile.double()
    bad = ~tile.mul_(STEP).sum(1).isfinite()
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"the embedding of {what} {row + rows.start if isinstance(rows, slice) else rows[row]} is not finite")
    return tile.round_().div_(STEP)


def search(q_emb: torch.Tensor, c, limit: torch.Tensor, allowed, pool: int, tile: int) -> torch.Tensor:
    """int64[n, pool] keys of the best candidates of n queries, best first; see `decode`.

    Args:
        q_emb: float[n, D], as `read` gives them.
        c: float[M, D], array or memory map.
        limit: float32[n], the highest score that a candidate may have; −inf: none may.
        allowed: (rows int64[S] of q_emb, columns int64[S] of c) -> bool[S], which pairs may be taken.
    """
    best, floor = _sift(q_emb, c, limit, allowed, pool, tile, True)
    late = (_worst(best) < floor).nonzero()[:, 0]
    if len(late):
        best[late] = _sift(q_emb[late], c, limit[late], lambda row, column: allowed(late[row], column), pool, tile, False)[0]
    return best


def _sift(q_emb, c, limit, allowed, pool: int, tile: int, hopeful: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64[n, pool] keys, float32[n] a bound below which candidates may have been left out); −inf for all, if not `hopeful`."""
    n, device, rough = len(q_emb), q_emb.device, rough_type(q_emb.device)
    best, floor = torch.full((n, pool), NOTHING, device=device), torch.full((n,), -torch.inf, device=device)
    exact, rounded, begun = q_emb.double(), None if rough is None else _rounded(q_emb, rough), 0
    memory = torch.empty(n * min(tile, len(c)), dtype=torch.float64, device=device)  # for products, rough or exact

    def joined(columns: slice, guessed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The pool with a tile's candidates, and what bounds those left out so far: infinite if a guess does not leave out enough."""
        c_emb, worst, bound = read(c, columns, "candidate", device), _worst(best), floor
        if hopeful and columns.start:
            bound = floor.maximum(_worst(best, _rank(pool, columns.start, len(c))))
        # A later candidate of the same score ranks behind; of those on the bound none may be left out.
        worst = worst.maximum(bound.nextafter(torch.full_like(bound, -torch.inf)))
        near = None if rough is None else _near(rounded, _rounded(c_emb, rough), worst, limit, memory.view(rough), guessed)
        if guessed and near is None:
            return best, torch.full_like(floor, torch.inf)
        row, column, found = _dense(exact, c_emb, worst, limit, memory) if near is None else _products(exact, c_emb, *near[:2])
        kept = (found > worst[row]) & (found <= limit[row])
        row, column, found = row[kept], column[kept] + columns.start, found[kept]
        kept = allowed(row, column)
        return _join(best, row[kept], _encode(found[kept], column[kept])), bound if near is None else bound.maximum(near[2])

    columns = slice(0, min(2 * tile, len(c)))
    if hopeful and rough is not None and columns.stop > 8 * pool:
        rank = _rank(pool, columns.stop, len(c))
        fresh, bound = joined(columns, rank + rank // 2 + 8)
        if (_worst(fresh, rank) >= bound).all():
            best, floor, begun = fresh, bound, columns.stop
    for columns in _steps(begun, len(c), pool, tile if rough is None else 2 * tile):
        best, floor = joined(columns)
    return best, floor


def _rank(pool: int, seen: int, count: int) -> int:
    """A rank among the first `seen` of all `count` candidates that the pool will not reach up to, if their order says nothing.

    Of the pool about pool·seen/count will be among them; five deviations more, and two for where that is a handful, are as good as never.
    """
    share = seen / count
    return min(pool, 2 + math.ceil(pool * share + 5 * math.sqrt(pool * share * (1 - share))))


def _join(best: torch.Tensor, row: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """int64[n, pool]: the best of the pool and of new keys int64[S], which belong to rows, row by row."""
    if not len(row):
        return best
    counts = torch.bincount(row, minlength=len(best))
    place = torch.arange(len(row), device=best.device) - (counts.cumsum(0) - counts)[row]
    fresh = torch.full((len(best), int(counts.max())), NOTHING, device=best.device)
    fresh[row, place] = keys
    return _largest(torch.cat([best, fresh], 1), best.shape[1])


def _worst(best: torch.Tensor, rank: int = 0) -> torch.Tensor:
    """float32[n]: the lowest score of each pool, or that of a rank from 1 on; −inf while there are fewer."""
    return decode(best[:, [rank - 1]])[1][:, 0].nan_to_num(nan=-torch.inf)


def rough_type(device: torch.device) -> torch.dtype | None:
    """What the first, rough product is computed in; None: there is none, as on GPUs, whose sums in bfloat16 have no such bound."""
    if device.type != "cpu" or not torch.backends.mkl.is_available():  # which `torch.sparse.sampled_addmm` needs
        return None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def _near(queries, candidates, worst, limit, memory, guessed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """(rows int64[S], columns int64[S], float32[n]) of all pairs whose score may lie above `worst` and not above `limit`; None: of many.

    With `guessed`, of the so many highest rough scores of each row alone: what is left out lies below the third value, and a pool whose
    worst does too has to be searched again.

    With q', c' the rough vectors, |q·c − q'·c'| ≤ |q − q'|·|c| + |q'|·|c − c'|, and float32 sums of D products err by less than
    D·2⁻²³·|q'|·|c'|, in whatever order. Rounding is monotone, so a result in bfloat16 is compared with a bound in bfloat16. Positive
    floats sort as the integers of their bits, which NumPy compares fastest; a bound that is not positive lets everything through.
    """
    (q, q_error, q_norm), (c, c_error, c_norm), rough = queries, candidates, memory.dtype
    slack = q_error * (c_norm + c_error).max() + (q_norm + q_error) * (c_error.max() + q.shape[1] * 2.0**-23 * c_norm.max() * 1.02)
    slack = 1.001 * slack.double() + 1e-30  # for the rounding of the norms, and for numbers too small for a float
    low, high = (worst - slack).to(rough), (limit + slack).to(rough)
    kind = torch.int16 if rough == torch.bfloat16 else torch.int32
    bits = torch.mm(q, c.T, out=memory[: len(q) * len(c)].view(len(q), len(c))).view(kind).numpy()
    least, most = (bound.view(kind).masked_fill(bound <= 0, nothing) for bound, nothing in ((low, torch.iinfo(kind).min), (high, 0)))
    floor = torch.full_like(worst, -torch.inf)
    if guessed:
        below = np.where(bits <= most[:, None].numpy(), bits, np.iinfo(bits.dtype).min)
        taken = torch.from_numpy(np.partition(below, len(c) - guessed, axis=1)[:, len(c) - guessed].copy())
        least = torch.where(taken > 0, taken.maximum(least), least)
        floor = torch.where(taken > 0, taken.view(rough).double() + slack, floor).float()
    mask, few = bits >= least[:, None].numpy(), 4 if guessed else FEW
    if few * np.count_nonzero(mask) > mask.size:
        mask &= bits <= most[:, None].numpy()
        if few * np.count_nonzero(mask) > mask.size:
            return None
    place = torch.from_numpy(np.flatnonzero(mask))
    row = place // len(c)
    return row, place - row * len(c), floor


def _rounded(x: torch.Tensor, rough: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors in another type, the length of what that leaves out, and their own length: rough[n, D], float32[n], float32[n]."""
    out = x.to(rough)
    return out, torch.linalg.vector_norm(x - out.to(x.dtype), dim=1).float(), torch.linalg.vector_norm(x, dim=1).float()


def _products(q_emb: torch.Tensor, c_emb: torch.Tensor, row: torch.Tensor, column: torch.Tensor):
    """(rows, columns, float32[S] scores) of named pairs, row by row, without copies of their vectors."""
    starts = torch.nn.functional.pad(torch.bincount(row, minlength=len(q_emb)).cumsum(0), (1, 0))
    pairs = _sparse(starts, column, torch.zeros(len(row), dtype=torch.float64), (len(q_emb), len(c_emb)))
    return row, column, torch.sparse.sampled_addmm(pairs, q_emb, c_emb.double().T, beta=0.0).values().float()


_sparse = partial(torch.sparse_csr_tensor, check_invariants=False)
with warnings.catch_warnings():  # torch says once that these are in beta; filters are not for threads, so it says it here
    warnings.simplefilter("ignore")
    _sparse(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def _dense(q_emb: torch.Tensor, c_emb: torch.Tensor, worst: torch.Tensor, limit: torch.Tensor, memory):
    """(rows, columns, float32[S] scores) of the pairs above `worst` and not above `limit`, row by row, from all products."""
    above = limit.nextafter(torch.full_like(limit, torch.inf)).double()[:, None]  # what rounds to the limit lies below
    parts, size = [], len(memory) // len(q_emb)
    for start in range(0, len(c_emb), size):
        part = c_emb[start : start + size].double()
        scores = torch.mm(q_emb, part.T, out=memory[: len(q_emb) * len(part)].view(len(q_emb), len(part)))
        place = _true_places((scores > worst.double()[:, None]) & (scores < above))
        parts.append((place // len(part), place % len(part) + start, scores.view(-1)[place].float()))
    row, column, found = map(torch.cat, zip(*parts))
    order = row.argsort(stable=True) if len(parts) > 1 else slice(None)
    return row[order], column[order], found[order]


def _steps(start: int, count: int, pool: int, tile: int):
    """Slices of M candidates, as many as the pool holds, then twice as many, up to `tile`: so few of each beat the pool so far."""
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
