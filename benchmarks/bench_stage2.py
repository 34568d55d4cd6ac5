"""A stage-2 step against the structure of the authors' code: same weights, same batch, same loss.

Theirs (read in their code) runs both towers at every step: the captions too, without gradient, though the adapter is off and they never
change; the vision tower once for every instruction of a picture; and a batch is padded to its longest row. Once on the same modules as
ours, so that only the structure differs, and once on transformers' own (`bench_models.stock`), as their code would run here.

Steps: (1) losses and gradients are compared; (2) whole steps are timed in turn; (3) memory, in processes of their own.
"""

import bench_models as models
import numpy as np
import side_by_side as side
import torch

from abc_core import adapters, train
from abc_core.batches import Batch
from abc_core.config import InstructConfig

IMAGES, EACH = 16, 4  # instructions of a picture
CONFIG = InstructConfig(images=IMAGES, instructions_per_image=EACH, bf16=False)


def batch_of(images: int) -> tuple[Batch, list[str]]:
    """Made-up pictures with four instructions each, and the captions that are asked for; row k of the bank is caption k."""
    rows = images * EACH
    asked = side.captions(rows, longest=12, seed=1)
    nested = [asked[k : k + EACH] for k in range(0, rows, EACH)]
    return Batch(side.pictures(images), nested, torch.arange(rows), torch.arange(rows)), side.captions(rows, longest=20)


def our_step(images: int, config: InstructConfig = CONFIG):
    """() -> None, and the embedder."""
    embedder = models.with_lora(models.ours(), "instruct", config)
    train.prepare(embedder, "instruct", config)
    (batch, captions), optimizer = batch_of(images), train.make_optimizer(embedder, config)
    bank = torch.from_numpy(embedder.embed(texts=captions, adapter=False))  # once for the whole training

    def step_fn(embedder, batch, config, rows):
        return train.instruct_step(embedder, batch, config, bank, rows)

    return (lambda: train.one_step(embedder, optimizer, batch, step_fn, config, 0)), embedder


def their_step(images: int, stock: bool):
    """() -> None, and the embedder."""
    embedder = models.with_lora(models.stock() if stock else models.ours(), "instruct", CONFIG)
    train.prepare(embedder, "instruct", CONFIG)
    (batch, captions), optimizer = batch_of(images), train.make_optimizer(embedder, CONFIG)
    pictures = [image for image, texts in zip(batch.images, batch.instructions) for _ in texts]
    alone = Batch(pictures, [[text] for texts in batch.instructions for text in texts], batch.candidates, batch.candidate_ids)

    def step_fn(embedder, batch, config, rows):
        with torch.no_grad(), adapters.instructed(embedder.model, False):
            bank, _ = embedder.encode_texts(captions)
        return train.instruct_step(embedder, batch, config, bank, rows)

    def step() -> None:
        with models.padded():
            train.one_step(embedder, optimizer, alone, step_fn, CONFIG, 0)

    return step, embedder


def check(images: int) -> None:
    """The first step leaves equal gradients of every LoRA matrix."""
    gradients = []
    for make in (our_step, lambda n: their_step(n, False), lambda n: their_step(n, True)):
        step, embedder = make(images)
        step()
        gradients.append({n: p.grad.numpy() for n, p in embedder.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            largest = max(1e-12, np.abs(gradient).max())
            side.nearly(gradient / largest, other[name] / largest, 1e-2, f"the gradient of {name}")


def bench(pairs: int = 3, toy: bool = False) -> list[dict]:
    """Rows of the table."""
    images = 3 if toy else IMAGES
    check(3)
    rows, size, ours = [], f"{images} pictures × {EACH} instructions", our_step(images)[0]
    for stock, name in ((True, "the authors' structure, transformers' modules"), (False, "the authors' structure, our modules")):
        peer = their_step(images, stock)[0]
        rows.append(side.compare("stage 2" + (", stock" if stock else ""), size, side.alternate(ours, peer, pairs), name, ">= 4", "s"))
    rows.append(side.compare("stage 2, operations", size, [(side.operations(ours), side.operations(peer))], name, "", "GFLOP"))
    measured = [tuple(side.peak_of("bench_stage2", who, images) for who in ("ours", "theirs")) for _ in range(min(2, pairs))]
    return [*rows, side.compare("stage 2, memory of a step", size, measured, name, "", "MB")]


def peak(who: str, images: str) -> None:
    """Memory of two steps."""
    side.report_peak(lambda: our_step(int(images))[0] if who == "ours" else their_step(int(images), False)[0])
