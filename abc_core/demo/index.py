"""What a retrieval demo can find: texts or pictures, their unit vectors, and the few nearest to a query.

(1) `build` embeds them once, into a run folder that is named after everything the vectors depend on; (2) `Index.nearest` searches exactly:
a first pass over vectors rounded to int8, a quarter of the bytes and so of the time, finds all entries that could be among the best;
these are scored again in float32.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from abc_core.data.vectors import embed_to_file
from abc_core.runs import run as runlog
from abc_core.runs.arrays import blank_rows, tiles

BLOCK = 1024  # entries of which the best is looked at first
CHUNK = 8192  # entries that are converted at a time


class Index:
    """Entries and their unit vectors.

    Args:
        entries: N texts or paths. emb: float32[N, D], array or memory map; a row of zeros is never found.
        approximate_above: with more entries than this `faiss` searches, approximately; None: the search is always exact.
    Raises:
        ValueError: another number of entries than of vectors, or none. ModuleNotFoundError: `faiss` is needed and not installed.
    """

    def __init__(self, entries: Sequence, emb: np.ndarray, approximate_above: int | None = None):
        if len(entries) != len(emb) or not len(entries):
            raise ValueError(f"{len(entries)} entries and {len(emb)} vectors; an index needs as many of both, and one at least")
        self.entries, self.emb = entries, emb
        approximate = approximate_above is not None and len(entries) > approximate_above
        self._faiss = _faiss_of(emb, approximate_above) if approximate else None

    def __len__(self) -> int:
        return len(self.entries)

    def nearest(self, q_emb: np.ndarray, k: int = 5) -> list[tuple]:
        """The k best of all entries for one query float32[D], as (entry, cosine), best first; of equal ones the earlier entry first."""
        if self._faiss is None:
            rows = self._candidates(q_emb, k)
        else:
            rows = self._faiss.search(np.asarray(q_emb, dtype=np.float32)[None], min(4 * k, len(self)))[1][0]
            rows = np.sort(rows[rows >= 0])
        scores = np.array(self.emb[rows]) @ np.asarray(q_emb, dtype=np.float32)
        return [(self.entries[rows[i]], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:k]]

    def _candidates(self, q_emb: np.ndarray, k: int) -> np.ndarray:
        """int64[≥ k]: every entry that may be among the k best, in their order."""
        rounded, steps, blank, error = self._rounded
        query = torch.from_numpy(np.array(q_emb, dtype=np.float32))
        step = query.abs().max().clamp_min(1e-30) / 127
        whole = (query / step).round()
        # |q·c − q'·c'| ≤ |q| |c − c'| + |q − q'| |c'|, where ' is rounded: so much is a score off at most
        off = query.norm() * error + (query - whole * step).norm() * (1 + error) + 1e-5
        scores = torch._int_mm(rounded, whole.to(torch.int8)[:, None])[:, 0] * (steps * step)
        scores[blank] = -torch.inf
        # The best of every block are entries, too: the k-th of them is no better than the k-th of all, and found in no time.
        size = len(scores) // BLOCK * BLOCK
        best = scores[:size].view(-1, BLOCK).amax(1) if size >= k * BLOCK else scores
        worst = best.topk(min(k, len(best))).values[-1]
        return np.flatnonzero((scores >= (worst - 2 * off).clamp_min(-1e30)).numpy())

    @cached_property
    def _rounded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """int8[N, D], their steps float32[N], the rows of zeros int64[…], and the largest distance of a vector to its rounded one.

        Made at the first search.
        """
        out, steps, error = torch.empty(self.emb.shape, dtype=torch.int8), torch.empty(len(self)), 0.0
        for rows in tiles(len(out), CHUNK):
            part = torch.from_numpy(np.array(self.emb[rows], dtype=np.float32))
            steps[rows] = part.abs().amax(1) / 127
            step = steps[rows, None].clamp_min(1e-30)
            out[rows] = whole = (part / step).round()
            error = max(error, float((part - whole * step).norm(dim=1).max()))
        return out, steps, (steps == 0).nonzero()[:, 0], error


def _faiss_of(emb: np.ndarray, above: int):
    """An inverted-file index of faiss, √N lists of which a sixteenth are looked at."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        advice = "install faiss-cpu, or leave `approximate_above` out for the exact search"
        raise ModuleNotFoundError(
            f"{len(emb):,} entries are more than {above:,}, so faiss was to search, and it is not installed: {advice}"
        ) from error
    lists = max(1, int(len(emb) ** 0.5))
    index = faiss.index_factory(emb.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.array(emb[:: max(1, len(emb) // (64 * lists))], dtype=np.float32))
    for rows in tiles(len(emb), CHUNK):
        index.add(np.array(emb[rows], dtype=np.float32))
    index.nprobe = max(1, lists // 16)
    return index


def build(embedder, entries: Sequence, report: Callable | None = None, unreadable: float = 0.5, **options) -> Index:
    """The index of texts, or of the pictures at some paths, embedded now or by an earlier call.

    It is kept in RUNS under a name that depends on the embedder's fingerprint and on the entries (of a picture on path, size and time of
    change); its vectors are checked against their own when they are read again. A killed call goes on where it stopped.

    Args:
        embedder: whose `embed` makes the vectors: of pictures alone, without instruction.
        unreadable: share of the pictures that may not be decoded; they are named in `report`, and never found.
        options: of `Index`.
    Raises:
        ValueError: no entries, too many pictures are unreadable, or the vectors are not those that were written.
    """
    if not len(entries):
        raise ValueError("there is nothing to index: no entries")
    texts = isinstance(entries[0], str)
    facts = [[str(e)] if texts else [str(e), (s := Path(e).stat()).st_size, s.st_mtime_ns] for e in entries]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    inputs = {"embedder": embedder.fingerprint, "entries": digest}
    run = runlog.open_run("captions" if texts else "pictures", {"width": embedder.width}, inputs)
    path = run.folder / "vectors.npy"
    if not run.finished:
        try:
            embed = partial(embedder.embed, None) if texts else embedder.embed  # its second argument is texts, its first pictures
            embed_to_file(path, embed, entries, embedder.width, 512 if texts else 64, report, 0.0 if texts else unreadable)
            run.finish(entries=len(entries), blank=len(blank_rows(path)), vectors=runlog.fingerprint(path))
        finally:
            run.release()
    written, now = run.result()["vectors"], runlog.fingerprint(path)
    if written != now:
        found = f"its fingerprint was {written} and is {now}"
        raise ValueError(f"{path} has changed since it was written ({found}); delete {run.folder} to build it anew")
    return Index(entries, np.load(path, mmap_mode="r"), **options)
