"""Vision-language models as embedders: causal, the last token's state, each with its own prompt (E5-V, MMRet, VLM2Vec, GME, Qwen3-VL).

All are our `Embedder` with the paper's changes taken back (no bidirectional attention, no head, last-token pooling) and other `Templates`.
ABC and its stage 1 are the same class with our own prompts.
"""

import json
from pathlib import Path

import numpy as np

from abc_core import checkpoint
from abc_core.backbone import load_backbone, set_visual_tokens
from abc_core.data.pictures import open_image
from abc_core.model import Embedder
from abc_core.prompts import plain_ids
from abc_core.runs import run as runlog
from abc_core.systems.dual import safetensors_in
from abc_core.systems.released import load_released

QWEN = "<|vision_start|>{image}<|vision_end|>"
_CHAT = "<|im_start|>system\n%s<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n%s"
_LLAMA3 = "<|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"

# System -> its prompt for a text, a picture, and a picture that is asked something; {image} and {text} are filled in.
TEMPLATES = {
    "E5-V": {  # github.com/kongds/E5-V, README; it names no prompt for a question: here the question stands before its own
        "text": _LLAMA3 % "{text}\nSummary above sentence in one word: ",
        "image": _LLAMA3 % "{image}\nSummary above image in one word: ",
        "asked": _LLAMA3 % "{image}\n{text}\nSummary above image in one word: ",
    },
    "MMRet-MLLM": {  # BAAI/BGE-VL-MLLM-S1, prepare_text_input; the task of a question is MMEB's
        "text": "[INST]  {text} \n [/INST]",
        "image": "[INST]  <image> [/INST]".replace("<image>", "{image}"),
        "asked": "[INST] \n <instruct> Represent the given image with the following question: <query>  {text} \n {image} [/INST]",
    },
    "VLM2Vec": {  # github.com/TIGER-AI-Lab/VLM2Vec, README: no chat template, and no marks around the picture
        "text": "{text}",
        "image": "{image} Represent the given image.",
        "asked": "{image} Represent the given image with the following question: {text}",
    },
    "GME": {  # Alibaba-NLP/gme-Qwen2-VL, gme_inference.py
        "text": _CHAT % ("You are a helpful assistant.", "{text}", "<|endoftext|>"),
        "image": _CHAT % ("You are a helpful assistant.", QWEN, "<|endoftext|>"),
        "asked": _CHAT % ("You are a helpful assistant.", QWEN + "{text}", "<|endoftext|>"),
    },
    "Qwen3-VL-Embedding": {  # Qwen/Qwen3-VL-Embedding, scripts/qwen3_vl_embedding.py
        "text": _CHAT % ("Represent the user's input.", "{text}", ""),
        "image": _CHAT % ("Represent the user's input.", QWEN, ""),
        "asked": _CHAT % ("Represent the user's input.", QWEN + "{text}", ""),
    },
}


class Templates:
    """Token ids of filled-in templates, in the place of `prompts.Prompts`.

    A filled-in template is tokenised as one string, as the systems' own code does (a full stop and the line break after it are one token
    of Llama 3). Words that hold a special token's text are tokenised by themselves, so that it stays text.

    Raises:
        ValueError: a template without its mark.
    """

    def __init__(self, processor, text: str, image: str, asked: str):
        for template, marks in ((text, ["{text}"]), (image, ["{image}"]), (asked, ["{image}", "{text}"])):
            if any(template.count(mark) != 1 for mark in marks):
                raise ValueError(f"the template {template!r} should hold {' and '.join(marks)} once")
        self.tokenizer, self._text, self._image, self._asked = processor.tokenizer, text, image, asked
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        self._special = self.tokenizer.all_special_tokens + [str(t) for t in self.tokenizer.get_added_vocab()]

    def text(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._ids(self._text, text)

    def image(self, placeholder: str, instruction: str | None = None) -> list[int]:
        """Ids of a picture, whose image tokens are `placeholder`, and of what it is asked."""
        return self._ids((self._image if instruction is None else self._asked).replace("{image}", placeholder), instruction or "")

    def _ids(self, template: str, words: str) -> list[int]:
        if not any(token in words for token in self._special):
            return self.tokenizer(template.replace("{text}", words))["input_ids"]
        before, after = template.split("{text}")
        after = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return self.tokenizer(before)["input_ids"] + plain_ids(self.tokenizer, words) + after


class VLMSystem:
    """An `Embedder` behind the protocol of `abc_core.systems.cards`.

    Args:
        templates: text, image and asked (`Templates`) in place of ABC's own prompts.
        adapter: as of `Embedder.embed`; False for systems without a stage 2, and for ABC's stage 1.
        square: bring pictures to this many pixels a side first, whatever their shape (MMRet-MLLM).
        batch: pictures or texts at a time.
    """

    def __init__(
        self, name: str, embedder: Embedder, templates: dict | None = None, adapter: bool | None = False, square: int = 0, batch: int = 64
    ):
        self.name, self.embedder, self.adapter, self.square, self.batch = name, embedder, adapter, square, batch
        if templates is not None:
            embedder.prompts = Templates(embedder.processor, **templates)
        self._depends = json.dumps([templates, adapter, square], sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the embedder's fingerprint and of how it is asked."""
        return runlog.fingerprint(self.embedder.fingerprint, self._depends)

    def embed(self, images=None, texts=None, instructions=None) -> np.ndarray:
        """float32[N, D], unit rows; arguments and errors as of `Embedder.embed`."""
        options = dict(adapter=self.adapter, batch_size=self.batch)
        if not self.square or images is None:
            return self.embedder.embed(images, texts, instructions, **options)
        parts = [self.embedder.embed([], None, None, **options)]
        for k in range(0, len(images), self.batch):
            pictures = [open_image(i).resize((self.square, self.square)) for i in images[k : k + self.batch]]
            parts.append(self.embedder.embed(pictures, None, None if instructions is None else instructions[k : k + self.batch], **options))
        return np.concatenate(parts)

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C], the cosines."""
        return q_emb @ c_emb.T


def from_vlm(
    name: str,
    folder: Path,
    device: str = "cpu",
    templates: str | None = None,
    positions: str = "model",
    visual_tokens: tuple[int, int] | None = None,
    weights: str = "float32",
    **options,
) -> VLMSystem:
    """A last-token embedder around the causal model in a folder.

    Args:
        templates: key of `TEMPLATES`; None: `name`.
        positions: "as_published" numbers tokens 0 to L − 1 where the system's own code, unlike the model's, does so.
        visual_tokens: fewest and most of a picture; None: as the processor in the folder says.
        weights: "float32" or "bfloat16".
    Raises:
        ValueError: weights that are not in safetensors, or of a family that `backbone.LORA_TARGETS` does not know.
    """
    import torch

    model, processor = load_backbone(safetensors_in(folder), getattr(torch, weights))
    _complete(processor, model.config)
    if visual_tokens is not None:
        set_visual_tokens(processor, *visual_tokens)
    embedder = Embedder(model, processor, head=False, bidirectional=False, pooling="last", positions=positions).to(device)
    embedder.backbone_fingerprint = checkpoint.fingerprint(folder)
    embedder.built = {"visual_tokens": visual_tokens, "weights": weights}
    return VLMSystem(name, embedder, TEMPLATES[templates or name], **options)


def _complete(processor, config) -> None:
    """Tell a LLaVA-NeXT processor that was saved before transformers 4.46 what it then did not need to know."""
    if config.model_type == "llava_next" and processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's class token


def from_abc(name: str, path=None, device: str = "cpu", adapter: bool | None = None, download: bool = False, **options) -> VLMSystem:
    """ABC as a run or a checkpoint holds it; path=None: as released, with options of `load_released`. adapter=False: stage 1."""
    embedder = load_released(download=download, **options) if path is None else Embedder.load(path, **options)
    return VLMSystem(name, embedder.to(device), adapter=adapter)
