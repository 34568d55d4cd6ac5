"""The embedders that are timed: ours, the same weights in transformers' own modules, and in sentence-transformers.

`ours` is `Embedder` as it is; `stock` leaves out the exact speed-ups of `abc_core.backbone`, so that every module computes as transformers
wrote it; `theirs` is sentence-transformers' own way to load a Qwen2-VL, made bidirectional as the paper asks, with mean pooling and our
head. All three give equal embeddings, which each work checks before it times anything.
"""

from contextlib import ExitStack
from unittest import mock

import torch
from torch import nn

from abc_core import adapters
from abc_core.backbone import LORA_TARGETS, set_visual_tokens
from abc_core.model import Embedder
from abc_core.runs import paths

BACKBONE = paths.ASSETS / "backbone"
# (bf16, its name) of what a step is timed in: bfloat16 only where the CPU multiplies it, as training takes it only there.
ARITHMETICS = [(True, "bfloat16"), (False, "float32")][0 if torch.cpu._is_amx_tile_supported() else 1 :]


def ours() -> Embedder:
    """The embedder around the shipped backbone."""
    return Embedder.from_backbone(BACKBONE)


def stock() -> Embedder:
    """The same without our speed-ups of its modules."""
    with ExitStack() as stack:
        for name in ("linear_patches", "batch_vision_attention", "autocast_attention"):
            stack.enter_context(mock.patch(f"abc_core.model.{name}", lambda model: model))
        return Embedder.from_backbone(BACKBONE)


def padded():
    """Inside: all rows of a batch are padded to its longest, as in the authors' code."""
    return mock.patch("abc_core.model.length_groups", lambda lengths: [list(range(len(lengths)))])


def theirs(like: Embedder, stage: str | None = None):
    """A SentenceTransformer with the weights of `like`, the LoRA of its `stage` included; trains what `like` trains."""
    from peft import LoraConfig, inject_adapter_in_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.module import Module
    from sentence_transformers.sentence_transformer.modules import Pooling

    class Head(Module):
        """Our residual head."""

        def __init__(self, head: nn.Module):
            super().__init__()
            self.head = head

        def forward(self, features):
            return features | {"sentence_embedding": self.head(features["sentence_embedding"])}

        def save(self, *args, **_): ...

    prompt = {"chat_template": {"add_generation_prompt": True}}
    module = Transformer(str(BACKBONE), model_kwargs={"dtype": torch.float32}, processing_kwargs=prompt)
    set_visual_tokens(module.processor, 4, 512)
    module.model.config.text_config.is_causal = False
    for part in module.model.language_model.modules():
        if hasattr(part, "is_causal"):
            part.is_causal = False
    if stage is not None:
        wanted, start = like.lora[stage], r"model\."  # the outer model, which is not here
        targets = "|".join(f"({pattern.removeprefix(start)})" for pattern in LORA_TARGETS[like.family].values())
        lora = LoraConfig(r=wanted["rank"], lora_alpha=wanted["alpha"], lora_dropout=wanted["dropout"], target_modules=targets)
        inject_adapter_in_model(lora, module.model, adapter_name=stage)
    head = type(like.head)(like.width)
    model = SentenceTransformer(modules=[module, Pooling(like.width, "mean"), Head(head), Normalize()], device="cpu")
    own = dict(like.named_parameters())
    with torch.no_grad():
        for part, prefix in ((module.model, "model.model."), (head, "head.")):
            for name, p in part.named_parameters():
                p.copy_(own[prefix + name])
                p.requires_grad_(own[prefix + name].requires_grad)
    return model


def with_lora(embedder: Embedder, stage: str, config) -> Embedder:
    """The embedder with a stage's adapter, from which B is not zero, so that its A has a gradient too."""
    from dataclasses import asdict

    if stage == "instruct":
        adapters.add_lora(embedder, "pretrain", 64, 128)
        adapters.merge(embedder)
    adapters.add_lora(embedder, stage, **asdict(config.lora))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in embedder.named_parameters():
            if f"lora_B.{stage}" in name:
                p.copy_(0.01 * torch.randn(p.shape, generator=generator))
    return embedder
