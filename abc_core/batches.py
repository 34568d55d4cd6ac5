"""What the two steps of training are fed: which pictures, instructions and candidates belong to step k, by (seed, k) alone.

Steps: (1) `positions` reads rows off epochs that are shuffled anew; (2) `PairBatches` (stage 1) and `InstructBatches` (stage 2) turn a
step's number into a `Batch`, so that a resumed run sees what the killed one would have seen. Of several processes each reads and decodes
its own share of the batch; a picture's instructions stay together.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from abc_core.data import caption_ids, open_image
from abc_core.parallel import rank_and_count, share


@dataclass(frozen=True)
class Batch:
    """What this process needs for a step. Candidates lie query by query, a positive and then its K negatives; equal ids: equal captions."""

    images: list  # PIL pictures
    instructions: list[list[str | None]]  # per picture; [None] without
    candidates: list  # C captions, or rows of the frozen bank
    candidate_ids: torch.Tensor  # int64[C]


def positions(step: int, count: int, rows: int, seed: int) -> np.ndarray:
    """Row numbers of a step: `rows` shuffled anew each epoch, read off `count` at a time; a function of its arguments alone."""
    if rows < 1:
        raise ValueError("there is nothing to draw a batch from: 0 rows")
    start = step * count
    epochs = range(start // rows, (start + count - 1) // rows + 1)
    order = np.concatenate([np.random.default_rng([seed, e]).permutation(rows) for e in epochs])
    offset = start - epochs.start * rows
    return order[offset : offset + count]


@dataclass(frozen=True)
class PairBatches:
    """Stage-1 batches of (picture, caption) pairs.

    captions: all N captions of the set; a pair's own is captions[pair.row]. caption_ids int64[N]: equal for equal captions.
    negatives: int64[N, K], rows of the set, -1 where a pair has fewer (a random row takes the place); None: in-batch negatives only.

    Raises:
        ValueError: fewer columns of negatives than the config wants.
    """

    pairs: list
    captions: list[str]
    caption_ids: np.ndarray
    negatives: np.ndarray | None
    config: object

    def __post_init__(self):
        given = 0 if self.negatives is None else self.negatives.shape[1]
        if given < self.config.negatives:
            raise ValueError(f"the config wants {self.config.negatives} negatives of each picture; {given} are given")

    def __call__(self, step: int) -> Batch:
        everyones = [self.pairs[i] for i in positions(step, self.config.queries, len(self.pairs), self.config.seed)]
        rows = np.array([p.row for p in everyones])
        columns = [rows[:, None]]
        if self.negatives is not None:
            chosen = self.negatives[rows, : self.config.negatives]
            spare = np.random.default_rng([self.config.seed, step, 1]).integers(len(self.captions), size=chosen.shape)
            columns.append(np.where(chosen >= 0, chosen, spare))
        wanted = share(np.concatenate(columns, axis=1), *rank_and_count()).ravel()
        pairs = share(everyones, *rank_and_count())
        images = [open_image(p.image) for p in pairs]
        return Batch(images, [[None]] * len(pairs), [self.captions[r] for r in wanted], torch.from_numpy(self.caption_ids[wanted]))


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
        everyones = [self.groups[g] for g in positions(step, self.config.images, len(self.groups), self.config.seed)]
        own = np.array([self.bank_rows[r.caption] for g in everyones for r in g])
        candidates = np.concatenate([own[:, None], self._others(step, own)], axis=1)
        rows = share(candidates, *rank_and_count()).ravel()
        groups = share(everyones, *rank_and_count())
        images = [open_image(g[0].image) for g in groups]
        return Batch(images, [[r.instruction for r in g] for g in groups], torch.from_numpy(rows), torch.from_numpy(self.bank_ids[rows]))

    def _others(self, step: int, own: np.ndarray) -> np.ndarray:
        """int64[B, K]: rows of the bank that are nobody's own, each once for all queries; fewer if the bank has no more."""
        rest = np.setdiff1d(np.arange(len(self.bank_rows)), own)
        each = min(self.config.negatives, len(rest) // len(own))
        return np.random.default_rng([self.config.seed, step, 2]).permutation(rest)[: each * len(own)].reshape(len(own), each)
