"""The two LoRA stages: where they are, what trains, switching, merging, saving, and what a damaged checkpoint says."""

import re

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXTS, close, step_of
from torch import nn

from abc_core import adapters, checkpoint
from abc_core.backbone import LORA_TARGETS
from abc_core.model import Embedder

families = pytest.mark.parametrize("family", tiny.FAMILIES)
QWEN_BLOCK = {"attn.qkv", "attn.proj"}
VISION_LAYERS = {  # the linear layers of one vision block
    "qwen2_vl": QWEN_BLOCK | {"mlp.fc1", "mlp.fc2"},
    "qwen2_5_vl": QWEN_BLOCK | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    "qwen3_vl": QWEN_BLOCK | {"mlp.linear_fc1", "mlp.linear_fc2"},
    "internvl": {f"attention.{p}" for p in ("q_proj", "k_proj", "v_proj", "projection_layer")} | {"mlp.fc1", "mlp.fc2"},
    "llava_next": {f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj")} | {"mlp.fc1", "mlp.fc2"},
}
LANGUAGE_LAYERS = {f"self_attn.{p}_proj" for p in "qkvo"} | {f"mlp.{p}_proj" for p in ("gate", "up", "down")}
VISION_BLOCKS = {"qwen3_vl": 3}  # that the visual tokens are read from; 2 elsewhere


def adapted(made: Embedder) -> list[str]:
    """Names of the modules that carry LoRA."""
    return [n for n, m in made.model.named_modules() if hasattr(m, "lora_A")]


def state(made: Embedder) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.named_parameters()}


# --- where they are -----------------------------------------------------------------------------------------------------------


@families
def test_stage_2_has_no_lora_outside_the_language_model(family):
    names = adapted(tiny.with_lora(family, "instruct"))
    assert len(names) == 2 * len(LANGUAGE_LAYERS)
    assert all(n.startswith("model.language_model.layers.") for n in names)


@families
def test_stage_1_is_on_every_linear_layer_of_the_blocks_of_both_towers_that_are_read_and_nowhere_else(family):
    found = {"language": [], "vision": []}
    for name in adapted(tiny.with_lora(family, "pretrain")):
        tower, block, layer = re.fullmatch(r"model\.(.*?)\.(?:encoder\.)?(?:layers?|blocks)\.(\d+)\.(.*)", name).groups()
        found["language" if tower == "language_model" else "vision"].append((int(block), layer))
    assert set(found["language"]) == {(block, layer) for block in range(2) for layer in LANGUAGE_LAYERS}
    assert set(found["vision"]) == {(block, layer) for block in range(VISION_BLOCKS.get(family, 2)) for layer in VISION_LAYERS[family]}
    linear = [n for n, m in tiny.build(family)[0].named_modules() if isinstance(m, nn.Linear)]
    in_blocks = {r".*language_model\.layers\.0\.": LANGUAGE_LAYERS, r".*vis(ual|ion).*\.(blocks|layers?)\.0\.": VISION_LAYERS[family]}
    for block, layers in in_blocks.items():
        assert {re.sub(block, "", n) for n in linear if re.match(block, n)} == layers  # the lists above leave none out


@families
def test_targets_of_one_family_never_reach_the_other_tower(family):
    names = [n for n, _ in tiny.build(family)[0].named_modules()]
    language = {n for n in names if re.fullmatch(LORA_TARGETS[family]["language"], n)}
    vision = {n for n in names if re.fullmatch(LORA_TARGETS[family]["vision"], n)}
    assert language and vision and not language & vision
    assert all("language_model" in n for n in language) and not any("language_model" in n for n in vision)


# --- what trains --------------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_what_a_stage_trains_is_counted_and_all_of_it_gets_a_gradient(family, stage):
    made = tiny.with_lora(family, stage)
    counts, rank = adapters.count_trained(made), 4
    by_tower = {"language model": 0, "vision tower": 0}
    for name in adapted(made):
        layer = made.model.get_submodule(name)
        by_tower["language model" if "language_model" in name else "vision tower"] += rank * (layer.in_features + layer.out_features)
    expected = by_tower | {"head": 2 * 32 * 32, "temperature": 1} if stage == "pretrain" else {"language model": by_tower["language model"]}
    assert counts == expected
    step_of(stage, made).backward()
    assert [n for n, p in made.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
    assert [n for n, p in made.named_parameters() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_parameter_that_the_table_does_not_know_is_refused_by_name(stage):
    made = tiny.with_lora("qwen2_vl", stage)
    assert adapters.freeze_but(made, stage)
    made.model.model.gate = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"stage '{stage}' does not say whether model\.model\.gate\.weight trains"):
        adapters.freeze_but(made, stage)


def test_stages_are_refused_by_name_twice_or_out_of_order():
    made = tiny.embedder("qwen2_vl")
    with pytest.raises(ValueError, match="unknown stage 'finetune'; known are pretrain, instruct"):
        adapters.add_lora(made, "finetune", rank=4, alpha=8)
    adapters.add_lora(made, "pretrain", rank=4, alpha=8)
    with pytest.raises(ValueError, match="has a 'pretrain' adapter already"):
        adapters.add_lora(made, "pretrain", rank=4, alpha=8)
    with pytest.raises(ValueError, match="stage 2 starts from the merged stage 1"):
        adapters.add_lora(made, "instruct", rank=4, alpha=8)
    assert not adapters.has_adapter(made.model, "instruct")


def test_lora_starts_from_its_seed_and_leaves_global_randomness_alone():
    def started(seed):
        made = tiny.embedder("qwen2_vl")
        torch.rand(seed + 3)
        before = torch.get_rng_state()
        adapters.add_lora(made, "pretrain", rank=4, alpha=8, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([p.flatten() for n, p in made.named_parameters() if "lora_A" in n])

    assert torch.equal(started(0), started(0)) and not torch.equal(started(0), started(1))


# --- on, off, merged ----------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_new_adapter_changes_nothing_and_off_is_before(family, stage):
    made = tiny.embedder(family)
    embed = lambda: (made.embed(texts=TEXTS), made.embed(images=tiny.pictures(3)))  # noqa: E731
    before = embed()
    adapters.add_lora(made, stage, rank=4, alpha=4)
    with adapters.instructed(made.model, True):
        assert all(map(np.array_equal, before, embed()))
    tiny.randomise([p for n, p in made.named_parameters() if "lora_" in n], seed=1)
    with adapters.instructed(made.model, False):
        assert all(map(np.array_equal, before, embed()))


@families
def test_merging_gives_the_embeddings_of_the_adapter_switched_on(family):
    made = tiny.with_lora(family, "pretrain")
    on = made.embed(texts=TEXTS), made.embed(images=tiny.pictures())
    assert np.abs(on[0] - tiny.embedder(family).embed(texts=TEXTS)).max() > 1e-2
    adapters.merge(made)
    assert adapted(made) == [] and not any(p.requires_grad for p in made.parameters())
    close(made.embed(texts=TEXTS), on[0])
    close(made.embed(images=tiny.pictures()), on[1])


@families
def test_merging_all_stages_leaves_plain_layers(family):
    made, asked = tiny.with_lora(family, "instruct"), dict(images=tiny.pictures(2), instructions=["what", "where"])
    on = made.embed(**asked)
    adapters.merge_all(made)
    assert adapted(made) == [] and {type(m) for m in made.model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    close(made.embed(**asked, adapter=False), on)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpointed_activations_give_the_same_gradients_with_dropout_wherever_they_are_taken(family, stage):
    def gradients(checkpointed: bool, off_in_between: bool = False):
        made = tiny.with_lora(family, stage)
        for module in made.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout[stage] = nn.Dropout(0.3)
        if checkpointed:
            adapters.checkpoint_activations(made.model)
        adapters.freeze_but(made, stage)
        made.train()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            loss = tiny.step_of(stage, made)
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
                tiny.step_of(stage, made)
            with adapters.instructed(made.model, not off_in_between):
                loss.backward()
        return {n: p.grad for n, p in made.named_parameters() if p.requires_grad}, sum(kept)

    (plain, much), (again, little), (elsewhere, _) = gradients(False), gradients(True), gradients(True, off_in_between=True)
    assert plain and all(g is not None for g in plain.values()) and little < much / 2
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]) and torch.equal(gradient, elsewhere[name]), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_backbone_in_bfloat16_trains_in_float32_and_comes_back_as_it_was(family, tmp_path):
    folder, found = tiny.save(family, tmp_path / "backbone"), {}
    for weights in ("float32", "bfloat16"):
        made = Embedder.from_backbone(folder, min_visual_tokens=4, max_visual_tokens=64, weights=weights)
        adapters.add_lora(made, "pretrain", rank=4, alpha=4)
        tiny.randomise_trained(made)
        assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in made.parameters() if not p.requires_grad} == {getattr(torch, weights)}
        tiny.step_of("pretrain", made).backward()
        gradient = torch.cat([p.grad.flatten() for p in made.parameters() if p.requires_grad])
        vectors = made.embed(images=tiny.pictures(2))
        adapters.save_embedder(made, tmp_path / "out.safetensors")
        again = Embedder.load(tmp_path / "out.safetensors")
        assert again.model.dtype == made.model.dtype and (again.embed(images=tiny.pictures(2)) == vectors).all()
        found[weights] = gradient, vectors
    (exact, vectors), (rounded, near) = found.values()
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.95 and not torch.equal(exact, rounded)
    close(near, vectors, 0.05)


def test_the_switch_restores_state_and_gradient_flags_also_when_the_block_raises():
    made = tiny.with_lora("qwen2_vl", "instruct")
    layers = [m for m in made.model.modules() if hasattr(m, "lora_A")]
    flags = [p.requires_grad for p in made.parameters()]
    states = lambda: {m.disable_adapters for m in layers}  # noqa: E731
    with adapters.instructed(made.model, False):
        with pytest.raises(RuntimeError, match="inside"), adapters.instructed(made.model, True):
            assert states() == {False}
            raise RuntimeError("inside")
        assert states() == {True} and flags == [p.requires_grad for p in made.parameters()]
    assert states() == {False} and flags == [p.requires_grad for p in made.parameters()] and any(flags)
    with pytest.raises(ValueError, match="is empty"):
        made.embed(texts=[""])
    made.requires_grad_(False)
    made.embed(texts=["an owl"])
    assert not any(p.requires_grad for p in made.parameters()) and states() == {False}


# --- saving -------------------------------------------------------------------------------------------------------------------


def saved(family: str, stage: str, folder) -> Embedder:
    """An embedder made from a backbone on disk, and saved beside it as out.safetensors."""
    made = Embedder.from_backbone(tiny.save(family, folder / "backbone"), min_visual_tokens=4, max_visual_tokens=64)
    for name in adapters.STAGES[: 1 + (stage == "instruct")]:
        adapters.add_lora(made, name, rank=4, alpha=4)
        tiny.randomise_trained(made)
        if name == "pretrain":
            torch.nn.init.constant_(made.temperature.parameter, -3.0)
        if name != stage:
            adapters.merge(made, name)
    adapters.save_embedder(made, folder / "out.safetensors")
    return made


@families
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_saved_embedder_loads_to_the_bit(family, stage, tmp_path):
    made = saved(family, stage, tmp_path)
    again = Embedder.load(tmp_path / "out.safetensors")
    one, other = state(made), state(again)
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert np.array_equal(made.embed(images=tiny.pictures()), again.embed(images=tiny.pictures()))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert load_file(tmp_path / "out.safetensors").keys() == {f"tensor/{n}" for n in made.merged} | {
        f"tensor/{n}" for n in adapters.stage_tensors(made, stage)
    }  # no weight of the backbone


def test_a_run_folder_is_loaded_by_its_model_file(tmp_path):
    made = saved("qwen2_vl", "pretrain", tmp_path)
    (tmp_path / "out.safetensors").rename(tmp_path / "model.safetensors")
    assert np.array_equal(made.embed(texts=TEXTS), Embedder.load(tmp_path).embed(texts=TEXTS))


LORA = "pretrain/model.model.visual.blocks.0.attn.qkv.lora_A.pretrain.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t | {LORA: t[LORA][:2].clone()}, rf"{LORA} has shape \(2, 32\); this model needs \(4, 32\)"),
        (lambda t: {k: v for k, v in t.items() if k != LORA}, rf"does not fit this model: 1 tensors missing \['{LORA}'\], 0 left over"),
        (lambda t: t | {"pretrain/head.extra": t[LORA]}, r"0 tensors missing \[\], 1 left over \['pretrain/head.extra'\]"),
        (lambda t: t | {LORA: t[LORA] * float("nan")}, rf"{LORA} holds values that are not finite"),
        (lambda t: t | {LORA: t[LORA] / 0}, rf"{LORA} holds values that are not finite"),
    ],
    ids=["another shape", "a missing tensor", "one left over", "NaN", "infinite"],
)
def test_a_damaged_stage_is_refused_with_file_and_tensor_and_changes_nothing(damage, message, tmp_path):
    made = tiny.with_lora("qwen2_vl", "pretrain")
    tensors = damage(adapters.stage_tensors(made, "pretrain"))
    fresh = tiny.embedder("qwen2_vl")
    adapters.add_lora(fresh, "pretrain", rank=4, alpha=4)
    before = state(fresh)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{message}"):
        adapters.load_stage(fresh, "pretrain", tensors, tmp_path / "out.safetensors")
    assert all(torch.equal(before[n], p) for n, p in fresh.named_parameters())


def test_files_that_hold_no_embedder_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained embedder at .*gone.*model\.safetensors"):
        Embedder.load(tmp_path / "gone" / "model.safetensors")
    checkpoint.save(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, step=3)
    with pytest.raises(ValueError, match=r"other\.safetensors does not name a backbone"):
        Embedder.load(tmp_path / "other.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not a checkpoint of this project"):
        Embedder.load(tmp_path / "foreign.safetensors")


def test_an_embedder_whose_backbone_is_gone_names_the_folder(tmp_path):
    saved("qwen2_vl", "pretrain", tmp_path)
    (tmp_path / "backbone" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"backbone holds no config\.json"):
        Embedder.load(tmp_path / "out.safetensors")


def test_a_stage_is_not_loaded_onto_another_backbone_of_the_same_shape(tmp_path):
    made, folder = saved("qwen2_vl", "pretrain", tmp_path), tmp_path / "backbone"
    made_on, file = checkpoint.fingerprint(folder), tmp_path / "out.safetensors"
    weights = load_file(folder / "model.safetensors")
    for name in (max(weights, key=lambda n: weights[n].numel()), min(weights, key=lambda n: weights[n].numel())):
        save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
        found = checkpoint.fingerprint(folder)
        with pytest.raises(ValueError, match=rf"{file} was trained on .* {made_on}; {folder} now holds .* {found}: put the former"):
            Embedder.load(file)
    (folder / "model.safetensors").unlink()
    for k, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):  # the same weights, spread over other files
        save_file({n: weights[n] for n in part}, folder / f"model-{k}.safetensors", {"format": "pt"})
    assert checkpoint.fingerprint(folder) == made_on == made.backbone_fingerprint


def test_a_stage_of_before_backbones_were_noted_loads_unchecked(tmp_path):
    made, file = saved("qwen2_vl", "pretrain", tmp_path), tmp_path / "out.safetensors"
    tensors, numbers = checkpoint.load(file)
    checkpoint.save(file, tensors, **{k: v for k, v in numbers.items() if k != "backbone"})
    assert np.array_equal(Embedder.load(file).embed(texts=TEXTS), made.embed(texts=TEXTS))
