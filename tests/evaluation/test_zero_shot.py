"""Any system on any task: by hand on made-up COCO, Flickr30K and MMEB folders, against brute force and references, resumable, in blocks."""

import json
import tracemalloc

import numpy as np
import pytest
from mmeb_folder import ASK, CLASSIFY, picture, write
from PIL import Image

from abc_core.data import mmeb
from abc_core.data.karpathy import karpathy_tasks
from abc_core.data.mmeb import read_mmeb
from abc_core.data.tasks import Task
from abc_core.evaluation.metrics import task_ranks
from abc_core.evaluation.zero_shot import candidates, queries, score, score_blocks
from abc_core.miniature import mmeb_part
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World, pools


class Known:
    """A system that looks vectors up: of a text by its words, of a picture by its colour, of an instructed picture by both."""

    def __init__(self, vectors, name="known"):
        self.vectors, self.name, self.fingerprint, self.seen = vectors, name, name, []

    def embed(self, images=None, texts=None, instructions=None):
        rows = list(texts) if texts is not None else [self.colour(image) for image in images]
        if instructions is not None:
            asked = [[a] if isinstance(a, str) else a for a in instructions]
            rows = [(colour, text) for colour, said in zip(rows, asked, strict=True) for text in said]
        self.seen += rows
        return np.array([self.vectors[row] for row in rows], dtype=np.float32)

    @staticmethod
    def colour(image):
        rgb = (Image.open(image) if not isinstance(image, Image.Image) else image).convert("RGB").getpixel((0, 0))
        return min(("red", "lime", "blue"), key=lambda c: np.abs(np.subtract(rgb, Image.new("RGB", (1, 1), c).getpixel((0, 0)))).sum())


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_rank(scores, right, choices, tolerance=1e-6):
    """(pessimistic, optimistic) rank of the best right candidate, one comparison after the other."""
    best, as_high, higher = max(scores[r] for r in right), 0, 0
    for candidate in range(len(scores)) if choices is None else choices:
        if candidate not in right:
            as_high += scores[candidate] >= best - tolerance
            higher += scores[candidate] > best + tolerance
    return as_high, higher


# --- made-up folders, by hand -------------------------------------------------------------------------------------------------------


def karpathy(folder, name, captions, split="test"):
    """A Karpathy file: colour -> sentences; COCO has a folder per split, Flickr30K none. A picture of another split comes first."""
    coco = name == "coco"
    images = [{"filename": "train.jpg", "split": "train", "sentences": [{"raw": "unused", "tokens": ["unused"]}]}]
    for k, (colour, said) in enumerate(captions.items()):
        place = folder / ("val2014" if coco else "flickr30k-images") / f"{k}.jpg"
        picture(place, colour)
        sentences = [{"raw": raw, "tokens": raw.split(), "imgid": k, "sentid": 9 * k + j} for j, raw in enumerate(said)]
        more = {"filepath": "val2014", "cocoid": 100 + k} if coco else {}
        images.append({"filename": place.name, "imgid": k, "split": split, "sentences": sentences, **more})
    path = folder / f"dataset_{name}.json"
    path.write_text(json.dumps({"images": images, "dataset": name}))
    return path


@pytest.fixture(autouse=True)
def _own_runs(runs):
    """Embeddings are kept in RUNS."""


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_retrieval_on_a_made_up_karpathy_folder_is_what_a_hand_says(tmp_path, name):
    five = {colour: [f"{colour} {k}" for k in range(6)] for colour in ("red", "lime", "blue")}  # of six sentences five count
    path = karpathy(tmp_path, name, five)
    vectors = {"red": [1, 0, 0], "lime": [0, 1, 0], "blue": [0, 0, 1]}
    vectors |= {f"{c} {k}": vectors[c] for c in vectors for k in range(6)}
    vectors |= {"red 0": [0, 1, 0], "lime 3": [1, 0, 0], "blue 2": [0, 0.6, 0.8]}
    to_text, to_image, skipped = karpathy_tasks(path)
    assert len(to_text.candidates) == 15 and not skipped.counts
    system = Known(vectors)
    row = score(to_text, system)
    # red: its four, all at 1, tie with "lime 3". lime: "red 0" ties with its own four. blue: nothing else is at 1.
    assert (row["r1"], row["r5"], row["n"], row["candidates"]) == (pytest.approx(100 / 3), 100, 3, 15)
    assert (row["r1_optimistic"], row["kind"], row["system"], row["task"]) == (100, "retrieval", "known", f"{name}, image to text")
    row = score(to_image, system)
    # 13 of 15 sentences find their picture alone at the top; "red 0" and "lime 3" find another one and have their own at 0, tied.
    assert (row["r1"], row["r5"], row["n"], row["candidates"], row["r1_optimistic"]) == (pytest.approx(100 * 13 / 15), 100, 15, 3, None)
    assert row["r1_low"] <= row["r1"] <= row["r1_high"]
    assert len(system.seen) == 3 + 15, "both directions share their embeddings"


def test_of_a_karpathy_file_no_more_is_held_than_its_split(tmp_path):
    path = karpathy(tmp_path, "coco", {"red": ["a"]})
    content = json.loads(path.read_text())
    words = ["a", "sentence", "of", "several", "words", "about", "a", "picture"]
    sentences = [{"raw": " ".join(words), "tokens": words, "imgid": 0, "sentid": k} for k in range(5)]
    content["images"] += [{"filename": f"{k}.jpg", "split": "train", "sentids": [], "sentences": sentences} for k in range(800)]
    path.write_text(json.dumps(content))
    peaks = []
    for read in (lambda: json.loads(path.read_bytes()), lambda: karpathy_tasks(path)):
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1] / path.stat().st_size)
        tracemalloc.stop()
    assert peaks[1] < 2.6 < peaks[0], "about the bytes and the text of the file"


def test_classification_and_questions_on_a_made_up_mmeb_folder_are_what_a_hand_says(tmp_path):
    for k, colour in enumerate(("red", "lime", "blue")):
        picture(tmp_path / "images" / f"{k}.jpg", colour)
    labels = ["fire", "grass", "sea"]
    rows = [(CLASSIFY, f"{k}.jpg", [labels[k], *labels[:k], *labels[k + 1 :]]) for k in range(3)]
    write(tmp_path, "ImageNet-R", rows)
    said = {label: f"A photo of a {label}." for label in labels}
    vectors = {"red": [1, 0], "lime": [0, 1], "blue": [0.6, 0.8], said["fire"]: [1, 0], said["grass"]: [0, 1], said["sea"]: [0.8, 0.6]}
    row = score(read_mmeb(tmp_path, "ImageNet-R", "classification")[0], Known(vectors))
    # red finds fire (1 against 0 and 0.8), lime grass, blue sea (0.96 against 0.6 and 0.8)
    assert (row["r1"], row["kind"], row["r1_optimistic"], row["candidates"]) == (100, "classification", None, 3)
    vectors["blue"] = [0, 1]  # now grass, at 1, is above sea, at 0.6
    assert score(read_mmeb(tmp_path, "ImageNet-R", "classification")[0], Known(vectors, "worse"))["r1"] == pytest.approx(200 / 3)

    hot, cold = (f"{mmeb.QUESTION} {q}" for q in ("hot?", "cold?"))
    asked = [(ASK.format("hot?"), "0.jpg", ["yes", "no"]), (ASK.format("cold?"), "0.jpg", ["no", "yes"])]
    asked += [(ASK.format("hot?"), "2.jpg", ["no", "maybe"]), (ASK.format("cold?"), "2.jpg", ["yes", "maybe"])]
    write(tmp_path, "GQA", asked)
    vectors = {("red", hot): [1, 0], ("red", cold): [0, 1], ("blue", hot): [1, 0], ("blue", cold): [0.6, 0.8]}
    vectors |= {"yes": [1, 0], "no": [0, 1], "maybe": [0, 1]}
    system = Known(vectors)
    row = score(read_mmeb(tmp_path, "GQA", "vqa")[0], system)
    # red: both right. blue: hot? "no" and "maybe" tie at 0, which "yes", not among its answers, does not change; cold? 0.6 against 0.8.
    assert (row["r1"], row["r1_optimistic"], row["r5"], row["kind"], row["candidates"]) == (50, 75, 100, "vqa", 2)
    assert system.seen == [("red", cold), ("red", hot), ("blue", cold), ("blue", hot), "maybe", "no", "yes"]


def test_a_collapsed_system_scores_nothing_and_the_other_reading_of_ties_is_shown_beside(tmp_path):
    path = karpathy(tmp_path, "coco", {"red": ["a", "b"], "lime": ["c", "d"]})
    row = score(karpathy_tasks(path)[0], Known({said: [1, 0] for said in ("red", "lime", *"abcd")}))
    assert (row["r1"], row["r1_optimistic"]) == (0, 100)


# --- against brute force and references ---------------------------------------------------------------------------------------------


def random_task(seed, own_choices):
    """(task of texts, system, scores float[30, 25]) with several right candidates and many ties, candidates said twice among them."""
    rng = np.random.default_rng(seed)
    q_emb, c_emb = rng.integers(-2, 3, (2, 30, 3)).astype(np.float32) / 4
    c_emb = c_emb[:25]
    said = [f"c{k % 20}" for k in range(25)]  # c0 to c4 twice
    vectors = {f"q{i}": v for i, v in enumerate(q_emb)} | {f"c{k}": c_emb[k] for k in range(20)}
    c_emb[20:] = c_emb[:5]
    right = [np.sort(rng.choice(25, size=rng.integers(1, 4), replace=False)) for _ in range(30)]
    choices = [np.union1d(r, rng.choice(25, size=6, replace=False)) for r in right] if own_choices else None
    task = Task("random", [], np.full(30, -1), [f"q{i}" for i in range(30)], said, right, choices)
    q_emb[~q_emb.any(1)] = c_emb[~c_emb.any(1)] = 0.25  # no vector is zero
    return task, Known(vectors, f"known {seed}"), q_emb @ c_emb.T


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("own_choices", [False, True])
def test_recall_is_that_of_a_double_loop_whatever_the_blocks(seed, own_choices):
    task, system, scores = random_task(seed, own_choices)
    expected = [brute_rank(s, set(r.tolist()), None if task.choices is None else task.choices[i].tolist())
                for i, (s, r) in enumerate(zip(scores.tolist(), task.right))]  # fmt: skip
    assert any(high != low for high, low in expected), "no ties: the test tests nothing"
    row = score(task, system)
    for k in (1, 5, 10):
        assert row[f"r{k}"] == pytest.approx(100 * np.mean([high < k for high, _ in expected]))
    optimistic = 100 * np.mean([low < 1 for _, low in expected])
    assert (row["r1"] if row["r1_optimistic"] is None else row["r1_optimistic"]) == pytest.approx(optimistic)
    parts = (*queries(task, system), *candidates(task, system))
    parts = (parts[0], parts[2], parts[1], parts[3])
    for block, wide in ((1, 7), (300, 4), (1 << 20, 1000)):
        found = task_ranks(score_blocks(system, *parts, block=block, wide=wide), task.right, task.choices)
        assert np.array_equal(np.transpose(found), expected)


def reference(task, scores, name):
    """Hits at 1, 5 and 10 of each query by the evaluator that mteb uses; `name` gives a candidate the name that ties are broken by."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    offered = [c.tolist() for c in task.choices] if task.choices is not None else [range(len(task.candidates))] * len(scores)
    names = [{c: name(i, c) for c in offered[i]} for i in range(len(scores))]
    right = {f"q{i}": {names[i][c]: 1 for c in r.tolist()} for i, r in enumerate(task.right)}
    run = {f"q{i}": {names[i][c]: float(scores[i][c]) for c in offered[i]} for i in range(len(scores))}
    found = pytrec_eval.RelevanceEvaluator(right, {"success.1,5,10"}).evaluate(run)
    return {k: 100 * np.mean([found[f"q{i}"][f"success_{k}"] for i in range(len(scores))]) for k in (1, 5, 10)}


@pytest.mark.parametrize("own_choices", [False, True])
def test_recall_without_ties_is_that_of_pytrec_eval_which_mteb_uses(own_choices):
    task, _, scores = random_task(1, own_choices)
    scores = scores + np.random.default_rng(5).permutation(scores.size).reshape(scores.shape) / 1e4  # all differ, by 1e-4 at least
    rank, optimistic = task_ranks([scores], task.right, task.choices)
    assert np.array_equal(rank, optimistic)
    assert reference(task, scores, lambda i, c: f"c{c:02}") == {k: pytest.approx(100 * np.mean(rank < k)) for k in (1, 5, 10)}


@pytest.mark.parametrize("own_choices", [False, True])
def test_with_ties_pytrec_eval_is_between_our_two_readings_and_reaches_either_by_the_names_of_candidates(own_choices):
    task, _, scores = random_task(2, own_choices)
    rank, optimistic = task_ranks([scores], task.right, task.choices)
    ours = [{k: 100 * np.mean(r < k) for k in (1, 5, 10)} for r in (rank, optimistic)]
    by_number = reference(task, scores, lambda i, c: f"c{c:02}")
    assert all(ours[0][k] <= by_number[k] <= ours[1][k] for k in ours[0]) and ours[0] != ours[1]
    # it puts the later name first among equals
    last, first = (reference(task, scores, lambda i, c, s=s: f"{int((c in task.right[i]) == s)}{c:02}") for s in (False, True))
    assert last == pytest.approx(ours[0]) and first == pytest.approx(ours[1])


# --- resuming, memory, other systems ------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_nothing_is_embedded_twice(tmp_path):
    task, system, _ = random_task(3, False)
    whole = score(task, system)
    distinct = len(system.seen)
    assert distinct == 30 + 20 == len(set(system.seen))

    class Dies(Known):
        def embed(self, **items):
            if len(self.seen) >= 36:
                raise KeyboardInterrupt
            return super().embed(**items)

    dying = Dies(system.vectors)
    with pytest.raises(KeyboardInterrupt):
        score(task, dying, tmp_path, batch=8)
    again = Known(system.vectors)  # of the same name and fingerprint
    assert score(task, again, tmp_path, batch=8) == whole | {"system": "known"}
    assert dying.seen + again.seen == system.seen
    assert score(task, again, tmp_path) and len(dying.seen + again.seen) == distinct


def test_sets_with_the_same_labels_in_another_order_share_them():
    vectors = {"red": [1, 0], "a": [1, 0], "b": [0, 1]}
    system, image = Known(vectors), Image.new("RGB", (2, 2), "red")
    for labels, right in ((["a", "b"], 0), (["b", "a", "b"], 1)):
        assert score(Task("labels", [image], np.array([0]), [None], labels, [np.array([right])]), system)["r1"] == 100
    assert system.seen == ["red", "a", "b"]


def test_another_system_or_picture_is_embedded_anew(tmp_path):
    path = karpathy(tmp_path, "coco", {"red": ["a"], "lime": ["b"]})
    vectors = {"red": [1, 0], "lime": [0, 1], "blue": [0, 1], "a": [1, 0], "b": [0, 1]}
    task = karpathy_tasks(path)[0]
    system, other = Known(vectors), Known(vectors, "other")
    assert score(task, system)["r1"] == score(task, other)["r1"] == 100
    assert len(other.seen) == 4
    picture(tmp_path / "val2014" / "1.jpg", "blue")
    assert score(karpathy_tasks(path)[0], system)["r1"] == 100 and system.seen[4:] == ["red", "blue"]


def test_of_many_wide_candidates_no_second_copy_is_made(tmp_path):
    wide, many = 512, 8000
    rng = np.random.default_rng(0)
    c_emb = unit(rng, many, wide)
    np.save(tmp_path / "c.npy", c_emb)
    q_emb = c_emb[:200].copy()
    c_emb = np.asarray(np.load(tmp_path / "c.npy", mmap_mode="r"))
    right = list(np.arange(200)[:, None])
    tracemalloc.start()
    blocks = score_blocks(Known({}), q_emb, c_emb, np.arange(200), np.arange(many), block=1 << 20)
    rank, _ = task_ranks(blocks, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rank.tolist() == [0] * 200
    assert peak < c_emb.nbytes / 4, f"{peak:,} bytes beside {c_emb.nbytes:,} of candidates"


def test_a_system_may_compare_token_by_token():
    class Late:
        name = fingerprint = "late"
        tokens = {"q": [[1, 0], [0, 1]], "both": [[1, 0], [0, 1]], "one": [[1, 0], [1, 0]], "short": [[0, 1], [0, 0]]}  # noqa: RUF012

        def embed(self, images=None, texts=None, instructions=None):
            return np.array([self.tokens[t] for t in texts], dtype=np.float32)  # N, T, D

        def score(self, q, c):
            return np.einsum("qtd,csd->qcts", q, c).max(3).mean(2)

    task = Task("tokens", [], np.array([-1]), ["q"], ["one", "both", "short"], [np.array([1])])
    row = score(task, Late())
    assert row["r1"] == 100
    assert score(Task("mean", [], np.array([-1]), ["q"], ["one", "short"], [np.array([1])]), Late())["r1_optimistic"] == 100


def test_token_by_token_comparison_is_cut_into_pieces_that_fit():
    rng, sizes = np.random.default_rng(0), []
    q_emb, c_emb = unit(rng, 40, 6, 4), unit(rng, 50, 6, 4)

    class Late:
        def score(self, q, c):
            sizes.append(len(q) * len(c) * 6 * 6 * 4)
            return np.einsum("qtd,csd->qcts", q, c).max(3).mean(2)

    scores = np.concatenate([*score_blocks(Late(), q_emb, c_emb, np.arange(40), np.arange(50), block=20_000)])
    assert np.allclose(scores, np.einsum("qtd,csd->qcts", q_emb, c_emb).max(3).mean(2), atol=1e-6)
    assert len(sizes) > 10 and max(sizes) <= 20_000


def test_embeddings_that_are_no_numbers_of_one_shape_are_refused(tmp_path):
    task, system, _ = random_task(0, False)
    for change, message in (
        (lambda v: v.astype(np.float64), r"known 0 gave float64\[30, 3\] for 30 items; float32\[30, D\] was expected"),
        (lambda v: v[1:], r"gave float32\[29, 3\] for 30 items"),
        (lambda v: v * np.nan, "an embedding that is not finite"),
    ):
        broken = Known(system.vectors, system.name)
        broken.embed = lambda texts, change=change: change(system.embed(texts=texts))
        with pytest.raises(ValueError, match=message):
            score(task, broken, tmp_path)
    mixed = Task("mixed", [Image.new("RGB", (2, 2))], np.array([0, 0]), ["what?", None], ["a"], [np.array([0])] * 2)
    with pytest.raises(ValueError, match="mixed: queries of several kinds, instructed, pictures, in one task"):
        score(mixed, system)


def test_a_broken_picture_is_named(tmp_path):
    path = karpathy(tmp_path, "coco", {"red": ["a"], "lime": ["b"]})
    (tmp_path / "val2014" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"val2014/1\.jpg"):
        score(karpathy_tasks(path)[0], Known({"red": [1, 0]}))
    (tmp_path / "val2014" / "1.jpg").unlink()
    task, _, skipped = karpathy_tasks(path)
    assert len(task.pictures) == 1 and skipped.counts == {"missing picture": 1}


def test_sentences_of_one_picture_hang_together_in_the_interval(tmp_path):
    _, to_image, _ = karpathy_tasks(karpathy(tmp_path, "coco", {"red": ["a", "b"], "lime": ["c"]}))
    assert to_image.groups.tolist() == [0, 0, 1]


# --- the embedded world -------------------------------------------------------------------------------------------------------------


class Oracle:
    """Knows which answer each picture of a drawn set has, from truth.jsonl alone."""

    name = "oracle"

    def __init__(self, folder, task):
        rows = [json.loads(line) for line in (folder / "truth.jsonl").open()]
        self.answers = {folder / "images" / row["image"]: row["answers"].get(task.name) for row in rows}
        sentence = mmeb.TEMPLATE if task.kind == "classification" else "{label}"
        names = sorted({a for a in self.answers.values() if a})
        self.number, self.fingerprint = {sentence.format(label=name): k for k, name in enumerate(names)}, f"oracle of {task.name}"
        self.sentence = sentence

    def embed(self, images=None, texts=None, instructions=None):
        said = texts if texts is not None else [self.sentence.format(label=self.answers[image]) for image in images]
        out = np.zeros((len(said), len(self.number) + 1), dtype=np.float32)
        out[np.arange(len(said)), [self.number.get(s, len(self.number)) for s in said]] = 1
        return out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small drawn part in MMEB's layout."""
    return draw_part(tmp_path_factory.mktemp("drawn"), "mmeb", 80, World(glyphs=60))


@pytest.mark.parametrize("name", [*mmeb_part.CLASSIFICATION, *mmeb_part.VQA])
def test_an_oracle_scores_everything_on_every_drawn_set(drawn, name):
    kind = "classification" if name in mmeb_part.CLASSIFICATION else "vqa"
    task, skipped = read_mmeb(drawn, name, kind)
    assert not skipped.counts and not skipped.odd and len(task.texts) >= 15
    row = score(task, Oracle(drawn, task))
    assert (row["r1"], row["kind"]) == (100, kind)
    assert len({*task.texts}) > 5 if kind == "vqa" else {*task.texts} == {None}


def test_drawn_sets_are_of_held_out_meanings_in_held_out_wordings(drawn):
    from abc_core.miniature import words

    held = set(pools(World(glyphs=60)).held_out)
    rows = [json.loads(line) for line in (drawn / "truth.jsonl").open()]
    assert {tuple(m) for row in rows for m in row["shows"]} <= held
    for name, kind in mmeb_part.VQA.items():
        asked = {t.removeprefix(f"{mmeb.QUESTION} ") for t in read_mmeb(drawn, name, "vqa")[0].texts}
        starts = tuple(t.split("{x}")[0] for t in words.HELD_OUT[kind])
        assert all(question.startswith(starts) for question in asked)
    shown = {row["image"].split("/")[0]: 0 for row in rows}
    assert list(shown) == ["Objects", "Objects-OOD", "MainObjects", "Scenes"] and len(rows) == 80


def test_a_question_chooses_among_the_other_things_of_its_own_scene_too(drawn):
    rows = {row["image"]: row for row in (json.loads(line) for line in (drawn / "truth.jsonl").open())}
    task, _ = read_mmeb(drawn, "Content-VQA", "vqa")
    for picture_number, choices in zip(task.shown, task.choices or [np.arange(len(task.candidates))] * len(task.shown)):
        relative = task.pictures[picture_number].relative_to(drawn / "images").as_posix()
        offered = {task.candidates[c] for c in choices}
        assert len({m[0] for m in rows[relative]["shows"]} & offered) >= 3
