"""CtrlBench (Sec. 4.4): find the one caption that an instruction about a picture asks for, among the captions of all pictures.

Steps: (1) `build` draws five regions a picture as for training (Sec. 3.2), captions unique, nothing shared with training, and has
`benchmark` write them; (2) `task` makes an evaluation set of what `load` reads back; (3) R@k by kind. `baselines` scores it blind.
A system that ignores the instruction cannot tell the five captions of a picture apart: 20 % R@1 at most, in expectation.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from abc_core.ctrlbench.benchmark import Benchmark, load, write, write_card
from abc_core.data.genome import GenomeImage
from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.data.tasks import Task
from abc_core.evaluation.metrics import KS, recall
from abc_core.instructions.held_out import HeldOut, coco_ids, comparable, in_drawn_order, leakage, near_duplicates, same_bytes
from abc_core.instructions.regions import Instructed, Options, choose, read_instructions, small_regions
from abc_core.runs.files import read_json_lines

# --- 1. building ----------------------------------------------------------------------------------------------------------------


def build(
    images: Iterable[GenomeImage],
    instructions: Path,
    out: Path,
    seed: int,
    per_image: int = 5,
    drop_largest: int = 5,
    pictures: int | None = None,
    training_images: Iterable[Path] = (),
    training_captions: Iterable[str] = (),
    training_instructions: Iterable[str] = (),
    source: str = "not stated",
    licence: str = "not stated",
) -> Path:
    """Write the benchmark into the folder `out`; returns `out`.

    per_image and drop_largest are the rule of Sec. 3.2 with five regions. A picture is left out, and counted in the card, if it cannot
    give `per_image` regions with captions that no earlier picture gave and training never saw, each with an instruction that training
    never saw; if training saw it (byte for byte); or if it cannot be decoded. Texts are compared by `held_out.comparable`.

    There are two orders. Where training came first (the drawn world), say what it saw. Where one folder holds both (Visual Genome),
    build the benchmark of pictures that `split_images` set aside, train without what `held_out` of it names, and have
    `compare_with_training` write the proof into the card.

    Args:
        pictures: stop after so many, in an order drawn by `seed`; None takes all, in the order of their image_id.
        source, licence: of pictures and captions, in words, for the card.
    Raises:
        ValueError: no picture can be used, pictures of several folders, or something is shared with training after all.
    """
    images = in_drawn_order(images, seed) if pictures else sorted(images, key=lambda image: image.image_id)
    folders = {image.folder for image in images}
    if len(folders) != 1:
        raise ValueError(f"the pictures should be of one folder, not of {len(folders)}: {sorted(map(str, folders))}")
    table, skipped = read_instructions(instructions)
    training_images, training_captions = list(training_images), list(training_captions)
    captions, asked = ({comparable(t) for t in texts} for texts in (training_captions, training_instructions))
    draw = _Draw(table, same_bytes((image.image for image in images), training_images), captions, asked, seed, per_image, drop_largest)
    rows, wanted = [], per_image * (pictures or len(images))
    for image in images:
        rows += draw(image, enough=len(rows) == wanted)
    if not rows:
        raise ValueError(f"no picture can be used for CtrlBench: {dict(draw.pictures)}")
    facts = {"source": source, "licence": licence, "seed": seed, "per_image": per_image, "drop_largest": drop_largest}
    facts |= {"pictures": dict(draw.pictures), "regions": dict(draw.regions), "instructions_left_out": dict(skipped.counts)}
    facts |= _compared(rows, training_images, training_captions, asked)
    return write(rows, _paraphrases(rows, instructions, asked), folders.pop(), Path(out), facts)


class _Draw:
    """Draws the rows of one picture after the other, and counts what becomes of pictures and of their regions."""

    def __init__(self, table: dict, seen: set[Path], captions: set[str], asked: set[str], seed: int, per_image: int, drop_largest: int):
        self.table, self.seen, self.captions, self.asked = table, seen, captions, asked
        self.seed, self.per_image, self.drop_largest = seed, per_image, drop_largest
        self.given: set[str] = set()  # captions of earlier pictures
        self.pictures, self.regions = Counter(kept=0), Counter(kept=0)

    def __call__(self, image: GenomeImage, enough: bool) -> list[Instructed]:
        """All rows of a picture, or none."""
        rows, why = [], None
        if enough:
            why = "not needed"
        elif image.image in self.seen:
            why = "seen in training"
        else:
            rows, regions = self._regions(image)
            if len(rows) < self.per_image:
                why = "too few regions that can be asked for"
            elif not _opens(image.image):
                why = "cannot be decoded"
        self.pictures[why or "kept"] += 1
        if why:
            self.regions["of a picture that was left out"] += len(image.regions)
            return []
        self.regions.update(regions)
        self.given.update(comparable(row.caption) for row in rows)
        return rows

    def _regions(self, image: GenomeImage) -> tuple[list[Instructed], Counter]:
        """Up to `per_image` rows; no text twice in the picture."""
        rng = np.random.default_rng([self.seed, image.image_id, 1])
        small = small_regions(image, self.drop_largest, self.seed)
        why, rows = Counter({"one of the largest": len(image.regions) - len(small)}), []
        captions: set[str] = set()
        texts: set[str] = set()
        for region in small:
            options: Options = self.table.get((image.image_id, region.region_id), {})
            fresh = {k: [w for w in said if (n := comparable(w)) not in self.asked and n not in texts] for k, said in options.items()}
            caption = comparable(region.caption)
            if len(rows) == self.per_image:
                why["not needed"] += 1
            elif caption in self.captions:
                why["caption seen in training"] += 1
            elif caption in self.given or caption in captions:
                why["caption given before"] += 1
            elif (drawn := choose(fresh, rng)) is None:
                why["no instruction that is new"] += 1
            else:
                rows.append(Instructed(region.image, image.image_id, region.region_id, region.box, *drawn, region.caption))
                captions.add(caption)
                texts.add(comparable(drawn[1]))
        return rows, why + Counter(kept=len(rows))


def _opens(path: Path) -> bool:
    """Can the picture be decoded?"""
    try:
        return bool(open_image(path))
    except UnreadableImage:
        return False


def _paraphrases(rows: list[Instructed], path: Path, asked: set[str]) -> list[list[str]]:
    """For each row the wordings of its question: those of its line of `path` that training never saw and that ask for no other region of
    the picture. The wording that was drawn is one of them."""
    number = {(r.image_id, r.region_id, r.kind): i for i, r in enumerate(rows)}
    found: list[list[str]] = [[] for _ in rows]
    for _, entry in read_json_lines(path):
        i = number.get((entry["image_id"], entry["region_id"], entry["kind"]))
        if i is not None and not found[i] and rows[i].instruction in entry["instructions"]:
            found[i] = [t for t in dict.fromkeys(entry["instructions"]) if t.strip() and comparable(t) not in asked]
    owners: dict[tuple[int, str], set[int]] = {}
    for i, said in enumerate(found):
        for text in said:
            owners.setdefault((rows[i].image_id, comparable(text)), set()).add(i)
    for i, row in enumerate(rows):
        owners[row.image_id, comparable(row.instruction)] = {i}
    return [[text for text in said if owners[rows[i].image_id, comparable(text)] == {i}] for i, said in enumerate(found)]


def held_out(path: Path | None = None, karpathy: Path | None = None) -> HeldOut:
    """What training has to go without: the benchmark in the folder `path`, with all wordings of its instructions, and the test pictures
    of the Karpathy split in the file `karpathy` (dataset_coco.json)."""
    coco = coco_ids(karpathy) if karpathy else frozenset()
    if path is None:
        return HeldOut(coco)
    bench = load(path)
    asked = frozenset(comparable(text) for said in bench.wordings for text in said)
    return HeldOut(coco, frozenset(row.image for row in bench.rows), frozenset(map(comparable, bench.captions)), asked)


def compare_with_training(path: Path, rows: Sequence[Instructed]) -> dict:
    """Write into the card of the benchmark in `path` what it shares and nearly shares with the rows of training; returns the card.

    Raises:
        ValueError: a picture, a caption or an instruction is shared.
    """
    bench = load(path)
    said = _compared(bench.rows, sorted({row.image for row in rows}), [row.caption for row in rows], [row.instruction for row in rows])
    card = bench.card | said
    write_card(card, Path(path))
    return card


def _compared(rows: list[Instructed], images: Sequence[Path], captions: Iterable[str], instructions: Iterable[str]) -> dict:
    """The part of the card about training; "shared_with_training" is None where no training is known."""
    shared = leakage(rows, images, captions, instructions)
    if any(shared.values()):
        raise ValueError(f"the benchmark shares data with training: {shared}")
    known = bool(images or captions or instructions)
    near = near_duplicates([row.caption for row in rows], captions)
    return {"shared_with_training": shared if known else None, "training_pictures": len(images), "near_duplicates": near}


# --- 2. as an evaluation set -----------------------------------------------------------------------------------------------------


def task(bench: Benchmark) -> Task:
    """The benchmark as an evaluation set: each picture once, in the order of the rows."""
    place: dict[Path, int] = {}
    shown = np.array([place.setdefault(row.image, len(place)) for row in bench.rows], dtype=np.int64)
    return Task("CtrlBench", list(place), shown, bench.instructions, bench.captions, list(bench.gold[:, None]))


# --- 3. by kind -----------------------------------------------------------------------------------------------------------------


def per_kind(rank: np.ndarray, kinds: Sequence[str]) -> list[dict]:
    """R@k in per cent and number of queries for each kind of instruction: [{kind, r1, r5, r10, n}], sorted by kind."""
    rank, kinds = np.asarray(rank), np.asarray(kinds)
    if len(rank) != len(kinds):
        raise ValueError(f"{len(rank)} ranks for {len(kinds)} kinds")
    parts = {str(kind): rank[kinds == kind] for kind in np.unique(kinds)}
    return [{"kind": kind, **{f"r{k}": recall(part, k) for k in KS}, "n": len(part)} for kind, part in parts.items()]
