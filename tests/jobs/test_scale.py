"""The paper's own size without its weights: Qwen2-VL-7B with both adapters, on the meta device, has the released names and counts."""

import copy

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from abc_core import adapters
from abc_core.jobs.cost import QWEN2_VL_7B
from abc_core.model import Embedder
from abc_core.systems import released


@pytest.fixture(scope="module")
def stage1():
    """Qwen2-VL-7B as the authors released it, with the stage-1 adapter and their head, as shapes alone."""
    with torch.device("meta"):
        embedder = Embedder(Qwen2VLForConditionalGeneration(copy.deepcopy(QWEN2_VL_7B)), None, head_hidden=4096, head_bias=True)
        adapters.add_lora(embedder, "pretrain", 64, 128)
    return embedder


def trained(embedder) -> dict:
    """Name in the released layout -> shape, of everything that trains."""
    stage = list(embedder.lora)[-1]
    return {released._theirs(n, stage): tuple(p.shape) for n, p in embedder.named_parameters() if p.requires_grad}


def test_stage_1_trains_what_the_authors_released(stage1):
    counts = adapters.count_trained(stage1)
    assert {part: round(n / 1e6, 1) for part, n in counts.items()} == {
        "language model": 161.5, "vision tower": 41.9, "head": 29.4, "temperature": 0.0,
    }  # fmt: skip
    names = trained(stage1)
    assert len(names) == 392 + 256 + 4 + 1
    assert names["base_model.model.model.layers.27.mlp.down_proj.lora_A.weight"] == (64, 18944)
    assert names["base_model.model.visual.blocks.31.attn.qkv.lora_B.weight"] == (3840, 64)
    assert names["base_model.model.mlp_head.linear_layer1.weight"] == (4096, 3584)
    assert names["base_model.model.temperature.temp"] == ()


def test_stage_2_trains_a_small_adapter_of_the_language_model_alone(stage1):
    for name, module in list(stage1.model.named_modules()):  # merging multiplies weights, which shapes cannot
        if hasattr(module, "lora_A"):
            parent, _, child = name.rpartition(".")
            setattr(stage1.model.get_submodule(parent), child, module.base_layer)
    del stage1.model.peft_config
    with torch.device("meta"):
        adapters.add_lora(stage1, "instruct", 16, 32)
    assert {part: round(n / 1e6, 1) for part, n in adapters.count_trained(stage1).items()} == {"language model": 40.4}
    names = trained(stage1)
    assert len(names) == 392 and all(".layers." in name and ".visual." not in name for name in names)
    assert names["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"] == (512, 16)
