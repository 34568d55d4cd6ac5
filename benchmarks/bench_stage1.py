"""A stage-1 step against sentence-transformers' `CachedMultipleNegativesRankingLoss`: equal batch, backbone, LoRA, arithmetic, optimizer.

Steps: (1) both get the same pictures, captions and negatives, and the same weights; (2) loss and gradients of one step in float32 are
compared; (3) whole steps are timed in turn, from pictures and texts to the updated weights; (4) the memory of a step, in processes of
their own, of ours as it runs for speed and as it runs to save memory.

Ours runs as notebook 02 runs it, and to save memory with gradient caching; theirs with its default of 32 rows at a time.
"""

from contextlib import nullcontext
from dataclasses import replace

import bench_models as models
import numpy as np
import side_by_side as side
import torch

from abc_core import train
from abc_core.batches import Batch
from abc_core.config import PretrainConfig

PICTURES, NEGATIVES, CHUNK = 32, 3, 8  # 128 captions
CONFIG = PretrainConfig(queries=PICTURES, negatives=NEGATIVES, learn_temperature=False, bf16=False, clip=1.0)
THEIRS = "sentence-transformers CachedMultipleNegativesRankingLoss"


def batch_of(count: int) -> Batch:
    """Made-up pictures, each with its caption and three others."""
    texts = side.captions(count * (1 + NEGATIVES), longest=20)
    return Batch(side.pictures(count), [[None]] * count, texts, torch.arange(len(texts)))


def our_step(count: int, config: PretrainConfig = CONFIG):
    """() -> None: a step of ours."""
    embedder = models.with_lora(models.ours(), "pretrain", config)
    train.prepare(embedder, "pretrain", config)
    optimizer, batch = train.make_optimizer(embedder, config), batch_of(count)
    return lambda: train.one_step(embedder, optimizer, batch, train.pretrain_step, config, 0)


def their_step(count: int, config: PretrainConfig = CONFIG):
    """() -> None: what a trainer of sentence-transformers does in a step, without its bookkeeping."""
    model, loss = _theirs(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    columns = _columns(batch_of(count))

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if config.bf16 else nullcontext():
            value = loss([model.preprocess(column) for column in columns], None)
            value.backward()  # inside, as the second forward pass of gradient caching runs in it
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()

    return step


def _theirs(config: PretrainConfig):
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    embedder = models.with_lora(models.ours(), "pretrain", config)
    train.prepare(embedder, "pretrain", config)
    model = models.theirs(embedder, "pretrain")
    return model, CachedMultipleNegativesRankingLoss(model, scale=1 / config.temperature)


def _columns(batch: Batch) -> list[list]:
    """Pictures, positives, and a column for each negative."""
    return [batch.images, *(batch.candidates[k :: 1 + NEGATIVES] for k in range(1 + NEGATIVES))]


def check(count: int) -> None:
    """Equal loss and equal gradients of all LoRA matrices, in float32."""
    embedder, batch = models.with_lora(models.ours(), "pretrain", CONFIG), batch_of(count)
    train.prepare(embedder, "pretrain", CONFIG)
    value, _ = train.pretrain_step(embedder, batch, CONFIG)
    value.backward()
    model, loss = _theirs(CONFIG)
    other = loss([model.preprocess(column) for column in _columns(batch)], None)
    other.backward()
    side.nearly(value.item(), other.item(), 1e-4, "the loss")
    own = {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}
    module = model[0].model
    for name, p in module.named_parameters():
        if p.requires_grad:
            ours, largest = own.pop(f"model.model.{name}"), own_norm(p.grad)
            side.nearly(ours / largest, p.grad / largest, 1e-2, f"the gradient of {name}")
    if not set(own) <= {f"head.{n}" for n, _ in embedder.head.named_parameters()}:
        raise ValueError(f"only ours trains {sorted(own)[:3]}")


def own_norm(gradient: torch.Tensor) -> float:
    """The largest entry of a gradient, which differences are measured by."""
    return max(1e-12, float(np.abs(gradient.numpy()).max()))


def bench(pairs: int = 3, toy: bool = False) -> list[dict]:
    """Rows of the table."""
    count = 4 if toy else PICTURES
    check(4)
    rows, size = [], f"{count} pictures, {count * (1 + NEGATIVES)} captions"
    lean = replace(CONFIG, chunk=2 if toy else CHUNK)
    for bf16, name in models.ARITHMETICS:
        peer = their_step(count, replace(CONFIG, bf16=bf16))
        for config, how in ((lean, ", saving memory"), (CONFIG, "")):
            ours = our_step(count, replace(config, bf16=bf16))
            rows.append(side.compare(f"stage 1, {name}{how}", size, side.alternate(ours, peer, pairs), THEIRS, ">= 1.5", "s"))
    rows.append(side.compare("stage 1, operations", size, [(side.operations(ours), side.operations(peer))], THEIRS, "", "GFLOP"))
    for config, how in ((CONFIG, ""), (lean, ", saving memory")):
        words = ("float32", count, config.chunk or 0)
        measured = [tuple(side.peak_of("bench_stage1", who, *words) for who in ("ours", "theirs")) for _ in range(min(pairs, 2))]
        rows.append(side.compare(f"stage 1, memory of a step{how}", size, measured, THEIRS, "<= 0.6", "MB"))
    return rows


def peak(who: str, arithmetic: str, count: str, chunk: str) -> None:
    """Memory of two steps."""
    config = replace(CONFIG, bf16=arithmetic == "bfloat16", chunk=int(chunk) or None)
    side.report_peak(lambda: (our_step if who == "ours" else their_step)(int(count), config))
