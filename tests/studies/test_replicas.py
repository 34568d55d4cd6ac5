"""Replicas and their claims: another seed changes the seed alone, what was measured before is not measured again, rules go either way."""

import json

import numpy as np
import pytest
import recipe_world
import tiny
from fair_world import Known

from abc_core.config import InstructConfig, PretrainConfig
from abc_core.ctrlbench import probes
from abc_core.data.tasks import Task
from abc_core.jobs import stages as jobs
from abc_core.reproduce import check
from abc_core.runs import run as runlog
from abc_core.studies import claims
from abc_core.studies import study as studies
from abc_core.studies.pipeline import claims as pipeline_claims
from abc_core.studies.pipeline import replicas

CLAIMS = {claim.number: claim for claim in pipeline_claims.CLAIMS}


def rows(study, arm, **columns):
    """A row for each of as many seeds as the columns have numbers."""
    count = len(next(iter(columns.values())))
    return [{"study": study, "arm": arm, "seed": k} | {name: numbers[k] for name, numbers in columns.items()} for k in range(count)]


def bench(full=(50, 52, 54), blind=(4, 5, 4), share=(8, 9, 8), poor=(100, 99, 100)):
    return rows("ctrlbench", "abc", ctrlbench_full=full, ctrlbench_blind=blind, ctrlbench_share=share, poor_share=poor)


def labels(sentence=(60, 61, 62), bare=(50, 50, 51), mmeb=(58, 58, 60), task=(60.5, 60.8, 62.1)):
    return rows("classification", "abc", sentence=sentence, bare=bare, mmeb=mmeb, task=task)


def recipes(fused=(5, 6, 7), abc=(30, 31, 32), ood=(50, 52, 51)):
    sets = {"val": (60, 61, 62), "objects": (60, 61, 62), "objects_ood": (50, 52, 51)}
    single = {"val": (60, 61, 62), "objects": (60, 61, 62), "ood": (30, 31, 30), "objects_ood": (30, 31, 32)}
    other = rows("fair", "score_fusion", ctrlbench=(1, 1, 2)) + rows("fair", "fusion_transformer", ctrlbench=fused)
    return other + rows("fair", "abc", ctrlbench=abc, ood=ood, **sets) + rows("fair", "last_token", ctrlbench=(9, 9, 9), **single)


def memory(pictures=10.7, captions=7.5, planned=18.2):
    return rows("memory", "a100", pictures_gb=[pictures], captions_gb=[captions], planned_gb=[planned])


@pytest.mark.parametrize(
    ("number", "holding", "failing"),
    [
        (1, bench(), bench(full=(19, 20, 21))),
        (1, bench(), bench(blind=(19, 21, 22))),
        (17, memory(), memory(pictures=5.3, planned=12.8)),
        (18, labels(), labels(bare=(60, 61, 62))),
        (19, recipes(), recipes(fused=(25, 26, 27))),
        (20, bench(), bench(share=(60, 61, 60))),
        (20, bench(), bench(poor=(30, 31, 30))),
        (24, labels(), labels(task=(70, 71, 72))),
        (26, recipes(), recipes(ood=(1, 1, 2))),
    ],
)
def test_a_claim_comes_out_either_way(number, holding, failing):
    held, failed = (claims.decide(CLAIMS[number], found) for found in (holding, failing))
    assert (held["verdict"], failed["verdict"]) == (claims.HOLDS, claims.FAILS)
    assert held["least"] is not None or held["most"] is not None


@pytest.mark.parametrize("number", CLAIMS)
def test_without_rows_a_claim_is_not_testable_with_a_reason(number):
    assert claims.decide(CLAIMS[number], [])["verdict"].startswith(f"{claims.UNTESTABLE}: ")


def test_a_budget_at_which_abc_itself_stays_below_the_ceiling_decides_nothing_about_fused_encoders():
    assert "ABC itself" in claims.decide(CLAIMS[19], recipes(abc=(10, 11, 12)))["verdict"]


def test_a_plan_that_disagrees_with_arithmetic_decides_nothing():
    assert "the plan has 12.0 GB" in claims.decide(CLAIMS[17], memory(planned=12.0))["verdict"]


# --- runs with other seeds --------------------------------------------------------------------------------------------------------

@pytest.fixture
def published(tmp_path, runs):
    """Finished runs of both stages, as notebooks 02 and 03 publish them, and the folders that they read; nothing was trained."""
    world = recipe_world.write(tmp_path)
    mined = tmp_path / "mined.parquet"
    mined.write_text("mined")
    first = jobs.PretrainJob(
        config=PretrainConfig(steps=7, queries=2, clip=float("inf")), backbone=world["backbone"], pairs=world["pairs"], mined=str(mined)
    )
    stage1 = finish(first, "stage1")
    return finish(jobs.InstructJob(config=InstructConfig(steps=3, images=2), stage1=str(stage1), regions=world["regions"]), "abc")


def finish(job, name=None):
    run = job.open()
    jobs.write_job(job, run.folder / jobs.JOB)
    (run.folder / "model.safetensors").write_text(run.folder.name)
    run.finish(loss=1.0, temperature=0.05)
    if name:
        runlog.publish("default", name, run.folder / "model.safetensors")
    return run.folder / "model.safetensors"


def test_a_replica_differs_from_the_published_run_in_its_seed_alone(published):
    first = replicas.stage1_arms("default", [0, 1])
    assert first[0].job.open(lock=False).folder == runlog.find("default", "stage1").parent
    assert first[1].job.config.seed == 1 and first[1].job.config.steps == 7 and not first[1].job.open(lock=False).finished
    with pytest.raises(FileNotFoundError, match="not finished"):
        replicas.stage2_arms("default", first)
    finish(first[1].job)
    second = replicas.stage2_arms("default", first)
    assert second[0].job.open(lock=False).folder == published.parent
    assert second[1].job.config.seed == 1
    assert second[1].job.stage1 == str(first[1].job.open(lock=False).folder / "model.safetensors")


def test_a_published_run_without_its_job_is_named(published):
    (published.parent / jobs.JOB).unlink()
    with pytest.raises(FileNotFoundError, match=r"instruct-[0-9a-f]+/job\.yaml"):
        replicas.stage2_arms("default", [])


def test_what_an_earlier_notebook_measured_is_not_measured_again(published):
    (arm,) = replicas.stage2_arms("default", replicas.stage1_arms("default", [0]))
    measure = studies.Measure("ctrlbench", "0", lambda embedder: pytest.fail("measured again"))
    replicas.remember(arm, measure, {"ctrlbench_full": 53.0})
    runlog.Run(published.parent).log(step=0, loss=1.0, temperature=0.05, gradient_norm=1.0, accuracy=0.5, learning_rate=0.1, seconds=2.0)
    assert studies.row_of(arm, [measure])["ctrlbench_full"] == 53.0


# --- measures ---------------------------------------------------------------------------------------------------------------------


def test_the_best_blind_probe_of_each_set_counts():
    row = {"r1": 50.0, "share": 100.0, "verdict": "multimodal"}
    sets = [row | {"set": name, "probe": "full"} for name in ("CtrlBench", "Poor choices")]
    others = {"picture": 1.0, "prior": 3.0, "chance": 9.0}
    sets += [row | {"set": "CtrlBench", "probe": probe, "r1": r1, "share": 2 * r1} for probe, r1 in others.items()]
    sets += [row | {"set": "Poor choices", "probe": "text", "r1": 40.0, "share": 80.0}]
    found = replicas.probe_numbers(sets)
    assert (found["ctrlbench_full"], found["ctrlbench_blind"], found["ctrlbench_share"], found["poor_share"]) == (50.0, 3.0, 6.0, 80.0)
    assert json.loads(json.dumps(found)) == found


def test_classification_is_asked_in_a_sentence_with_bare_labels_and_with_each_instruction(tmp_path):
    pictures = [tmp_path / "p0", tmp_path / "p1"]
    for path in pictures:
        path.write_text(path.name)
    e = np.eye(5, dtype=np.float32)
    mmeb, task = replicas.ASKS.values()
    known = {str(pictures[0]): e[0], str(pictures[1]): e[1], mmeb: 2 * e[1], task: 0 * e[0]}  # MMEB's words always lead to the second label
    known |= {"A photo of a cup.": e[0], "A photo of a owl.": e[1], "cup": e[1], "owl": e[0]}  # bare labels are mixed up
    right = [np.array([0]), np.array([1])]
    sentence, bare = (Task("s", pictures, np.arange(2), [None] * 2, labels, right) for labels in (list(known)[4:6], ["cup", "owl"]))
    found = replicas.classification_measure({"s": (sentence, bare)}).of(Known(known))
    assert (found["sentence"], found["bare"], found["mmeb"], found["task"], found["bare_s"]) == (100.0, 0.0, 50.0, 100.0, 0.0)


def test_a_poor_set_offers_captions_that_have_nothing_of_the_question():
    captions = ["an owl on a card", "a cup", "two blue cups", "a red disc"]
    asks = ["where is the owl?", "what is here?", "blue cups, how many?", "which disc?"]
    task = Task("CtrlBench", tiny.pictures(2), np.array([0, 0, 1, 1]), asks, captions, list(np.arange(4)[:, None]))
    poor, named = probes.poor_choices(task, 3, seed=0)
    assert named.tolist() == [0, 2, 3] and list(poor.texts) == [asks[k] for k in named]
    assert all(len(offered) == 3 and offered[-1] == k for offered, k in zip(poor.choices, named))


def test_pairs_with_one_caption_have_one_candidate(tmp_path):
    recipe_world.write(tmp_path)
    table = tmp_path / "pairs" / "Train_GCC-training.tsv"
    table.write_text(table.read_text() + "An  OWL\t0.png\n")
    task = replicas.pairs_task(tmp_path / "pairs", 9)
    assert len(task.candidates) == 8 and task.right[0].tolist() == task.right[8].tolist()
    assert all(task.candidates[int(right[0])] == recipe_world.CAPTIONS[k] for k, right in enumerate(task.right[:8]))


def test_the_logits_of_the_papers_run_are_64_pictures_of_552_tokens():
    plan = [{"profile": "a100", "part": part, "gib": gib} for part, gib in (("logits_avoided", 17.0), ("peak", 50.0))]
    row = replicas.memory_row(plan, check.logits("a100"))
    assert row["pictures_gb"] == pytest.approx(2 * 64 * 552 * 152064 / 1e9) and row["captions_gb"] == pytest.approx(7.474, abs=1e-3)
    assert row["planned_gb"] == pytest.approx(17 * 2**30 / 1e9)


def test_a_seed_is_missing_where_one_of_its_rows_is():
    rows = [{"study": "fair", "arm": arm, "seed": seed} for arm, seed in (("abc", 0), ("last_token", 0), ("abc", 1))]
    assert replicas.missing([0, 1, 2], {("fair", "abc"), ("fair", "last_token")}, rows) == [1, 2]
    assert replicas.missing([0, 1], {("fair", "abc")}, rows) == []
