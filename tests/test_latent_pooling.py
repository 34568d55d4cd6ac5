"""Latent-attention pooling by itself and as an option of the embedder."""

import pytest
import torch

from abc_core import adapters
from abc_core.latent_pooling import LatentPooling
from abc_core.model import Embedder
from tests import tiny

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def trained() -> LatentPooling:
    made = LatentPooling(16, latents=6, heads=2)
    tiny.randomise(made.parameters(), seed=1)
    return made


@torch.no_grad()
def test_it_starts_as_the_mean_over_attended_tokens():
    mean = torch.stack([TOKENS[0, :3].mean(0), TOKENS[1].mean(0)])
    tiny.close(LatentPooling(16, heads=2)(TOKENS, MASK), mean)
    assert (trained()(TOKENS, MASK) - mean).abs().max() > 1e-2


@torch.no_grad()
def test_padding_and_batch_mates_do_not_matter():
    made = trained()
    other = TOKENS.clone()
    other[0, 3:] = 1e3
    tiny.close(made(other, MASK), made(TOKENS, MASK))
    tiny.close(made(TOKENS[:1, :3], MASK[:1, :3]), made(TOKENS, MASK)[:1])


@torch.no_grad()
def test_it_is_what_the_formula_says_token_by_token():
    made = trained()
    latents = made.latent_norm(made.latents)
    rows = []
    for token in TOKENS[0, :3]:
        query, key, value = made.query(made.token_norm(token)), made.key(latents), made.value(latents)
        heads = [torch.softmax(query[h] @ key[:, h].T / 8**0.5, -1) @ value[:, h] for h in (slice(0, 8), slice(8, 16))]
        x = token + made.out(torch.cat(heads))
        value, gate = made.up(made.mlp_norm(x)).chunk(2)
        rows.append(x + made.down(value * torch.nn.functional.gelu(gate)))
    tiny.close(made(TOKENS, MASK)[0], torch.stack(rows).mean(0))


def test_a_width_that_does_not_split_into_heads_is_refused():
    with pytest.raises(ValueError, match="15 does not split into 2 heads"):
        LatentPooling(15, heads=2)


def test_the_embedder_trains_saves_and_loads_it_with_its_head(tmp_path):
    folder = tiny.save("qwen2_vl", tmp_path / "backbone")
    plain, made = Embedder.from_backbone(folder), Embedder.from_backbone(folder, pooling="latent")
    tiny.close(made.embed(tiny.pictures(2)), plain.embed(tiny.pictures(2)))  # it starts as the mean
    adapters.add_lora(made, "pretrain", rank=2, alpha=2)
    names = {name for name, p in made.named_parameters() if p.requires_grad}
    assert "head.latent.latents" in names and "head.linear_layer1.weight" in names
    tiny.randomise_trained(made)
    tiny.step_of("pretrain", made).backward()
    assert made.head.latent.latents.grad.abs().max() > 0
    adapters.save_embedder(made, tmp_path / "model.safetensors")
    again = Embedder.load(tmp_path)
    tiny.close(again.embed(texts=tiny.TEXTS), made.embed(texts=tiny.TEXTS))
    assert again.fingerprint == made.fingerprint != plain.fingerprint
    adapters.merge(again)
    adapters.add_lora(again, "instruct", rank=2, alpha=2)
    assert not any(p.requires_grad for p in again.head.parameters())  # frozen in stage 2, as the head


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_last_token_pooling_of_a_causal_embedder_is_the_models_own_last_state(family):
    made = tiny.embedder(family, head=False, bidirectional=False, pooling="last")
    ids = [made.prompts.text(t) for t in tiny.TEXTS]
    with torch.no_grad():
        by_hand = torch.cat([made.model.model(input_ids=torch.tensor([row])).last_hidden_state[:, -1] for row in ids])
    tiny.close(made.embed(texts=tiny.TEXTS), torch.nn.functional.normalize(by_hand, dim=-1))
