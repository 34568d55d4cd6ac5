"""Two towers from one backbone, its vision tower for pictures and its language model for texts: CLIP, SigLIP, FILIP and CoCa in miniature.

`System` is what every recipe is (`recipes` has the table of them): an `Embedder` that meets the protocol (`embed`, `score`,
`name`, `fingerprint`) and trains in the same loop. What a recipe adds to the towers is in its `head`.

**Caveat:** the picture tower pools the mean visual token where CLIP has a class token, SigLIP and CoCa an attention pooler, so that recipes
differ in what they are named after.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from abc_core import adapters, train
from abc_core.data.pictures import open_image
from abc_core.model import Embedder
from abc_core.recipes import losses as recipe_losses

HEADS = 8  # of attention layers that recipes add


class System(Embedder):
    """An embedder of a recipe. As it is, ABC's own: bidirectional, mean of the tokens, residual head; stage 2 if its adapter is there.

    `name` is the recipe, `fingerprint` the run that trained it.
    """

    name, _run = "stage1", None

    @property
    def fingerprint(self) -> str | None:
        """What an embedding depends on: the run that trained the system, whose name is a hash of all that determines it."""
        return self._run

    @fingerprint.setter
    def fingerprint(self, run: str | None) -> None:
        self._run = run

    def embed(self, images=None, texts=None, instructions=None, batch_size: int = 64, adapter=None, progress=None) -> np.ndarray:
        """As `Embedder.embed`; a system without stage 2 takes instructions all the same, to use or to ignore."""
        steered = adapter if adapters.has_adapter(self.model, "instruct") else False
        return super().embed(images, texts, instructions, batch_size, steered, progress)

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C]: how well candidates fit queries."""
        return q_emb @ c_emb.T

    def set_temperature(self, config) -> None:
        """A fresh τ of config.temperature."""
        train.set_temperature(self, config)


# --- two towers -----------------------------------------------------------------------------------------------------------------


class Projections(nn.Module):
    """One linear map for each tower, float[..., H] -> float[..., D]; called, it is that of texts."""

    def __init__(self, width: int):
        super().__init__()
        self.image, self.text = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.text(states)


class DualEncoder(System):
    """CLIP: mean visual token and last token of a causal language model, each projected. The instruction of a picture is ignored."""

    name, bidirectional = "dual_encoder", False

    def __init__(self, model, processor):
        super().__init__(model, processor, head=False, bidirectional=self.bidirectional, pooling="last")
        self.head = Projections(self.width)

    def encode_images(self, pictures, instructions):
        tokens, counts = self.visual_tokens(pictures)
        emb = self.head.image(torch.stack([t.mean(0) for t in tokens])).float()  # P, D
        return F.normalize(emb, dim=-1)[owners_of(instructions)], counts

    def visual_tokens(self, pictures) -> tuple[list[torch.Tensor], dict]:
        """One float32[V, H] per picture, and the counts of a step."""
        tokens = [t.float() for t in self.see(pictures).outputs.pooler_output]
        return tokens, counts_of(sum(map(len, tokens)))


class SigmoidEncoder(DualEncoder):
    """SigLIP: a bidirectional text tower, and a learned bias beside τ."""

    name, bidirectional = "sigmoid", True

    def set_temperature(self, config) -> None:
        """The bias begins at −log B, where B negatives weigh as much as a positive: SigLIP's −10 is that of its batch of 32,768."""
        super().set_temperature(config)
        self.temperature.bias = nn.Parameter(torch.tensor(-math.log(config.queries), device=self.device))


class TokenWise(DualEncoder):
    """FILIP: all tokens of a picture and all of a caption's words, float[N, T, D]; where a row has fewer, the rest is zeros."""

    name, most = "token_wise", 128  # tokens of a row

    def encode_images(self, pictures, instructions):
        tokens, counts = self.visual_tokens(pictures)
        return _padded_units(self.head.image, tokens)[owners_of(instructions)], counts

    def encode_texts(self, texts):
        ids = [self.prompts.text(t) for t in texts]
        hidden, *_ = self.states(ids)
        words = [hidden[k, self.prompts.words_of(t)] for k, t in enumerate(texts)]
        return _padded_units(self.head.text, words), counts_of(sum(map(len, ids)), len(ids) * hidden.shape[1])

    @torch.no_grad()
    def embed(self, images=None, texts=None, instructions=None, batch_size: int = 64, adapter=None, progress=None) -> np.ndarray:
        """float32[N, `most`, D]: unit vectors of tokens, zeros where a row has fewer. ValueError: one has more."""
        self._check(images, texts, instructions, False)
        items, parts = images if texts is None else texts, [torch.zeros(0, self.most, self.width)]
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            if texts is None:
                asked = [None] * len(part) if instructions is None else instructions[start : start + batch_size]
                asked = [[i] if i is None or isinstance(i, str) else i for i in asked]
                tokens = self.encode_images([open_image(i) for i in part], asked)[0].cpu()
            else:
                tokens = self.encode_texts(part)[0].cpu()
            if tokens.shape[1] > self.most:
                raise ValueError(f"{tokens.shape[1]} tokens in one of the items from {start} on; {self.most} are kept at most")
            parts.append(F.pad(tokens, (0, 0, 0, self.most - tokens.shape[1])))
        return torch.cat(parts).numpy()

    def score(self, q_emb: np.ndarray, c_emb: np.ndarray) -> np.ndarray:
        """float32[Q, C]: `recipe_losses.token_scores`, 16 queries against 128 candidates at a time, their padding cut."""
        q, c = map(_without_padding, (q_emb, c_emb))
        return torch.cat([torch.cat([recipe_losses.token_scores(a, b) for b in c.split(128)], 1) for a in q.split(16)]).numpy()


class Captioner(DualEncoder):
    """CoCa: a decoder on top of the text tower looks at the visual tokens and writes the caption; it is for training alone."""

    name = "captioning"

    def __init__(self, model, processor, layers: int = 2):
        super().__init__(model, processor)
        width = self.width
        layer = nn.TransformerDecoderLayer(width, HEADS, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.head.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.head.words = nn.Linear(width, self.model.config.get_text_config().vocab_size, bias=False)

    def describe(self, pictures, texts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
        """(float[B, D], float[B, D], scalar, counts): pictures, captions, the captioning loss; each tower runs once."""
        tokens, seen = self.visual_tokens(pictures)
        q_emb = F.normalize(self.head.image(torch.stack([t.mean(0) for t in tokens])).float(), dim=-1)
        rows = [self.prompts.text(t) for t in texts]
        hidden, ids, mask = self.states(rows)
        last = hidden[torch.arange(len(rows), device=self.device), mask.sum(1) - 1]
        c_emb = F.normalize(self.head.text(last).float(), dim=-1)
        words = torch.zeros_like(mask, dtype=torch.bool)
        for k, text in enumerate(texts):
            span = self.prompts.words_of(text)
            words[k, span.start : span.stop + 1] = True  # and the token that ends it
        loss = recipe_losses.caption_loss(self.caption_logits(hidden, tokens), ids, words)
        return q_emb, c_emb, loss, {k: seen[k] + v for k, v in counts_of(sum(map(len, rows)), ids.numel()).items()}

    def caption_logits(self, hidden: torch.Tensor, tokens: list[torch.Tensor]) -> torch.Tensor:
        """float[B, L, vocabulary] from text states float[B, L, H], each of which has seen those before it alone, and visual tokens."""
        memory = pad_sequence(tokens, batch_first=True)  # B, V, H
        counts = torch.tensor([len(t) for t in tokens], device=self.device)
        absent = torch.arange(memory.shape[1], device=self.device) >= counts[:, None]
        length = hidden.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=self.device).triu(1)
        return self.head.words(self.head.decoder(hidden, memory, tgt_mask=later, memory_key_padding_mask=absent))


def owners_of(instructions: list[list]) -> list[int]:
    """The picture of each row: rows come picture by picture, one for each instruction (None: without one)."""
    return [k for k, asked in enumerate(instructions) for _ in asked]


def _padded_units(project: nn.Module, tokens: list[torch.Tensor]) -> torch.Tensor:
    """float32[N, T, D]: projected unit vectors of float[T, H] tokens; zeros stay zeros, as the map has no bias."""
    return F.normalize(project(pad_sequence(tokens, batch_first=True)).float(), dim=-1)


def _without_padding(tokens: np.ndarray) -> torch.Tensor:
    """A copy without what all rows have as padding."""
    return torch.from_numpy(tokens[:, : max(1, (tokens != 0).any(-1).sum(1).max())].copy())


def counts_of(tokens: int, padded: int | None = None) -> dict:
    """The tokens of a step, for its log."""
    return {"tokens": tokens, "padded_tokens": tokens if padded is None else padded}
