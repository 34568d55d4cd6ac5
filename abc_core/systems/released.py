"""The authors' released weights, and ours, in the layout of their files: one folder of adapter for each stage.

    pretrain/adapter_model.safetensors   LoRA of both towers, mlp_head, temperature     (transformers 4.47, peft 0.13 key names)
    instruct/adapter_model.safetensors   LoRA of the language model

Steps: (1) `load_released` reads both, renames every tensor and fails on any that is missing, left over, or an empty LoRA; (2)
`export_released` writes ours in the same names; (3) `export_merged` writes one plain Hugging Face model with both stages fused.

**Caveat:** peft's own loading of these files with transformers 5 finds no LoRA tensor at all, and says so in a warning only.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from abc_core import adapters
from abc_core.data.hub import local_copy
from abc_core.model import Embedder
from abc_core.runs.files import expect, read_json

BASE = "Qwen/Qwen2-VL-7B-Instruct"
PRETRAIN = "TIGER-Lab/ABC-Qwen2VL-Pretrain"
INSTRUCT = "TIGER-Lab/ABC-Qwen2VL-Instruct"
# How names begin in the released files and here; the first that fits decides.
BEGINNINGS = (
    ("base_model.model.mlp_head.", "head."),
    ("base_model.model.temperature.temp", "temperature.parameter"),
    ("base_model.model.visual.", "model.model.visual."),
    ("base_model.model.model.layers.", "model.model.language_model.layers."),
)


def load_released(base=BASE, pretrain=PRETRAIN, instruct=INSTRUCT, download: bool = False, **options) -> Embedder:
    """The embedder of a backbone and two adapters in the released layout: stage 1 fused, stage 2 on for instructed pictures.

    Args:
        base, pretrain, instruct: folders, or names on the model hub; the paper's by default. instruct=None: stage 1 alone.
        download: fetch what the local cache of the hub does not hold; without it nothing leaves the machine.
        options: of `Embedder.from_backbone`. By default positions="as_published", 256 to 1024 visual tokens, as their code embeds.
    Raises:
        FileNotFoundError: a folder or a name that is not on this machine.
        ValueError: a tensor that is missing, left over, of another shape or not finite, or a LoRA whose B is all zero.
    """
    options = {"positions": "as_published", "min_visual_tokens": 256, "max_visual_tokens": 1024} | options
    stages = {"pretrain": read_adapter(hub_folder(pretrain, download), "pretrain")}
    if instruct is not None:
        stages["instruct"] = read_adapter(hub_folder(instruct, download), "instruct")
    tensors = stages["pretrain"][0]
    wide = tensors.get("pretrain/head.linear_layer1.weight")
    head = {"head": wide is not None}
    if wide is not None:
        head |= {"head_hidden": len(wide), "head_bias": "pretrain/head.linear_layer1.bias" in tensors}
    embedder = Embedder.from_backbone(hub_folder(base, download), temperature_parametrisation="raw", **head, **options)
    for stage, (tensors, lora, path) in stages.items():
        adapters.add_lora(embedder, stage, **lora)
        adapters.load_stage(embedder, stage, tensors, path)
        if stage == "pretrain":
            adapters.merge(embedder)
    return embedder.requires_grad_(False).eval()


def read_adapter(folder: Path, stage: str) -> tuple[dict[str, torch.Tensor], dict, Path]:
    """(tensors under our names, rank, alpha and dropout, file) of an adapter in the released layout.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: a name that is no part of an ABC adapter, a LoRA whose B is all zero, or a variant of LoRA that ABC does not use.
    """
    path = expect(Path(folder) / "adapter_model.safetensors", "an adapter in the released layout")
    config = read_json(expect(Path(folder) / "adapter_config.json", "the numbers of the adapter"))
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise ValueError(f"{folder}/adapter_config.json: {name} is {config[name]!r}; ABC's adapters are plain LoRA")
    lora = {"rank": config["r"], "alpha": config["lora_alpha"], "dropout": config.get("lora_dropout", 0.0)}
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    tensors = {}
    for name, tensor in given.items():
        if "lora_B" in name and not tensor.any():
            raise ValueError(f"{path}: {name} is all zero, so this LoRA was never trained, or was lost")
        tensors[f"{stage}/{_ours(name, stage, path)}"] = tensor
    return tensors, lora, path


def export_released(embedder, folder: Path) -> None:
    """Write the embedder's stages as folder/pretrain and folder/instruct in the released layout.

    Raises:
        ValueError: a family other than Qwen2-VL, whose layout this is, or no stage to write.
    """
    if embedder.family != "qwen2_vl":
        raise ValueError(f"the released layout is that of Qwen2-VL; this embedder is of the family {embedder.family!r}")
    tensors = adapters.all_tensors(embedder)
    if not tensors:
        raise ValueError("the embedder carries no stage to export")
    for stage in embedder.lora:
        out = Path(folder) / stage
        out.mkdir(parents=True, exist_ok=True)
        own = {k.removeprefix(f"{stage}/"): v for k, v in tensors.items() if k.startswith(f"{stage}/")}
        if stage == "pretrain":  # theirs is τ itself
            own["temperature.parameter"] = embedder.temperature().detach().cpu()
        save_file({_theirs(name, stage): v.contiguous() for name, v in own.items()}, out / "adapter_model.safetensors", {"format": "pt"})
        rows = {"peft_type": "LORA", "r": embedder.lora[stage]["rank"], "lora_alpha": embedder.lora[stage]["alpha"], "bias": "none"}
        rows |= {"lora_dropout": embedder.lora[stage]["dropout"], "base_model_name_or_path": str(embedder.built.get("backbone", ""))}
        (out / "adapter_config.json").write_text(json.dumps(rows, indent=2) + "\n")


def export_merged(embedder, folder: Path) -> None:
    """Write one Hugging Face model with every stage fused (so it always follows instructions), its processor, and head.safetensors.

    The embedder keeps its adapters. **Caveat:** the written model is bidirectional in use, but Hugging Face loads it causal.
    """
    from copy import deepcopy

    fused = deepcopy(embedder)
    adapters.merge_all(fused)
    fused.model.config.get_text_config().is_causal = None  # no attribute of a generative model's file
    fused.model.save_pretrained(folder)
    if fused.processor is not None:
        fused.processor.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in fused.head.state_dict().items()}, Path(folder) / "head.safetensors")


def _ours(name: str, stage: str, path: Path) -> str:
    for theirs, own in BEGINNINGS:
        lora = re.fullmatch(r"(.*\.lora_[AB])\.weight", name)
        if name.startswith(theirs) and (lora or not own.startswith("model.")):
            return own + (f"{lora[1]}.{stage}.weight" if lora else name).removeprefix(theirs)
    raise ValueError(f"{path}: {name!r} is no tensor of an ABC adapter")


def _theirs(name: str, stage: str) -> str:
    """The inverse of `_ours`."""
    theirs, own = next(pair for pair in BEGINNINGS if name.startswith(pair[1]))
    return theirs + name.removeprefix(own).replace(f".{stage}.weight", ".weight")


def hub_folder(name, download: bool, revision: str | None = None, ignore: str | None = None) -> Path:
    """A local folder, or the local copy of a model on the hub: weights in safetensors and texts, no pickle, no code, no file like `ignore`.

    Raises:
        FileNotFoundError: neither a folder nor in the hub's local cache (with `download`: nor to be had).
    """
    files = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]  # the last: a tokenizer's
    return local_copy(name, download, revision=revision, allow_patterns=files, ignore_patterns=ignore)
