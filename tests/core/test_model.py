"""The embedder: the same vector whatever the batch, padding, order and history, for every family; its head; its messages."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import TEXTS, close, step_of

from abc_core import adapters
from abc_core.backbone import make_bidirectional
from abc_core.model import Head, length_groups

families = pytest.mark.parametrize("family", tiny.FAMILIES)
ASKED = [["what is red?", "where"], ["what is on the left?"], ["how many cups", "where is the owl?", "what"], ["where?"], ["what is blue?"]]


def flat(nested: list[list]) -> list:
    return [item for row in nested for item in row]


# --- one input, one vector ----------------------------------------------------------------------------------------------------


@families
def test_an_embedding_is_the_same_alone_in_a_padded_batch_in_another_order_and_after_other_calls(family):
    made, images = tiny.with_lora(family, "instruct"), tiny.pictures()
    inputs = [dict(texts=TEXTS), dict(images=images), dict(images=images, instructions=[row[0] for row in ASKED])]
    first = [made.embed(**given) for given in inputs]
    step_of("instruct", made).backward()
    for given, together in zip(inputs, first, strict=True):
        assert np.abs(together[:, None] - together[None]).max(-1)[~np.eye(len(together), dtype=bool)].min() > 1e-3  # not all the same
        alone = [made.embed(**{k: [v[i]] for k, v in given.items()}) for i in range(len(together))]
        close(np.concatenate(alone), together)
        close(made.embed(**{k: v[::-1] for k, v in given.items()}, batch_size=2)[::-1].copy(), together)
        close(made.embed(**given), together, 0)


@families
def test_padding_does_not_reach_an_embedding(family):
    made = tiny.embedder(family)
    ids = [made.prompts.text(t) for t in TEXTS]
    with torch.no_grad():
        padded = made._pooled(ids, None, None)
        close(padded, torch.cat([made._pooled([row], None, None) for row in ids]))


@families
@pytest.mark.parametrize("instruction", [None, "what is on the left?"])
def test_an_embedding_is_the_mean_of_the_untouched_models_last_layer(family, instruction):
    """Reference: the processor's own call and the model's own forward, made bidirectional, one picture at a time."""
    model, processor = tiny.build(family)
    made = tiny.embedder(family)
    asked = [[instruction]] * 5
    with torch.no_grad():
        ours = made.encode_images(tiny.pictures(), asked)[0]
        for picture, vector in zip(tiny.pictures(), ours, strict=True):
            inputs = processor(images=[picture], text=[processor.image_token], return_tensors="pt")
            ids = torch.tensor([made.prompts.image(made.see([picture]).placeholders[0], instruction)])
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "image_grid_thw" in inputs:
                inputs["mm_token_type_ids"] = (ids == made.prompts.image_token).int()
            hidden = make_bidirectional(model).model(**inputs, use_cache=False).last_hidden_state[0]
            close(vector, F.normalize(hidden.mean(0), dim=-1))


@families
def test_causal_attention_is_an_option_and_differs(family):
    causal, both = tiny.embedder(family, bidirectional=False), tiny.embedder(family)
    assert np.abs(causal.embed(texts=TEXTS) - both.embed(texts=TEXTS)).max() > 1e-3


# --- visual tokens once per picture -------------------------------------------------------------------------------------------


@families
def test_instructions_of_one_picture_share_its_visual_tokens_and_change_nothing(family):
    made, images = tiny.with_lora(family, "instruct"), tiny.pictures()
    shared = made.embed(images=images, instructions=ASKED)
    repeated = flat([[image] * len(asked) for image, asked in zip(images, ASKED, strict=True)])
    close(shared, made.embed(images=repeated, instructions=flat(ASKED)))
    close(shared, made.embed(images=repeated, instructions=flat(ASKED), batch_size=1))


@families
def test_shared_visual_tokens_have_the_gradient_of_unshared_ones(family):
    made, images = tiny.with_lora(family, "pretrain"), tiny.pictures(3)
    weights = torch.randn(6, made.width, generator=torch.Generator().manual_seed(0))

    def gradients(pictures, asked):
        made.zero_grad()
        (made.encode_images(pictures, asked)[0] * weights).sum().backward()
        return {n: p.grad for n, p in made.named_parameters() if p.grad is not None}

    repeated = flat([[image] * len(asked) for image, asked in zip(images, ASKED, strict=False)])
    shared, unshared = gradients(images, ASKED[:3]), gradients(repeated, [[t] for t in flat(ASKED[:3])])
    assert shared.keys() == unshared.keys() and any("vis" in name for name in shared)
    for name in shared:
        torch.testing.assert_close(shared[name], unshared[name], atol=1e-4, rtol=1e-3, msg=name)


def test_every_layer_of_deepstack_features_follows_its_picture():
    made = tiny.embedder("qwen3_vl")
    with torch.no_grad():
        visual = made.see(tiny.pictures())
        ids = [made.prompts.image(visual.placeholders[k]) for k in (3, 0)]
        right = made.encode(ids, visual, [3, 0])[0]
        for layer in range(2):
            features = visual.outputs.deepstack_features
            visual.outputs.deepstack_features = [f[::-1] if k == layer else f for k, f in enumerate(features)]
            assert torch.equal(visual.rows([1, 4])[0]["image"].deepstack_features[layer][0], features[layer][3])
            visual.outputs.deepstack_features = [[torch.zeros_like(v) for v in f] if k == layer else f for k, f in enumerate(features)]
            assert (made.encode(ids, visual, [3, 0])[0] - right).abs().max() > 1e-3
            visual.outputs.deepstack_features = features


# --- no logits ----------------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_no_logits_are_computed_in_embedding_or_a_training_step(family, stage):
    made = tiny.with_lora(family, stage)

    def refuse(*_):
        raise AssertionError("the output layer ran")

    made.model.lm_head.register_forward_pre_hook(refuse)
    made.embed(texts=TEXTS[:2])
    made.embed(images=tiny.pictures(2), **({"instructions": ["what", "where"]} if stage == "instruct" else {}))
    step_of(stage, made).backward()
    with pytest.raises(AssertionError, match="the output layer ran"):
        made.model(input_ids=torch.tensor([[1, 2]]))


# --- the head -----------------------------------------------------------------------------------------------------------------


def test_the_head_starts_as_the_identity_whatever_was_drawn_before():
    torch.rand(3)
    head, again = Head(8), Head(8)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), x)
    assert torch.equal(head.linear_layer1.weight, again.linear_layer1.weight)
    assert not torch.equal(head.linear_layer1.weight, Head(8, seed=1).linear_layer1.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_the_head_is_x_plus_a_selu_of_b_x(bias):
    head = Head(8, hidden=12, bias=bias)
    tiny.randomise(head.parameters(), seed=0)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    first, second = head.linear_layer1, head.linear_layer2
    inner = x @ first.weight.T + (first.bias if bias else 0)
    selu = 1.0507009873554805 * torch.where(inner > 0, inner, 1.6732632423543772 * (inner.exp() - 1))
    close(head(x), x + selu @ second.weight.T + (second.bias if bias else 0))
    assert sum(p.numel() for p in head.parameters()) == 2 * 8 * 12 + bias * (8 + 12)


# --- embed --------------------------------------------------------------------------------------------------------------------


@families
def test_lists_of_instructions_give_rows_picture_by_picture(family):
    made, images = tiny.with_lora(family, "instruct"), tiny.pictures()
    rows = made.embed(images=images, instructions=ASKED, batch_size=2)
    alone = [made.embed(images=[image], instructions=[text]) for image, asked in zip(images, ASKED, strict=True) for text in asked]
    assert rows.shape == (8, made.width) and rows.dtype == np.float32
    close(rows, np.concatenate(alone))
    close(np.linalg.norm(rows, axis=1), np.ones(8, dtype=np.float32))


@families
def test_stage_2_leaves_pictures_and_texts_as_they_were_to_the_bit(family):
    made, images = tiny.with_lora(family, "pretrain"), tiny.pictures()
    adapters.merge(made)
    before = made.embed(images=images), made.embed(texts=TEXTS)
    adapters.add_lora(made, "instruct", rank=4, alpha=4)
    tiny.randomise_trained(made)
    assert all(np.array_equal(a, b) for a, b in zip(before, (made.embed(images=images), made.embed(texts=TEXTS)), strict=True))
    asked = dict(images=images, instructions=["what"] * 5)
    assert np.abs(made.embed(**asked) - made.embed(**asked, adapter=False)).max() > 1e-3


def test_a_path_gives_the_vector_of_its_picture_and_progress_is_told(tmp_path):
    made, told = tiny.embedder("qwen2_vl"), []
    for k, picture in enumerate(tiny.pictures()):
        picture.save(tmp_path / f"{k}.png")
    paths = [str(tmp_path / "0.png"), *(tmp_path / f"{k}.png" for k in range(1, 5))]
    by_path = made.embed(images=paths, batch_size=2, progress=lambda done, total: told.append((done, total)))
    assert np.array_equal(by_path, made.embed(images=tiny.pictures(), batch_size=2)) and told == [(1, 3), (2, 3), (3, 3)]


def test_a_copy_of_an_embedder_stands_alone():
    made = tiny.embedder("qwen2_vl")
    before, copied = made.embed(images=tiny.pictures()), deepcopy(made)
    tiny.randomise(copied.model.model.visual.patch_embed.parameters(), seed=5)
    assert np.array_equal(made.embed(images=tiny.pictures()), before)
    assert np.abs(copied.embed(images=tiny.pictures()) - before).max() > 1e-3


def test_nothing_to_embed_gives_no_rows():
    made = tiny.embedder("qwen2_vl")
    assert made.embed(texts=[]).shape == made.embed(images=[]).shape == (0, 32)


PICTURE = tiny.pictures(1)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(), "give either images or texts$"),
        (dict(images=[PICTURE], texts=["an owl"]), "give either images or texts, not both"),
        (dict(images=PICTURE), r"images and texts are lists; wrap a single one in \[ \]"),
        (dict(texts="an owl"), r"images and texts are lists; wrap a single one in \[ \]"),
        (dict(texts=["an owl"], instructions=["what"]), "instructions go with images"),
        (dict(texts=["an owl", " \n"]), r"text 1 is empty: ' \\n'"),
        (dict(texts=["an owl", 7]), "text 1 is empty: 7"),
        (dict(images=[PICTURE, 7]), "image 1 is a int; PIL pictures and paths can be embedded"),
        (dict(images=[PICTURE], instructions="what"), "1 images need 1 instructions or lists of instructions; got 4"),
        (dict(images=[PICTURE], instructions=["what", "where"]), "1 images need 1 instructions or lists of instructions; got 2"),
        (dict(images=[PICTURE] * 2, instructions=["what", ""]), "instruction of image 1 is empty: ''"),
        (dict(images=[PICTURE] * 2, instructions=["what", []]), r"instruction of image 1 is empty: \[\]"),
        (dict(images=[PICTURE] * 2, instructions=[None, "what"]), "instruction of image 0 is empty: None"),
        (dict(images=[PICTURE], instructions=[["what", " "]]), r"instruction of image 0 is empty: \['what', ' '\]"),
    ],
)
def test_bad_input_is_refused_with_its_row_and_value(given, message):
    with pytest.raises(ValueError, match=message):
        tiny.with_lora("qwen2_vl", "instruct").embed(**given)


def test_instructions_without_a_stage_2_adapter_are_refused():
    with pytest.raises(ValueError, match="no stage-2 adapter, so it cannot follow instructions"):
        tiny.embedder("qwen2_vl").embed(images=[PICTURE], instructions=["what"])


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        tiny.embedder("qwen2_vl").embed(images=[tmp_path / "gone.png"])


@pytest.mark.parametrize("seed", range(4))
def test_length_groups_hold_every_row_once_at_the_least_cost(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, 9).tolist()
    groups = length_groups(lengths, overhead=40)
    assert sorted(i for g in groups for i in g) == list(range(9))
    ordered = sorted(lengths)
    cuts = [[0, *[k + 1 for k in range(8) if bits >> k & 1], 9] for bits in range(256)]
    best = min(sum((b - a) * ordered[b - 1] + 40 for a, b in pairwise(c)) for c in cuts)
    assert sum(len(g) * max(lengths[i] for i in g) + 40 for g in groups) == best
    assert length_groups([]) == []
    assert length_groups(lengths, overhead=10**6) == [list(range(9))]

