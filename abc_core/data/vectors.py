"""Embeddings of a whole corpus in a memory-mapped file, made by one process or several, resumable (`abc_core.runs.arrays`)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from abc_core.data.pictures import UnreadableImage
from abc_core.runs.arrays import blank_rows, fill
from abc_core.runs.processes import rank_and_count


def embed_to_file(
    path: Path,
    embed: Callable,
    items: Sequence,
    width: int,
    batch: int = 512,
    report: Callable | None = None,
    unreadable: float = 0.0,
) -> np.ndarray:
    """float32[N, D] memory map of `embed(items)`, `batch` items at a time; a killed call goes on where it stopped.

    Of several processes, which must all call this, each embeds its share.

    Args:
        path: an .npy file; its name must change with whatever the embeddings depend on (a run's folder does).
        embed: list of items -> float32[n, D]. If it raises `data.UnreadableImage` or FileNotFoundError, the item that is to blame is
            found, and its row stays zero.
        unreadable: share of the items that may be so; they are counted and named in `report`.
    Raises:
        ValueError: the file holds another number of items or another width, an embedding is not finite, or too many items are unreadable.
        OSError: no room on the disk, or the file could not be written; what was written stays.
    """
    why: dict[int, Exception] = {}  # of this process's unreadable items

    def part(first: int, chosen: list) -> np.ndarray:
        try:
            vectors = embed(chosen)
        except (UnreadableImage, FileNotFoundError) as error:
            if not unreadable:
                raise
            if len(chosen) == 1:
                why[first] = error
                return np.zeros((1, width), dtype=np.float32)
            half = len(chosen) // 2
            return np.concatenate([part(first, chosen[:half]), part(first + half, chosen[half:])])
        return _checked(path, vectors, first, (len(chosen), width))

    def make(rows: slice) -> np.ndarray:
        return part(rows.start, [items[k] for k in range(rows.start, rows.stop)])

    def name(k: int) -> str:
        return str(why.get(k, items[k]))

    array = fill(path, len(items), np.dtype((np.float32, (width,))), make, batch, report, unreadable, name)
    blank = blank_rows(path)
    if report is not None and len(blank) and rank_and_count()[0] == 0:
        shown = "; ".join(f"item {k}: {name(k)}" for k in blank[:3].tolist())
        report(f"{Path(path).name}: {len(blank):,} of {len(items):,} items are unreadable and stay zero, such as {shown}")
    return array


def _checked(path: Path, part: np.ndarray, start: int, shape: tuple[int, int]) -> np.ndarray:
    """Embeddings of the items from `start` on, if they are finite numbers of the right shape."""
    if part.shape != shape or part.dtype != np.float32:
        raise ValueError(f"{path}: the items from {start} on became {part.dtype}{list(part.shape)}; float32{list(shape)} was expected")
    if not np.isfinite(part).all():
        raise ValueError(f"{path}: the embedding of item {start + int((~np.isfinite(part)).any(1).argmax())} is not finite")
    return part
