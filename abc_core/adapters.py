"""The two LoRA stages: add, switch, merge, list what trains, save and load.

Stage "pretrain" (Sec. 3.1): LoRA on the language model and the vision tower, with head and temperature. It is then merged into the
backbone, head and temperature freeze, and stage "instruct" adds a small LoRA on the language model alone (Sec. 3.2), switched on for
instructed pictures only.
"""

import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from abc_core import checkpoint
from abc_core.backbone import LORA_TARGETS, unread_blocks

STAGES = ("pretrain", "instruct")
_TOWERS = r"model\.(model\.(language_model|visual|vision_tower|multi_modal_projector|image_newline)\b|lm_head).*"

# Stage -> (pattern of parameter names, does it train?); the first match decides and a name that matches none is an error.
TRAINS = {
    "pretrain": ((r"model\..*\.lora_[AB]\.pretrain\.weight", True), (r"(head|temperature)\..*", True), (_TOWERS, False)),
    "instruct": (
        (r"model\.model\.language_model\..*\.lora_[AB]\.instruct\.weight", True),
        (r"(head|temperature)\..*", False),
        (r".*\.lora_[AB]\..*", None),
        (_TOWERS, False),
    ),
}


def add_lora(embedder, stage: str, rank: int, alpha: int, dropout: float = 0.0, seed: int = 0) -> None:
    """Add the LoRA layers of a stage (B = 0, so nothing changes yet) and let exactly the stage's parameters train.

    Raises:
        ValueError: an unknown stage, a stage that is there already, or "instruct" before stage 1 was merged.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; known are {', '.join(STAGES)}")
    if has_adapter(embedder.model, stage):
        raise ValueError(f"the embedder has a {stage!r} adapter already")
    if stage == "instruct" and has_adapter(embedder.model, "pretrain"):
        raise ValueError("stage 2 starts from the merged stage 1: call `merge(embedder)` first")
    targets = LORA_TARGETS[embedder.family]
    pattern = targets["language"] if stage == "instruct" else f"({targets['language']})|({targets['vision']})"
    unread = unread_blocks(embedder.model)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, exclude_modules=unread)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, embedder.model, adapter_name=stage)
    for name, parameter in embedder.named_parameters():
        if _of(stage, name):
            parameter.data = parameter.data.float()  # peft takes the backbone's type; small updates would be lost in bfloat16
    embedder.lora[stage] = {"rank": rank, "alpha": alpha, "dropout": dropout}
    freeze_but(embedder, stage)
    embedder.eval()  # peft adds its dropout in training mode; an embedding must not depend on it


def freeze_but(embedder, stage: str) -> list[str]:
    """Set `requires_grad` by the table `TRAINS`; returns the names of what trains.

    Raises:
        ValueError: a parameter that the table does not know, or knows as out of place.
    """
    names = []
    for name, parameter in embedder.named_parameters():
        trains = next((t for pattern, t in TRAINS[stage] if re.fullmatch(pattern, name)), None)
        if trains is None:
            raise ValueError(f"stage {stage!r} does not say whether {name} trains")
        parameter.requires_grad_(trains)
        names += [name] * trains
    return names


def count_trained(embedder) -> dict[str, int]:
    """How many numbers train, by part: {"language model": …, "vision tower": …, "head": …, "temperature": …}."""
    parts = {"language_model": "language model", "visual": "vision tower", "vision_tower": "vision tower"}
    counts: dict[str, int] = {}
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            keys = name.split(".")
            part = next((label for key, label in parts.items() if key in keys), keys[0])  # "head", "temperature"
            counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def has_adapter(model: nn.Module, stage: str) -> bool:
    """Does the model carry the LoRA layers of a stage?"""
    return any(stage in m.lora_A for m in _lora_layers(model))


@contextmanager
def instructed(model: nn.Module, on: bool):
    """Switch every LoRA layer on or off inside the block, gradients' flags untouched.

    **Caveat:** peft's own `disable_adapter()` leaves `requires_grad` changed, and activations that are checkpointed inside it are computed
    again outside of it, with the adapter on (see `checkpoint_activations`).
    """
    layers = _lora_layers(model)
    with _switched(layers, [not on] * len(layers)):
        yield


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of each block for the backward pass, which computes the rest again: memory for time, the same gradients.

    The second computation finds every adapter switched as in the first, wherever the backward pass is called; without that, what ran
    inside `instructed` would be differentiated with another model than it was computed with.
    """

    def contexts():
        layers = _lora_layers(model)
        return nullcontext(), _switched(layers, [m._disable_adapters for m in layers])

    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    model.disable_input_require_grads()  # needed by reentrant checkpointing alone; a frozen vision tower would be differentiated


def _lora_layers(model: nn.Module) -> list:
    """The modules that carry an adapter of any stage."""
    return [m for m in model.modules() if hasattr(m, "lora_A")]


@contextmanager
def _switched(layers: list, off: list[bool]):
    """Inside the block each LoRA layer is on or off as told."""
    before = [m._disable_adapters for m in layers]
    try:
        for m, is_off in zip(layers, off, strict=True):
            m._disable_adapters = is_off
        yield
    finally:
        for m, was in zip(layers, before, strict=True):
            m._disable_adapters = was


def merge(embedder, stage: str = "pretrain") -> None:
    """Fuse a stage's LoRA into the weights, W + (α/r)·B·A, remove its layers, and remember its tensors for the next checkpoint."""
    embedder.merged |= stage_tensors(embedder, stage)
    for name, module in list(embedder.model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True, adapter_names=[stage])
            parent, _, child = name.rpartition(".")
            setattr(embedder.model.get_submodule(parent), child, module.base_layer)
    del embedder.model.peft_config  # or peft warns of a second adapter where there is none
    embedder.requires_grad_(False)


def merge_all(embedder) -> None:
    """Fuse whatever stages the embedder carries."""
    for stage in STAGES:
        if has_adapter(embedder.model, stage):
            merge(embedder, stage)


def stage_tensors(embedder, stage: str) -> dict[str, torch.Tensor]:
    """What a stage trains, by name: {"pretrain/model.….lora_A.pretrain.weight": …}; copies, on the CPU."""
    return {f"{stage}/{n}": p.detach().cpu().clone() for n, p in embedder.named_parameters() if _of(stage, n)}


def all_tensors(embedder) -> dict[str, torch.Tensor]:
    """What the merged and the present stages trained, by name as in `stage_tensors`."""
    tensors = dict(embedder.merged)
    for stage in STAGES:
        if has_adapter(embedder.model, stage):
            tensors |= stage_tensors(embedder, stage)
    return tensors


def load_stage(embedder, stage: str, tensors: dict[str, torch.Tensor], source="the checkpoint") -> None:
    """Copy a stage's tensors into the embedder, strictly.

    Raises:
        ValueError: a tensor is missing, left over, of another shape, or not finite.
    """
    own = {f"{stage}/{n}": p for n, p in embedder.named_parameters() if _of(stage, n)}
    given = {k: v for k, v in tensors.items() if k.startswith(f"{stage}/")}
    if own.keys() != given.keys():
        missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        found = f"{len(missing)} tensors missing {missing[:2]}, {len(extra)} left over {extra[:2]}"
        raise ValueError(f"{source} does not fit this model: {found}")
    for name, parameter in own.items():
        if parameter.shape != given[name].shape:
            raise ValueError(f"{source}: {name} has shape {tuple(given[name].shape)}; this model needs {tuple(parameter.shape)}")
        if not torch.isfinite(given[name]).all():
            raise ValueError(f"{source}: {name} holds values that are not finite")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def _of(stage: str, name: str) -> bool:
    """Is a parameter saved with this stage?"""
    return f".{stage}.weight" in name or (stage == "pretrain" and name.startswith(("head.", "temperature.")))


# --- whole embedders ----------------------------------------------------------------------------------------------------------


def save_embedder(embedder, path: Path, optimizers=None, **numbers) -> None:
    """Write the merged and the present stages, and how to rebuild them around the backbone, into one checkpoint (adapters only)."""
    present = [s for s in STAGES if has_adapter(embedder.model, s)]
    facts = {"lora": embedder.lora, "present": present, "built": embedder.built, "backbone": embedder.backbone_fingerprint}
    checkpoint.save(path, all_tensors(embedder), optimizers, **facts, **numbers)


def load_embedder(cls, path: Path):
    """Rebuild an embedder from a checkpoint of `save_embedder`.

    Raises:
        FileNotFoundError: no such file, or its backbone is gone.
        ValueError: the file is no checkpoint, not one of an embedder, or the backbone's weights are not those that it was trained on
            (a file of before these were noted is not checked).
    """
    from abc_core.runs.paths import ROOT

    if not Path(path).exists():
        raise FileNotFoundError(f"no trained embedder at {path}; notebook 02 trains stage 1, notebook 03 stage 2 (`make reproduce`)")
    tensors, numbers = checkpoint.load(path)
    built = dict(numbers.get("built", {}))
    if "backbone" not in built:
        raise ValueError(f"{path} does not name a backbone; only an embedder that `from_backbone` or `load` made can be loaded again")
    backbone = Path(built.pop("backbone"))
    backbone = backbone if backbone.is_absolute() else ROOT / backbone
    embedder = cls.from_backbone(backbone, **built)
    if numbers.get("backbone", embedder.backbone_fingerprint) != embedder.backbone_fingerprint:
        found = f"{backbone} now holds others, with fingerprint {embedder.backbone_fingerprint}"
        raise ValueError(
            f"{path} was trained on a backbone whose weights have the fingerprint {numbers['backbone']}; {found}: "
            f"put the former ones back, or delete {Path(path).parent} and train again"
        )
    for stage in STAGES:
        if stage in numbers["lora"]:
            add_lora(embedder, stage, **numbers["lora"][stage])
            load_stage(embedder, stage, tensors, path)
            if stage == "pretrain" and "pretrain" not in numbers["present"]:
                merge(embedder, "pretrain")
    return embedder.requires_grad_(False).eval()
