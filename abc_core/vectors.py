"""Embeddings of a whole corpus in a memory-mapped file: written batch by batch, resumable, never in memory at once."""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from abc_core.data import whole_file


def embed_to_file(path: Path, embed: Callable, items: Sequence, width: int, batch: int = 512, report: Callable | None = None) -> np.ndarray:
    """float32[N, D] memory map of `embed(items)`, written `batch` items at a time; a killed call goes on where it stopped.

    Args:
        path: an .npy file; its name must change with whatever the embeddings depend on (a run's folder does).
        embed: list of items -> float32[n, D].
    Raises:
        ValueError: the file holds another number of items or another width, or an embedding is not finite.
        OSError: the file could not be written; what was written stays.
    """
    path, progress = Path(path), Path(path).with_suffix(".progress.json")
    done = json.loads(progress.read_text())["done"] if progress.exists() and path.exists() else 0
    with _naming(path):
        array = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float32, None if done else (len(items), width))
    if array.shape != (len(items), width):
        raise ValueError(f"{path} holds embeddings {array.shape}; {(len(items), width)} are wanted. Delete it to begin anew")
    for start in range(done, len(items), batch):
        chosen = list(items[start : start + batch])
        part = _checked(path, embed(chosen), start, (len(chosen), width))
        with _naming(path), path.open("r+b") as file:  # not through the map, which on a full disk would kill the process without a word
            file.seek(array.offset + start * array.strides[0])
            file.write(part.tobytes())
        with whole_file(progress) as partial:
            partial.write_text(json.dumps({"done": start + len(part)}))
        if report is not None and (start // batch) % 8 == 7:
            report(f"{path.name}: {start + len(part):,} of {len(items):,} embedded")
    return np.load(path, mmap_mode="r")


@contextmanager
def _naming(path: Path):
    """An OSError inside the block names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"could not write {path}: {error}. Is the disk full?") from error


def _checked(path: Path, part: np.ndarray, start: int, shape: tuple[int, int]) -> np.ndarray:
    """Embeddings of the items from `start` on, if they are finite numbers of the right shape."""
    if part.shape != shape or part.dtype != np.float32:
        raise ValueError(f"{path}: the items from {start} on became {part.dtype}{list(part.shape)}; float32{list(shape)} was expected")
    if not np.isfinite(part).all():
        raise ValueError(f"{path}: the embedding of item {start + int((~np.isfinite(part)).any(1).argmax())} is not finite")
    return part
