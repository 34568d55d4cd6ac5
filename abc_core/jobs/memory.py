"""What one training step will hold on each device, by part, told before anything starts and without the device.

Steps: (1) `plan` builds the embedder and its adapters out of fake tensors, which have shapes and no content; (2) `_step` runs the real
modules forward and backward on them, checkpointing and gradient caching as configured; (3) `Allocations` writes down when each tensor's
storage is born and dies, and the fullest moment is the peak; (4) as all layers of a stack are alike, a few are run and the rest is
arithmetic. `plan_profile` does it for a profile's notebook, `check` refuses what cannot fit.

**Paper:** Sec. 4, "the output layer has become the most memory-intensive layer", and Sec. 5, "barely fits into the 640 GB of VRAM".
**Caveat:** the allocator's fragments, CUDA's own few hundred MiB and communication buffers are not in it; `LIMIT` leaves 1 GiB of 80.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from abc_core import adapters
from abc_core.config import PretrainConfig
from abc_core.model import Embedder, Visual

GIB = 2**30
LIMIT = 79.0  # GiB of an A100 with 80
PARTS = ("weights", "optimizer", "gradients", "pixels", "cached_embeddings", "activations")
FEW = 2  # layers of each stack that a plan runs


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


def plan(
    config, backbone, weights: str = "float32", processes: int = 1, shapes: Shapes | None = None, device: str = "cuda",
    few: int | None = FEW,
) -> dict:  # fmt: skip
    """Bytes on one device at the fullest moment of a step, by part.

    Args:
        config: a PretrainConfig or an InstructConfig. backbone: a model's config of transformers.
        weights: type of the frozen backbone's numbers. processes: the batch is shared by so many devices.
        device: "cuda", or "cpu", where attention keeps float32 and "auto" means no bfloat16 without hardware for it.
        few: layers of the vision tower, and of the language model, that are run; None: all of them, which says the same and takes longer.

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

    def run(layers: tuple[int, int]) -> dict[str, dict[str, int]]:
        embedder = _embedder(config, _cut(backbone, layers), weights, "pretrain" if pretrain else "instruct")
        with _shapes_alone(), Allocations() as allocations:
            _settle(embedder)
            trained = [p for p in embedder.parameters() if p.requires_grad]
            allocations.label("weights", embedder.parameters())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                _step(embedder, allocations, own, each, texts, shapes, config.chunk, processes)
            allocations.label("gradients", [p.grad for p in trained if p.grad is not None])
        moments = {"optimizer": 2 * 4 * sum(p.numel() for p in trained)}  # AdamW's two, float32
        return {phase: parts | moments for phase, parts in allocations.at_peaks().items()}

    phases = _extended(run, (backbone.vision_config.depth, backbone.get_text_config().num_hidden_layers), few)
    fullest = max(phases.values(), key=lambda parts: sum(parts.values()))
    parts = {part: fullest.get(part, 0) for part in PARTS}
    held = min(own, config.chunk or own) * each * (shapes.visual + shapes.around), min(texts, config.chunk or texts) * shapes.text
    vocabulary = backbone.get_text_config().vocab_size
    return parts | {"peak": sum(parts.values()), "logits_avoided": 2 * vocabulary * (sum(held) if config.chunk is None else max(held))}


def logits(config, backbone, processes: int = 1, shapes: Shapes | None = None) -> dict[str, int]:
    """Bytes of bfloat16 logits that a device would hold in a step of stage 1: rows × tokens × words × 2, of {pictures, captions}.

    **Paper:** Sec. 4, which leaves the output layer out.
    """
    shapes, own = shapes or Shapes(config.max_visual_tokens), config.queries // processes
    words = 2 * backbone.get_text_config().vocab_size
    return {
        "pictures": own * (shapes.visual + shapes.around) * words,
        "captions": own * (1 + config.negatives) * shapes.text * words,
    }


def _extended(run: Callable, layers: tuple[int, int], few: int | None) -> dict[str, dict[str, int]]:
    """Parts at the peak of each phase for (vision, language) `layers`, out of runs with a few.

    A phase passes through one stack in one direction, and each layer adds, or frees, what the others do. So its fullest moment is in its
    first layer or in its last one, however many there are, and bytes grow by the same for each layer more.
    """
    if few is None or min(layers) <= few + 1:
        return run(layers)
    base, more = run((few, few)), (run((few + 1, few)), run((few, few + 1)))
    grown = lambda phase, part: sum(  # noqa: E731
        (count - few) * (other[phase].get(part, 0) - base[phase].get(part, 0)) for count, other in zip(layers, more, strict=True)
    )
    return {phase: {part: base[phase].get(part, 0) + grown(phase, part) for part in PARTS} for phase in base}


def _cut(backbone, layers: tuple[int, int]):
    """A copy of a model's config with so many layers of its vision tower and of its language model."""
    cut = copy.deepcopy(backbone)
    text = cut.get_text_config()
    cut.vision_config.depth, text.num_hidden_layers = layers
    text.layer_types = text.layer_types[: layers[1]]
    return cut


@contextmanager
def _shapes_alone():
    """Tensors without content; transformers' checks of content are off."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with patch.dict("os.environ", TRANSFORMERS_DISABLE_TORCH_CHECK="1"), FakeTensorMode():
        yield


def _embedder(config, backbone, weights: str, stage: str) -> Embedder:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(backbone, dtype=getattr(torch, weights), attn_implementation="sdpa")
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
    captions = partial(_encode_texts, embedder, allocations, shapes=shapes)
    if chunk is None:
        q_emb = images(pictures)
        c_emb = captions(texts) if texts else torch.empty(len(q_emb), embedder.width)
        allocations.phase("loss")
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
    allocations.phase("vision")
    visual, settings = embedder.model.model.visual, embedder.model.config.vision_config
    patches = shapes.visual * settings.spatial_merge_size**2
    pixels = torch.empty(count * patches, settings.in_channels * settings.temporal_patch_size * settings.patch_size**2)
    allocations.label("pixels", [pixels])
    ends = np.arange(count + 1) * patches
    where = torch.zeros(count * patches, 2, dtype=torch.long)
    seen = visual(pixels, grid_thw=None, position_ids=where, cu_seqlens=ends, max_seqlen=patches)
    allocations.phase_of_gradient("vision, backward", seen.pooler_output)
    seen.pooler_output = seen.pooler_output.split(shapes.visual)
    allocations.phase("pictures")
    row = [embedder.model.config.image_token_id] * shapes.visual + [1] * shapes.around
    owners = [k for k in range(count) for _ in range(each)]
    emb = embedder.encode([row] * len(owners), Visual(seen, {}, []), owners)[0]
    return allocations.phase_of_gradient("pictures, backward", emb)


def _encode_texts(embedder, allocations, count: int, shapes: Shapes) -> torch.Tensor:
    """float[count, D]."""
    allocations.phase("texts")
    return allocations.phase_of_gradient("texts, backward", embedder.encode([[1] * shapes.text] * count)[0])


# --- 3. what is alive when --------------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Writes down when the storage of each tensor that an operator makes is born, how many bytes it has, and when it dies."""

    def __init__(self):
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when it dies), in order
        self.phases: list[tuple[str, int]] = [("start", 0)]  # (name, number of its first event)
        self.labels: dict[int, str] = {}
        self._numbers = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self._born(made)
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

    def phase(self, name: str) -> None:
        """A phase of the step begins."""
        self.phases.append((name, len(self.events)))

    def phase_of_gradient(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The phase that begins when the gradient of a tensor is there; returns the tensor."""
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.phase(name))
        return tensor

    def at_peaks(self) -> dict[str, dict[str, int]]:
        """Bytes by part at the moment of each phase with the most bytes alive."""
        sizes = np.array([size for _, size in self.events])
        alive = np.cumsum(sizes)
        kinds = np.array([(*PARTS,).index(self.labels.get(number, "activations")) for number, _ in self.events])
        found = {}
        for (name, first), (_, last) in zip(self.phases, [*self.phases[1:], ("", len(self.events))]):
            if last > first:
                until = first + int(alive[first:last].argmax()) + 1
                totals = np.bincount(kinds[:until], weights=sizes[:until], minlength=len(PARTS))  # float64, exact to 2^53 bytes
                found[name] = dict(zip(PARTS, totals.astype(np.int64).tolist()))
        return found


# --- profiles -------------------------------------------------------------------------------------------------------------------




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
