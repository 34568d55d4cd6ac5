"""train: what each step is fed, what it computes and leaves alone, and that every number of a config counts."""

import math
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training import CAPTIONS, TIMES, made, small_batches, small_config, small_embedder, world  # noqa: F401

from abc_core import adapters, train
from abc_core.batches import Batch
from abc_core.config import LoraConfig, PretrainConfig
from abc_core.data.karpathy import Pair
from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.jobs import cost
from abc_core.loss import duplicate_mask
from abc_core.model import Embedder
from abc_core.runs.run import open_run

# --- a small world, shared with test_resume --------------------------------------------------------------------------------------




















# --- optimizer and schedule -------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero():
    config = PretrainConfig(steps=200, learning_rate=0.5, warmup=0.03)  # 6 steps
    rates = [train.schedule(step, config) for step in range(201)]
    np.testing.assert_allclose(rates[:7], [0.5 / 6, 1 / 6, 0.25, 1 / 3, 2.5 / 6, 0.5, 0.5])
    np.testing.assert_allclose(rates[6:], [0.25 * (1 + math.cos(math.pi * k / 194)) for k in range(195)], atol=1e-12)
    assert rates[103] == pytest.approx(0.25) and rates[199] > rates[200] == 0
    assert train.schedule(0, PretrainConfig(steps=1)) == PretrainConfig().learning_rate


def test_weight_decay_leaves_the_temperature_alone(world):
    embedder, _, _, config = made(world, "pretrain", weight_decay=0.5)
    optimizer = train.make_optimizer(embedder, config)
    before = {n: p.detach().clone() for n, p in embedder.named_parameters() if p.requires_grad}
    for p in embedder.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    for name, p in embedder.named_parameters():
        if name in before:
            kept = 1 if name == "temperature.parameter" else 1 - config.learning_rate * 0.5
            torch.testing.assert_close(p.detach(), before[name] * kept, msg=name)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(before)
    assert {g["betas"] for g in optimizer.param_groups} == {config.betas}


# --- the two steps ----------------------------------------------------------------------------------------------------------------


def gradients(embedder) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}


def reached(world, stage: str):
    """(embedder, names of what trains) after one backward pass; exactly these have a gradient, and none is zero."""
    embedder, batches, step, config = made(world, stage)
    names = train.prepare(embedder, stage, config)
    step(embedder, batches(0), config)[0].backward()
    found = gradients(embedder)
    assert found.keys() == set(names) and all(g.abs().max() > 0 for g in found.values())
    return embedder, names


def test_stage_1_reaches_both_towers_the_head_and_the_temperature(world):
    embedder, _ = reached(world, "pretrain")
    assert set(adapters.count_trained(embedder)) == {"language model", "vision tower", "head", "temperature"}


def test_stage_2_reaches_the_adapter_of_the_language_model_alone(world):
    _, names = reached(world, "instruct")
    assert all(n.startswith("model.model.language_model.") and ".instruct." in n for n in names)


def naive_instruct_step(embedder, batch, captions, caption_adapter: bool):
    """Stage 2 as an equation: each instruction sees its picture anew, and the captions are embedded at every step."""
    one = lambda image, text: embedder.encode_images([image], [[text]])[0]  # noqa: E731
    with adapters.instructed(embedder.model, True):
        q_emb = torch.cat([one(image, text) for image, texts in zip(batch.images, batch.instructions) for text in texts])
    with torch.no_grad(), adapters.instructed(embedder.model, caption_adapter):
        c_emb = torch.cat([embedder.encode_texts([captions[i]])[0] for i in batch.candidates])
    scores = (q_emb @ c_emb.T / embedder.temperature()).masked_fill(duplicate_mask(batch.candidate_ids, batch.candidate_ids), -math.inf)
    return F.cross_entropy(scores, torch.arange(len(scores)))


def test_a_stage_2_step_equals_one_that_embeds_captions_anew_and_looks_once_per_instruction(world):
    embedder, batches, step, config = made(world, "instruct")
    batch, captions = batches(1), sorted(set(CAPTIONS))
    loss, out = step(embedder, batch, config)
    loss.backward()
    ours = gradients(embedder)
    embedder.zero_grad()
    naive = naive_instruct_step(embedder, batch, captions, caption_adapter=False)
    naive.backward()
    assert out["masked_duplicates"] == duplicate_mask(batch.candidate_ids, batch.candidate_ids).sum()
    assert loss.item() == pytest.approx(naive.item(), abs=1e-5)
    for name, gradient in gradients(embedder).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert abs(naive_instruct_step(embedder, batch, captions, caption_adapter=True).item() - loss.item()) > 1e-2


def test_masked_duplicates_are_counted_and_change_the_loss(world):
    embedder, batches, step, config = made(world, "pretrain", queries=10, negatives=0)
    batch = batches(0)  # the whole set: "a red card" is in it twice
    loss, out = step(embedder, batch, config)
    assert out["masked_duplicates"] == 2 and out["candidates"] == 10
    distinct = Batch(batch.images, batch.instructions, batch.candidates, torch.arange(10))
    other, without = step(embedder, distinct, config)
    assert without["masked_duplicates"] == 0 and other > loss


def test_the_backward_pass_and_the_scores_do_not_run_in_bfloat16(world):
    embedder, batches, step, config = made(world, "pretrain", bf16=True)
    seen, encode = [], embedder.encode_texts
    embedder.encode_texts = lambda texts: (seen.append(torch.is_autocast_enabled("cpu")), encode(texts))[1]

    def watched(*arguments, **rows):
        loss, out = step(*arguments, **rows)
        seen.append(out["scores"].dtype)
        loss.register_hook(lambda gradient: seen.append(torch.is_autocast_enabled("cpu")))
        return loss, out

    train.one_step(embedder, train.make_optimizer(embedder, config), batches(0), watched, config, 0)
    assert seen == [True, torch.float32, False]


# --- the config -------------------------------------------------------------------------------------------------------------------

OTHERS = {
    "steps": 3, "lora": LoraConfig(4, 4, 0.1), "learning_rate": 2e-2, "betas": (0.5, 0.9), "weight_decay": 0.5, "warmup": 0.9, "clip": 1e-3,
    "label_smoothing": 0.3, "min_visual_tokens": 16, "max_visual_tokens": 5, "bf16": True, "save_every": 2, "validate_every": 2, "seed": 1,
    "queries": 4, "negatives": 1, "temperature": 0.2, "temperature_parametrisation": "raw", "learn_temperature": False,
    "temperature_factor": 3.0, "chunk": 1, "images": 4, "instructions_per_image": 3,
}  # fmt: skip


def outcome(world, runs, monkeypatch, stage: str, **changes) -> str:
    """Everything that a training leaves behind, as text: weights, rows without times, steps at which it was saved."""
    config, saved = small_config(stage, **{"steps": 2, "save_every": 1, "validate_every": 1} | changes), []
    embedder = small_embedder(world[0], stage, config)
    save = adapters.save_embedder
    monkeypatch.setattr(adapters, "save_embedder", lambda *a, **k: (saved.append(k.get("step")), save(*a, **k)))
    run = open_run("outcome", {}, {"changes": repr(changes), "stage": stage})
    batches, step = small_batches(stage, world[1], config, embedder)
    train.train(run, embedder, stage, batches, step, config, lambda e: {"val_accuracy": 0.0}, report=lambda line: None)
    monkeypatch.setattr(adapters, "save_embedder", save)
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in run.rows()]
    return repr([{k: v.flatten().tolist() for k, v in adapters.stage_tensors(embedder, stage).items()}, rows, saved])


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_every_number_of_the_config_counts(stage, world, runs, monkeypatch):
    usual = outcome(world, runs, monkeypatch, stage)
    for field in fields(small_config(stage)):
        if field.name in OTHERS:
            other = outcome(world, runs, monkeypatch, stage, **{field.name: OTHERS[field.name]})
            assert other != usual, f"{field.name} changes nothing"
    assert {f.name for f in fields(small_config(stage))} - OTHERS.keys() == {"activation_checkpointing"}  # which changes memory alone:
    assert outcome(world, runs, monkeypatch, stage, seed=0) == usual
    assert outcome(world, runs, monkeypatch, stage, activation_checkpointing=True) == usual


def test_an_adapter_that_is_not_the_one_of_the_config_is_refused(world):
    embedder = made(world, "pretrain")[0]
    with pytest.raises(ValueError, match=r"'pretrain' adapter is .*'rank': 4.*; the config wants .*'rank': 8"):
        train.prepare(embedder, "pretrain", small_config("pretrain", lora=LoraConfig(8, 8)))
    with pytest.raises(ValueError, match="'instruct' adapter is None"):
        train.prepare(embedder, "instruct", small_config("instruct"))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("parametrisation", ["raw", "log"])
def test_the_temperature_is_what_the_config_says_and_comes_back_from_disk(parametrisation, learned, world, runs):
    embedder, batches, step, config = made(
        world, "pretrain", temperature=0.1, temperature_parametrisation=parametrisation, learn_temperature=learned
    )
    run = open_run("temperature", config, {})
    train.train(run, embedder, "pretrain", batches, step, config, report=lambda line: None)
    kept = embedder.temperature().item()
    assert (kept == pytest.approx(0.1)) is not learned
    assert run.rows()[-1]["temperature"] == kept == Embedder.load(run.folder).temperature().item()
    adapters.merge(embedder)
    adapters.add_lora(embedder, "instruct", 2, 4)
    adapters.save_embedder(embedder, run.folder / "stage2.safetensors")
    assert Embedder.load(run.folder / "stage2.safetensors").temperature().item() == kept


def test_a_loaded_embedder_sees_as_many_visual_tokens_as_it_was_trained_with(world, runs):
    embedder, batches, step, config = made(world, "pretrain", max_visual_tokens=4)
    run = open_run("budget", config, {})
    train.train(run, embedder, "pretrain", batches, step, config, report=lambda line: None)
    picture = [open_image(world[1][2])]  # 56 × 112 pixels, 8 tokens
    tokens = [len(e.see(picture).outputs.pooler_output[0]) for e in (embedder, Embedder.load(run.folder), Embedder.from_backbone(world[0]))]
    assert tokens == [2, 2, 8]


# --- the loop ---------------------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_logs_every_step(world, runs):
    config = small_config("pretrain", steps=40, queries=5, negatives=0, learning_rate=3e-3, lora=LoraConfig(4, 8), validate_every=15)
    embedder = small_embedder(world[0], "pretrain", config)
    batches, step = small_batches("pretrain", world[1], config, embedder)
    said, run = [], open_run("loop", config, {})
    train.train(run, embedder, "pretrain", batches, step, config, lambda e: {"val_accuracy": 0.5}, report=said.append)
    rows = run.rows()
    assert [r["step"] for r in rows] == list(range(40))
    assert np.mean([r["loss"] for r in rows[-8:]]) < 0.6 * np.mean([r["loss"] for r in rows[:8]])
    assert [r["step"] for r in rows if "val_accuracy" in r] == [14, 29, 39]
    assert [r["learning_rate"] for r in rows] == [train.schedule(s, config) for s in range(40)]
    wanted = {"temperature", "accuracy", "candidates", "masked_duplicates", "gradient_norm", "tokens", "padded_tokens", "tokens_per_second"}
    assert all(wanted <= r.keys() and r["candidates"] == 5 and 0 < r["tokens"] <= r["padded_tokens"] for r in rows)
    assert said[0].startswith("pretrain: 39 tensors") and "from step 0 of 40" in said[0]
    assert said[-1].startswith("step 40/40 · loss ") and said[-1].endswith("· 0 s left") and len(said) == 21


def test_dropout_is_on_in_training_and_off_outside(world):
    embedder, batches, _, config = made(world, "pretrain")
    modes = []

    def watched(model, batch, config, rows):
        modes.append(model.training)
        raise RuntimeError("a step that fails")

    with pytest.raises(RuntimeError, match="a step that fails"):
        train.one_step(embedder, train.make_optimizer(embedder, config), batches(0), watched, config, 0)
    assert modes == [True] and not any(m.training for m in embedder.modules())


def test_only_batches_that_are_trained_on_are_read(world, runs):
    embedder, batches, step, config = made(world, "pretrain")
    asked_for = []
    noted = lambda number: (asked_for.append(number), batches(number))[1]  # noqa: E731
    train.train(open_run("read", config, {}), embedder, "pretrain", noted, step, config, report=lambda line: None)
    assert asked_for == list(range(6))


# --- validation and what stage 2 saves ----------------------------------------------------------------------------------------------


class Told:
    """Stands for an embedder: vectors by picture or caption."""

    def __init__(self, **vectors):
        self.vectors = {k: np.array(v, dtype=np.float32) for k, v in vectors.items()}

    def embed(self, images=None, texts=None):
        return np.stack([self.vectors[k] for k in (images if images is not None else texts)])


def test_validation_counts_equal_captions_once_and_ties_as_missed():
    pairs = [Pair(picture, caption, 0) for picture, caption in (("p", "a"), ("q", "b"), ("r", "a"))]
    right = Told(p=[1, 0], q=[0, 1], r=[1, 0], a=[1, 0], b=[0, 1])
    assert train.validator({"val": pairs})(right) == {"val_accuracy": 1.0}
    collapsed = Told(p=[1, 0], q=[1, 0], r=[1, 0], a=[1, 0], b=[1, 0])
    assert train.validator({"val": pairs})(collapsed) == {"val_accuracy": 0.0}
    sets = train.validator({"val": pairs, "ood": pairs}, count=1)(collapsed)
    assert sets == {"val_accuracy": 1.0, "ood_accuracy": 1.0}  # one caption has no rival


def test_a_picture_that_cannot_be_read_is_left_out_of_the_validation():
    class Choosy(Told):
        def embed(self, images=None, texts=None):
            if "q" in (images or ()):
                raise UnreadableImage("q is no picture", "q")
            return super().embed(images, texts)

    pairs = [Pair(picture, caption, 0) for picture, caption in (("p", "a"), ("q", "b"), ("r", "a"))]
    told = Choosy(p=[1, 0], r=[1, 0], a=[1, 0], b=[1, 0])
    assert train.validator({"val": pairs})(told) == {"val_accuracy": 1.0}
    with pytest.raises(UnreadableImage, match="q is no picture"):
        train.validator({"val": pairs[1:2]})(told)


def test_the_bank_and_shared_visual_tokens_save_what_they_should(world):
    embedder, batches, _, config = made(world, "instruct", instructions_per_image=3)
    batch, captions = batches(0), sorted(set(CAPTIONS))
    bank = torch.from_numpy(embedder.embed(texts=captions))
    ours, theirs = cost.stage2_flops(embedder, batch, config, bank, captions)
    assert ours < theirs and not gradients(embedder)
    alone = lambda **parts: cost.stage2_flops(embedder, SimpleNamespace(**vars(batch) | parts), config, bank, captions)  # noqa: E731
    once = [texts[:1] for texts in batch.instructions]
    ours_1, theirs_1 = alone(instructions=once, candidates=batch.candidates[::3], candidate_ids=batch.candidate_ids[::3])
    assert theirs / ours > theirs_1 / ours_1 > 1  # with one instruction only the captions are saved
    more = alone(candidates=batch.candidates.repeat_interleave(2), candidate_ids=batch.candidate_ids.repeat_interleave(2))
    assert more[1] == theirs and more[0] > ours  # further negatives are none of theirs
