"""`mteb` evaluates a system with its own tasks, here on local data; its figures are ours."""

import json

import numpy as np
import pytest
from PIL import Image

mteb = pytest.importorskip("mteb")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification  # noqa: E402
from mteb.models.models_protocols import EncoderProtocol  # noqa: E402

from abc_core.data.tasks import Task  # noqa: E402
from abc_core.evaluation.mteb_model import MtebModel  # noqa: E402
from abc_core.evaluation.zero_shot import score  # noqa: E402

COLOURS = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "purple": [0.8, 0, 0.6]}
INSTRUCTIONS = ("name it", "name its opposite")
ABOUT = {
    "description": "A picture of one colour finds its name.", "reference": None, "dataset": {"path": "none", "revision": "1"},
    "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "date": None, "domains": [], "task_subtypes": [], "license": None,
    "annotations_creators": "derived", "dialect": [], "sample_creation": "created", "bibtex_citation": None,
}  # fmt: skip


class Colours:
    """Pictures are their mean colour, words are the colour they name; "opposite" turns a picture's vector round."""

    name, fingerprint = "colours", "1"

    def embed(self, images=None, texts=None, instructions=None):
        if texts is not None:
            return np.array([COLOURS[t.split()[-1].strip(".")] for t in texts], dtype=np.float32)
        out = np.array([np.asarray(i.convert("RGB")).mean((0, 1)) for i in images], dtype=np.float32) / 255
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        asked = instructions or [[""]] * len(out)
        rows = [-v if "opposite" in text else v for v, texts in zip(out, asked, strict=True) for text in texts]
        return np.array(rows, dtype=np.float32)


def pictures():
    return [Image.new("RGB", (8, 8), c) for c in ("red", "lime", "blue", "#cc0099")]


FIVE = [*pictures(), Image.new("RGB", (8, 8), "blue")]


class Retrieval(AbsTaskRetrieval):
    metadata = TaskMetadata(
        **ABOUT, name="ColourRetrieval", type="Any2AnyRetrieval", category="it2t", modalities=["image", "text"], main_score="hit_rate_at_1"
    )

    def load_data(self, *args, **options):
        images = [image for image in pictures() for _ in INSTRUCTIONS]
        ids = [f"q{k}" for k in range(len(images))]
        queries = Dataset.from_dict({"id": ids, "image": images, "text": list(INSTRUCTIONS) * 4})
        corpus = Dataset.from_dict({"id": [f"d{k}" for k in range(4)], "text": list(COLOURS)})
        right = {f"q{k}": {f"d{k // 2}": 1} for k in range(len(images))}
        self.dataset = {"default": {"test": {"queries": queries, "corpus": corpus, "relevant_docs": right, "top_ranked": None}}}
        self.data_loaded = True


class Classification(AbsTaskZeroShotClassification):
    metadata = TaskMetadata(
        **ABOUT, name="ColourNames", type="ZeroShotClassification", category="i2t", modalities=["image", "text"], main_score="accuracy"
    )

    def load_data(self, *args, **options):
        self.dataset = DatasetDict({"test": Dataset.from_dict({"image": FIVE, "label": [0, 1, 0, 3, 2]})})
        self.data_loaded = True

    def get_candidate_labels(self):
        return [f"a photo of something {colour}" for colour in COLOURS]


def evaluated(task, model):
    scores = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0].scores
    return json.loads(json.dumps(scores["test"][0]))


def test_a_wrapped_system_is_an_encoder_of_pictures_and_texts():
    model = MtebModel(Colours())
    assert isinstance(model, EncoderProtocol)
    assert (model.mteb_model_meta.name, model.mteb_model_meta.revision) == ("abc_core/colours", "1")
    with pytest.raises(ValueError, match="ColourNames: a batch with neither pictures nor texts but audio"):
        model.encode([{"audio": [0]}], task_metadata=Classification.metadata, hf_split="test", hf_subset="default")


def test_retrieval_under_instructions_by_mteb_is_what_we_score(runs):
    system = Colours()
    found = evaluated(Retrieval(), MtebModel(system))
    shown = np.repeat(np.arange(4), 2)
    task = Task("colours", pictures(), shown, list(INSTRUCTIONS) * 4, list(COLOURS), list(shown[:, None]))
    ours = score(task, system)
    assert ours["r1_optimistic"] is None, "ties would be broken in mteb's own way"
    assert ours["r1"] == 50, "half of the pictures are asked for what they do not show"
    assert {k: 100 * found[f"hit_rate_at_{k}"] for k in (1, 5, 10)} == {k: pytest.approx(ours[f"r{k}"]) for k in (1, 5, 10)}


def test_zero_shot_classification_by_mteb_is_what_we_score(runs):
    system = Colours()
    found = evaluated(Classification(), MtebModel(system))
    labels = Classification().get_candidate_labels()
    task = Task("colours", FIVE, np.arange(5), [None] * 5, labels, [np.array([k]) for k in (0, 1, 0, 3, 2)])
    assert 100 * found["accuracy"] == score(task, system)["r1"] == 80  # one blue picture is said to be red


def test_scores_are_those_of_the_system_where_it_has_its_own():
    class Half(Colours):
        def score(self, q, c):
            return q @ c.T / 2

    q = np.eye(3, dtype=np.float32)
    assert MtebModel(Half()).similarity(q, q).tolist() == (np.eye(3) / 2).tolist()
    assert MtebModel(Colours()).similarity(q, q[:2]).tolist() == np.eye(3)[:, :2].tolist()
