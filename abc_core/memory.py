"""What one training step will hold on each device, by part, told before anything starts and without the device.

Steps: (1) `plan` builds the embedder and its adapters out of fake tensors, which have shapes and no content; (2) `_step` runs the real
modules forward and backward on them, checkpointing and gradient caching as configured; (3) `Allocations` writes down when each tensor's
storage is born and dies, and the fullest moment is the peak. `plan_profile` does it for a profile's notebook, `check` refuses what cannot
fit.

**Paper:** Sec. 4, "the output layer has become the most memory-intensive layer", and Sec. 5, "barely fits into the 640 GB of VRAM".
**Caveat:** the allocator's fragments, CUDA's own few hundred MiB and communication buffers are not in it; `LIMIT` leaves 1 GiB of 80.
"""

import copy
import weakref
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from abc_core import adapters, cost, notebooks, paths
from abc_core.config import PretrainConfig
from abc_core.model import Embedder, Visual

GIB = 2**30
LIMIT = 79.0  # GiB of an A100 with 80


@dataclass(frozen=True)
class Shapes:
    """Tokens of a step's rows: every picture as large as it may be, every text as long as the longest of an ordinary batch.

    visual: tokens of a picture after the merger. around: tokens of the prompt around a picture, with its instruction. text: of a caption
    with its prompt. Conceptual Captions average 10 words, Qwen's prompt takes 22 tokens.
    """

    visual: int
    around: int = 40
    text: int = 48


# --- 1. the plan --------------------------------------------------------------------------------------------------------------


def plan(config, backbone, weights: str = "float32", processes: int = 1, shapes: Shapes | None = None, device: str = "cuda") -> dict:
    """Bytes on one device at the fullest moment of a step, by part.

    Args:
        config: a PretrainConfig or an InstructConfig. backbone: a model's config of transformers.
        weights: type of the frozen backbone's numbers. processes: the batch is shared by so many devices.
        device: "cuda", or "cpu", where attention keeps float32 and "auto" means no bfloat16 without hardware for it.

    Returns:
        {weights, optimizer, gradients, pixels, cached_embeddings, activations, peak, logits_avoided}; `peak` is the sum of those
        before it. logits_avoided is not in it: the output layer's result over all rows that are held at once, in bfloat16.

    Raises:
        ValueError: a family whose vision tower the plan cannot run on shapes, or a batch that the processes cannot share.
    """
    if backbone.model_type != "qwen2_vl":
        raise ValueError(f"the memory plan is for the family 'qwen2_vl', not for {backbone.model_type!r}")
    shapes = shapes or Shapes(config.max_visual_tokens)
    pretrain = isinstance(config, PretrainConfig)
    pictures, each = (config.queries, 1) if pretrain else (config.images, config.instructions_per_image)
    if pictures % processes:
        raise ValueError(f"{pictures} pictures of a batch cannot be shared evenly by {processes} processes")
    own, texts = pictures // processes, pictures // processes * (1 + config.negatives) * pretrain
    bf16 = config.bf16 is True or (config.bf16 == "auto" and (device == "cuda" or torch.cpu._is_amx_tile_supported()))
    embedder = _embedder(config, backbone, weights, "pretrain" if pretrain else "instruct")
    with _shapes_alone(), Allocations() as allocations:
        _settle(embedder)
        trained = [p for p in embedder.parameters() if p.requires_grad]
        allocations.label("weights", embedder.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _step(embedder, allocations, own, each, texts, shapes, config.chunk, processes)
        allocations.label("gradients", [p.grad for p in trained if p.grad is not None])
    parts = allocations.at_peak() | {"optimizer": 2 * 4 * sum(p.numel() for p in trained)}  # AdamW's two moments, float32
    order = ("weights", "optimizer", "gradients", "pixels", "cached_embeddings", "activations")
    parts = {part: parts.get(part, 0) for part in order}
    held = min(own, config.chunk or own) * each * (shapes.visual + shapes.around), min(texts, config.chunk or texts) * shapes.text
    vocabulary = backbone.get_text_config().vocab_size
    return parts | {"peak": sum(parts.values()), "logits_avoided": 2 * vocabulary * (sum(held) if config.chunk is None else max(held))}


@contextmanager
def _shapes_alone():
    """Tensors without content; transformers' checks of content are off."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with patch.dict("os.environ", TRANSFORMERS_DISABLE_TORCH_CHECK="1"), FakeTensorMode():
        yield


def _embedder(config, backbone, weights: str, stage: str) -> Embedder:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(backbone), dtype=getattr(torch, weights), attn_implementation="sdpa")
        embedder = Embedder(model, None, positions="as_published")  # numbered tokens: M-RoPE would look at content
        adapters.add_lora(embedder, stage, **asdict(config.lora))
    if config.activation_checkpointing:
        adapters.checkpoint_activations(embedder.model)
    return embedder.train()  # as a step has it; only then do blocks checkpoint


def _settle(module: nn.Module) -> None:
    """Replace every parameter and buffer on the meta device by a fake tensor of its shape."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


# --- 2. a step on shapes --------------------------------------------------------------------------------------------------------


def _step(embedder, allocations, pictures: int, each: int, texts: int, shapes: Shapes, chunk: int | None, processes: int) -> None:
    """The forward and backward pass of this device's rows: `pictures` under `each` instructions, and `texts`."""
    images = partial(_encode_pictures, embedder, allocations, each=each, shapes=shapes)
    captions = partial(_encode_texts, embedder, shapes=shapes)
    if chunk is None:
        q_emb = images(pictures)
        c_emb = captions(texts) if texts else torch.empty(len(q_emb), embedder.width)
        return _loss(q_emb, c_emb, processes).backward()
    cached = [torch.empty(n, embedder.width, requires_grad=True) for n in (pictures * each, texts) if n]
    _loss(cached[0], cached[-1], processes).backward()
    allocations.label("cached_embeddings", [*cached, *(c.grad for c in cached)])
    images(min(chunk, pictures)).sum().backward()
    if texts:
        captions(min(chunk, texts)).sum().backward()


def _loss(q_emb: torch.Tensor, c_emb: torch.Tensor, processes: int) -> torch.Tensor:
    """Equation 2's cost in memory: the embeddings of all processes, and the scores of all queries."""
    q_all, c_all = (torch.cat([emb, *(torch.empty_like(emb) for _ in range(processes - 1))]) for emb in (q_emb, c_emb))
    return (q_all @ c_all.T).logsumexp(1).sum()


def _encode_pictures(embedder, allocations, count: int, each: int, shapes: Shapes) -> torch.Tensor:
    """float[count·each, D]; pixels go through the real vision tower, whose lengths are given instead of read off a grid."""
    visual, settings = embedder.model.model.visual, embedder.model.config.vision_config
    patches = shapes.visual * settings.spatial_merge_size**2
    pixels = torch.empty(count * patches, settings.in_channels * settings.temporal_patch_size * settings.patch_size**2)
    allocations.label("pixels", [pixels])
    ends = np.arange(count + 1) * patches
    where = torch.zeros(count * patches, 2, dtype=torch.long)
    seen = visual(pixels, grid_thw=None, position_ids=where, cu_seqlens=ends, max_seqlen=patches)
    seen.pooler_output = seen.pooler_output.split(shapes.visual)
    row = [embedder.model.config.image_token_id] * shapes.visual + [1] * shapes.around
    owners = [k for k in range(count) for _ in range(each)]
    return embedder.encode([row] * len(owners), Visual(seen, {}, []), owners)[0]


def _encode_texts(embedder, count: int, shapes: Shapes) -> torch.Tensor:
    """float[count, D]."""
    return embedder.encode([[1] * shapes.text] * count)[0]


# --- 3. what is alive when --------------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Writes down when the storage of each tensor that an operator makes is born, how many bytes it has, and when it dies."""

    def __init__(self):
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when it dies), in order
        self.labels: dict[int, str] = {}
        self._numbers = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._born, out)
        return out

    def _born(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            number, size = len(self.events), storage.nbytes()
            self._numbers[storage] = number
            self.events.append((number, size))
            weakref.finalize(storage, self.events.append, (number, -size))
        return self._numbers[storage]

    def label(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Say which part the storages of some tensors are; what is never labelled is activations."""
        self.labels |= {self._born(tensor): part for tensor in tensors}

    def at_peak(self) -> dict[str, int]:
        """Bytes by part at the moment with the most bytes alive."""
        alive = np.cumsum([size for _, size in self.events])
        parts: dict[str, int] = {}
        for number, size in self.events[: int(alive.argmax()) + 1]:
            part = self.labels.get(number, "activations")
            parts[part] = parts.get(part, 0) + size
        return parts


# --- profiles -------------------------------------------------------------------------------------------------------------------


def plan_profile(profile: str, stage: str = "02_pretraining") -> list[dict]:
    """The `table` of a profile's stage, by the numbers in its files.

    Args:
        stage: the notebook, "02_pretraining" or "03_instruction_tuning".
    """
    folder = paths.ROOT / "notebooks"
    first, own = (notebooks.values(folder / f"{name}.ipynb", profile) for name in ("02_pretraining", stage))
    backbone = cost.backbone_config(paths.ROOT / first["backbone"])
    return table(profile, plan(notebooks.config_of(stage, own), backbone, first["weights"], own["processes"]))


def table(profile: str, parts: dict) -> list[dict]:
    """A plan as rows {profile, part, gib}."""
    return [{"profile": profile, "part": part, "gib": size / GIB} for part, size in parts.items()]


def check(rows: list[dict], limit: float = LIMIT) -> None:
    """Refuse a plan that does not fit, with its figures.

    Raises:
        MemoryError: the peak is above `limit` GiB.
    """
    gib = {row["part"]: row["gib"] for row in rows}
    if gib["peak"] > limit:
        parts = " + ".join(f"{part} {size:.1f}" for part, size in gib.items() if part not in ("peak", "logits_avoided"))
        raise MemoryError(
            f"profile {rows[0]['profile']} needs {gib['peak']:.1f} GiB a device, and {limit:g} are there: {parts}. Less is needed with "
            "activation_checkpointing, a smaller chunk, or weights = bfloat16"
        )
