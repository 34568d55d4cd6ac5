"""Probes find every way in which a set can be solved blind, and none in a set that needs both halves of a query."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image

from abc_core.ctrlbench import probes
from abc_core.ctrlbench.probes import embed_probes, probe_rows, several_right, task_ranks
from abc_core.data.tasks import Task

PLACES = ("left", "right", "above", "below")
PICTURES = 24


class Toy:
    """A system that knows what its pictures show, place by place, and reads texts as bags of words; it counts what it embeds."""

    def __init__(self, shows: dict[bytes, dict[str, str]]):
        self.name, self.fingerprint = "toy", "toy"
        self.shows, self.seen = shows, []

    def embed(self, images=None, texts=None, instructions=None):
        if texts is not None:
            self.seen += texts
            return np.stack([self._say(text) for text in texts])
        asked = instructions if instructions is not None else [[None]] * len(images)
        assert len(asked) == len(images)
        return np.stack([self._look(image, text) for image, lines in zip(images, asked) for text in lines])

    def _look(self, image, text):
        key = np.asarray(image)[0, 0].tobytes()
        self.seen.append((key, text))
        things = self.shows.get(key, {})
        named = [things[w] for w in (text or "").strip("?").split() if w in things]
        if named:
            return self._say(named[0])
        return self._say(" ".join([*things.values(), text or ""]) or "nothing")

    @staticmethod
    def _say(text):
        words = [np.random.default_rng(zlib.crc32(w.encode())).standard_normal(256) for w in text.lower().strip("?").split()]
        total = np.sum(words, axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number, 7, 9))


def made(name, rows, candidates, choices=None):
    """A task and its system; a row is (picture, what it shows, instruction, right candidate)."""
    count = 1 + max(p for p, *_ in rows)
    shown = np.array([p for p, *_ in rows])
    right = [np.array([candidates.index(answer)]) for *_, answer in rows]
    task = Task(name, [picture(p) for p in range(count)], shown, [text for _, _, text, _ in rows], candidates, right, choices)
    return task, Toy({np.asarray(picture(p))[0, 0].tobytes(): things for p, things, *_ in rows})


def good_set():
    """Four places a picture, another thing at each: only picture and instruction together tell which."""
    things = [{place: f"thing{p}{place}" for place in PLACES} for p in range(PICTURES)]
    rows = [(p, things[p], f"what is {place}?", things[p][place]) for p in range(PICTURES) for place in PLACES]
    return made("good", rows, [answer for *_, answer in rows])


def bad_sets():
    """Sets that are solved blind, and the probes that must find each: name -> (task, system, probes)."""
    good, _ = good_set()
    names = list(good.candidates)
    telling = [(q // 4, {"left": names[q]}, f"where is the {names[q]}?", names[q]) for q in range(len(names))]
    same = [(p, {place: "yes" for place in PLACES}, f"is it {place}?", "yes") for p in range(PICTURES) for place in PLACES]
    alone = [(p, {place: f"thing{p}" for place in PLACES}, f"what is {PLACES[p % 4]}?", f"thing{p}") for p in range(PICTURES)]
    animals = [f"{kind} number{p}" for p in range(PICTURES) for kind in ("animal", "vehicle", "word", "colour")]
    herd = [{place: animals[4 * ((p + k) % PICTURES)] for k, place in enumerate(PLACES)} for p in range(PICTURES)]
    figure6 = [(p, herd[p], f"which animal is {PLACES[p % 4]}?", herd[p][PLACES[p % 4]]) for p in range(PICTURES)]
    others = [[4 * ((p + k) % PICTURES) + 1 + k % 3 for k in range(1, 9)] for p in range(PICTURES)]  # no animal among them
    choices = [np.array([animals.index(row[3]), *other]) for row, other in zip(figure6, others)]
    return {
        "names the answer": (*made("names the answer", telling, names), {"text", "instruction", "bm25"}),
        "one answer": (*made("one answer", same, ["no", "yes", "perhaps", "never"]), {"answers", "prior", "picture"}),
        "picture alone": (*made("picture alone", alone, [answer for *_, answer in alone]), {"picture", "shuffled"}),
        "Figure 6": (*made("Figure 6", figure6, animals, choices), {"text", "instruction", "bm25"}),
    }


def table(task, system, seed=0):
    return {row["probe"]: row for row in probe_rows(task, *embed_probes(system, task, seed), seed)}


def test_a_set_that_needs_both_halves_of_its_queries_is_multimodal():
    rows = table(*good_set())
    assert rows["full"]["r1"] == 100 and rows["full"]["verdict"] == "multimodal" and rows["full"]["share"] == 100
    assert list(rows) == ["full", "shuffled", "picture", "instruction", "text", "bm25", "prior", "answers", "chance"]
    assert all(row["verdict"] == "not enough" for name, row in rows.items() if name in probes.BLIND)
    assert rows["picture"]["r1"] < 40 and rows["chance"]["r1"] == pytest.approx(100 / 96) and rows["chance"]["verdict"] == ""
    assert all({"set", "r1", "r5", "r10", "r1_low", "r1_high", "n"} <= set(row) and row["n"] == 96 for row in rows.values())


@pytest.mark.parametrize("name", bad_sets())
def test_a_set_that_is_solved_blind_is_found_and_the_way_is_named(name):
    task, system, ways = bad_sets()[name]
    rows = table(task, system)
    enough = {probe for probe, row in rows.items() if row["verdict"] == "enough"}
    assert ways <= enough, {probe: (row["r1"], row["verdict"]) for probe, row in rows.items()}
    assert rows["full"]["verdict"].startswith("poorly constructed: ") and all(way in rows["full"]["verdict"] for way in ways)


def test_what_makes_a_set_poor_can_be_the_choices_alone():
    task, system, _ = bad_sets()["Figure 6"]
    queries, c_emb = embed_probes(system, task, seed=0)
    hard = [np.flatnonzero(np.array([c.startswith("animal") for c in task.candidates]))] * len(task.shown)  # relevant ones
    assert probe_rows(task, queries, c_emb)[0]["verdict"].startswith("poorly")
    assert probe_rows(replace(task, choices=hard), queries, c_emb)[0]["verdict"] == "multimodal"


def test_half_of_the_full_score_is_said_and_a_weak_system_says_nothing_about_a_set():
    task, system = good_set()
    queries, c_emb = embed_probes(system, task, seed=0)
    truth = c_emb[[int(r[0]) for r in task.right]]
    part = truth.copy()
    part[: len(part) * 2 // 5] *= -1  # right for three in five
    rows = probe_rows(task, queries | {"picture": part}, c_emb)
    assert rows[0]["verdict"] == "poorly constructed: picture half of it" and 55 < rows[2]["share"] < 65
    weak = dict.fromkeys(("full", "picture"), np.where(np.arange(len(truth))[:, None] < 60, -1, 1) * truth)  # right for three in eight
    assert probe_rows(task, queries | weak, c_emb)[0]["verdict"] == "undecided: shuffled, picture enough"
    lost = dict.fromkeys(queries, np.random.default_rng(0).standard_normal(truth.shape).astype(np.float32))
    assert probe_rows(task, lost, c_emb)[0]["verdict"] == "not solved"
    assert probe_rows(task, lost | {"text": truth}, c_emb)[0]["verdict"].startswith("poorly constructed: text")


def test_too_few_queries_leave_the_verdict_open():
    task, system = good_set()
    queries, c_emb = embed_probes(system, task, seed=0)
    truth = c_emb[[int(r[0]) for r in task.right]]
    right_for = lambda pictures: np.where(task.groups[:, None] < pictures, 1, -1) * truth  # noqa: E731
    few = dict.fromkeys(queries, -truth) | {"text": right_for(1)}  # an interval from 0 to about 12 per cent
    for pictures, verdict, of_text in ((5, "undecided: text unclear", "unclear"), (12, "multimodal", "not enough")):
        rows = probe_rows(task, few | {"full": right_for(pictures)}, c_emb)
        assert rows[0]["verdict"] == verdict and next(row["verdict"] for row in rows if row["probe"] == "text") == of_text


def test_a_set_of_one_modality_is_not_called_anything_else():
    task, system = good_set()
    rows = table(replace(task, texts=[None] * len(task.texts)), system)
    assert list(rows) == ["full", "prior", "answers", "chance"] and rows["full"]["verdict"] == "one modality"
    said = replace(task, pictures=[], shown=np.full(96, -1), texts=list(task.candidates))
    assert table(said, system)["full"]["r1"] == 100 and "bm25" in table(said, system)


def test_every_distinct_thing_is_embedded_once():
    task, system = good_set()
    queries, _ = embed_probes(system, task, seed=0)
    assert len(system.seen) == len(set(system.seen))
    assert set(queries) == {"full", "shuffled", "picture", "instruction", "text"} and {q.shape for q in queries.values()} == {(96, 256)}


def test_a_probe_is_the_query_with_a_part_exchanged():
    made = tiny.with_lora("qwen2_vl", "instruct")
    images, texts = tiny.pictures(3), ["what", "where is it", "an owl", "what"]
    task = Task("t", images, np.array([2, 0, 1, 0]), texts, ["a cup", "an owl"], [np.array([0])] * 4)
    vectors, c_emb = embed_probes(made, task, seed=0)
    tiny.close(c_emb, made.embed(texts=task.candidates))
    for q, (p, text) in enumerate(zip(task.shown, texts)):
        tiny.close(vectors["full"][q], made.embed(images=[images[p]], instructions=[text])[0])
        tiny.close(vectors["picture"][q], made.embed(images=[images[p]])[0])
        tiny.close(vectors["text"][q], made.embed(texts=[text])[0])


@pytest.mark.parametrize("own_choices", [False, True])
def test_ranks_agree_with_counting_one_candidate_after_the_other(own_choices, monkeypatch):
    monkeypatch.setattr(probes, "BLOCK", 7)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 30)).astype(np.float32)  # many ties
    right = [rng.choice(30, size=rng.integers(1, 4), replace=False) for _ in range(40)]
    rest = [rng.permutation(np.setdiff1d(np.arange(30), r))[: rng.integers(3, 12)] for r in right]
    choices = [rng.permutation(np.concatenate([r, o])) for r, o in zip(right, rest)] if own_choices else None
    task = Task("random", [picture(0)], np.zeros(40, dtype=int), [None] * 40, [str(k) for k in range(30)], right, choices)
    found = task_ranks(task, lambda first, last: scores[first:last])
    for i, row in enumerate(scores):
        among = range(30) if choices is None else choices[i]
        assert found[i] == sum(row[j] >= row[right[i]].max() for j in among if j not in right[i])


def test_chance_is_what_random_scores_get():
    rng = np.random.default_rng(1)
    right = [np.array([0, 1]) if k % 2 else np.array([3]) for k in range(4000)]
    choices = [np.arange(12) if k % 2 else np.arange(2, 8) for k in range(4000)]
    task = Task("c", [picture(0)], np.zeros(4000, dtype=int), [None] * 4000, [str(k) for k in range(12)], right, choices)
    row = probes._chance(task, seed=0)
    rank = task_ranks(task, lambda first, last: rng.random((last - first, 12)))
    assert row["r1"] == pytest.approx(100 / 6) and row["r10"] == pytest.approx((100 + 100 * (1 - 2 / (12 * 11))) / 2)
    assert all(row[f"r{k}"] == pytest.approx(100 * np.mean(rank < k), abs=2) for k in (1, 5, 10))


def test_the_answers_of_a_picture_do_not_vote_for_themselves():
    right = [np.array([k]) for k in (0, 0, 1, 2)]
    task = Task("t", [picture(0), picture(1)], np.array([0, 0, 1, 1]), [None] * 4, ["a", "b", " A "], right)
    assert probes._answers(task)(0, 4).tolist() == [[1, 1, 1], [1, 1, 1], [2, 0, 2], [2, 0, 2]]  # "a" and " A " are one answer
    mean = probes._mean_of_others(np.array([[1.0, 0], [3, 0], [0, 2], [0, 4]], dtype=np.float32), task.groups)
    assert mean.tolist() == [[0, 3], [0, 3], [2, 0], [2, 0]]


def test_second_right_answers_are_counted_in_the_same_picture_alone():
    texts = ["a cab", "the cab.", "a red cab at night", "an owl", "an owl", "a cup"]
    shown = np.array([0, 0, 0, 1, 2, 2])
    right = [np.array([k]) for k in range(6)]
    task = Task("t", [picture(k) for k in range(3)], shown, ["what?"] * 6, texts, right)
    found = {row["rule"]: row for row in several_right(task)}
    assert [round(found[rule]["share"] * 6 / 100) for rule in ("equal text", "same words", "all its words")] == [0, 2, 2]
    truth = np.eye(6)
    truth[4, 5] = 1
    row = several_right(task, truth)[-1]
    assert row["rule"] == "truth" and round(row["share"] * 6 / 100) == 1 and row["low"] <= row["share"] <= row["high"] and row["n"] == 6
    twins = replace(task, candidates=["a cab", " A  cab", *texts[2:]])
    assert several_right(twins)[0]["share"] == pytest.approx(100 / 3)
    chosen = replace(twins, choices=[np.array([k, 3 if k != 3 else 0]) for k in range(6)])
    assert several_right(chosen)[0]["share"] == 0
    with pytest.raises(ValueError, match="candidates are pictures"):
        several_right(replace(task, candidates=[picture(k) for k in range(6)]))
