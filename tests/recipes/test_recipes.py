"""recipes: every system's vectors, what its loss computes and leaves out, what trains, and that a killed run ends as an undisturbed one."""

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import recipe_world
import tiny
import torch
import torch.nn.functional as F
from recipe_world import ASKED, CAPTIONS

from abc_core import adapters, train
from abc_core.batches import Batch, positions
from abc_core.config import InstructConfig, LoraConfig, PretrainConfig
from abc_core.jobs import stages as jobs
from abc_core.recipes import losses as recipe_losses
from abc_core.recipes.recipes import RECIPES
from abc_core.recipes.train import InTurns, RecipeJob, make, trained
from abc_core.runs.run import Run

IGNORE = ("dual_encoder", "sigmoid", "token_wise", "captioning")  # no instruction reaches their vectors
ONE_STAGE = [name for name in RECIPES if name != "abc"]


# --- a small world --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of backbone, pairs and regions."""
    return recipe_world.write(tmp_path_factory.mktemp("world"))


def job_of(world, recipe: str, start: str = "pretrained", steps: int = 2, **changes) -> RecipeJob:
    """A recipe's job of a few quick steps."""
    shared = dict(steps=steps, learning_rate=1e-2, bf16=False, save_every=1)
    second = InstructConfig(images=2, lora=LoraConfig(2, 4), **shared) if recipe == "abc" else None
    config = PretrainConfig(queries=4, negatives=0, lora=LoraConfig(4, 8), **shared | changes)
    return RecipeJob(recipe=recipe, start=start, config=config, second=second, **world)


def system_of(world, recipe: str):
    """An untrained system with random adapters, ready to embed; `abc` is `stage1` with an adapter of stage 2."""
    system = make(job_of(world, "stage1" if recipe == "abc" else recipe))
    tiny.randomise_trained(system)
    if recipe == "abc":
        adapters.merge_all(system)
        adapters.add_lora(system, "instruct", rank=2, alpha=4)
        tiny.randomise_trained(system)
    return system.requires_grad_(False).eval()


def batch_of(count: int = 4, instructions=None) -> Batch:
    pictures = tiny.pictures(count)
    ids = torch.arange(count)
    return Batch(pictures, [[i] for i in instructions or [None] * count], CAPTIONS[:count], ids)


# --- vectors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_vectors_have_unit_length_and_do_not_depend_on_their_batch(world, recipe):
    system, pictures = system_of(world, recipe), tiny.pictures(5)
    for given in ({"images": pictures}, {"images": pictures, "instructions": [ASKED[k % 2] for k in range(5)]}, {"texts": CAPTIONS[:5]}):
        whole = system.embed(**given)
        some = {name: values[2:4] for name, values in given.items()}
        alone = system.embed(**some, batch_size=1)
        lengths = np.linalg.norm(whole, axis=-1)
        assert whole.dtype == np.float32 and len(whole) == 5
        tiny.close(lengths[lengths > 0], np.ones((lengths > 0).sum(), dtype=np.float32))
        tiny.close(whole[2:4], alone)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_instruction_reaches_the_vectors_of_exactly_those_systems_that_take_one(world, recipe):
    system, pictures = system_of(world, recipe), tiny.pictures(2)
    one, other = (system.embed(images=pictures, instructions=[asked] * 2) for asked in ASKED)
    assert np.allclose(one, other, atol=1e-6) == (recipe in IGNORE)
    if recipe in IGNORE:
        tiny.close(one, system.embed(images=pictures))
    both = system.embed(images=pictures, instructions=[ASKED] * 2)  # picture by picture
    tiny.close(both, np.stack([one, other], axis=1).reshape(both.shape))


def test_score_fusion_adds_the_vectors_of_picture_and_instruction(world):
    system, pictures = system_of(world, "score_fusion"), tiny.pictures(2)
    wanted = system.embed(images=pictures) + system.embed(texts=ASKED)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    tiny.close(system.embed(images=pictures, instructions=ASKED), wanted)


def test_scores_of_tokens_equal_a_naive_loop(world):
    system = system_of(world, "token_wise")
    q, c = system.embed(images=tiny.pictures(5)), system.embed(texts=CAPTIONS)
    for one, other in ((q, c), (c, q)):
        naive = [[np.mean([max(t @ s for s in cand if s.any()) for t in query if t.any()]) for cand in other] for query in one]
        tiny.close(system.score(one, other), np.array(naive, dtype=np.float32))


def test_a_caption_has_as_many_tokens_as_words_of_its_own(world):
    system = system_of(world, "token_wise")
    lengths = recipe_losses.token_mask(torch.from_numpy(system.embed(texts=CAPTIONS))).sum(1).tolist()
    assert lengths == [len(system.prompts.tokenizer(caption)["input_ids"]) for caption in CAPTIONS]


def test_more_tokens_than_a_row_has_room_for_are_refused(world):
    system = system_of(world, "token_wise")
    with pytest.raises(ValueError, match="128"):
        system.embed(texts=["an owl", "owl " * 130])


# --- losses ---------------------------------------------------------------------------------------------------------------------


def test_the_sigmoid_loss_equals_its_closed_form():
    each = torch.eye(3)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    wanted = softplus(-(1 / 0.5 - 2)) + 2 * softplus(0 / 0.5 - 2)  # own candidates at 1, others at 0
    assert recipe_losses.sigmoid_loss(each, each, 0.5, -2.0).item() == pytest.approx(wanted, rel=1e-6)
    duplicates = torch.zeros(3, 3, dtype=torch.bool)
    duplicates[0, 1] = duplicates[1, 0] = True
    assert recipe_losses.sigmoid_loss(each, each, 0.5, -2.0, duplicates).item() == pytest.approx(wanted - 2 / 3 * softplus(-2), rel=1e-6)


def test_the_symmetric_loss_is_the_mean_of_both_directions_without_equal_captions():
    q, c = (F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(k)), dim=1) for k in range(2))
    ids = torch.tensor([0, 1, 2, 0])
    scores = (q @ c.T / 0.1).masked_fill((ids[:, None] == ids) & ~torch.eye(4, dtype=torch.bool), -torch.inf)
    wanted = (F.cross_entropy(scores, torch.arange(4)) + F.cross_entropy(scores.T, torch.arange(4))) / 2
    tiny.close(recipe_losses.symmetric_loss(q, c, 0.1, ids)[0], wanted)


def test_the_captioning_loss_ignores_padding_and_template(world):
    system = system_of(world, "captioning")
    short, long = "an owl", CAPTIONS[4]
    picture = tiny.pictures(1)
    alone = system.describe(picture, [short])[2]
    both, other = system.describe(picture * 2, [short, long])[2], system.describe(picture, [long])[2]
    sizes = [len(system.prompts.tokenizer(t)["input_ids"]) + 1 for t in (short, long)]  # the end is predicted too
    tiny.close(both, (sizes[0] * alone + sizes[1] * other) / sum(sizes))
    assert abs(alone - other) > 1e-3


def test_a_caption_is_predicted_without_looking_at_what_follows(world):
    system = system_of(world, "captioning")
    tokens, _ = system.visual_tokens(tiny.pictures(1))
    logits = [system.caption_logits(system.states([system.prompts.text(t)])[0], tokens) for t in ("an owl", "an owlx")]
    same = system.prompts.words_of("an").stop
    tiny.close(logits[0][:, :same], logits[1][:, :same])
    assert not torch.equal(system.caption_logits(*_other_picture(system)), logits[0])


def _other_picture(system):
    return system.states([system.prompts.text("an owl")])[0], system.visual_tokens(tiny.pictures(3)[2:])[0]


def test_words_are_cut_but_never_all_of_them():
    torch.manual_seed(0)
    cut = [recipe_losses.cut_words("a b c d e f g h i j", 0.2).split() for _ in range(200)]
    assert 7.5 < np.mean([len(words) for words in cut]) < 8.5
    assert recipe_losses.cut_words("an owl", 1.0) == "an"


# --- training -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
@pytest.mark.parametrize("recipe", ONE_STAGE)
def test_gradients_reach_everything_that_trains_and_nothing_else(world, recipe, start):
    job = job_of(world, recipe, start)
    system = make(job)
    instructions = ASKED * 2 if job.data == "both" else None
    loss, _ = RECIPES[recipe].step(system, batch_of(4, instructions), job.config)
    loss.backward()
    reached = {name for name, p in system.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in system.named_parameters() if p.requires_grad}
    seen = any(".visual." in name for name in reached)
    assert seen == (recipe != "text_only")
    assert any(".lora_" in name for name in reached) == (start == "pretrained")


@pytest.mark.parametrize("recipe", ONE_STAGE)
def test_a_batch_is_learned_by_heart(world, recipe):
    job = job_of(world, recipe, "scratch", steps=12, warmup=0.0, learning_rate=3e-3)
    system = make(job)
    tiny.randomise([p for n, p in system.named_parameters() if n.startswith("model.")], seed=0)
    optimizer = train.make_optimizer(system, job.config)
    batch = batch_of(4, ASKED * 2 if job.data == "both" else None)
    losses = [train.one_step(system, optimizer, batch, RECIPES[recipe].step, job.config, step)["loss"] for step in range(12)]
    assert min(losses[-3:]) < 0.7 * losses[0]


def test_the_same_seed_gives_the_same_system_and_scratch_has_none_of_the_backbone(world):
    job = job_of(world, "dual_encoder")
    one, other = make(job), make(job)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))
    fresh = dict(make(replace(job, start="scratch")).named_parameters())
    weights = {name.replace(".base_layer", ""): p for name, p in one.named_parameters() if p.ndim > 1 and "lora_" not in name}
    assert not any(torch.equal(p, fresh[name]) for name, p in weights.items() if name.startswith("model."))


@pytest.mark.parametrize("recipe", ["fusion_transformer", "abc"])
def test_what_a_run_left_comes_back_with_its_name(world, runs, recipe):
    job = job_of(world, recipe)
    run = jobs.run_job(job, report=lambda line: None)
    system = trained(job)
    assert system.name == recipe and system.fingerprint == run.folder.name
    assert job.seen == ({"images": 12, "queries": 24} if recipe == "abc" else {"images": 8, "queries": 8})
    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    jobs.run_job(job, report=lambda line: pytest.fail("a finished run was trained again"))
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == before
    plain, steered = system.embed(images=tiny.pictures(1)), system.embed(images=tiny.pictures(1), instructions=ASKED[:1])
    assert not np.allclose(plain, steered)


@pytest.mark.parametrize("recipe", ["sigmoid", "last_token"])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(world, runs, monkeypatch, recipe):
    job = job_of(world, recipe, steps=4)
    run = jobs.run_job(job, report=lambda line: None)
    whole = (run.folder / "model.safetensors").read_bytes()
    run.folder.rename(run.folder.with_name("undisturbed"))
    if os.fork() == 0:
        step = train.one_step
        monkeypatch.setattr(train, "one_step", lambda *a: os.kill(os.getpid(), signal.SIGKILL) if a[-1] == 3 else step(*a))
        jobs.run_job(job, report=lambda line: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
    assert len(Run(run.folder).rows()) == 3
    jobs.run_job(job, report=lambda line: None)
    assert (run.folder / "model.safetensors").read_bytes() == whole


# --- what a step is fed ---------------------------------------------------------------------------------------------------------


def test_regions_take_turns_with_pairs_and_bring_one_instruction_a_picture(world, tmp_path):
    job = job_of(world, "score_fusion", steps=4)
    batches, _ = job._work(None, tmp_path)
    asked = [[i for row in batches(step).instructions for i in row] for step in range(4)]
    assert [row[0] is not None for row in asked] == [False, True, False, True]
    assert all(len(row) == 4 for row in asked) and set(asked[1]) <= set(ASKED)
    assert batches(3).candidates == batches(3).candidates


def test_turns_are_spread_evenly_and_each_side_counts_its_own_steps():
    turns = InTurns(lambda k: ("pairs", k), lambda k: ("regions", k), share=1 / 3)
    assert [turns(step) for step in range(6)] == [("pairs", 0), ("pairs", 1), ("regions", 0), ("pairs", 2), ("pairs", 3), ("regions", 1)]


def test_text_only_training_reads_captions_and_no_picture(world, tmp_path):
    job = job_of(world, "text_only")
    batches, _ = job._work(None, tmp_path)
    assert batches(0).images == [] and batches(1).candidates == [CAPTIONS[r] for r in positions(1, 4, 8, 0)]
    assert job.seen == {"images": 0, "queries": 8}


@pytest.mark.parametrize(
    "wrong", [{"recipe": "clip"}, {"start": "warm"}, {"second": InstructConfig()}, {"config": PretrainConfig(queries=4, negatives=3)}]
)
def test_a_job_that_no_recipe_fits_is_refused(world, wrong):
    with pytest.raises(ValueError):
        replace(job_of(world, "dual_encoder"), **wrong)
