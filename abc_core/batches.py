"""What the two steps of training are fed: which pictures, instructions and candidates belong to step k, by (seed, k) alone.

Steps: (1) `positions` reads rows off epochs that are shuffled anew; (2) `readable` decodes pictures, and gives the place of a broken one to
another; (3) `PairBatches` (stage 1) and `InstructBatches` (stage 2) turn a step's number into a `Batch`, so that a resumed run sees what
the killed one would have seen. Of several processes each reads and decodes its own share of the batch; a picture's instructions stay
together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.data.texts import caption_ids
from abc_core.runs.processes import rank_and_count, share


@dataclass(frozen=True)
class Batch:
    """What this process needs for a step. Candidates lie query by query, a positive and then its K negatives; equal ids: equal captions."""

    images: list  # PIL pictures
    instructions: list[list[str | None]]  # per picture; [None] without
    candidates: list  # C captions, or rows of the frozen bank
    candidate_ids: torch.Tensor  # int64[C]
    unreadable: Sequence[str] = ()  # what is wrong with each picture that another took the place of
    rows: np.ndarray | None = None  # stage 1: int64[B], the row of each picture's own caption in the set
    image_ids: torch.Tensor | None = None  # `variants.TwoWayBatches`: int64, the id of each picture's own caption


def positions(step: int, count: int, rows: int, seed: int) -> np.ndarray:
    """Row numbers of a step: `rows` shuffled anew each epoch, read off `count` at a time; a function of its arguments alone."""
    if rows < 1:
        raise ValueError("there is nothing to draw a batch from: 0 rows")
    start = step * count
    epochs = range(start // rows, (start + count - 1) // rows + 1)
    order = np.concatenate([np.random.default_rng([seed, e]).permutation(rows) for e in epochs])
    offset = start - epochs.start * rows
    return order[offset : offset + count]


def readable(places: Sequence[int], image: Callable, count: int, step: int) -> tuple[list, list[int], list[str]]:
    """Decode the pictures `image(place)`; a broken one gives its place to another of the `count`, the same in every process and run.

    Returns:
        PIL pictures; the places that they are of; and what is wrong with each broken one.
    Raises:
        ValueError: more than one, and more than a tenth, of `places` are broken: it is the data set then, not a picture.
        OSError: a file is gone, or the disk does not give it; nothing takes its place, as it may be there again in the next run.
    """
    pictures, taken, broken = [], [], []
    for wanted in map(int, places):
        for place in _stand_ins(wanted, count):
            try:
                pictures.append(open_image(image(place)))
                taken.append(place)
                break
            except UnreadableImage as error:
                broken.append(str(error))
                if len(broken) > max(1, len(places) // 10):
                    said = "\n".join(broken[:3])
                    raise ValueError(f"{len(broken)} of {len(places)} pictures of step {step} cannot be read:\n{said}") from error
    return pictures, taken, broken


def _stand_ins(place: int, count: int) -> Iterator[int]:
    """A place and those that may take its picture's: drawn, as its neighbours lie beside it on a disk and are damaged with it."""
    yield place
    rng = np.random.default_rng(place)
    while True:
        yield (place + int(rng.integers(1, max(2, count)))) % count


@dataclass(frozen=True)
class PairBatches:
    """Stage-1 batches of (picture, caption) pairs.

    pairs, captions: lists, or sequences that read from disk (`pairs.Pairs`). captions: all N captions of the set; a pair's own is
    captions[pair.row]. caption_ids int64[N]: equal for equal captions.
    negatives: int64[N, K], rows of the set, -1 where a pair has fewer (a random row takes the place); None: in-batch negatives only.

    Raises:
        ValueError: fewer columns of negatives than the config wants.
    """

    pairs: Sequence
    captions: Sequence[str]
    caption_ids: np.ndarray
    negatives: np.ndarray | None  # or what gives its rows, as `mined.Padded` does
    config: object

    def __post_init__(self):
        given = 0 if self.negatives is None else self.negatives.shape[1]
        if given < self.config.negatives:
            raise ValueError(f"the config wants {self.config.negatives} negatives of each picture; {given} are given")

    def __call__(self, step: int) -> Batch:
        everyones = positions(step, self.config.queries, len(self.pairs), self.config.seed)
        shape = len(everyones), self.config.negatives
        spare = np.random.default_rng([self.config.seed, step, 1]).integers(len(self.captions), size=shape)
        mine, spare = (share(rows, *rank_and_count()) for rows in (everyones, spare))
        images, taken, unreadable = readable(mine, lambda i: self.pairs[i].image, len(self.pairs), step)
        rows = np.array([self.pairs[i].row for i in taken])
        columns = [rows[:, None]]
        if self.negatives is not None:
            chosen = self.negatives[rows][:, : self.config.negatives]
            columns.append(np.where(chosen >= 0, chosen, spare))
        wanted = np.concatenate(columns, axis=1).ravel()
        captions = [self.captions[r] for r in wanted]
        return Batch(images, [[None]] * len(images), captions, torch.from_numpy(self.caption_ids[wanted]), unreadable, rows)


@dataclass(frozen=True)
class InstructBatches:
    """Stage-2 batches: all instructed regions of a picture stay together (Sec. 3.2), `config.images` pictures a step.

    Raises:
        ValueError: a picture has another number of instructions than the config says.
    """

    groups: list[list]  # per picture: its Instructed rows
    bank_rows: dict[str, int]  # caption -> row of the bank, 0 to M - 1
    config: object

    def __post_init__(self):
        wanted = self.config.instructions_per_image
        for group in self.groups:
            if len(group) != wanted:
                raise ValueError(f"{group[0].image} has {len(group)} instructions; the config wants {wanted} of each picture")

    @cached_property
    def bank_ids(self) -> np.ndarray:
        """int64[M]: equal for captions of the bank that are equal but for case and white space."""
        return caption_ids(sorted(self.bank_rows, key=self.bank_rows.get))

    def __call__(self, step: int) -> Batch:
        everyones = positions(step, self.config.images, len(self.groups), self.config.seed)
        others = self._others(step, self._own(everyones))  # without those of a picture that takes another's place: all processes draw alike
        mine, count = share(everyones, *rank_and_count()), len(self.groups)
        images, taken, unreadable = readable(mine, lambda g: self.groups[g][0].image, count, step)
        rows = np.concatenate([self._own(taken)[:, None], share(others, *rank_and_count())], axis=1).ravel()
        asked = [[r.instruction for r in self.groups[g]] for g in taken]
        return Batch(images, asked, torch.from_numpy(rows), torch.from_numpy(self.bank_ids[rows]), unreadable)

    def _own(self, groups: Sequence[int]) -> np.ndarray:
        """int64[B]: the rows of the bank that the instructions of pictures ask for."""
        return np.array([self.bank_rows[r.caption] for g in groups for r in self.groups[g]])

    def _others(self, step: int, own: np.ndarray) -> np.ndarray:
        """int64[B, K]: rows of the bank that are nobody's own, each once for all queries; fewer if the bank has no more."""
        rest = np.setdiff1d(np.arange(len(self.bank_rows)), own)
        each = min(self.config.negatives, len(rest) // len(own))
        return np.random.default_rng([self.config.seed, step, 2]).permutation(rest)[: each * len(own)].reshape(len(own), each)
