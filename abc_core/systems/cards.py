"""Every system that the paper compares with, and later ones, behind one protocol: `embed()` and `score()`.

    system = systems.load("CLIP", "models/vit_large_patch14_clip_336.openai")     # a folder, or download=True
    q_emb, c_emb = system.embed(images=pictures, instructions=asked), system.embed(texts=captions)
    scores = system.score(q_emb, c_emb)                                            # float32[Q, C]

A system is a `Card`: which weights, whether they are the paper's, what it does with an instruction, its prompt, pooling and licence, with
sources. `load` builds it (`systems_dual`, `systems_vlm`); cards without weights to read have only published figures (`published`) and, in
`systems_fusion`, an architecture. Nothing is fetched unless asked for, no remote code runs, no pickle is opened.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from abc_core.systems.dual import from_blip2, from_open_clip, from_transformers
from abc_core.systems.released import hub_folder
from abc_core.systems.vlm import from_abc, from_vlm


@runtime_checkable
class System(Protocol):
    """What `evaluate` needs of a system; `model.Embedder` is one."""

    name: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that its embeddings depend on beside their inputs: the key of cached embeddings."""

    def embed(self, images=None, texts=None, instructions=None) -> np.ndarray:
        """float32[N, D], unit rows, of pictures, texts, or pictures under instructions, as `Embedder.embed`; BLIP-2: [N, T, D]."""

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C], higher is more alike: the product of both, unless the system has another rule."""


@dataclass(frozen=True)
class Card:
    """A system in words, and how to load it."""

    name: str
    checkpoint: str  # name on the model hub, or where the weights are
    weights: str  # "paper": what the paper compares with · "stand-in" for that · "later": not in the paper · "none": not readable here
    instruction: str  # what an instruction does to a picture's vector
    prompt: str
    pooling: str
    source: str  # of prompt and pooling
    licence: str  # of the weights
    note: str = ""
    revision: str | None = None  # on the hub
    build: Callable | None = None  # (name, folder, device=…) -> System


_SUM = "its text features are added to the picture's"
_READ = "read in the prompt, after the picture"
_PLAIN = "the text itself"
_TOWERS = "class token · end token, projected"
_PICKLE = "pickle only on the hub: convert to safetensors elsewhere, give the folder"
_vlm = partial(from_vlm, weights="bfloat16")

_CARDS = (
    # name, checkpoint, weights, instruction, prompt, pooling, source, licence
    Card("CLIP", "timm/vit_large_patch14_clip_336.openai", "paper", _SUM, _PLAIN, _TOWERS, "open_clip; MMEB eval_clip.py", "MIT",
         "Table 1 is ViT-L/14 at 336 pixels; which size MMEB ran for Table 2 is not said", build=from_open_clip),
    Card("OpenCLIP-G", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "paper", _SUM, _PLAIN, _TOWERS, "open_clip", "MIT",
         "Table 2's OpenCLIP is another size", build=from_open_clip),
    Card("EVA-02-CLIP-E+", "timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k", "paper", _SUM, _PLAIN, _TOWERS, "open_clip",
         "MIT", build=from_open_clip),
    Card("CoCa", "laion/CoCa-ViT-L-14-laion2B-s13B-b90k", "stand-in", _SUM, _PLAIN, "attention pooling · class token", "open_clip", "MIT",
         f"the paper's are closed; {_PICKLE}. The hub's safetensors (mscoco_finetuned_…) were trained on COCO", build=from_open_clip),
    Card("SigLIP", "timm/ViT-SO400M-14-SigLIP-384", "stand-in", _SUM, "the text in small letters, padded to 64 tokens without a mask",
         "attention pooling · last token", "open_clip", "Apache-2.0", "which size MMEB ran for Table 2 is not said", build=from_open_clip),
    Card("SigLIP 2", "timm/ViT-SO400M-14-SigLIP2-378", "later", _SUM, "the text in small letters, padded to 64 tokens without a mask",
         "attention pooling · last token", "open_clip", "Apache-2.0", build=from_open_clip),
    Card("ALIGN", "kakaobrain/align-base", "stand-in", _SUM, _PLAIN, "mean over the picture · first token, projected", "transformers",
         "none stated", f"Kakao's, trained on COYO-700M; the paper's are closed; {_PICKLE}", build=from_transformers),
    Card("FLAVA", "facebook/flava-full", "paper", _SUM, _PLAIN, "first token, projected, of both", "transformers", "BSD-3-Clause",
         "the hub's main branch has pickle only; the revision is its converted copy", "refs/pr/5", build=from_transformers),
    Card("BLIP-2", "Salesforce/blip2-itm-vit-g", "stand-in", "its text vector is added to each query vector", _PLAIN,
         "32 query vectors a picture, the best of them counts · first token", "transformers, Blip2ForImageTextRetrieval", "MIT",
         "Table 2 takes the first query vector, unprojected (MMEB eval_blip.py)", build=from_blip2),
    Card("UniIR", "openai/clip-vit-large-patch14", "stand-in", "score fusion: " + _SUM, _PLAIN, _TOWERS, "UniIR clip_sf.py", "MIT",
         "UniIR's own (TIGER-Lab/UniIR, clip_sf_large.pth) are a pickle that runs code; the fusion is theirs, untrained. A folder with "
         "them converted to transformers' layout gives the paper's", build=from_transformers),
    Card("MagicLens", "google-deepmind/magiclens", "none", "a small transformer fuses both features", _PLAIN,
         "attention pooling of the two tokens", "its model.py and layers.py", "CC BY 4.0",
         "pickle only; `systems_fusion.MagicLens`"),
    Card("MMRet", "BAAI/BGE-VL-large", "stand-in", _SUM, _PLAIN, _TOWERS, "MegaPairs (Zhou et al., 2024), MMRet-CLIP", "MIT",
         "the small one of the family; Table 2 is the MLLM", build=from_transformers),
    Card("MMRet-MLLM", "BAAI/BGE-VL-MLLM-S1", "paper", "read in the prompt, before the picture",
         "[INST] … <image> [/INST], 512 x 512 pixels", "last token", "its prepare_text_input", "MIT", build=partial(_vlm, square=512)),
    Card("E5-V", "royokong/e5-v", "paper", _READ, "Summary above image in one word:", "last token", "github.com/kongds/E5-V", "none stated",
         "trained on texts alone; for a question it names no prompt, the place of ours is a choice", build=_vlm),
    Card("VLM2Vec", "VLM2Vec/VLM2Vec-V2.0", "stand-in", _READ, "<image> Represent the given image with the following question: …",
         "last token", "github.com/TIGER-AI-Lab/VLM2Vec", "Apache-2.0",
         "the paper's (Phi-3.5-V) need remote code, its Qwen2-VL ones are pickle; positions 0 to L − 1, as no mark begins a picture",
         build=partial(_vlm, positions="as_published", visual_tokens=(4, 1280))),
    Card("GME", "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct", "later", _READ, "chat, <|endoftext|> at the end", "last token",
         "its gme_inference.py", "Apache-2.0", "positions 0 to L − 1, since its code passes embeddings",
         build=partial(_vlm, positions="as_published", visual_tokens=(4, 1280))),
    Card("Qwen3-VL-Embedding", "Qwen/Qwen3-VL-Embedding-8B", "later", _READ, "chat, system: Represent the user's input.", "last token",
         "its qwen3_vl_embedding.py", "Apache-2.0", build=partial(_vlm, visual_tokens=(4, 1800))),
    Card("InternVL-G", "OpenGVLab/InternVL-14B-224px", "none", "none: it has two towers", "summarize: …",
         "attention pooling of vision tokens and of queries, summed · last token", "its model card and modeling_internvl.py", "MIT",
         "needs remote code; the paper names it and prints no figure; `systems_fusion.InternVLG`"),
    Card("FILIP", "none", "none", "none: it has two towers", _PLAIN, "token-wise late interaction", "Yao et al., 2021", "closed",
         "published figures only; its recipe in miniature is notebook 07's"),
    Card("ABC stage 1", "TIGER-Lab/ABC-Qwen2VL-Pretrain, or a run", "paper", _READ + ", untrained for it", "chat, Instruction: …",
         "mean over tokens, residual head", "the paper, Sec. 3; `prompts`", "MIT", build=partial(from_abc, adapter=False)),
    Card("ABC", "TIGER-Lab/ABC-Qwen2VL-Instruct, or a run", "paper", _READ + ", by the stage-2 adapter", "chat, Instruction: …",
         "mean over tokens, residual head", "the paper, Sec. 3; `prompts`", "MIT", build=from_abc),
)  # fmt: skip
CARDS: dict[str, Card] = {card.name: card for card in _CARDS}


def load(name: str, path=None, download: bool = False, device: str = "cpu", **options) -> System:
    """A system by the name of its card.

    Args:
        path: its folder (ABC: a run's), or another name on the hub; None: the card's checkpoint in the local cache of the model hub.
        download: fetch what that cache does not hold; without it nothing leaves the machine.
        options: of the system's builder, such as `instructed=False`, `weights="float32"` or `batch=16`.
    Raises:
        ValueError: no such card, a card without weights that can be read, or a folder without safetensors.
        FileNotFoundError: neither a folder nor in the cache.
    """
    if name not in CARDS:
        raise ValueError(f"no system {name!r}; known are {', '.join(CARDS)}")
    card = CARDS[name]
    if card.build is None:
        raise ValueError(f"{name} cannot be loaded ({card.note}); `published.figures({name!r})` has its figures")
    if name.startswith("ABC"):
        return card.build(name, path, device=device, download=download, **options)
    folder = hub_folder(path or card.checkpoint, download, None if path else card.revision, ignore="adapter_*")
    return card.build(name, folder, device=device, **options)


def table() -> list[dict[str, str]]:
    """A row per card, in words: for a data frame."""
    return [{k: v or "" for k, v in asdict(card).items() if k != "build"} for card in CARDS.values()]
