"""Two systems whose weights cannot be read here (MagicLens: pickle; InternVL-G: remote code), as small modules of their architecture.

(1) `MagicLens`: CLIP's two features as two tokens → a small transformer → attention pooling (Zhang et al., 2024, Sec. 3.2; `model.py`,
`layers.py` of its code). (2) `InternVLG`: a vision tower's tokens, pooled, plus learned queries that read them through the language
model's cross-attention, pooled (Chen et al., 2024, Sec. 3.2; `InternVL_G` of its code).

**Caveat:** checked are the wiring, its invariances and which input reaches the vector, on random weights, no published figure.
"""

import torch
import torch.nn.functional as F
from torch import nn

from abc_core.systems.dual import DualEncoder


class Attention(nn.Module):
    """Attention over `inner` numbers in several heads, float[B, L, width] -> the same; logits saturate at ±50 (`cap`), as in MagicLens."""

    def __init__(self, width: int, inner: int, heads: int, out: int | None = None, cap: float = 0.0):
        super().__init__()
        self.heads, self.cap = heads, cap
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, out or width)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, x in ((self.query, q), (self.key, k), (self.value, v)))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # B, heads, Lq, Lk
        logits = self.cap * torch.tanh(logits / self.cap) if self.cap else logits
        logits = logits if mask is None else logits.masked_fill(~mask, float("-inf"))
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


# --- MagicLens ----------------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, width, heads, cap=50.0)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed)
        return x + self.mlp(self.mlp_norm(x))


class MagicLensHead(nn.Module):
    """float[B, tokens, D] (a picture's feature, a text's) -> float[B, D]. Published: 4 layers; D 512 and 8 heads, or 768 and 16."""

    def __init__(self, width: int, heads: int, layers: int = 4):
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.pool_query = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.pool, self.pool_norm = Attention(width, 4 * width, heads, cap=50.0), nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.blocks(tokens)
        return self.pool_norm(self.pool(self.pool_query.expand(len(tokens), -1, -1), tokens, tokens))[:, 0]


class MagicLens(DualEncoder):
    """CLIP's towers with `head` as their fusion; a picture alone goes with the empty text, a text alone is one token (ours)."""

    def __init__(self, *args, head: MagicLensHead, **options):
        super().__init__(*args, **options)
        self.head = head

    def fuse(self, seen: torch.Tensor | None, said: torch.Tensor | None) -> torch.Tensor:
        """float[N, D] of what the transformer makes of both features."""
        if said is None:
            said = self.read([""]).expand(len(seen), -1)
        return self.head(torch.stack([f for f in (seen, said) if f is not None], dim=1))


# --- InternVL-G ---------------------------------------------------------------------------------------------------------------


class AttentionPool(nn.Module):
    """float[B, L, width] -> float[B, out]: the tokens as seen from their mean."""

    def __init__(self, width: int, heads: int, out: int):
        super().__init__()
        self.query_norm, self.key_norm, self.value_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(self.query_norm(x.mean(1, keepdim=True)), self.key_norm(x), self.value_norm(x))[:, 0]


class _CrossBlock(nn.Module):
    """A language model's layer that can also read a picture; texts pass it without."""

    def __init__(self, width: int, seen: int, heads: int):
        super().__init__()
        self.norm, self.cross_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.cross = Attention(width, width, heads), Attention(width, width, heads)
        self.seen = nn.Linear(seen, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, picture: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, mask)
        if picture is not None:
            picture = self.seen(picture)
            x = x + self.cross(self.cross_norm(x), picture, picture)
        return x + self.mlp(self.mlp_norm(x))


class InternVLG(nn.Module):
    """Pictures: unit(pool(vision tokens)) + unit(pool(queries that read them)); texts: the last token's state, projected.

    Args:
        vision: pixels -> float[B, P, seen], a vision tower's tokens.
        seen, width, out: width of those tokens, of the language model, of an embedding.
    """

    def __init__(self, vision, seen: int, words: int, width: int, out: int, heads: int = 2, layers: int = 2, queries: int = 4):
        super().__init__()
        self.vision, self.words = vision, nn.Embedding(words, width)
        self.queries = nn.Parameter(torch.randn(1, queries, width) / width**0.5)
        self.blocks = nn.ModuleList(_CrossBlock(width, seen, heads) for _ in range(layers))
        self.pool_seen, self.pool_queries = AttentionPool(seen, heads, out), AttentionPool(width, heads, out)
        self.project = nn.Linear(width, out, bias=False)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """float[B, out]; the queries see each other and the picture."""
        seen = self.vision(pixels)
        x = self.queries.expand(len(seen), -1, -1)
        for block in self.blocks:
            x = block(x, seen)
        return F.normalize(self.pool_seen(seen), dim=-1) + F.normalize(self.pool_queries(x), dim=-1)

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """float[B, out] of int[B, L] and a mask with 1 for an attended token; padding stands right, attention is causal."""
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        x = self.words(ids)
        for block in self.blocks:
            x = block(x, mask=causal)
        return self.project(x[torch.arange(len(ids)), mask.sum(1) - 1])
