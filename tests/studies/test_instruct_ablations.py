"""Stage 2's variants: one instruction a picture, one wording, one stage; and the rules of all ablations come out either way."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ablation_world import base, fields_of, world  # noqa: F401
from launching import quiet
from stage2_rows import rows_of

from abc_core.batches import InstructBatches
from abc_core.config import InstructConfig
from abc_core.jobs.stages import InstructJob, PretrainJob
from abc_core.studies import claims
from abc_core.studies.ablations import figures as ablation_figures
from abc_core.studies.ablations import stage1 as ablations
from abc_core.studies.ablations import stage2 as instruct_ablations
from abc_core.studies.ablations import variants

NUMBERS = {"images": 2, "instructions_per_image": 2, "negatives": 1, "bf16": False}


@pytest.fixture
def second(world):
    files, sizes = {"stage1": world.miner, "regions": world.regions}, {"pictures": 1, "mixed_steps": 2, "seeds": (0, 1), "tuning": (1, 2)}
    return instruct_ablations.Stage2(files=files, numbers=NUMBERS, steps=2, bench="", **sizes)


@pytest.mark.parametrize(("study", "fields"), [("tuning", {"config.steps"}), ("grouping", {"kind"}), ("wording", {"kind"})])
def test_an_arm_of_stage_2_differs_from_the_base_in_the_setting_of_its_study_alone(second, base, study, fields):
    arms = instruct_ablations.arms(second, study, base, quiet)
    differs = []
    for arm in arms:
        own, same = fields_of(arm.job), fields_of(second.arm(study, "base", arm.seed).job)
        differs.append({k for k in own if own[k] != same[k]})
    assert all(d <= fields for d in differs) and set() in differs and fields in differs
    assert len({arm.job.open(lock=False).folder for arm in arms}) == len(arms) == 4


def test_ungrouped_batches_hold_one_instruction_of_each_of_as_many_pictures_as_there_are_queries(world):
    config = InstructConfig(**NUMBERS)
    grouped, captions = InstructJob(config=config, stage1=world.miner, regions=world.regions).batches()
    alone, _ = variants.UngroupedJob(config=config, stage1=world.miner, regions=world.regions).batches()
    assert type(grouped) is InstructBatches and type(alone) is variants.UngroupedBatches
    for step in range(2):
        one, many = grouped(step), alone(step)
        assert [len(asked) for asked in one.instructions] == [2, 2] and [len(asked) for asked in many.instructions] == [1] * 4
        assert step or len({picture.tobytes() for picture in many.images}) == 4  # the second step goes over to the next epoch
        assert len(many.candidates) == len(one.candidates) == 8
        said = {(row.instruction, row.caption) for group in alone.groups for row in group}
        own = [captions[k] for k in many.candidates[::2].tolist()]
        assert {(asked[0], caption) for asked, caption in zip(many.instructions, own)} <= said
        again = alone(step)
        assert again.instructions == many.instructions and torch.equal(again.candidates, many.candidates)


def test_one_wording_is_the_first_of_its_question(world):
    job = InstructJob(config=InstructConfig(**NUMBERS), stage1=world.miner, regions=world.regions)
    one = variants.OneWordingJob(config=job.config, stage1=job.stage1, regions=job.regions)
    texts = {len({row.instruction.split()[0] for g in one.groups() for row in g})}
    drawn = {len({row.instruction.split()[0] for g in job.groups() for row in g})}
    assert max(texts) < max(drawn)


def test_one_stage_sees_the_samples_of_both_in_batches_of_both(second, base, world):
    arms = instruct_ablations.arms(replace(second, seeds=(0,)), "stages", base, quiet)
    two, one = arms
    assert isinstance(two.job, InstructJob) and isinstance(one.job, PretrainJob)
    assert one.job.instructed["images"] * one.job.config.steps == two.job.config.images * two.job.config.steps
    plain = base.arm("stages", "stage 1", 0).job
    own, same = fields_of(one.job), fields_of(plain)
    assert {k for k in own if own[k] != same.get(k)} == {"kind", "instructed", "config.validate_every"}
    batches, _ = one.job.varied(plain.build(world.folder).batches)
    batch = batches(0)
    queries = plain.config.queries + 2 * one.job.instructed["images"]
    assert sum(map(len, batch.instructions)) == queries and len(batch.candidates) == len(batch.candidate_ids) == 2 * queries
    assert batch.instructions[: plain.config.queries] == [[None]] * plain.config.queries
    assert all(isinstance(text, str) for text in batch.candidates)
    with pytest.raises(ValueError, match="cannot be spread evenly over the 4 steps"):
        instruct_ablations.arms(replace(second, seeds=(0,), mixed_steps=3), "stages", base, quiet)


def test_batches_of_two_numbers_of_negatives_are_refused():
    pairs, regions = (SimpleNamespace(config=SimpleNamespace(negatives=k)) for k in (1, 3))
    with pytest.raises(ValueError, match="pairs bring 1 negatives each and regions 3"):
        variants.MixedBatches(pairs, regions, [])


# --- rules ----------------------------------------------------------------------------------------------------------------------




def accuracies(**arms) -> dict:
    return {name.replace("_", " "): {"val_accuracy": float(v), "ood_accuracy": float(v)} for name, v in arms.items()}


def batches(*pairs: tuple[float, float]) -> list[dict]:
    """Accuracy in and out of distribution of every size of a batch."""
    names = ("8 × 160", "32 × 40", "128 × 10")
    return rows_of("batch", {name: {"val_accuracy": v, "ood_accuracy": o} for name, (v, o) in zip(names, pairs)})


def miners(*scores: float) -> list[dict]:
    names = ("random", "10 steps", "40 steps", "stage 1")
    return rows_of("miner", {name: {"val_accuracy": score} for name, score in zip(names, scores)})


def epsilon(kept: int, accuracy: float) -> list[dict]:
    counts = {"none": (600, 50.0), "0.95": (kept, accuracy)}
    return rows_of("epsilon", {a: {"val_accuracy": v, "false_negatives": n, "mined_pairs": 50_000} for a, (n, v) in counts.items()})


def ranks(low: float, high: float) -> list[dict]:
    return rows_of("rank", {"4": {"val_accuracy": low}, "16": {"val_accuracy": (low + high) / 2}, "64": {"val_accuracy": high}})


def doublings(*losses: float) -> list[dict]:
    return rows_of("steps", {str(10 * 2**k): {"loss": loss, "val_accuracy": 50.0 - 9 * loss} for k, loss in enumerate(losses)})


def ways(text: float, both: float) -> list[dict]:
    gaps = {"text": text, "text and picture": both}
    return rows_of("two_way", {a: {"val_image_to_text": 40.0 + gap, "val_text_to_image": 40.0} for a, gap in gaps.items()})


def readout(last: float, causal: float) -> list[dict]:
    found = rows_of("readout", accuracies(base=50, no_head=51, last_token=last, visual_tokens=49))
    return found + rows_of("mask", accuracies(bidirectional=50, causal=causal))


def tuned(half: float, whole: float) -> list[dict]:
    return rows_of("tuning", {"0": {"ctrlbench": 10.0}, "100": {"ctrlbench": half}, "200": {"ctrlbench": whole}})


def grouped(one: float, other: float, blind: float) -> list[dict]:
    arms = {"grouped": {"ctrlbench": one, "another": 3.0}, "ungrouped": {"ctrlbench": other, "another": blind}}
    return rows_of("grouping", arms)


def worded(many: float, one: float, first: float) -> list[dict]:
    return rows_of("wording", {"many": {"ctrlbench": many, "first_wording": many + 1}, "one": {"ctrlbench": one, "first_wording": first}})


def frozen(texts: int, pictures: int) -> list[dict]:
    return rows_of("grouping", {"grouped": {"differing_texts": texts, "differing_pictures": pictures}})


def staged(two: float, one: float, seconds: float) -> list[dict]:
    arms = {"two stages": {"ctrlbench": two, "all_seconds": seconds}, "one stage": {"ctrlbench": one, "all_seconds": 200.0}}
    return rows_of("stages", arms)


def costs(seconds: float, flops: float) -> list[dict]:
    one = rows_of("mask", {"bidirectional": {"samples": 1000, "seconds": 100.0}})
    two = rows_of("grouping", {"grouped": {"samples": 1000, "seconds": seconds}})
    return [*one, *two, {"study": "cost", "arm": "paper", "seed": 0, "stage1_flops": 100.0, "stage2_flops": flops}]


@pytest.mark.parametrize(
    ("number", "holds", "fails"),
    [
        (2, [tuned(48.0, 50.0)], [tuned(40.0, 50.0)]),
        (6, [epsilon(150, 49.0)], [epsilon(400, 49.0), epsilon(150, 40.0)]),
        (7, [grouped(50.0, 40.0, 3.0)], [grouped(50.0, 55.0, 3.0), grouped(50.0, 45.0, -9.0)]),
        (8, [worded(50.0, 40.0, 48.0)], [worded(50.0, 52.0, 60.0), worded(50.0, 40.0, 40.0)]),
        (9, [frozen(0, 500)], [frozen(1, 500), frozen(0, 0)]),
        (11, [rows_of("mask", accuracies(bidirectional=51, causal=50))], [rows_of("mask", accuracies(bidirectional=50, causal=51))]),
        (12, [ranks(50.0, 52.0)], [ranks(40.0, 52.0)]),
        (
            13, [batches((40.0, 30.0), (42.0, 36.0), (42.0, 36.0))],
            [batches((40.0, 30.0), (42.0, 31.0), (50.0, 50.0)), batches((40.0, 30.0), (39.0, 36.0), (50.0, 50.0))],
        ),
        (14, [doublings(3.0, 2.0, 1.0)], [doublings(3.0, 2.0, 2.5), doublings(2.0, 3.0, 1.0)]),
        (16, [ways(5.0, 1.0)], [ways(-2.0, -4.0), ways(5.0, 6.0)]),
        (21, [miners(40.0, 41.0, 48.0, 50.0)], [miners(50.0, 41.0, 48.0, 50.0), miners(40.0, 41.0, 44.0, 50.0)]),
        (22, [staged(40.0, 42.0, 150.0)], [staged(30.0, 42.0, 150.0), staged(40.0, 42.0, 250.0)]),
        (25, [readout(52.0, 49.0)], [readout(40.0, 49.0), readout(52.0, 40.0)]),
        (27, [costs(50.0, 1.0)], [costs(900.0, 1.0), costs(50.0, 30.0)]),
    ],
)  # fmt: skip
def test_the_rule_of_every_claim_comes_out_either_way(number, holds, fails):
    claim = next(c for c in (*ablations.CLAIMS, *instruct_ablations.CLAIMS) if c.number == number)
    for rows, verdict in [(rows, claims.HOLDS) for rows in holds] + [(rows, claims.FAILS) for rows in fails]:
        assert claims.decide(claim, rows)["verdict"] == verdict
    two_seeds = [row for row in holds[0] if row["seed"] < 2]
    assert claims.decide(claim, two_seeds)["verdict"].startswith(claims.UNTESTABLE)
    assert claims.decide(claim, [])["verdict"].startswith(claims.UNTESTABLE)


def test_every_figure_is_drawn_with_rows_and_without():
    rows = [*readout(52.0, 49.0), *epsilon(150, 49.0), *tuned(48.0, 50.0), *doublings(3.0, 2.0, 1.0)]
    rows = [row | {"profile": "thorough"} for row in rows]
    for plot in (ablation_figures.plot_stage1, ablation_figures.plot_negatives, ablation_figures.plot_stage2):
        full, empty = plot(rows), plot([])
        said = [text.get_text() for axis in empty.axes for text in axis.texts]
        assert all("no run yet" in text for text in said) and len(said) == len(empty.axes)
        assert any(axis.lines for axis in full.axes)
