"""The other systems' recipes in miniature, all from one backbone's towers, and the data that each may see.

    data      systems                                   trained on
    pairs     dual_encoder sigmoid token_wise           pictures and captions of stage 1
              captioning stage1
    texts     text_only                                 the captions of these alone
    both      score_fusion fusion_transformer           these, and instructed regions with one instruction a picture, in turns
              last_token
    stages    abc                                       these, then instructed regions with all instructions of a picture together

The two-tower systems are in `recipe_towers`, those that take an instruction and those of one tower here; losses are in `recipe_losses`.
**Caveat:** a recipe is its towers, pooling, fusion, loss and data; not its size, its data set or its tuning.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from abc_core import train
from abc_core.recipes import losses as recipe_losses
from abc_core.recipes.towers import HEADS, Captioner, DualEncoder, SigmoidEncoder, System, TokenWise, counts_of

TASK = "What can be seen in the picture?"  # VLM2Vec's query always has an instruction; this one asks for a caption
ONE_WORD = "Summary of the above in one word:"  # after E5-V, Sec. 3.1, "Summary above image in one word:": both sides meet in a word

# --- two towers and an instruction ----------------------------------------------------------------------------------------------


class ScoreFusion(DualEncoder):
    """UniIR's CLIP score fusion: a query is the normalised sum of the vectors of picture and instruction."""

    name = "score_fusion"

    def encode_images(self, pictures, instructions):
        emb, seen = super().encode_images(pictures, instructions)
        said, _, read = self.instruction_vectors(instructions)
        return F.normalize(emb + said, dim=-1), {k: seen[k] + read[k] for k in seen}

    def instruction_vectors(self, instructions) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """(float[R, D], bool[R], counts): vectors of all instructions, picture by picture; zeros, and 0, where there is none."""
        texts = [t for asked in instructions for t in asked]
        given = torch.tensor([t is not None for t in texts], device=self.device)
        emb = torch.zeros(len(texts), self.width, device=self.device)
        if not given.any():
            return emb, given, counts_of(0)
        said, counts = super().encode([self.prompts.text(t) for t in texts if t is not None])
        return emb.index_copy(0, given.nonzero()[:, 0], said), given, counts


class FusionTransformer(ScoreFusion):
    """MagicLens: a small transformer over the vectors of picture and instruction, pooled by a learned query; a caption goes through it too.

    **Caveat:** as there, it sees one vector of the picture; what the picture tower did not keep, no instruction can ask for.
    """

    name = "fusion_transformer"

    def __init__(self, model, processor, layers: int = 2):
        super().__init__(model, processor)
        width = self.width
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.head.mixer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head.pooler = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head.query = nn.Parameter(torch.randn(1, 1, width) / width**0.5)

    def encode_images(self, pictures, instructions):
        emb, seen = DualEncoder.encode_images(self, pictures, instructions)
        said, given, read = self.instruction_vectors(instructions)
        absent = torch.stack([torch.zeros_like(given), ~given], dim=1)  # R, 2
        return self._fused(torch.stack([emb, said], dim=1), absent), {k: seen[k] + read[k] for k in seen}

    def encode(self, ids, visual=None, owners=None):
        emb, counts = super().encode(ids, visual, owners)
        return self._fused(emb[:, None], torch.zeros(len(emb), 1, dtype=torch.bool, device=emb.device)), counts

    def _fused(self, parts: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """Unit vectors float[R, n, D], and bool[R, n] of what is not there -> unit vectors float[R, D]."""
        parts = parts * self.width**0.5  # entries of about 1, or the layers' own outputs would drown them
        mixed = self.head.mixer(parts, src_key_padding_mask=absent)
        pooled, _ = self.head.pooler(self.head.query.expand(len(parts), -1, -1), mixed, mixed, key_padding_mask=absent, need_weights=False)
        return F.normalize(pooled[:, 0].float(), dim=-1)


# --- one tower ------------------------------------------------------------------------------------------------------------------


class LastToken(System):
    """VLM2Vec: the backbone as it is, causal, its last token; a picture always comes with an instruction, a caption never."""

    name = "last_token"

    def __init__(self, model, processor):
        super().__init__(model, processor, head=False, bidirectional=False, pooling="last")

    def encode_images(self, pictures, instructions):
        return super().encode_images(pictures, [[TASK if i is None else i for i in asked] for asked in instructions])


class TextOnly(LastToken):
    """E5-V: the last token after a prompt that asks for one word, of pictures and captions alike; only captions are trained on."""

    name = "text_only"

    def encode_images(self, pictures, instructions):
        return super().encode_images(pictures, [[f"{i}\n{ONE_WORD}" if i else ONE_WORD for i in asked] for asked in instructions])

    def encode_texts(self, texts):
        return super().encode_texts([f"{text}\n{ONE_WORD}" for text in texts])

    def _embed_texts(self, texts, batch_size, progress):
        return super()._embed_texts([f"{text}\n{ONE_WORD}" for text in texts], batch_size, progress)


# --- the recipes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """`after` is the system that it stands for, `data` what it may be trained on (see the module's table)."""

    after: str
    system: type[System]
    step: Callable
    data: str
    seconds: float  # that a step of 32 small pictures takes on two cores, about; for the ledger alone


RECIPES = {
    "dual_encoder": Recipe("CLIP (Radford et al., 2021)", DualEncoder, recipe_losses.symmetric_step, "pairs", 0.75),
    "sigmoid": Recipe("SigLIP (Zhai et al., 2023)", SigmoidEncoder, recipe_losses.sigmoid_step, "pairs", 0.75),
    "token_wise": Recipe("FILIP (Yao et al., 2021)", TokenWise, recipe_losses.token_step, "pairs", 0.75),
    "captioning": Recipe("CoCa (Yu et al., 2022)", Captioner, recipe_losses.caption_step, "pairs", 0.9),
    "score_fusion": Recipe("UniIR (Wei et al., 2023)", ScoreFusion, train.pretrain_step, "both", 1.0),
    "fusion_transformer": Recipe("MagicLens (Zhang et al., 2024)", FusionTransformer, train.pretrain_step, "both", 1.1),
    "last_token": Recipe("VLM2Vec (Jiang et al., 2024)", LastToken, train.pretrain_step, "both", 1.6),
    "text_only": Recipe("E5-V (Jiang et al., 2024)", TextOnly, recipe_losses.text_step, "texts", 0.6),
    "stage1": Recipe("ABC, stage 1", System, train.pretrain_step, "pairs", 1.1),
    "abc": Recipe("ABC", System, train.instruct_step, "stages", 2.3),
}
