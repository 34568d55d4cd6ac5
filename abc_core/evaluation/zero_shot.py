"""Scores of any system on any evaluation set (Sec. 4.1 and 4.4): embed once, keep, compare in blocks.

Steps of `score`: (1) `queries` and `candidates` embed every distinct picture, text or instructed picture once, into files named after the
system and the items, so a killed run goes on where it stopped and both directions of a retrieval share their embeddings; (2) `score_blocks`
compares a few queries with a few candidates at a time, straight out of the files; (3) `evaluate.task_ranks`, and a row with an interval.

**Caveat:** R@k falls with the number of candidates: compare rows of the same task only. Ties count against a system; `r1_optimistic` says
what they would give in its favour, where that differs.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import file_digest, sha256
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from abc_core.data.pictures import Member
from abc_core.data.reading import changed
from abc_core.data.tasks import Task
from abc_core.evaluation.metrics import recall, table_row, task_ranks
from abc_core.runs import paths
from abc_core.runs.arrays import fill, tiles
from abc_core.runs.run import fingerprint

BLOCK = 1 << 25  # bytes of scores held at a time
WIDE = 4096  # queries and candidates compared at a time


def score(task: Task, system, folder: Path | None = None, batch: int = 256, report: Callable | None = None, seed: int = 0) -> dict:
    """One row of a results table.

    Args:
        system: name, fingerprint, embed(images=, texts=, instructions=) as `Embedder.embed` takes them, and score(q, c) unless that is the
            matrix product. Its embeddings are float32[N, D], or float32[N, T, D] with zeros for tokens that are none.
        folder: where embeddings are kept; None: RUNS/embeddings.
        batch: items embedded between two writes to the disk.
        seed: of the bootstrap over `task.groups`.
    Returns:
        {system, task, kind, r1, r5, r10, r1_low, r1_high, r1_optimistic, n, candidates}: per cent; r1_optimistic is None where ties do not
        matter; candidates is how many a query chooses among, at most.
    Raises:
        ValueError: a picture that cannot be decoded (its file is named), or embeddings that are no finite float32 of one shape.
        FileNotFoundError: a picture that is not there any more.
    """
    q_emb, q_row = queries(task, system, folder, batch, report)
    c_emb, c_row = candidates(task, system, folder, batch, report)
    pessimistic, optimistic = task_ranks(score_blocks(system, q_emb, c_emb, q_row, c_row), task.right, task.choices)
    row = table_row(system.name, pessimistic, task.groups, seed) | {"r1_optimistic": recall(optimistic, 1)}
    if row["r1_optimistic"] == row["r1"]:
        row["r1_optimistic"] = None
    offered = len(task.candidates) if task.choices is None else max(map(len, task.choices))
    return {"system": row.pop("system"), "task": task.name, "kind": task.kind, **row, "candidates": offered}


# --- 1. embeddings --------------------------------------------------------------------------------------------------------------


def queries(task: Task, system, folder=None, batch: int = 256, report: Callable | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the distinct queries of a task, a memory map float32[N, ...], and int64[Q], the row of each query.

    Raises:
        ValueError: as `score`; or queries of several kinds (texts, pictures, instructed pictures) in one task.
    """
    kinds = {"texts" if p < 0 else "pictures" if text is None else "instructed" for p, text in zip(task.shown, task.texts)}
    if len(kinds) != 1:
        raise ValueError(f"{task.name}: queries of several kinds, {', '.join(sorted(kinds))}, in one task")
    kind = kinds.pop()
    if kind == "texts":
        return _texts(system, task.texts, folder, batch, report)
    digests = [_digest(picture) for picture in task.pictures]
    asked = list(zip(task.shown.tolist(), task.texts))
    distinct = sorted(set(asked), key=lambda query: query[0]) if kind == "pictures" else sorted(set(asked))  # those of a picture together
    number = {query: k for k, query in enumerate(distinct)}
    rows = np.array([number[query] for query in asked])
    if kind == "pictures":
        embed = lambda items: system.embed(images=[task.pictures[p] for p, _ in items])  # noqa: E731
        key = [digests[p] for p, _ in distinct]
    else:
        embed = lambda items: system.embed(**_by_picture(task, items))  # noqa: E731
        key = [part for p, text in distinct for part in (digests[p], text)]
    return _kept(system, kind, key, distinct, embed, folder, batch, report), rows


def candidates(task: Task, system, folder=None, batch: int = 256, report: Callable | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the distinct candidates of a task, a memory map float32[N, ...], and int64[C], the row of each candidate."""
    if task.of_texts:
        return _texts(system, task.candidates, folder, batch, report)
    key = [_digest(picture) for picture in task.candidates]
    embed = lambda items: system.embed(images=items)  # noqa: E731
    return _kept(system, "pictures", key, task.candidates, embed, folder, batch, report), np.arange(len(key))


def in_memory(embed: Callable, task: Task, system, report: Callable | None = None) -> np.ndarray:
    """float32[N, ...] of all queries of a task, or of all candidates, as `embed` says (`queries` or `candidates`); no file is left."""
    with TemporaryDirectory() as folder:
        vectors, row = embed(task, system, folder, report=report)
        return vectors[row]


def _texts(system, texts, folder, batch, report) -> tuple[np.ndarray, np.ndarray]:
    distinct = sorted(set(texts))  # sets with the same labels in another order share their embeddings
    number = {text: k for k, text in enumerate(distinct)}
    embed = lambda items: system.embed(texts=items)  # noqa: E731
    return _kept(system, "texts", distinct, distinct, embed, folder, batch, report), np.array([number[text] for text in texts])


def _by_picture(task: Task, asked: list[tuple[int, str]]) -> dict[str, list]:
    """Arguments of `embed`: each picture once, with all of its instructions, in the order of `asked`."""
    together: dict[int, list[str]] = {}
    for picture, text in asked:
        together.setdefault(picture, []).append(text)
    return {"images": [task.pictures[p] for p in together], "instructions": list(together.values())}


def _kept(system, kind: str, key: list[str], items, embed: Callable, folder, batch: int, report) -> np.ndarray:
    """Memory map of the embeddings of `items`; those that an earlier call has made are not made again."""
    folder = Path(folder) if folder is not None else paths.RUNS / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{fingerprint(system.fingerprint, kind, *key)}.npy"
    first = None if path.exists() else _checked(embed(list(items[:batch])), len(items[:batch]), system.name, None)
    shape = np.load(path, mmap_mode="r").shape[1:] if first is None else first.shape[1:]

    def make(rows: slice) -> np.ndarray:
        if rows.start == 0 and first is not None:
            return first
        return _checked(embed(list(items[rows])), rows.stop - rows.start, system.name, shape)

    made = fill(path, len(items), np.dtype((np.float32, shape)), make, batch, report, name=lambda k: f"{kind} item {k}")
    return np.asarray(made)  # still the map, but what comes of it are plain arrays


def _checked(vectors: np.ndarray, count: int, name: str, shape: tuple | None) -> np.ndarray:
    """Embeddings that are finite numbers of the right number and shape."""
    if vectors.dtype != np.float32 or vectors.ndim < 2 or len(vectors) != count or vectors.shape[1:] != (shape or vectors.shape[1:]):
        wanted = f"float32{[count, *shape]}" if shape else f"float32[{count}, D]"
        raise ValueError(f"{name} gave {vectors.dtype}{list(vectors.shape)} for {count} items; {wanted} was expected")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name} gave an embedding that is not finite")
    return vectors


def _digest(picture) -> str:
    """What a picture is, by its bytes; of a file that did not change since it was asked for last, without reading it again."""
    if isinstance(picture, Image.Image):
        return sha256(repr((picture.mode, picture.size)).encode() + picture.tobytes()).hexdigest()
    return _digest_of_file(picture, changed(picture.path if isinstance(picture, Member) else picture))


@lru_cache(maxsize=1 << 17)
def _digest_of_file(picture, _changed: int) -> str:
    if isinstance(picture, Member):
        return sha256(picture.read()).hexdigest()
    with open(picture, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


# --- 2. scores ------------------------------------------------------------------------------------------------------------------


def score_blocks(
    system, q_emb: np.ndarray, c_emb: np.ndarray, q_row: np.ndarray, c_row: np.ndarray, block: int = BLOCK, wide: int = WIDE
) -> Iterator[np.ndarray]:
    """float32[b, C] after float32[b, C] of the queries' scores, about `block` bytes of them, or one row, at a time.

    Args:
        q_emb, c_emb: embeddings of distinct queries and candidates, such as memory maps; of them no copy is made.
        q_row, c_row: int64[Q] and int64[C], the row of each query and candidate.
        wide: queries and candidates that the system compares at a time; fewer where every pair of their tokens has a score.
    """
    compare = getattr(system, "score", None) or (lambda q, c: q @ c.T)
    each = np.array_equal(c_row, np.arange(len(c_emb)))
    numbers = block // 4
    pairs = int(np.prod(q_emb.shape[1:-1])) * int(np.prod(c_emb.shape[1:-1]))  # of tokens; 1 for vectors
    high = max(1, min(wide, numbers // len(c_emb), isqrt(numbers // pairs)))
    broad = max(1, min(wide, numbers // (pairs * high)))
    for rows in tiles(len(q_row), high):
        q, scores = q_emb[q_row[rows]], np.empty((rows.stop - rows.start, len(c_emb)), dtype=np.float32)
        for columns in tiles(len(c_emb), broad):
            scores[:, columns] = compare(q, c_emb[columns])
        yield scores if each else scores[:, c_row]
