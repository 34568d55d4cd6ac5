"""How long a training takes before it starts: its floating-point operations, counted from the model's sizes, and a rate.

    a product of a matrix n × m with one token        2·n·m
    attention of a row of T tokens                    4·layers·width·T²                 (scores, and their mix)
    training, per frozen matrix                       forward + backward to its input   (as much again; its own gradient is not needed)
    training, attention and LoRA                      forward + 2 · forward
    again                                             + 1 forward under activation checkpointing, + 1 under gradient caching (`chunk`)

Steps: (1) `picture` and `row` count one forward pass; (2) `flops_of_step` puts a step of either stage together; (3) `hours`.
Left out: norms, the head, the loss, optimizer and reading, a per cent or two. **Caveat:** counts Qwen2-VL, the paper's backbone.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen2VLConfig

from abc_core import adapters
from abc_core.batches import Batch
from abc_core.config import PretrainConfig
from abc_core.train import instruct_step

A100 = 312e12  # operations a second at best, dense bfloat16 (NVIDIA's data sheet)
USED = 0.4  # share of it that training is assumed to reach
TEXT_PROMPT, PICTURE_PROMPT = 19, 21  # tokens of the template around a caption, and around a picture's visual tokens (`prompts`)
_TEXT = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4)
QWEN2_VL_7B = Qwen2VLConfig(  # the sizes in Qwen2-VL-7B-Instruct's config.json, for planning without its files
    text_config=dict(vocab_size=152064, rope_parameters={"rope_theta": 1e6, "mrope_section": [16, 24, 24]}, **_TEXT),
    vision_config=dict(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16, mlp_ratio=4),
)


class Work(NamedTuple):
    """Operations of a forward pass by how training multiplies them."""

    matrices: float
    attention: float
    lora: float

    def forward(self) -> float:
        return sum(self)

    def training(self, again: int) -> float:
        """Forward and backward, with `again` further forward passes."""
        return (2 + again) * self.matrices + (3 + again) * (self.attention + self.lora)


def picture(model: Qwen2VLConfig, visual_tokens: int, rank: int = 0) -> Work:
    """The vision tower on one picture; each visual token comes from 2 × 2 patches. `rank` is that of the tower's LoRA."""
    v = model.vision_config
    patches, inner = visual_tokens * v.spatial_merge_size**2, v.embed_dim * v.mlp_ratio
    layers = [(v.embed_dim, 3 * v.embed_dim), (v.embed_dim, v.embed_dim), (v.embed_dim, inner), (inner, v.embed_dim)]
    pixels = v.in_channels * v.temporal_patch_size * v.patch_size**2
    merged = v.embed_dim * v.spatial_merge_size**2
    matrices = patches * (v.depth * _sizes(layers) + pixels * v.embed_dim) + visual_tokens * (merged**2 + merged * v.hidden_size)
    return Work(2 * matrices, 4 * v.depth * v.embed_dim * patches**2, 2 * patches * v.depth * rank * _sides(layers))


def row(model: Qwen2VLConfig, tokens: int, rank: int = 0) -> Work:
    """The language model, without its output layer, on one row of tokens."""
    t = model.get_text_config()
    head = getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads
    q, kv = t.num_attention_heads * head, t.num_key_value_heads * head
    layers = [(t.hidden_size, q), (t.hidden_size, kv), (t.hidden_size, kv), (q, t.hidden_size)]
    layers += [(t.hidden_size, t.intermediate_size)] * 2 + [(t.intermediate_size, t.hidden_size)]
    deep = 2 * tokens * t.num_hidden_layers
    return Work(deep * _sizes(layers), 2 * deep * q * tokens, deep * rank * _sides(layers))


def flops_of_step(config, model: Qwen2VLConfig, visual_tokens: int, caption_tokens: int, instruction_tokens: int = 0) -> dict[str, float]:
    """Operations of one training step of either stage by part; the tokens are those of one picture and of one text, without the template.

    Stage 1 trains both towers on pictures and candidates. Stage 2 trains the language model on each picture's instructions, runs the
    vision tower once a picture without gradient; its candidates come from a bank that was embedded once.
    """
    rank, cached = config.lora.rank, config.chunk is not None
    again = int(config.activation_checkpointing) + int(cached)
    if isinstance(config, PretrainConfig):
        return {
            "vision tower": config.queries * picture(model, visual_tokens, rank).training(again),
            "pictures": config.queries * row(model, PICTURE_PROMPT + visual_tokens, rank).training(again),
            "captions": config.queries * (1 + config.negatives) * row(model, TEXT_PROMPT + caption_tokens, rank).training(again),
        }
    asked = row(model, PICTURE_PROMPT + visual_tokens + instruction_tokens, rank).training(again)
    seen = picture(model, visual_tokens).forward()
    return {"vision tower": config.images * seen * (1 + cached), "pictures": config.images * config.instructions_per_image * asked}


def embedding_flops(model: Qwen2VLConfig, visual_tokens: int, caption_tokens: int, pictures: int, captions: int) -> float:
    """Operations that embed so many pictures, without instructions, and captions."""
    seen = picture(model, visual_tokens).forward() + row(model, PICTURE_PROMPT + visual_tokens).forward()
    return pictures * seen + captions * row(model, TEXT_PROMPT + caption_tokens).forward()


def trained_numbers(model: Qwen2VLConfig, rank: int, stage: str = "pretrain") -> int:
    """How many numbers a stage trains: LoRA of the language model, and in stage 1 of the vision tower, with the head."""
    language = row(model, 1, rank).lora / 2
    if stage != "pretrain":
        return round(language)
    vision = picture(model, 1, rank).lora / 2 / model.vision_config.spatial_merge_size**2
    return round(language + vision) + 2 * model.get_text_config().hidden_size ** 2


def hours(flops: float, devices: int = 8, peak: float = A100, used: float = USED) -> float:
    """Hours that so many operations take on `devices` devices."""
    return flops / (devices * peak * used) / 3600


def _sizes(layers: list[tuple[int, int]]) -> int:
    """Numbers of the matrices."""
    return sum(n * m for n, m in layers)


def _sides(layers: list[tuple[int, int]]) -> int:
    """Numbers of their LoRA of rank 1."""
    return sum(n + m for n, m in layers)


def backbone_config(folder: Path):
    """The config of the backbone in a folder; that of Qwen2-VL-7B is known without its files.

    Raises:
        FileNotFoundError: no such folder, and its name is not Qwen2-VL-7B-Instruct.
    """
    from transformers import AutoConfig

    if (folder / "config.json").exists():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if folder.name != "Qwen2-VL-7B-Instruct":
        raise FileNotFoundError(f"{folder} holds no config.json, so neither memory nor time of its model can be planned")
    return QWEN2_VL_7B


def stage2_flops(embedder, batch: Batch, config, bank: torch.Tensor, captions: list[str]) -> tuple[int, int]:
    """Floating-point operations of one real stage-2 step: with the bank and shared visual tokens, and as the authors' code is built.

    Theirs embeds the queries' own captions at every step (without gradient, adapter off) and runs the vision tower once per instruction.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def count(work) -> int:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
            work()
        embedder.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    queries = sum(map(len, batch.instructions))
    own, ids = (column.reshape(queries, -1)[:, 0] for column in (batch.candidates, batch.candidate_ids))  # without further negatives

    def theirs():
        with torch.no_grad(), adapters.instructed(embedder.model, False):
            embedder.encode_texts([captions[i] for i in own])
        images = [image for image, texts in zip(batch.images, batch.instructions) for _ in texts]
        alone = Batch(images, [[t] for texts in batch.instructions for t in texts], own, ids)
        instruct_step(embedder, alone, config, bank)[0].backward()

    return count(lambda: instruct_step(embedder, batch, config, bank)[0].backward()), count(theirs)
