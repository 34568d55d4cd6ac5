"""Arms differ from their base in the one setting that they name; batches and losses of the variants; rules come out either way."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ablation_world import base, fields_of, world  # noqa: F401
from launching import quiet
from tiny import embedder as tiny_embedder
from tiny import pictures

from abc_core.batches import Batch, PairBatches
from abc_core.config import InstructConfig, LoraConfig, MiningConfig, PretrainConfig
from abc_core.data.mined import read_mined
from abc_core.jobs import stages as jobs
from abc_core.jobs.stages import InstructJob, MineJob, read_job, write_job
from abc_core.model import Embedder
from abc_core.runs import run as runlog
from abc_core.studies import miners as ablation_mining
from abc_core.studies import study as studies
from abc_core.studies.ablations import stage1 as ablations
from abc_core.studies.ablations import variants

# --- arms -----------------------------------------------------------------------------------------------------------------------

STEPS = {"config.steps", "config.save_every"}
SETTING = {  # study -> the fields in which its arms may differ from the base
    "mask": {"embedder"}, "rank": {"config.lora"}, "batch": {"config.queries", *STEPS}, "steps": STEPS, "epsilon": {"mined"},
    "negatives": {"config.negatives"}, "miner": {"mined"}, "two_way": {"kind", "two_way"}, "readout": {"embedder"},
}  # fmt: skip




@pytest.mark.parametrize("study", ablations.STUDIES)
def test_an_arm_differs_from_the_base_in_the_setting_of_its_study_alone(base, study):
    arms = ablations.arms(base, study, quiet)
    assert {arm.seed for arm in arms} == {0, 1} and len({arm.name for arm in arms}) == len(arms) / 2
    differs = []
    for arm in arms:
        own, same = fields_of(arm.job), fields_of(base.arm(study, "base", arm.seed).job)
        differs.append({k for k in own if k not in same or own[k] != same[k]})
        assert differs[-1] - {"config.validate_every"} <= SETTING[study]  # the base validates half-way as well
        assert arm.job.config.validate_every == arm.job.config.steps or not differs[-1]
    runs = {arm.job.open(lock=False).folder for arm in arms}
    assert len(runs) == len(arms) - 2 * (study == "miner"), "two arms are one run"  # here the whole stage 1 is the miner
    assert set() in differs, "the base is not among the arms, so it is trained twice"


def test_what_only_a_study_sets_is_no_part_of_the_name_of_other_runs(base, world):
    job = base.arm("mask", "base", 0).job
    plain = runlog.open_run(
        "pretrain", job.config,
        {"backbone": runlog.fingerprint(world.folder / "backbone"), "pairs": runlog.fingerprint(next((world.folder).glob("**/Train_GCC*"))),
         "mined": runlog.fingerprint(world.folder / world.mined), "weights": "float32"}, lock=False,
    )  # fmt: skip
    assert job.open(lock=False).folder == plain.folder
    second = InstructJob(config=InstructConfig(steps=1), stage1=world.miner, regions=world.regions)
    assert set(second.inputs()) == {"regions", "drop_largest"}
    for kind, name in ((variants.UngroupedJob, "grouped"), (variants.OneWordingJob, "wordings")):
        assert set(kind(**vars(second)).inputs()) == {"regions", "drop_largest", name}


def test_a_job_with_what_studies_set_comes_back_from_its_file(base, tmp_path):
    two_way = {"kind": variants.TwoWayJob, "job": {"two_way": {"negatives": 0, "mined": None}}}
    for given in ({"job": {"embedder": {"pooling": "last"}}}, two_way):
        job = base.arm("readout", "last", 0, **given).job
        assert read_job(write_job(job, tmp_path / "job.yaml")) == job and type(job) is given.get("kind", jobs.PretrainJob)


def test_arms_of_the_read_out_train_and_load_as_they_were_built(base):
    for name, given in (("no head", {"head": False}), ("causal", {"bidirectional": False}), ("visual", {"pooling": "visual"})):
        arm = base.arm("readout", name, 0, job={"embedder": given}, steps=1)
        studies.train_all([arm], report=quiet)
        made = Embedder.load(arm.job.open(lock=False).folder)
        assert {k: made.built[k] for k in given} == given
        assert ablations.row_of(base, arm, quiet)["val_accuracy"] >= 0


def test_visual_pooling_averages_the_visual_tokens_of_a_picture_and_all_tokens_of_a_text():
    made, usual = tiny_embedder("qwen2_vl", pooling="visual", head=False), tiny_embedder("qwen2_vl", head=False)
    seen = made.see(pictures(2))
    ids = [made.prompts.image(p, text) for p, text in zip(seen.placeholders, (None, "which colour"))]
    with torch.no_grad():
        hidden, tokens, _ = made.states(ids, seen, [0, 1])
        found = made.encode(ids, seen, [0, 1])[0]
    at = tokens == made.model.config.image_token_id
    for row in range(2):
        torch.testing.assert_close(found[row], F.normalize(hidden[row][at[row]].mean(0), dim=0), atol=1e-5, rtol=0)
    np.testing.assert_allclose(made.embed(texts=["an owl"]), usual.embed(texts=["an owl"]), atol=1e-6)


# --- negatives of both sides ----------------------------------------------------------------------------------------------------


def test_picture_negatives_are_mined_as_captions_are_and_follow_their_picture(world):
    job = MineJob(config=MiningConfig(**world.mining), miner=world.miner, pairs=world.pairs, pictures=True)
    path = ablation_mining.mined_file(job, quiet)
    assert path.parent.name != MineJob(config=job.config, miner=world.miner, pairs=world.pairs).open(lock=False).folder.name
    q, c = job.embeddings()
    scores = c @ q.T  # captions against pictures
    mined = read_mined(path, world.pairs)[0]
    for row, (likeness, ids) in enumerate(zip(scores, mined.caption_ids[:, None] == mined.caption_ids)):
        found = mined.negatives(row)
        assert not ids[found].any() and (likeness[found] <= likeness[row] + 1e-6).all()
        left_out = [k for k in range(len(ids)) if not ids[k] and k not in found and likeness[k] <= likeness[row] - 1e-6]
        assert not len(found) or not left_out or likeness[left_out].max() <= likeness[found].min() + 1e-6, "a harder one was left out"
    config = PretrainConfig(queries=4, negatives=1, lora=LoraConfig(2, 4))
    pairs = PairBatches(mined.queries, mined.captions, mined.caption_ids, mined.padded(1), config)
    plain, batch = pairs(0), variants.TwoWayBatches(pairs, mined.padded(2), 2)(0)
    assert len(batch.images) == 12 and batch.candidates == plain.candidates
    for k, row in enumerate(plain.rows):
        negatives = mined.padded(2)[np.array([row])][0]
        own, *others = batch.image_ids[3 * k : 3 * k + 3].tolist()
        assert own == mined.caption_ids[row]
        assert all(found == mined.caption_ids[wanted] for found, wanted in zip(others, negatives) if wanted >= 0)
        assert batch.images[3 * k].tobytes() == plain.images[k].tobytes()
    missing = variants.TwoWayBatches(pairs, np.full((len(mined.captions), 1), -1), 1)(0)
    assert len(missing.images) == 8, "a random picture takes the place of one that is missing"


@pytest.mark.parametrize("negatives", [0, 2])
def test_the_loss_of_both_directions_is_that_of_two_loops(negatives):
    rng = torch.Generator().manual_seed(0)
    b, k, width = 3, 1, 5
    images, texts = (F.normalize(torch.randn(b * (1 + n), width, generator=rng), dim=-1) for n in (negatives, k))
    text_ids, image_ids = torch.tensor([0, 9, 1, 0, 2, 8]), torch.arange(b * (1 + negatives)) + 100
    image_ids[:: 1 + negatives] = text_ids[::2]
    if negatives:
        image_ids[1] = 1  # a negative that shows what the caption of query 1 says
    made = SimpleNamespace(
        encode_images=lambda *_: (images, {"tokens": 1, "padded_tokens": 1}),
        encode_texts=lambda _: (texts, {"tokens": 1, "padded_tokens": 2}), temperature=lambda: torch.tensor(0.1),
    )  # fmt: skip
    batch = Batch(["picture"] * len(images), [[None]] * len(images), ["text"] * len(texts), text_ids, image_ids=image_ids)
    loss, out = variants.two_way_step(made, batch, SimpleNamespace(label_smoothing=0.0), negatives)

    def one_way(queries, own_ids, candidates, ids, every):
        total = 0.0
        for i, query in enumerate(queries):
            own = i * every
            left = [j for j in range(len(candidates)) if j == own or ids[j] != own_ids[i]]
            scores = torch.stack([query @ candidates[j] / 0.1 for j in left])
            total -= scores.log_softmax(0)[left.index(own)]
        return total / len(queries)

    there = one_way(images[:: 1 + negatives], text_ids[::2], texts, text_ids, 2)
    back = one_way(texts[::2], image_ids[:: 1 + negatives], images, image_ids, 1 + negatives)
    torch.testing.assert_close(loss, (there + back) / 2)
    assert out["candidates"] == len(texts) and out["padded_tokens"] == 3


def test_an_arm_with_picture_negatives_trains(base):
    arms = [arm for arm in ablations.arms(replace(base, seeds=(0,)), "two_way", quiet) if arm.name == "text and picture"]
    studies.train_all(arms, report=quiet)
    row = ablations.row_of(base, arms[0], quiet)
    assert 0 <= row["val_image_to_text"] <= 100 and 0 <= row["val_text_to_image"] <= 100


def test_mined_pairs_are_counted_against_the_truth(base):
    jobs = ablations.mine_jobs(base, "epsilon")
    for job in jobs.values():
        ablation_mining.mined_file(job, quiet)
    found = {name: ablation_mining.false_negatives(job) for name, job in jobs.items()}
    assert all(0 <= row["false_negatives"] <= row["mined_pairs"] for row in found.values())
    assert found["none"]["mined_pairs"] == 12 * 3 >= found["1"]["mined_pairs"]
