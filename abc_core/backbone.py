"""Load a vision-language backbone and change what the paper changes, by small named functions on the instance.

Steps: (1) `load_backbone` for any supported family; (2) `make_bidirectional` (Sec. 3.1); (3) exact speed-ups, `linear_patches`,
`batch_vision_attention` and `autocast_attention`; nothing is changed at import. (4) What differs between families, and only here: where
LoRA goes (`LORA_TARGETS`, `unread_blocks`), how pictures become visual tokens (`picture_features`) and how many (`set_visual_tokens`).
"""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import is_fake


def linear_patches(model: nn.Module) -> nn.Module:
    """Let a patch embedding whose stride equals its kernel run as the matrix product it is (a Conv3d is many times slower on CPU)."""
    for module in model.modules():
        if type(module).__name__.endswith("PatchEmbed") and isinstance(getattr(module, "proj", None), nn.Conv3d):
            if module.proj.stride != module.proj.kernel_size:
                raise ValueError(f"patches overlap: stride {module.proj.stride}, kernel {module.proj.kernel_size}")
            module.forward = partial(_patches_as_product, module.proj)
    return model


def _patches_as_product(proj: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.to(proj.weight.dtype).flatten(1), proj.weight.flatten(1), proj.bias)


def batch_vision_attention(model: nn.Module) -> nn.Module:
    """Send pictures of equal grids through the vision tower's attention in one call instead of one call each (exact).

    The towers of InternVL and LLaVA-NeXT see square tiles, all in one call already, and stay as they are.
    """
    from transformers import AttentionInterface

    visual = getattr(model, "visual", None) or getattr(model.model, "visual", None)
    if visual is None:
        return model
    AttentionInterface.register(_BY_LENGTH, _attention_by_length)
    visual.config._attn_implementation = _BY_LENGTH
    for module in visual.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = _BY_LENGTH
    return model


_BY_LENGTH = "flash_by_length_sdpa"  # "flash" in the name makes transformers hand over all pictures at once, with their lengths


def _attention_by_length(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **_):
    """float[1, heads, T, d] of all pictures -> (float[1, T, heads, d], None); full attention inside each picture."""
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    qkv = torch.cat([query, key, value])  # 3, heads, T, d
    if len(set(lengths)) == 1:
        return _full(qkv, lengths[0], scaling)[None], None
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    parts = torch.arange(query.shape[2], device=query.device).split(lengths)
    for length in sorted(set(lengths)):
        rows = torch.cat([p for p in parts if len(p) == length])
        out[rows] = _full(qkv[:, :, rows], length, scaling)
    return out[None], None


def _full(qkv: torch.Tensor, length: int, scaling: float) -> torch.Tensor:
    """float[3, heads, B·L, d] -> float[B·L, heads, d]: attention inside each of B stretches of `length` tokens."""
    q, k, v = qkv.unflatten(2, (-1, length)).transpose(1, 2)  # each B, heads, L, d
    with _whole(qkv) as whole:
        out = F.scaled_dot_product_attention(*whole(q, k, v), scale=scaling)
    return out.transpose(1, 2).flatten(0, 1).to(qkv.dtype)


def autocast_attention(model: nn.Module) -> nn.Module:
    """Let the language model's attention stay in float32 where CPU autocast is on; nothing changes elsewhere.

    The fused kernel's backward pass is slower in bfloat16 than in float32, and the plain product slower than both. Leaves eager and
    FlashAttention-2 as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_WHOLE, _attention_whole)
    AttentionMaskInterface.register(_WHOLE, sdpa_mask)
    for module in model.model.language_model.modules():
        if hasattr(module, "config") and module.config._attn_implementation == "sdpa":
            module.config._attn_implementation = _WHOLE
    return model


_WHOLE = "autocast_sdpa"


def _attention_whole(module, query, key, value, attention_mask, **options):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if getattr(module, "watched", None) is not None:  # `abc_core.miniature.backbone.pointing`
        module.watched.append((query, key))
    with _whole(query) as whole:
        out, _ = sdpa_attention_forward(module, *whole(query, key, value), attention_mask, **options)
    return out.to(value.dtype), None


@contextmanager
def _whole(like: torch.Tensor):
    """Within CPU autocast: a stretch without it, and a cast to float32. Elsewhere nothing changes, nor for the shapes of a memory plan."""
    if like.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or is_fake(like):
        yield lambda *tensors: tensors
        return
    with torch.autocast("cpu", enabled=False):
        yield lambda *tensors: [t.float() for t in tensors]


# --- loading and the paper's change -------------------------------------------------------------------------------------------

# Family -> where the linear layers of its language model and its vision tower are: LoRA targets, anchored at the tower so that none leaks.
_DECODER = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LORA_TARGETS = {
    "qwen2_vl": {
        "language": rf"model\.language_model\.{_DECODER}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
    },
    "qwen2_5_vl": {
        "language": rf"model\.language_model\.{_DECODER}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
    },
    "qwen3_vl": {
        "language": rf"model\.language_model\.{_DECODER}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
    },
    "internvl": {
        "language": rf"model\.language_model\.{_DECODER}",
        "vision": r"model\.vision_tower\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
    },
    "llava_next": {
        "language": rf"model\.language_model\.{_DECODER}",
        "vision": r"model\.vision_tower\.(vision_model\.)?encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])",
    },
}


def unread_blocks(model: nn.Module) -> str | None:
    """Pattern of the vision blocks behind the layer that visual tokens are read from (LLaVA-NeXT: the last one); None if there are none."""
    layers, depth = getattr(model.config, "vision_feature_layer", -1), model.config.vision_config.num_hidden_layers
    read = max(k if k >= 0 else depth + 1 + k for k in ([layers] if isinstance(layers, int) else layers))
    unread = "|".join(map(str, range(read, depth)))
    return rf"model\.vision_tower\..*\.layers?\.({unread})\..*" if unread else None


def best_attention(dtype: torch.dtype) -> str:
    """FlashAttention-2 where it is installed and the weights are bfloat16, which it needs; PyTorch's fused attention elsewhere."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if dtype == torch.bfloat16 and is_flash_attn_2_available() else "sdpa"


def load_backbone(path, dtype: torch.dtype = torch.float32, device: str = "cpu", attention: str | None = None):
    """(model, processor) of a generative VLM of a supported family, causal and unchanged; nothing is fetched, no remote code runs.

    The processor is None where the folder has no tokenizer. `attention` is an implementation of transformers; None: `best_attention`.

    Raises:
        FileNotFoundError: no model at `path`.
        ValueError: its family is not one of `LORA_TARGETS`.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from abc_core.runs.files import read_json

    if not (Path(path) / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no config.json, so no backbone; assets/backbone is the embedded one (`make backbone`)")
    family = read_json(Path(path) / "config.json").get("model_type")
    if family not in LORA_TARGETS:
        raise ValueError(f"{path} is of the family {family!r}; supported are {', '.join(LORA_TARGETS)}")
    kwargs = dict(local_files_only=True, use_safetensors=True, trust_remote_code=False)
    kwargs |= {"dtype": dtype, "attn_implementation": attention or best_attention(dtype)}
    with _no_bar_if_small(Path(path)):
        model = AutoModelForImageTextToText.from_pretrained(path, **kwargs)
    spoken = any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    processor = AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False) if spoken else None
    return model.to(device).eval(), processor


@contextmanager
def _no_bar_if_small(folder: Path):
    """Without transformers' bar of progress for weights of less than a gigabyte, which are there at once."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 2**30
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def make_bidirectional(model: nn.Module) -> nn.Module:
    """Let every token of the language model attend to every other (Sec. 3.1, after LLM2Vec).

    The configuration reaches eager and SDPA, through the mask; FlashAttention asks the layers. **Authors' code:** sets the layers alone.
    **Caveat:** save backbones and generate answers before; afterwards the model no longer decodes.
    """
    model.config.get_text_config().is_causal = False
    for module in model.model.language_model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return model


# --- pictures -----------------------------------------------------------------------------------------------------------------

# Family -> what its pictures need beside their pixels, one row per picture.
_GRID = ("image_grid_thw",)
PICTURE_INPUTS = {"qwen2_vl": _GRID, "qwen2_5_vl": _GRID, "qwen3_vl": _GRID, "internvl": (), "llava_next": ("image_sizes",)}


def picture_features(model: nn.Module, processor, images: list) -> tuple[object, dict, list[str]]:
    """Visual tokens of pictures, each picture once.

    Returns:
        (outputs, inputs, placeholders): the model's own outputs, where pooler_output is one float[V, H] per picture in every family (all
        tiles of a picture together); the rows of `PICTURE_INPUTS`; each picture's image tokens as text.
    """
    family, device = model.config.model_type, next(model.parameters()).device
    if family == "llava_next":  # model and processor both cut the picture and must agree
        model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints
    batch = processor.image_processor(images=images, return_tensors="pt", **getattr(processor, "images_kwargs", {}))
    placeholders = [processor.replace_image_token(batch, i) for i in range(len(images))]
    inputs = {name: batch[name].to(device) for name in PICTURE_INPUTS[family]}
    outputs = model.model.get_image_features(batch["pixel_values"].to(device), **inputs, return_dict=True)
    if family == "internvl":  # float[tiles, V / tile, H]
        outputs.pooler_output = [tiles.flatten(0, 1) for tiles in outputs.pooler_output.split(batch["num_patches"].tolist())]
    return outputs, inputs, placeholders


def set_visual_tokens(processor, smallest: int, largest: int):
    """Bound the visual tokens of a picture; pictures are resized once.

    Qwen families take about any number in between (one token is 28 × 28 or 32 × 32 pixels; sides are whole tokens). InternVL and LLaVA-NeXT
    cut a picture into square tiles: the bound is on the number of tiles, and on LLaVA-NeXT it can only be tightened.

    Raises:
        ValueError: bounds in the wrong order, or that not even the fewest tiles meet.
    """
    images = processor.image_processor
    if not 0 < smallest <= largest:
        raise ValueError(f"{smallest} to {largest} visual tokens were asked for")
    if hasattr(images, "merge_size"):
        side = images.patch_size * images.merge_size
        images.size = type(images.size)(shortest_edge=smallest * side**2, longest_edge=largest * side**2)
        return processor
    if hasattr(images, "max_patches"):  # InternVL: one tile, or several and a thumbnail
        tile = fewest = processor.image_seq_length
    else:  # LLaVA-NeXT: the whole picture as one tile, then its parts, where each row of tokens ends in a newline
        patch, pinpoints = processor.patch_size, images.image_grid_pinpoints
        tile = (images.crop_size["height"] // patch) ** 2
        counts = [tile + (h // patch) * (w // patch + 1) for h, w in pinpoints]
        fewest = min(counts)
    if not smallest <= tile <= fewest <= largest:
        raise ValueError(f"a tile takes {tile} visual tokens, a picture up to {fewest} at least; {smallest} to {largest} were asked for")
    if hasattr(images, "max_patches"):
        images.max_patches = max(1, largest // tile - 1)
    else:
        images.image_grid_pinpoints = [p for p, count in zip(pinpoints, counts) if count <= largest]
    return processor
