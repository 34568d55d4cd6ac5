"""The embedder: a bidirectional VLM, mean pooling, a residual head; pictures, captions and instructed pictures become unit vectors.

    embedding(x) = normalise(MLP(mean of the last hidden layer over attended tokens)),  MLP(x) = x + A·selu(B·x)       (Sec. 3.1, eq. 1)

Steps of `Embedder.embed`: (1) pictures → visual tokens, once each; (2) prompts → token ids; (3) rows of like length together through the
inner model, never through its output layer; (4) mean, head, unit length.

Tensor legend (the whole package): B queries in this process · K hard negatives per query · W processes · C = W·B·(1+K) candidates ·
L tokens (padded) · P picture patches · V visual tokens after the merger · H backbone width · D embedding width. Objects prefix the
quantity: q_emb, c_emb, q_ids. A mask's 1 means "attend". `temperature` always divides.
"""

import hashlib
import json
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from abc_core import adapters, checkpoint
from abc_core.backbone import (
    autocast_attention,
    batch_vision_attention,
    linear_patches,
    load_backbone,
    make_bidirectional,
    picture_features,
    set_visual_tokens,
)
from abc_core.data.inputs import check_rows
from abc_core.data.pictures import open_image
from abc_core.loss import Temperature
from abc_core.prompts import Prompts
from abc_core.runs.paths import ROOT

POOLINGS = ("attended", "as_published", "last", "visual")


class Head(nn.Module):
    """MLP(x) = x + A·selu(B·x), float[..., D] -> float[..., D]; starts as the identity map (A = 0) and from a B that `seed` decides.

    **Paper:** eq. 1, without biases or a width. **Authors' code:** biases, width 4096, N(0, 0.02) in place of the identity.
    """

    def __init__(self, width: int, hidden: int | None = None, bias: bool = False, seed: int = 0):
        super().__init__()
        self.linear_layer1 = nn.Linear(width, hidden or width, bias=bias)  # B
        self.linear_layer2 = nn.Linear(hidden or width, width, bias=bias)  # A
        nn.init.uniform_(self.linear_layer1.weight, -(width**-0.5), width**-0.5, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear_layer2.weight)
        if bias:
            nn.init.zeros_(self.linear_layer1.bias)
            nn.init.zeros_(self.linear_layer2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear_layer2(F.selu(self.linear_layer1(x.to(self.linear_layer1.weight.dtype))))


@dataclass(frozen=True)
class Visual:
    """Visual tokens of pictures as `picture_features` gives them."""

    outputs: object  # pooler_output: one float[V, H] per picture
    inputs: dict  # image_grid_thw and the like, one row per picture
    placeholders: list[str]  # one per picture: its image tokens as text
    joined: bool = False  # the model wants one tensor of all rows' tokens (InternVL) where the others want a list

    def rows(self, owners: list[int]) -> tuple[object, dict]:
        """`mm_encoder_outputs` and inputs for rows; row r shows picture owners[r]. Every layer of deepstack features moves along."""
        chosen = copy(self.outputs)
        picked = [self.outputs.pooler_output[i] for i in owners]
        chosen.pooler_output = torch.cat(picked) if self.joined else picked
        if getattr(self.outputs, "deepstack_features", None):
            chosen.deepstack_features = [[layer[i] for i in owners] for layer in self.outputs.deepstack_features]
        return {"image": chosen}, {k: v[owners] for k, v in self.inputs.items()}


class Embedder(nn.Module):
    """A VLM turned into an embedder. `model` is the transformers model (with peft layers once a stage added them).

    Args:
        model, processor: a causal backbone as `load_backbone` returns it; it is changed in place (Sec. 3.1).
            Without a processor (None) it takes token ids and visual tokens (`encode`), no texts and pictures.
        head: use eq. 1's residual head. head_hidden, head_bias: see `Head`. temperature_parametrisation: see `Temperature`.
        pooling: "attended" averages the attended tokens; "as_published" averages all of a row, padding too, without the token id 0;
            "last" takes the last attended token (VLM2Vec, E5-V); "visual" averages a picture's visual tokens, and the attended tokens of a
            text.
        positions: "model" leaves them to the model (M-RoPE); "as_published" numbers the tokens of a row 0 to L − 1.

    **Authors' code:** pooling and positions "as_published", so that an embedding depends on the padding of its batch, here of its length
    group; released weights were trained that way.
    Raises:
        ValueError: an unknown pooling or positions.
    """

    name = "ABC"

    def __init__(
        self,
        model: nn.Module,
        processor,
        head: bool = True,
        bidirectional: bool = True,
        temperature_parametrisation: str = "log",
        head_hidden: int | None = None,
        head_bias: bool = False,
        pooling: str = "attended",
        positions: str = "model",
    ):
        super().__init__()
        for name, value, known in (("pooling", pooling, POOLINGS), ("positions", positions, ("model", "as_published"))):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known are {', '.join(known)}")
        self.model, self.processor = model, processor
        self.family = model.config.model_type
        if bidirectional:
            make_bidirectional(model)
        autocast_attention(linear_patches(batch_vision_attention(model)))
        self.prompts = Prompts(processor) if processor is not None else None
        self.pad = self.prompts.pad if processor is not None else model.config.get_text_config().pad_token_id
        self.pooling, self.positions = pooling, positions
        self.width = model.config.get_text_config().hidden_size
        self.head = Head(self.width, head_hidden, head_bias) if head else nn.Identity()
        self.temperature = Temperature(parametrisation=temperature_parametrisation)
        self.lora: dict[str, dict] = {}  # stage -> rank, alpha, dropout
        self.merged: dict[str, torch.Tensor] = {}  # tensors of stages that were fused into the backbone
        self.built: dict = {}  # how `from_backbone` was called, for the checkpoint
        self.backbone_fingerprint: str | None = None  # of the backbone's weights (`checkpoint.fingerprint`), for the checkpoint
        self.requires_grad_(False).eval()

    # --- loading and saving ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path, device: str = "cpu") -> "Embedder":
        """The embedder that a stage saved in a run folder or a file: its backbone, merged stage 1, and its stage-2 adapter if it has one.

        Raises:
            FileNotFoundError, ValueError: no such checkpoint, or one of another shape.
        """
        path = Path(path)
        return adapters.load_embedder(cls, path / "model.safetensors" if path.is_dir() else path).to(device)

    @classmethod
    def from_backbone(
        cls, path, min_visual_tokens: int = 4, max_visual_tokens: int = 512, weights: str = "float32", **options
    ) -> "Embedder":
        """A fresh embedder around the backbone at `path`; without the files of a processor there it takes token ids alone.

        `weights` is the type of the backbone's numbers, "float32" or "bfloat16"; what trains is float32 in any case.
        """
        model, processor = load_backbone(path, getattr(torch, weights))
        if processor is not None:
            set_visual_tokens(processor, min_visual_tokens, max_visual_tokens)
        embedder = cls(model, processor, **options)
        path = Path(path).resolve()
        embedder.backbone_fingerprint = checkpoint.fingerprint(path)
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        tokens = {"min_visual_tokens": min_visual_tokens, "max_visual_tokens": max_visual_tokens}
        embedder.built = {"backbone": str(path), "weights": weights, **tokens, **options}
        return embedder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what an embedding depends on beside its inputs: the backbone, what the stages trained, and the options."""
        options = {k: v for k, v in self.built.items() if k != "backbone"} | {"pooling": self.pooling, "positions": self.positions}
        digest = hashlib.sha256(json.dumps([self.backbone_fingerprint, options], sort_keys=True).encode())
        for name, tensor in sorted((adapters.all_tensors(self) | self.head.state_dict(prefix="head.")).items()):
            digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    # --- the differentiable parts ---------------------------------------------------------------------------------------------

    def see(self, images: list[Image.Image]) -> Visual:
        """Visual tokens of pictures (P patches → V tokens each), each picture once however many instructions it will have."""
        return Visual(*picture_features(self.model, self.processor, images), joined=self.family == "internvl")

    def encode(self, ids: list[list[int]], visual: Visual | None = None, owners: list[int] | None = None) -> tuple[torch.Tensor, dict]:
        """Unit vectors of token rows; row r shows picture owners[r] of `visual`.

        Returns:
            (float[B, D], out) with out = {tokens, padded_tokens}. Rows of like length run together, so little is padded; the order is kept.
        """
        parts, order, padded = [], [], 0
        for group in length_groups([len(row) for row in ids]):
            rows = [ids[i] for i in group]
            pooled = self._pooled(rows, visual, [owners[i] for i in group] if owners is not None else None)
            parts.append(pooled)
            order += group
            padded += len(rows) * max(map(len, rows))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        emb = F.normalize(self.head(torch.cat(parts)[back.to(self.device)]).float(), dim=-1)
        return emb, {"tokens": sum(map(len, ids)), "padded_tokens": padded}

    def states(self, rows: list[list[int]], visual: Visual | None = None, owners: list[int] | None = None):
        """(float32[B, L, H], int64[B, L], int64[B, L]): last hidden layer, ids and mask of token rows, which are padded on the right."""
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(length, device=self.device) < lengths[:, None]).long()
        seen = {}
        if visual is not None:
            outputs, inputs = visual.rows(owners)
            seen = {"mm_encoder_outputs": outputs, **inputs}
            if "image_grid_thw" in inputs:
                seen["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        if self.positions == "as_published":
            seen["position_ids"] = torch.arange(length, device=self.device).expand(3, len(rows), -1)
        hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False, **seen).last_hidden_state  # B, L, H
        return hidden.float(), ids, mask

    def _pooled(self, rows: list[list[int]], visual: Visual | None, owners: list[int] | None) -> torch.Tensor:
        """What `pooling` makes of the last hidden layer, float[B, H]."""
        hidden, ids, mask = self.states(rows, visual, owners)
        if self.pooling == "as_published":
            return (hidden * (ids != 0)[..., None]).sum(1) / ids.shape[1]  # B, H
        if self.pooling == "visual":
            seen = mask * (ids == self.model.config.image_token_id)
            mask = torch.where(seen.any(1, keepdim=True), seen, mask)  # a text has none
        lengths = mask.sum(1)
        if self.pooling == "last":
            return hidden[torch.arange(len(rows), device=self.device), lengths - 1]  # B, H
        return (hidden * mask[..., None]).sum(1) / lengths[:, None]  # B, H

    # --- the convenient one ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(
        self, images=None, texts=None, instructions=None, batch_size: int = 64, adapter: bool | None = None, progress=None
    ) -> np.ndarray:
        """Unit vectors of pictures, texts, or pictures under instructions.

        Args:
            images: list of PIL pictures, paths, or pictures in tar shards (`data.Member`).
            texts: list of strings; instead of images.
            instructions: one string per picture, or a list of strings per picture (rows then come picture by picture).
            adapter: whether the stage-2 adapter is on; None: if and only if instructions are given (Sec. 3.2).
            batch_size: pictures or texts at a time; the result does not depend on it.
        Returns:
            float32[N, D].
        Raises:
            ValueError: neither or both of images and texts; instructions without pictures, of another number, empty, or without an adapter;
                the message says which row.
        """
        on = instructions is not None if adapter is None else adapter
        self._check(images, texts, instructions, on)
        with adapters.instructed(self.model, on) if adapters.has_adapter(self.model, "instruct") else nullcontext():
            if texts is not None:
                return self._embed_texts(texts, batch_size, progress)
            nested = None if instructions is None else [[i] if isinstance(i, str) else i for i in instructions]
            out = []
            for start in _ticks(range(0, len(images), batch_size), progress):
                pictures = [open_image(i) for i in images[start : start + batch_size]]
                asked = nested[start : start + batch_size] if nested is not None else [[None]] * len(pictures)
                out.append(self.encode_images(pictures, asked)[0].cpu().numpy())
        return np.concatenate(out) if out else np.empty((0, self.width), dtype=np.float32)

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C], the cosines of float32[Q, D] and float32[C, D]; every system has this method (`abc_core.systems.cards`)."""
        return q_emb @ c_emb.T

    def encode_images(self, pictures: list[Image.Image], instructions: list[list[str | None]]) -> tuple[torch.Tensor, dict]:
        """Differentiable vectors of pictures, each under its instructions (None: without one); rows come picture by picture."""
        visual = self.see(pictures)
        owners = [k for k, texts in enumerate(instructions) for _ in texts]
        ids = [self.prompts.image(visual.placeholders[k], text) for k, texts in enumerate(instructions) for text in texts]
        return self.encode(ids, visual, owners)

    def encode_texts(self, texts: list[str]) -> tuple[torch.Tensor, dict]:
        """Differentiable vectors of texts, float[N, D]."""
        return self.encode([self.prompts.text(t) for t in texts])

    def _embed_texts(self, texts, batch_size, progress) -> np.ndarray:
        ids = [self.prompts.text(t) for t in texts]
        order = np.argsort([len(row) for row in ids], kind="stable")  # like lengths together: less padding
        out = np.empty((len(ids), self.width), dtype=np.float32)
        for start in _ticks(range(0, len(ids), batch_size), progress):
            rows = order[start : start + batch_size]
            out[rows] = self.encode([ids[i] for i in rows])[0].cpu().numpy()
        return out

    def _check(self, images, texts, instructions, on: bool) -> None:
        if self.prompts is None:
            raise ValueError(f"{self.built.get('backbone', 'the backbone')} came without a processor, so pictures and texts cannot be read")
        check_rows(images, texts, instructions)
        if on and not adapters.has_adapter(self.model, "instruct"):
            raise ValueError("this embedder has no stage-2 adapter, so it cannot follow instructions; load one that notebook 03 trained")


def length_groups(lengths: list[int], overhead: int = 512) -> list[list[int]]:
    """Split row numbers into groups of like length, so that padded tokens plus `overhead` tokens a group are as few as can be.

    A forward pass of few rows costs about as much as one of some hundred tokens, so small batches share one group and large ones are
    split finely. Exact by dynamic programming over the distinct lengths.
    """
    distinct, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # rows shorter than distinct[k]
    best, cut = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, dtype=np.int64)
    for k in range(1, len(distinct) + 1):  # the last group of the first k lengths begins at length `start`
        costs = best[:k] + (before[k] - before[:k]) * distinct[k - 1] + overhead
        cut[k] = costs.argmin()
        best[k] = costs[cut[k]]
    group_of, k = np.empty(len(distinct), dtype=np.int64), len(distinct)
    while k > 0:
        group_of[cut[k] : k] = cut[k]
        k = cut[k]
    owner = group_of[np.searchsorted(distinct, lengths)] if len(distinct) else np.empty(0)
    return [np.flatnonzero(owner == g).tolist() for g in np.unique(owner)]


def _ticks(steps, progress):
    """Call `progress(done, total)` after each step, if asked for."""
    for k, step in enumerate(steps, start=1):
        yield step
        if progress is not None:
            progress(k, len(steps))
