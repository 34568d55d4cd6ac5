"""The tiny Qwen2-VL before it has learned anything: tokenizer, processor and random weights, all of the real transformers classes.

Steps: (1) `tokenizer_texts` collects what will be said; (2) `build_processor` learns the tokens and adds Qwen's special ones;
(3) `build` puts a random model beside it.
"""

import json
from itertools import islice
from pathlib import Path

import torch

from abc_core import prompts
from abc_core.runs.files import read_json_lines


def build(texts, vocab_size: int = 1600, seed: int = 0):
    """(model, processor): a random Qwen2-VL of 7.6 M parameters and a byte-level BPE of `vocab_size` trained on `texts`."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = build_processor(texts, vocab_size)
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(processor.tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=4096, rms_norm_eps=1e-6, bos_token_id=ids(prompts.END),
            eos_token_id=ids(prompts.IM_END), pad_token_id=ids(prompts.END), tie_word_embeddings=True,
            # The first 4 of 16 frequencies turn with time, 6 with the row, the slowest 6 with the column. A base of 10 makes columns easy
            # to tell apart but leaves no slow channel for content: in a trial, what was learned of questions by content was lost.
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        ),
        vision_config=dict(depth=4, embed_dim=192, hidden_size=256, num_heads=6, mlp_ratio=4),
        image_token_id=ids(prompts.IMAGE_PAD), video_token_id=ids(prompts.VIDEO_PAD), vision_start_token_id=ids(prompts.VISION_START),
        vision_end_token_id=ids(prompts.VISION_END), tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    # Words and visual tokens share the residual stream and, tied, the output: words of the usual length 0.3 would make the visual tokens
    # that are read through them a hundred times longer than words, and drown what a word is behind the first layer.
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.25)
    torch.nn.init.constant_(model.model.language_model.norm.weight, 0.25)
    model.generation_config.eos_token_id = ids(prompts.IM_END)
    model.generation_config.pad_token_id = ids(prompts.END)
    return model, processor


def build_processor(texts, vocab_size: int):
    """A Qwen2VLProcessor with Qwen's special tokens, chat template and pixel rule (16 to 256 visual tokens of 28 × 28 pixels)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    size, alphabet = vocab_size - len(prompts.SPECIAL_TOKENS), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    others = [t for t in prompts.SPECIAL_TOKENS if t not in (prompts.IM_END, prompts.END)]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(m) for m in learned["merges"]], unk_token=None, bos_token=None, eos_token=prompts.IM_END,
        pad_token=prompts.END, extra_special_tokens=others, model_max_length=4096,
    )  # fmt: skip
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 256 * 28 * 28}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=prompts.CHAT_TEMPLATE,
    )  # fmt: skip


def tokenizer_texts(folder: Path, pictures: int = 8000) -> list[str]:
    """What the tokenizer is trained on: all turns about the first pictures of a folder, and the chat template as often as a rare word."""
    rows = islice(read_json_lines(folder / "conversations.jsonl"), pictures)
    said = [turn["value"] for _, record in rows for turn in record["conversations"]]
    return said + [prompts.SYSTEM + prompts.INSTRUCTION + prompts.BEFORE_ANSWER] * 2000
