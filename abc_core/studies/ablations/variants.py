"""What the studies change of a stage's job, batches and step; neither stage of the paper needs it.

    TwoWayJob, TwoWayBatches, two_way_step   stage 1 with negatives of both sides: ½ (picture → captions + caption → pictures)
    UngroupedJob, UngroupedBatches           stage 2 with one instruction of each of many pictures, where the paper keeps a picture's four
    OneWordingJob                            stage 2 with one wording of each question
    MixedJob, MixedBatches                   one stage in place of two: pairs and instructed pictures in every batch

Batches are functions of (seed, step) alone, and of several processes each reads its own share, as those of `abc_core.batches`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from abc_core.batches import Batch, InstructBatches, PairBatches, positions, readable
from abc_core.config import InstructConfig
from abc_core.data.mined import read_mined
from abc_core.jobs.stages import InstructJob, PretrainJob
from abc_core.loss import duplicate_mask, info_nce
from abc_core.parallel import Rows, gather
from abc_core.runs import run as runlog
from abc_core.runs.paths import in_repository
from abc_core.runs.processes import rank_and_count, share
from abc_core.train import pretrain_step

# --- negatives of both sides ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoWayBatches:
    """Batches of `pairs` in which `count` pictures follow each picture: negatives of its caption.

    negatives: int64[N, K′ ≥ count], rows of the set whose pictures are negatives of a row's caption, -1 where it has fewer; None for 0.
    A picture at random takes the place of one that is missing.
    """

    pairs: PairBatches
    negatives: np.ndarray | None  # or what gives its rows, as `mined.Padded` does
    count: int

    def __call__(self, step: int) -> Batch:
        batch, config, data = self.pairs(step), self.pairs.config, self.pairs.pairs
        spare = np.random.default_rng([config.seed, step, 3]).integers(len(data), size=(config.queries, self.count))
        spare, known = share(spare, *rank_and_count()), np.asarray(data.rows)
        wanted = spare if not self.count else self.negatives[batch.rows][:, : self.count]
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        places = np.where(known[places] == wanted, places, spare)  # B, K′
        others, taken, unreadable = readable(places.ravel().tolist(), lambda i: data[i].image, len(data), step)
        rows = np.concatenate([batch.rows[:, None], known[np.array(taken, dtype=np.int64)].reshape(places.shape)], axis=1).ravel()
        images = [i for k, own in enumerate(batch.images) for i in (own, *others[k * self.count : (k + 1) * self.count])]
        ids = torch.from_numpy(self.pairs.caption_ids[rows])
        said = [*batch.unreadable, *unreadable]
        return replace(batch, images=images, instructions=[[None]] * len(images), unreadable=said, image_ids=ids)


def two_way_step(embedder, batch: Batch, config, negatives: int, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """Equation 2 in both directions, halved: pictures against captions, captions against pictures, each with its own hard negatives.

    negatives: K′, pictures that follow each query's own. `out` is that of the direction picture → captions.
    """
    rows = rows or Rows()
    i_emb, seen = rows(embedder.encode_images, batch.images, batch.instructions)  # B·(1+K′), D
    c_emb, read = rows(embedder.encode_texts, batch.candidates)  # B·(1+K), D
    ids, image_ids = (gather(column.to(i_emb.device)) for column in (batch.candidate_ids, batch.image_ids))
    every = len(c_emb) * (1 + negatives) // len(i_emb)  # 1+K
    q_emb, own = i_emb[:: 1 + negatives], c_emb[::every]  # B, D
    temperature, smoothing = embedder.temperature(), config.label_smoothing
    loss, out = info_nce(q_emb, c_emb, temperature, duplicate_mask(ids[::every], ids), smoothing)
    back, _ = info_nce(own, i_emb, temperature, duplicate_mask(image_ids[:: 1 + negatives], image_ids), smoothing)
    return (loss + back) / 2, out | {k: seen[k] + read[k] for k in seen}


# --- stage 2 without groups -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UngroupedBatches(InstructBatches):
    """As many queries a step as `InstructBatches`, but of images × instructions_per_image pictures, each with one instruction."""

    def __call__(self, step: int) -> Batch:
        each = self.config.instructions_per_image
        everyones = positions(step, self.config.images * each, len(self.groups), self.config.seed)
        which = np.random.default_rng([self.config.seed, step, 4]).integers(each, size=len(everyones))
        others = share(self._others(step, self._said(everyones, which)), *rank_and_count())
        mine, which = (share(rows, *rank_and_count()) for rows in (everyones, which))
        images, taken, unreadable = readable(mine, lambda g: self.groups[g][0].image, len(self.groups), step)
        rows = np.concatenate([self._said(taken, which)[:, None], others], axis=1).ravel()
        asked = [[self.groups[g][k].instruction] for g, k in zip(taken, which)]
        return Batch(images, asked, torch.from_numpy(rows), torch.from_numpy(self.bank_ids[rows]), unreadable)

    def _said(self, groups: Sequence[int], which: np.ndarray) -> np.ndarray:
        """int64[B]: the row of the bank that one instruction of each picture asks for."""
        return np.array([self.bank_rows[self.groups[g][k].caption] for g, k in zip(groups, which)])


# --- one stage in place of two --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixedBatches:
    """Batches of stage 1 with those of stage 2 behind them; all captions are embedded anew, since their side trains too.

    captions: those of the regions' bank. Both bring the same number of negatives, those of regions at random, as stage 2 has them.
    Raises:
        ValueError: the numbers of negatives differ.
    """

    pairs: PairBatches
    regions: InstructBatches
    captions: Sequence[str]

    def __post_init__(self):
        if self.pairs.config.negatives != self.regions.config.negatives:
            found = self.pairs.config.negatives, self.regions.config.negatives
            raise ValueError(f"pairs bring {found[0]} negatives each and regions {found[1]}; a batch needs one number")

    def __call__(self, step: int) -> Batch:
        one, two = self.pairs(step), self.regions(step)
        return Batch(
            [*one.images, *two.images], [*one.instructions, *two.instructions],
            [*one.candidates, *(self.captions[k] for k in two.candidates.tolist())],
            torch.cat([one.candidate_ids, two.candidate_ids]), [*one.unreadable, *two.unreadable],
        )  # fmt: skip


# --- jobs -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TwoWayJob(PretrainJob):
    """Stage 1 in both directions. `two_way` is {negatives: K′, mined: file of a `MineJob` with pictures=True, None for K′ = 0}."""

    two_way: dict

    def variant(self) -> dict[str, str]:
        mined = self.two_way["mined"] and runlog.fingerprint(in_repository(self.two_way["mined"]))
        return super().variant() | {"two_way": f"{self.two_way['negatives']} of {mined}"}

    def varied(self, batches: PairBatches) -> tuple[Callable, Callable]:
        count, mined = self.two_way["negatives"], self.two_way["mined"]
        others = read_mined(in_repository(mined), in_repository(self.pairs))[0].padded(count) if mined else None
        return TwoWayBatches(batches, others, count), partial(two_way_step, negatives=count)


@dataclass(frozen=True, kw_only=True)
class MixedJob(PretrainJob):
    """One stage in place of two. `instructed` is {regions, images, instructions_per_image, ctrlbench, …} as of an `InstructJob`."""

    instructed: dict

    def variant(self) -> dict[str, str]:
        job = self._regions()
        said = json.dumps([job.config.images, job.config.instructions_per_image, job.inputs()], sort_keys=True)
        return super().variant() | {"instructed": said}

    def varied(self, batches: PairBatches) -> tuple[Callable, Callable]:
        regions, captions = self._regions().batches()
        return MixedBatches(batches, regions, captions), pretrain_step

    def _regions(self) -> InstructJob:
        """The stage 2 whose batches are mixed in."""
        sizes = {k: v for k, v in self.instructed.items() if k in ("images", "instructions_per_image")}
        files = {k: v for k, v in self.instructed.items() if k not in sizes}
        numbers = {"seed": self.config.seed, "negatives": self.config.negatives, "lora": self.config.lora}
        return InstructJob(config=InstructConfig(**sizes, **numbers), stage1="", **files)


@dataclass(frozen=True, kw_only=True)
class UngroupedJob(InstructJob):
    """Stage 2 with one instruction of each of many pictures."""

    kind: ClassVar = UngroupedBatches

    def variant(self) -> dict[str, str]:
        return {"grouped": "False"}


@dataclass(frozen=True, kw_only=True)
class OneWordingJob(InstructJob):
    """Stage 2 with the first wording of each question alone."""

    wordings: ClassVar = 1

    def variant(self) -> dict[str, str]:
        return {"wordings": "1"}
