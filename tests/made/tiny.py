"""Tiny random models of every supported family with their real configuration, model and processor classes, built without any file.

Weights are drawn wide enough that pictures, words and LoRA change an embedding visibly; otherwise equalities would hold by themselves.
"""

from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
import transformers as hf
from PIL import Image

from abc_core import adapters, prompts
from abc_core.backbone import LORA_TARGETS
from abc_core.batches import Batch
from abc_core.miniature.backbone.build import build_processor
from abc_core.model import Embedder
from abc_core.train import instruct_step, pretrain_step

FAMILIES = tuple(LORA_TARGETS)
TEXTS = ["an owl", "two blue cups on a card", "a red owl", "x", "an owl on a red card beside two blue cups", "two blue cups on a bard"]
WORDS = ("an owl on a red card", "two blue cups", "what is on the left?", prompts.SYSTEM + prompts.INSTRUCTION)
_LANGUAGE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
_MROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}, bos_token_id=0, eos_token_id=0)
_VISION = dict(hidden_size=32, intermediate_size=48)


def embedder(family: str, seed: int = 0, attention: str = "sdpa", **options) -> Embedder:
    """A fresh embedder around a tiny random backbone."""
    return Embedder(*build(family, seed, attention), **options)


def with_lora(family: str, stage: str) -> Embedder:
    """A tiny embedder as a stage leaves it, with random weights in place of learned ones; "instruct" stands on a merged stage 1."""
    return deepcopy(_with_lora(family, stage))


@cache
def _with_lora(family: str, stage: str) -> Embedder:
    made = embedder(family)
    for name in ("pretrain", "instruct")[: 1 + (stage == "instruct")]:
        adapters.add_lora(made, name, rank=4, alpha=4)
        randomise_trained(made)
        if name != stage:
            adapters.merge(made, name)
    return made


def randomise_trained(made: Embedder) -> None:
    """Random LoRA matrices and head."""
    randomise([p for p in made.parameters() if p.requires_grad and p.ndim > 1], seed=1)


def build(family: str, seed: int = 0, attention: str = "sdpa"):
    """(model, processor) of a family, float32, in evaluation mode."""
    return deepcopy(_build(family, seed, attention))


@cache
def _build(family: str, seed: int, attention: str):
    processor, ids = _PROCESSORS[family]()
    config = _config(family, len(processor.tokenizer), ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation=attention)
    randomise(model.parameters(), seed)
    return model.eval(), processor


def save(family: str, folder, seed: int = 0) -> str:
    """Write a tiny backbone of a family into `folder`, as on the hub; returns the folder."""
    model, processor = build(family, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def pictures(count: int = 5) -> list[Image.Image]:
    """Coloured blocks in several sizes and aspect ratios; the first and the fourth share a size."""
    rng = np.random.default_rng(0)
    sizes = [(84, 84), (56, 112), (140, 56), (84, 84), (28, 56)]  # width, height
    blocks = [rng.integers(0, 255, (3, 3, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(b).resize(sizes[k % 5], Image.Resampling.NEAREST) for k, b in enumerate(blocks)]


def step_of(stage: str, made: Embedder, rows=None) -> torch.Tensor:
    """The loss of one training step on tiny data."""
    config = SimpleNamespace(label_smoothing=0.0)
    if stage == "pretrain":
        return pretrain_step(made, Batch(pictures(2), [[None]] * 2, TEXTS[:4], torch.arange(4)), config, rows)[0]
    batch = Batch(pictures(2), [["what", "where"], ["how many"]], torch.arange(3), torch.arange(3))
    return instruct_step(made, batch, config, torch.from_numpy(made.embed(texts=TEXTS[:3])), rows)[0]


def close(one, other, tolerance: float = 1e-5) -> None:
    """Equal to an absolute tolerance."""
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), atol=tolerance, rtol=0)


def randomise(parameters, seed: int) -> None:
    """Matrices from a normal distribution of variance 1 / inputs; vectors move by a tenth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.1 * noise)


def _config(family: str, vocab_size: int, ids: dict):
    language = _LANGUAGE | {"vocab_size": vocab_size}
    if family == "qwen2_vl":
        vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2)
        return hf.Qwen2VLConfig(text_config=language | _MROPE, vision_config=vision, **ids)
    if family == "qwen2_5_vl":  # one block with windows, one without
        vision = _VISION | dict(depth=2, num_heads=2, out_hidden_size=32, window_size=56, fullatt_block_indexes=[1])
        return hf.Qwen2_5_VLConfig(text_config=language | _MROPE, vision_config=vision, **ids)
    if family == "qwen3_vl":  # two layers of deepstack features
        vision = _VISION | dict(depth=3, num_heads=2, out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
        return hf.Qwen3VLConfig(text_config=language | _MROPE | {"head_dim": 8}, vision_config=vision, **ids)
    vision = _VISION | dict(num_attention_heads=2, image_size=28)
    if family == "internvl":  # 4 tokens a tile
        vision |= dict(num_hidden_layers=2, patch_size=7, model_type="internvl_vision")
        return hf.InternVLConfig(text_config=language | {"model_type": "qwen2"}, vision_config=vision, image_seq_length=4, **ids)
    vision |= dict(num_hidden_layers=3, patch_size=14, model_type="clip_vision_model")  # 4 tokens a tile; the last block is never read
    return hf.LlavaNextConfig(text_config=language | {"model_type": "llama"}, vision_config=vision, image_grid_pinpoints=_PINPOINTS, **ids)


_PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _qwen(processor_class, video_class, patch_size: int = 14):
    base = build_processor(WORDS, 400)
    size = {"shortest_edge": 4 * (2 * patch_size) ** 2, "longest_edge": 64 * (2 * patch_size) ** 2}
    images = hf.Qwen2VLImageProcessor(size=size, patch_size=patch_size)
    video = video_class(size=size, patch_size=patch_size)
    processor = processor_class(image_processor=images, tokenizer=base.tokenizer, video_processor=video, chat_template=base.chat_template)
    names = {"image_token_id": prompts.IMAGE_PAD, "video_token_id": prompts.VIDEO_PAD}
    names |= {"vision_start_token_id": prompts.VISION_START, "vision_end_token_id": prompts.VISION_END}
    return processor, {k: base.tokenizer.convert_tokens_to_ids(v) for k, v in names.items()}


def _internvl():
    base = build_processor(WORDS, 400).tokenizer
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = hf.Qwen2Tokenizer(
        vocab=base._vocab, merges=base._merges, unk_token=None, eos_token=prompts.IM_END, pad_token=prompts.END,
        extra_special_tokens={**named, "im_start_token": prompts.IM_START},
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
    )
    video = hf.InternVLVideoProcessor(size={"height": 28, "width": 28})
    processor = hf.InternVLProcessor(images, tokenizer, video, image_seq_length=4, chat_template=template)
    return processor, {"image_token_id": processor.image_token_id}


def _llava_next():
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab, named = {t: i for i, t in enumerate(letters)}, {"image_token": "<image>"}
    tokenizer = hf.LlamaTokenizer(vocab=vocab, merges=[], pad_token="<pad>", extra_special_tokens=named, add_bos_token=True)
    images = hf.LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=_PINPOINTS)
    template = (
        "{% for m in messages %}[INST] {% for part in m['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} [/INST]{% endfor %}"
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1
    )
    return processor, {"image_token_index": processor.image_token_id}


_PROCESSORS = {
    "qwen2_vl": lambda: _qwen(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
    "qwen2_5_vl": lambda: _qwen(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
    "qwen3_vl": lambda: _qwen(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, patch_size=16),
    "internvl": _internvl,
    "llava_next": _llava_next,
}
