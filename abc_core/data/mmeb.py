"""MMEB's classification and VQA sets (Sec. 4.1, Tables 2 and 5): hit@1 among the candidates of each row.

FOLDER/ or a dataset of the model hub      `TIGER-Lab/MMEB-eval`, and `ziyjiang/MMEB_Test_Instruct` (V2), whose rows come without pictures
ImageNet-1K/test-00000-of-00001.parquet    qry_text, qry_img_path, tgt_text (the right one first), tgt_img_path; V2 has qry_inst besides
images/ or images.zip                      the pictures, unpacked or not; without both they are looked up in FOLDER itself

Classification shows the picture alone and puts labels into a sentence; VQA asks the row's question (Sec. 4.1: "we use instructions for VQA
but not for […] classification"). Steps: (1) `read_mmeb` finds files and pictures; (2) `_Builder` numbers distinct pictures and
candidates, and names what it leaves out or finds odd; (3) it ends as a `tasks.Task`.

Candidates that are the same string are one, so a repeated right answer is right wherever it stands, as in MMEB's own scoring. One that
differs from the right answer in case or white space alone stays wrong, as there. Rows with either are counted as odd.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from abc_core.data import index
from abc_core.data.hub import local_copy
from abc_core.data.reading import Pictures, Skipped
from abc_core.data.tasks import Task
from abc_core.data.texts import caption_id
from abc_core.data.zips import Zipped
from abc_core.runs.files import expect, field_of
from abc_core.runs.paths import inside

HUB = "TIGER-Lab/MMEB-eval"
TEMPLATE = "A photo of a {label}."
TEMPLATES = {"classification": TEMPLATE, "vqa": None}  # the paper's: the sentence that candidates are put into; None: as they are
QUESTION = "Represent the given image with the following question:"  # what MMEB has before every question
PLACEHOLDER = "<|image_1|>"
COLUMNS = ("qry_text", "qry_img_path", "tgt_text")  # without which a file is not of this layout
# MMEB's name -> the paper's, in the order of Table 2.
CLASSIFICATION = {
    "ImageNet-1K": "ImageNet-1K", "HatefulMemes": "HatefulMemes", "VOC2007": "VOC2007", "SUN397": "SUN397", "Place365": "Place365",
    "ImageNet-A": "ImageNet-A", "ImageNet-R": "ImageNet-R", "ObjectNet": "ObjectNet", "Country211": "Country-211",
}  # fmt: skip
VQA = {
    "OK-VQA": "OK-VQA", "A-OKVQA": "A-OKVQA", "DocVQA": "DocVQA", "InfographicsVQA": "InfographicsVQA", "ChartQA": "ChartQA",
    "Visual7W": "Visual7W", "ScienceQA": "ScienceQA", "VizWiz": "VizWiz", "GQA": "GQA", "TextVQA": "TextVQA",
}  # fmt: skip
# Those that MMEB's training part has too: in distribution for VLM2Vec (Table 5 marks the first four); the paper counts none for ABC.
IN_TRAINING = ("ImageNet-1K", "HatefulMemes", "VOC2007", "SUN397", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W")


def read_mmeb(
    folder: Path | str,
    name: str,
    kind: str,
    images: Path | None = None,
    templates: Mapping[str, str | None] = TEMPLATES,
    prefix: bool = True,
    download: bool = False,
) -> tuple[Task, Skipped]:
    """One set as a task.

    Args:
        folder: where the sets are, or the name of a dataset on the model hub.
        name: the set's folder in it, such as those of CLASSIFICATION and VQA. kind: "classification" or "vqa".
        images: folder or zip file of the pictures, if not in one of the places above.
        templates: kind -> sentence with "{label}" for its candidates, or None.
        prefix: keep MMEB's "Represent the given image with the following question:" before a question.
        download: fetch what the local cache of the hub does not hold; without it nothing leaves the machine.
    Returns:
        (task, skipped). Pictures are paths, or `data.Member` of the zip file. Rows count from 0 in their file.
    Raises:
        FileNotFoundError: no such set or pictures on this machine. ValueError: a file or row is not in the layout, or no row can be used.
    """
    if kind not in TEMPLATES:
        raise ValueError(f"unknown kind {kind!r} of the set {name!r}; known are {', '.join(TEMPLATES)}")
    folder = _folder(folder, name, images is None, download)
    files = sorted(expect(inside(folder, name), "MMEB's evaluation sets").glob("test*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder / name} holds no test*.parquet; it belongs to the layout of MMEB's evaluation sets")
    builder = _Builder(_pictures(folder, images), kind, templates[kind], prefix)
    for file in files:
        for row, entry in enumerate(_rows(file)):
            builder.add(file, row, entry)
    if not builder.shown:
        raise ValueError(f"{folder / name} has no row that can be used\n{builder.skipped}")
    return builder.task(name), builder.skipped


# --- 1. files -------------------------------------------------------------------------------------------------------------------


def _folder(name: Path | str, part: str, pictures: bool, download: bool) -> Path:
    """A local folder, or the local copy of one set, with all pictures if wanted, of a dataset on the hub."""
    files = [f"{part}/test*.parquet"] + ["images.zip"] * pictures
    return local_copy(name, download, repo_type="dataset", allow_patterns=files)


def _pictures(folder: Path, images: Path | None) -> Pictures | Zipped:
    """Where the pictures are: in `images`, or in the first place of the layout that is there."""
    places = [Path(images)] if images is not None else [folder / "images", folder / "images.zip", folder]
    place = next((p for p in places if p.exists()), None)
    if place is None:
        raise FileNotFoundError(f"no folder or zip file of pictures at {images}")
    return Pictures(place) if place.is_dir() else Zipped(place)


def _rows(file: Path) -> Iterator[dict]:
    """The rows of a Parquet file, few at a time: each may hold a thousand candidates."""
    table = index.parquet(file)
    there = table.schema_arrow.names
    if missing := [c for c in COLUMNS if c not in there]:
        raise ValueError(f"{file} has no column {', '.join(missing)}; its columns: {', '.join(there)}")
    columns = [c for c in ("qry_inst", *COLUMNS, "tgt_img_path") if c in there]
    for batch in index.batches(table, file, 64, columns):
        yield from batch.to_pylist()


# --- 2. rows --------------------------------------------------------------------------------------------------------------------


class _Builder:
    """Rows become queries; each distinct picture and candidate gets one number."""

    def __init__(self, pictures: Pictures | Zipped, kind: str, template: str | None, prefix: bool):
        self.kind, self.template, self.prefix = kind, template, prefix
        self.places, self.skipped = pictures, Skipped()
        self.pictures: dict[str, int] = {}  # path in the row -> number
        self.candidates: dict[str, int] = {}
        self.ids: list[int] = []  # `caption_id` of each candidate
        self.shown, self.texts, self.choices = [], [], []  # one of each a query; the first choice is the right one

    def add(self, file: Path, row: int, entry: dict) -> None:
        """Take one row in, or count why not."""
        where = f"{file} row {row}"
        image, answers = field_of(entry, "qry_img_path", str, where), field_of(entry, "tgt_text", list, where)
        if any(entry.get("tgt_img_path") or ()):
            raise ValueError(f"{where}: the candidates of this set are pictures; classification and VQA choose among texts")
        question = self._question(entry, file, row) if self.kind == "vqa" else None
        offered = [a for a in answers if isinstance(a, str) and a.strip()]
        if question == "":
            self.skipped.leave_out("no question", file, row, entry["qry_text"])
        elif not answers or answers[0] not in offered:
            self.skipped.leave_out("no right answer" if answers else "no candidates", file, row, answers[:1])
        elif len(set(offered)) < 2:
            self.skipped.leave_out("no other candidate than the right answer", file, row, answers)
        elif self._has_picture(image, file, row):
            chosen = [self._number(answer) for answer in offered]
            self._count_odd(answers, offered, chosen, file, row)
            self.shown.append(self.pictures.setdefault(image, len(self.pictures)))
            self.texts.append(question)
            self.choices.append(np.fromiter(dict.fromkeys(chosen), dtype=np.int64))

    def _number(self, answer: str) -> int:
        if answer not in self.candidates:
            self.candidates[answer] = len(self.candidates)
            self.ids.append(caption_id(answer))
        return self.candidates[answer]

    def _question(self, entry: dict, file: Path, row: int) -> str:
        """The query's words without the placeholder of its picture; V2 has them in two columns."""
        parts = (entry[c].replace(PLACEHOLDER, "").strip() for c in ("qry_inst", "qry_text") if entry.get(c))
        said = " ".join(part for part in parts if part)
        asked = said.removeprefix(QUESTION).strip()
        if self.prefix or not asked:
            return said if asked else ""
        if asked == said:
            self.skipped.keep("a question without MMEB's words before it", file, row, said)
        return asked

    def _has_picture(self, image: str, file: Path, row: int) -> bool:
        try:
            if image in self.pictures or image in self.places:
                return True
            self.skipped.leave_out("missing picture", file, row, image)
        except ValueError:
            self.skipped.leave_out("path leaves the folder", file, row, image)
        return False

    def _count_odd(self, answers: list, offered: list[str], chosen: list[int], file: Path, row: int) -> None:
        """Name what is odd in the candidates of a row that is kept."""
        right, *others = chosen
        blank, twice = len(answers) - len(offered), len(others) - len(set(others))
        like = [offered[k] for k, c in enumerate(chosen) if c != right and self.ids[c] == self.ids[right]]
        for odd, reason, value in (
            (blank, "blank candidates, which are not offered", blank),
            (right in others, "the right answer again among the others: one candidate", offered[0]),
            (twice, "a wrong answer more than once: one candidate", twice),
            (like, "a wrong answer differs from the right one in case or white space alone", [offered[0], *like]),
        ):
            if odd:
                self.skipped.keep(reason, file, row, value)

    def task(self, name: str) -> Task:
        """All rows taken in."""
        pictures = [self.places.find(image) for image in self.pictures]
        candidates = list(self.candidates) if self.template is None else [self.template.format(label=c) for c in self.candidates]
        right = [chosen[:1] for chosen in self.choices]
        choices = None if all(len(chosen) == len(candidates) for chosen in self.choices) else self.choices
        return Task(name, pictures, np.array(self.shown), self.texts, candidates, right, choices, self.kind)
