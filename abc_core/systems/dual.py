"""Dual encoders: one tower for pictures, one for texts, a product of the two; an instruction can only be fused in afterwards.

Steps of `DualEncoder.embed`: (1) features of pictures, each once; (2) features of the instructions; (3) `fuse`: their sum, as UniIR's CLIP
with score fusion and as MMEB's own baselines have it; (4) unit length. How the towers of transformers (`from_transformers`), of open_clip
(`from_open_clip`) and of BLIP-2 (`from_blip2`) give their features is all that differs between the systems.

**Source:** UniIR (Wei et al., 2023), `clip_sf.py`; MMEB (Jiang et al., 2024), `evaluation/eval_clip.py`. Both add features as they come
out of the towers, before any is brought to unit length.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from abc_core import checkpoint
from abc_core.data.inputs import check_rows
from abc_core.data.pictures import open_image
from abc_core.runs import run as runlog

# Family of transformers -> tokens of the longest text; longer ones are cut off.
LONGEST = {"clip": 77, "align": 64, "flava": 77, "blip-2": 32}


class DualEncoder:
    """Two towers behind the protocol of `abc_core.systems.cards`.

    Args:
        name, fingerprint: what it is called; what its embeddings depend on.
        see: list of PIL pictures -> float[N, D], or float[N, T, D] where a picture has T vectors (BLIP-2).
        read: list of texts -> float[N, D].
        instructed: add an instruction's features to its picture's; otherwise an instruction changes nothing.
        batch: pictures or texts at a time; the result does not depend on it.
    """

    def __init__(self, name: str, fingerprint: str, see: Callable, read: Callable, instructed: bool = True, batch: int = 64):
        self.name, self.see, self.read, self.instructed, self.batch = name, see, read, instructed, batch
        self.fingerprint = runlog.fingerprint(type(self).__name__, fingerprint, str(instructed))

    @torch.no_grad()
    def embed(self, images=None, texts=None, instructions=None) -> np.ndarray:
        """float32[N, D] (or [N, T, D]), unit rows; arguments and errors as of `Embedder.embed`."""
        check_rows(images, texts, instructions)
        parts = []
        for start in range(0, len(texts if images is None else images), self.batch):
            rows = slice(start, start + self.batch)
            if images is None:
                features = self.fuse(None, self.read(list(texts[rows])))
            else:
                seen = self.see([open_image(i) for i in images[rows]])
                asked = [None] * len(seen) if instructions is None else [[i] if isinstance(i, str) else i for i in instructions[rows]]
                owners = [k for k, said in enumerate(asked) for _ in said or [None]]
                said = [text for texts_of in asked for text in texts_of or []]
                features = self.fuse(seen[owners], self.read(said) if said and self.instructed else None)
            parts.append(F.normalize(features.float(), dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)

    def fuse(self, seen: torch.Tensor | None, said: torch.Tensor | None) -> torch.Tensor:
        """Features of pictures under instructions: the sum; of pictures or texts alone: themselves."""
        if seen is None or said is None:
            return said if seen is None else seen
        return seen + (said[:, None] if seen.ndim == 3 else said)

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C]: the product; where a picture has T vectors, that of the best of them (BLIP-2, Sec. 3.2)."""
        q_emb, c_emb = (e if e.ndim == 3 else e[:, None] for e in (q_emb, c_emb))
        products = (q_emb[:, s] @ c_emb[:, t].T for s in range(q_emb.shape[1]) for t in range(c_emb.shape[1]))
        best = next(products)
        for other in products:
            np.maximum(best, other, out=best)
        return best


# --- towers -------------------------------------------------------------------------------------------------------------------


def from_transformers(name: str, folder: Path, device: str = "cpu", system=DualEncoder, **options) -> DualEncoder:
    """CLIP, ALIGN or FLAVA of transformers; `system` is `DualEncoder`, or a subclass with another `fuse`.

    Raises:
        ValueError: weights that are not in safetensors, or another family.
    """
    from transformers import AutoModel, AutoProcessor

    kwargs = dict(local_files_only=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(safetensors_in(folder), dtype=torch.float32, use_safetensors=True, **kwargs).to(device).eval()
    processor, family = AutoProcessor.from_pretrained(folder, **kwargs), model.config.model_type
    if family not in ("clip", "align", "flava"):
        raise ValueError(f"{folder} is of the family {family!r}; two towers are known of clip, align and flava")

    def see(pictures):
        return _one(model.get_image_features(**processor.image_processor(images=pictures, return_tensors="pt").to(device)))

    def read(texts):
        words = _words(processor.tokenizer, texts, LONGEST[family]).to(device)
        return _one(model.get_text_features(input_ids=words["input_ids"], attention_mask=words["attention_mask"]))

    return system(name, f"{checkpoint.fingerprint(folder)} {family}", see, read, **options)


def _words(tokenizer, texts: list[str], longest: int):
    """Token ids and mask of texts, padded to the longest of them."""
    return tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")


def _one(outputs) -> torch.Tensor:
    """float[N, D]; FLAVA projects every token, of which the first stands for all."""
    features = outputs.pooler_output
    return features[:, 0] if features.ndim == 3 else features


def from_open_clip(name: str, folder: Path, device: str = "cpu", system=DualEncoder, **options) -> DualEncoder:
    """CLIP, EVA-CLIP, CoCa or SigLIP of open_clip, from a folder with open_clip_config.json and open_clip_model.safetensors.

    Raises:
        ValueError: weights that are not in safetensors.
        FileNotFoundError: no configuration there.
    """
    import open_clip

    source = f"local-dir:{safetensors_in(folder, 'open_clip_*model.safetensors')}"
    model, _, preprocess = open_clip.create_model_and_transforms(source, device=device, pretrained_text=False, require_pretrained=True)
    tokenizer = open_clip.get_tokenizer(source)
    model.eval()

    def see(pictures):
        return model.encode_image(torch.stack([preprocess(p) for p in pictures]).to(device), normalize=False)

    def read(texts):
        return model.encode_text(tokenizer(texts).to(device), normalize=False)

    return system(name, f"{checkpoint.fingerprint(folder)} open_clip", see, read, **options)


def from_blip2(name: str, folder: Path, device: str = "cpu", **options) -> DualEncoder:
    """BLIP-2's contrastive head: T query vectors a picture, one vector a text, the best of the T products as their score.

    **Caveat:** the row "BLIP2" of the paper's Table 2 is MMEB's own run, which takes the first query vector, before its projection.
    Raises:
        ValueError: weights that are not in safetensors.
    """
    from transformers import AutoProcessor, Blip2ForImageTextRetrieval

    kwargs = dict(local_files_only=True, trust_remote_code=False)
    load = Blip2ForImageTextRetrieval.from_pretrained
    model = load(safetensors_in(folder), dtype=torch.float32, use_safetensors=True, **kwargs).to(device).eval()
    processor = AutoProcessor.from_pretrained(folder, **kwargs)

    def see(pictures):
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"].to(device)
        queries = model.query_tokens.expand(len(pictures), -1, -1)
        seen = model.qformer(query_embeds=queries, encoder_hidden_states=model.vision_model(pixels).last_hidden_state)
        return model.vision_projection(seen.last_hidden_state)  # N, T, D

    def read(texts):
        words = _words(processor.tokenizer, texts, LONGEST["blip-2"]).to(device)
        inputs = model.embeddings(input_ids=words["input_ids"])
        said = model.qformer(query_embeds=inputs, query_length=0, attention_mask=words["attention_mask"])
        return model.text_projection(said.last_hidden_state[:, 0])

    return DualEncoder(name, f"{checkpoint.fingerprint(folder)} blip-2", see, read, **options)


def safetensors_in(folder: Path, pattern: str = "*.safetensors") -> Path:
    """The folder, if it holds a whole model in safetensors whose name fits the pattern.

    Raises:
        ValueError: none; pickled weights (.bin, .pt, .pth) can run code and are never opened, and an adapter alone is no model.
    """
    folder = Path(folder)
    if not any(not found.name.startswith("adapter_") for found in folder.glob(pattern)):
        found = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".pkl"))
        raise ValueError(f"{folder} holds {', '.join(found) or 'no weights'}; only {pattern} is read: convert it first")
    if (folder / "adapter_config.json").exists():  # transformers would look for its base on the hub, and load it without the adapter
        raise ValueError(f"{folder} holds an adapter_config.json beside a model; remove it, or merge the adapter")
    return folder
