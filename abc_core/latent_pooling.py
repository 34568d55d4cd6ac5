"""Latent-attention pooling (NV-Embed): each token reads a dictionary of trained latents, then the tokens are averaged.

    (1) x ← x + attention(query x, keys and values the latents)   (2) x ← x + GEGLU(x)   (3) mean over attended tokens

It starts as the plain mean: what (1) and (2) add is zero at first. The number of latents is fixed, so the cost is linear in the tokens.

**Source:** Lee et al., 2024 (NV-Embed), Sec. 3.1; layer norms and residuals as in its released code, which has 512 latents and 8 heads.
**Caveat:** ABC does not use it; Sec. 2 of its paper names it beside mean and last-token pooling.
"""

import torch
import torch.nn.functional as F
from torch import nn


class LatentPooling(nn.Module):
    """float[B, L, H] and a mask, int[B, L] with 1 for an attended token -> float[B, H]; `seed` decides the latents and projections."""

    def __init__(self, width: int, latents: int = 512, heads: int = 8, seed: int = 0):
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not split into {heads} heads")
        self.heads = heads
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.token_norm, self.latent_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.latents, generator=generator)
        for layer in (self.query, self.key, self.value, self.up):
            nn.init.uniform_(layer.weight, -(width**-0.5), width**-0.5, generator=generator)
        for zero in (self.up.bias, self.out.weight, self.down.weight, self.down.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        latents = self.latent_norm(self.latents)[None]  # 1, latents, H
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B, heads, L, H / heads  # noqa: E731
        key, value = (split(layer(latents)).expand(len(tokens), -1, -1, -1) for layer in (self.key, self.value))
        read = F.scaled_dot_product_attention(split(self.query(self.token_norm(tokens))), key, value)
        tokens = tokens + self.out(read.transpose(1, 2).flatten(2))  # B, L, H
        value, gate = self.up(self.mlp_norm(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.down(value * F.gelu(gate))
        weight = mask[..., None].to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1)  # B, H
