"""cost: the arithmetic counts what a real step does, knows the paper's model, and gives the hours that it says."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from abc_core import adapters, train
from abc_core.batches import Batch
from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.jobs import cost
from abc_core.model import Embedder
from abc_core.parallel import Rows
from abc_core.runs import paths

PICTURES = [Image.new("RGB", (168, 112), colour) for colour in ("red", "blue", "green", "white")]  # 24 visual tokens
CAPTION, INSTRUCTION = "an owl on a red disc beside two blue cups", "what is in the top left?"


def counted(embedder, batch, config, step) -> int:
    """Operations of one real step, forward and backward."""
    trained = [p for p in embedder.train().parameters() if p.requires_grad]  # activations are checkpointed in training mode alone
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
        rows = Rows(config.chunk, nullcontext)
        rows.backward(step(embedder, batch, config, rows=rows)[0], trained)
    return counter.get_total_flops()


@pytest.mark.parametrize("again", [{}, {"activation_checkpointing": True}, {"chunk": 2}], ids=["plain", "checkpointed", "chunked"])
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_real_step_takes_the_operations_that_are_counted(stage, again):
    embedder = Embedder.from_backbone(paths.ASSETS / "backbone")
    tokens = lambda text: len(embedder.prompts._words(text))  # noqa: E731
    if stage == "pretrain":
        config = PretrainConfig(queries=4, negatives=3, lora=LoraConfig(16, 32), **again)
        batch, step = Batch(PICTURES, [[None]] * 4, [CAPTION] * 16, torch.arange(16)), train.pretrain_step
    else:
        config = InstructConfig(images=4, instructions_per_image=2, lora=LoraConfig(16, 32), **again)
        bank = torch.from_numpy(embedder.embed(texts=[CAPTION])).repeat(8, 1)
        batch, step = Batch(PICTURES, [[INSTRUCTION] * 2] * 4, torch.arange(8), torch.arange(8)), partial(train.instruct_step, bank=bank)
    adapters.add_lora(embedder, stage, 16, 32)
    train.prepare(embedder, stage, config)
    told = cost.flops_of_step(config, embedder.model.config, 24, tokens(CAPTION), tokens("Instruction: " + INSTRUCTION))
    assert sum(told.values()) == pytest.approx(counted(embedder, batch, config, step), rel=0.1)
    trained = sum(p.numel() for n, p in embedder.named_parameters() if p.requires_grad and not n.startswith("temperature"))
    assert cost.trained_numbers(embedder.model.config, 16, stage) == trained


def test_embedding_takes_the_operations_that_are_counted():
    embedder = Embedder.from_backbone(paths.ASSETS / "backbone")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embedder.embed(images=PICTURES)
        embedder.embed(texts=[CAPTION] * 8)
    told = cost.embedding_flops(embedder.model.config, 24, len(embedder.prompts._words(CAPTION)), 4, 8)
    assert told == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_paper_takes_about_a_day_and_a_half_and_stage_2_less_than_an_hour():
    model, options = cost.QWEN2_VL_7B, {"activation_checkpointing": True}
    assert cost.trained_numbers(model, 64) / 1e6 == pytest.approx(161.5 + 41.9 + 2 * 3.584**2, abs=0.1)  # see test_scale
    took = lambda config, n: cost.hours(n * sum(cost.flops_of_step(config, model, 512, 20, 12).values()))  # noqa: E731
    assert took(PretrainConfig(**options), 4000) == pytest.approx(26.2, abs=0.1)
    assert took(PretrainConfig(queries=256, negatives=0, **options), 1000) == pytest.approx(2.5, abs=0.1)
    assert took(InstructConfig(**options), 100) == pytest.approx(0.33, abs=0.01)
    assert cost.hours(cost.embedding_flops(model, 512, 20, 2_905_954, 2_905_954)) == pytest.approx(8.8, abs=0.1)
    assert cost.hours(312e12 * 0.4 * 3600 * 8) == 1
