"""Embedding: five instructions a picture, and texts of mixed length, against the authors' batching and sentence-transformers' `encode`.

The authors' batching, as their evaluation would do it: a row for every instruction with its own picture through the vision tower, and
rows in the order given, padded to the longest of the batch. sentence-transformers sorts by length and also takes one picture a row.
All have the same weights and the same number of rows at a time. Steps: (1) embeddings are compared; (2) all are timed in turn.
"""

import bench_models as models
import numpy as np
import side_by_side as side
import torch

from abc_core import adapters
from abc_core.config import InstructConfig

PICTURES, EACH, TEXTS, LONGEST, ROWS = 16, 5, 512, 60, 64
CONFIG = InstructConfig(bf16=False)


def authors(embedder, images=None, texts=None, instructions=None) -> np.ndarray:
    """float32[N, D], rows in order, ROWS at a time, each padded to the longest, each with a picture of its own."""
    out, inputs = [], texts if images is None else list(zip(images, instructions))
    with torch.no_grad(), models.padded(), adapters.instructed(embedder.model, images is not None):
        for start in range(0, len(inputs), ROWS):
            part = inputs[start : start + ROWS]
            if images is None:
                emb, _ = embedder.encode_texts(part)
            else:
                emb, _ = embedder.encode_images([image for image, _ in part], [[asked] for _, asked in part])
            out.append(emb.numpy())
    return np.concatenate(out)


def theirs(model, texts=None, images=None, instructions=None) -> np.ndarray:
    """float32[N, D] of sentence-transformers' `encode`."""
    inputs = texts
    if texts is None:
        asked = lambda text: {"type": "text", "text": f"Instruction: {text}"}  # noqa: E731
        pairs = zip(images, instructions)
        inputs = [[{"role": "user", "content": [{"type": "image", "image": image}, asked(text)]}] for image, text in pairs]
    return model.encode(inputs, batch_size=ROWS, show_progress_bar=False)


def bench(pairs: int = 3, toy: bool = False) -> list[dict]:
    """Rows of the table."""
    count, texts = (3, 40) if toy else (PICTURES, TEXTS)
    images, captions = side.pictures(count), side.captions(texts, LONGEST)
    asked = side.captions(count * EACH, longest=12, seed=1)
    nested = [asked[k : k + EACH] for k in range(0, len(asked), EACH)]
    flat = [image for image in images for _ in range(EACH)]
    embedder, stock = (models.with_lora(make(), "instruct", CONFIG) for make in (models.ours, models.stock))
    adapters.merge(embedder, "instruct"), adapters.merge(stock, "instruct")  # sentence-transformers switches no adapter
    sentence = models.theirs(embedder)
    steered = lambda: embedder.embed(images=images, instructions=nested, adapter=False)  # noqa: E731
    read = lambda: embedder.embed(texts=captions, batch_size=ROWS)  # noqa: E731
    peers = {
        "the authors' batching, our modules": (
            lambda: authors(embedder, images=flat, instructions=asked), lambda: authors(embedder, texts=captions)
        ),
        "the authors' batching, transformers' modules": (
            lambda: authors(stock, images=flat, instructions=asked), lambda: authors(stock, texts=captions)
        ),
        "sentence-transformers encode": (
            lambda: theirs(sentence, images=flat, instructions=asked), lambda: theirs(sentence, captions)
        ),
    }  # fmt: skip
    rows = []
    for k, (name, (pictures_too, texts_alone)) in enumerate(peers.items()):
        label = ("", ", stock", ", encode")[k]
        side.nearly(steered(), pictures_too(), 2e-5, f"instructed pictures, {name}")
        side.nearly(read(), texts_alone(), 2e-5, f"texts, {name}")
        measured = side.alternate(steered, pictures_too, pairs)
        rows.append(side.compare("instructions" + label, f"{count} pictures × {EACH}", measured, name, ">= 2.5", "s"))
        measured = side.alternate(read, texts_alone, pairs)
        rows.append(side.compare("texts" + label, f"{texts} texts of 3 to {LONGEST} words", measured, name, ">= 2", "s"))
    pictures_too, texts_alone = peers["the authors' batching, our modules"]
    for like, mine, other in ((rows[0], steered, pictures_too), (rows[1], read, texts_alone)):
        works = [(side.operations(mine), side.operations(other))]
        rows.append(side.compare(f"{like['work']}, operations", like["size"], works, like["peer_name"], "", "GFLOP"))
    return rows
