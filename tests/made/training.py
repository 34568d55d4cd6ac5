"""Shared by tests of several rooms; out of test_train."""

from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from abc_core import adapters, prompts, train
from abc_core.batches import InstructBatches, PairBatches
from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.data.karpathy import Pair
from abc_core.data.texts import caption_ids
from abc_core.instructions.regions import Instructed
from abc_core.miniature.backbone.build import build_processor
from abc_core.model import Embedder

CAPTIONS = ["a red card", "two blue cups", "an owl", "a red owl", "x", "a cup", "an owl on the left", "owls", "cards", "a red card"]


QUESTIONS = ["what is on the left?", "which colour has the owl?", "how many cups?"]


TIMES = ("seconds", "tokens_per_second")


def small_backbone(folder) -> str:
    """Write a random Qwen2-VL, wide enough that pictures and words change an embedding visibly; returns the folder."""
    processor = build_processor([*CAPTIONS, *QUESTIONS, prompts.SYSTEM + prompts.INSTRUCTION], 400)
    named = {"image_token_id": prompts.IMAGE_PAD, "video_token_id": prompts.VIDEO_PAD, "vision_start_token_id": prompts.VISION_START}
    config = transformers.Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        ),
        vision_config=dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, initializer_range=0.2),
        **{k: processor.tokenizer.convert_tokens_to_ids(v) for k, v in named.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def small_pictures(folder) -> list:
    """Paths of ten pictures of coloured blocks, in three sizes."""
    rng, paths = np.random.default_rng(0), [folder / f"{k}.png" for k in range(10)]
    for k, path in enumerate(paths):
        blocks = Image.fromarray(rng.integers(0, 255, (2, 2, 3), dtype=np.uint8))
        blocks.resize([(56, 56), (84, 56), (56, 112)][k % 3], Image.Resampling.NEAREST).save(path)
    return paths


def small_config(stage: str, **changes):
    """A few quick steps of a stage in float32, with dropout."""
    sizes = dict(queries=3, negatives=2, lora=LoraConfig(4, 8, 0.1)) if stage == "pretrain" else dict(images=2, lora=LoraConfig(2, 4, 0.1))
    numbers = dict(steps=6, learning_rate=1e-2, bf16=False, save_every=2, validate_every=3, **sizes)
    numbers |= {} if stage == "pretrain" else {"instructions_per_image": 2}
    return (PretrainConfig if stage == "pretrain" else InstructConfig)(**numbers | changes)


def small_embedder(backbone: str, stage: str, config) -> Embedder:
    """An embedder with the fresh adapter of a stage; "instruct" stands on a merged stage 1 of random weights."""
    embedder = Embedder.from_backbone(backbone)
    if stage == "instruct":
        adapters.add_lora(embedder, "pretrain", rank=4, alpha=4)
        randomise_trained(embedder)
        adapters.merge(embedder)
    adapters.add_lora(embedder, stage, **asdict(config.lora), seed=config.seed)
    return embedder


def randomise_trained(embedder) -> None:
    """Random LoRA matrices and head in place of learned ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in embedder.parameters():
            if p.requires_grad and p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)


def small_batches(stage: str, pictures: list, config, embedder):
    """(batches, step function) of a stage."""
    if stage == "pretrain":
        pairs = [Pair(path, caption, row) for row, (path, caption) in enumerate(zip(pictures, CAPTIONS))]
        negatives = np.array([[(r + 1) % 10, (r + 2) % 10 if r % 2 else -1] for r in range(10)])
        return PairBatches(pairs, CAPTIONS, caption_ids(CAPTIONS), negatives, config), train.pretrain_step
    groups = [[asked(path, q, CAPTIONS[(k + q) % 10]) for q in range(config.instructions_per_image)] for k, path in enumerate(pictures)]
    bank_rows = {c: k for k, c in enumerate(sorted(set(CAPTIONS)))}
    bank = torch.from_numpy(embedder.embed(texts=list(bank_rows)))
    return InstructBatches(groups, bank_rows, config), partial(train.instruct_step, bank=bank)


def asked(path, question: int, caption: str) -> Instructed:
    """A row of instruction data."""
    return Instructed(path, 0, question, (0.0, 0.0, 9.0, 9.0), "content", QUESTIONS[question], caption)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(backbone, pictures) on disk."""
    folder = tmp_path_factory.mktemp("world")
    return small_backbone(folder / "backbone"), small_pictures(folder)


def made(world, stage: str, **changes):
    """(embedder, batches, step function, config) of a stage, ready to train, with random weights in its adapter."""
    config = small_config(stage, **changes)
    embedder = small_embedder(world[0], stage, config)
    train.prepare(embedder, stage, config)
    randomise_trained(embedder)
    return embedder, *small_batches(stage, world[1], config, embedder), config
