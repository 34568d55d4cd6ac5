"""Loading, the change to bidirectional attention, the exact speed-ups, and pictures, for every family."""

import json

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from abc_core.backbone import (
    autocast_attention,
    batch_vision_attention,
    best_attention,
    linear_patches,
    load_backbone,
    make_bidirectional,
    picture_features,
    set_visual_tokens,
    unread_blocks,
)

families = pytest.mark.parametrize("family", tiny.FAMILIES)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def first_state(model, ids: list[int]) -> torch.Tensor:
    """The first token's last hidden state."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), use_cache=False).last_hidden_state[0, 0]


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_last_token_moves_the_first_tokens_state_after_make_bidirectional_and_not_before(family, attention):
    model, _ = tiny.build(family, attention=attention)
    one, other = [5, 6, 7, 8], [5, 6, 7, 9]
    assert torch.equal(first_state(model, one), first_state(model, other))
    make_bidirectional(model)
    assert (first_state(model, one) - first_state(model, other)).abs().max() > 1e-3


def asks_the_layer(module, query, key, value, attention_mask, scaling=None, is_causal=None, **_):
    """Attention without a mask that asks the layer whether it is causal, as FlashAttention does."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
    causal = module.is_causal if is_causal is None else is_causal
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling)
    return out.transpose(1, 2), None


@families
def test_an_attention_that_asks_the_layers_becomes_bidirectional_too(family):
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("asks_the_layer", asks_the_layer)
    AttentionMaskInterface.register("asks_the_layer", lambda *args, **kwargs: None)
    model, _ = tiny.build(family)
    for module in model.model.language_model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "asks_the_layer"
    one, other = [5, 6, 7, 8], [5, 6, 7, 9]
    assert torch.equal(first_state(model, one), first_state(model, other))
    make_bidirectional(model)
    assert (first_state(model, one) - first_state(model, other)).abs().max() > 1e-3


def test_flash_attention_is_taken_where_it_is_installed_and_the_weights_allow_it(monkeypatch):
    assert best_attention(torch.bfloat16) == best_attention(torch.float32) == "sdpa"
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert best_attention(torch.bfloat16) == "flash_attention_2" and best_attention(torch.float32) == "sdpa"


@families
@pytest.mark.parametrize("shown", [[0, 1, 2, 3, 4], [0, 3], [2]], ids=["mixed grids", "equal grids", "one picture"])
def test_linear_patches_and_batched_attention_give_the_visual_tokens_of_the_untouched_model(family, shown):
    images = [tiny.pictures()[k] for k in shown]
    with torch.no_grad():
        plain = picture_features(*tiny.build(family), images)[0]
        model, processor = tiny.build(family)
        fast = picture_features(linear_patches(batch_vision_attention(model)), processor, images)[0]
    for one, other in zip(plain.pooler_output, fast.pooler_output, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for one, other in zip(getattr(plain, "deepstack_features", None) or [], getattr(fast, "deepstack_features", None) or [], strict=True):
        torch.testing.assert_close(torch.cat(one), torch.cat(other), atol=1e-5, rtol=0)


@families
def test_the_exact_speed_ups_have_the_untouched_models_gradients(family):
    def gradients(change):
        model, processor = tiny.build(family)
        tokens = torch.cat(list(picture_features(change(model), processor, tiny.pictures())[0].pooler_output))
        tokens.square().sum().backward()
        tower = getattr(model.model, "visual", None) or model.model.vision_tower
        return {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}

    plain, fast = gradients(lambda model: model), gradients(lambda model: linear_patches(batch_vision_attention(model)))
    assert plain.keys() == fast.keys() and plain
    for name in plain:
        torch.testing.assert_close(plain[name], fast[name], atol=1e-4, rtol=1e-4, msg=name)


@families
@pytest.mark.parametrize("bidirectional", [False, True])
def test_autocast_attention_changes_nothing_without_autocast_and_is_whole_within(family, bidirectional, monkeypatch):
    def states(change, bf16):
        model, _ = tiny.build(family)
        model = change(make_bidirectional(model) if bidirectional else model)
        ids, mask = torch.arange(5, 17).view(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]

    plain = states(lambda model: model, False)
    assert torch.equal(plain, states(autocast_attention, False))
    kinds, attend = set(), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv, **k: kinds.update(t.dtype for t in qkv) or attend(*qkv, **k))
    assert F.cosine_similarity(states(autocast_attention, True).float(), plain).min() > 0.99
    assert kinds == {torch.float32}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_pictures_of_equal_grids_go_through_attention_in_one_call(family, monkeypatch):
    calls, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *a, **k: calls.append(len(q)) or attend(q, *a, **k))
    model, processor = tiny.build(family)
    picture_features(batch_vision_attention(model), processor, [tiny.pictures()[k] for k in (0, 1, 3)])
    assert calls == [1, 2] * model.config.vision_config.depth  # 8 tokens alone, twice 9 together


def test_overlapping_patches_are_refused():
    class TinyPatchEmbed(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Conv3d(3, 8, kernel_size=(2, 4, 4), stride=(2, 2, 2))

    with pytest.raises(ValueError, match=r"patches overlap: stride \(2, 2, 2\), kernel \(2, 4, 4\)"):
        linear_patches(nn.Sequential(TinyPatchEmbed()))


# --- loading ------------------------------------------------------------------------------------------------------------------


@families
def test_a_saved_backbone_loads_causal_in_float32_with_the_same_weights(family, tmp_path):
    model, processor = load_backbone(tiny.save(family, tmp_path))
    expected = tiny.build(family)[0].state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) and v.dtype == torch.float32 for k, v in model.state_dict().items() if v.is_floating_point())
    assert not model.training and torch.equal(first_state(model, [5, 6, 7]), first_state(model, [5, 6, 8]))
    assert type(processor) is type(tiny.build(family)[1])


def test_a_small_backbone_loads_without_a_bar_of_progress_and_leaves_bars_on(tmp_path, capsys):
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_backbone(tiny.save("qwen2_vl", tmp_path))
    assert "Loading weights" not in capsys.readouterr().err and logging.is_progress_bar_enabled()


@pytest.mark.parametrize("family", ["llama", "mystery"])
def test_an_unknown_family_is_refused_by_name(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ValueError, match=rf"{tmp_path} is of the family '{family}'; supported are qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_backbone(tmp_path)


def test_a_missing_backbone_and_a_broken_config_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no config.json.*make backbone"):
        load_backbone(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        load_backbone(tmp_path)


# --- pictures -----------------------------------------------------------------------------------------------------------------

BOUNDS = dict.fromkeys(QWEN, (4, 8)) | {"internvl": (1, 12), "llava_next": (4, 14)}


@families
def test_a_picture_takes_no_more_visual_tokens_than_asked_for(family):
    model, processor = tiny.build(family)
    free = [len(v) for v in picture_features(model, processor, tiny.pictures())[0].pooler_output]
    smallest, largest = BOUNDS[family]
    outputs, _, placeholders = picture_features(model, set_visual_tokens(processor, smallest, largest), tiny.pictures())
    bound = [len(v) for v in outputs.pooler_output]
    assert max(bound) <= largest < max(free) and min(bound) >= smallest
    assert [p.count(processor.image_token) for p in placeholders] == bound


@pytest.mark.parametrize("family", QWEN)
def test_small_pictures_grow_to_the_fewest_visual_tokens_of_qwen_families(family):
    model, processor = tiny.build(family)
    outputs, _, _ = picture_features(model, set_visual_tokens(processor, 16, 24), tiny.pictures())
    assert all(16 <= len(v) <= 24 for v in outputs.pooler_output)


@pytest.mark.parametrize(("family", "fewest"), [("internvl", 4), ("llava_next", 14)])
def test_bounds_that_whole_tiles_cannot_meet_are_refused(family, fewest):
    for smallest, largest in ((1, fewest - 1), (5, 99)):
        with pytest.raises(ValueError, match=rf"a tile takes 4 .* picture up to {fewest} at least; {smallest} to {largest} were asked"):
            set_visual_tokens(tiny.build(family)[1], smallest, largest)


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="9 to 4 visual tokens were asked for"):
        set_visual_tokens(tiny.build("qwen2_vl")[1], 9, 4)


@families
def test_only_llava_next_has_a_vision_block_that_is_never_read(family):
    expected = r"model\.vision_tower\..*\.layers?\.(2)\..*" if family == "llava_next" else None
    assert unread_blocks(tiny.build(family)[0]) == expected
