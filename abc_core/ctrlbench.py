"""CtrlBench (Sec. 4.4): find the one caption that an instruction about a picture asks for, among the captions of all pictures.

Steps: (1) `build` draws five regions a picture as for training (Sec. 3.2), captions unique, nothing shared with training, and has
`benchmark` write them; (2) `task` makes an evaluation set of what `load` reads back; (3) blind baselines and the oracle; (4) R@k by kind.
A system that ignores the instruction cannot tell the five captions of a picture apart: 20 % R@1 at most, in expectation.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from abc_core.benchmark import Benchmark, load, write, write_card
from abc_core.data import UnreadableImage, expect, field_of, open_image, read_json_lines
from abc_core.evaluate import KS, recall
from abc_core.genome import GenomeImage
from abc_core.held_out import HeldOut, coco_ids, comparable, in_drawn_order, leakage, near_duplicates, same_bytes
from abc_core.instructions import Instructed, Options, choose, read_instructions, small_regions
from abc_core.tasks import Task

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


# --- 3. baselines ---------------------------------------------------------------------------------------------------------------


def bm25(instructions: Sequence[str], captions: Sequence[str]) -> np.ndarray:
    """float32[Q, C]: BM25 of instructions as queries against captions; no shared word scores 0, so such captions tie."""
    import bm25s

    retriever = bm25s.BM25()
    queries, documents = (bm25s.tokenize(list(texts), return_ids=False, show_progress=False) for texts in (instructions, captions))
    if not any(documents):  # nothing but stop words
        return np.zeros((len(queries), len(documents)), dtype=np.float32)
    retriever.index(documents, show_progress=False)
    return np.stack([retriever.get_scores_from_ids(retriever.get_tokens_ids(query)) for query in queries]).astype(np.float32)


def chance(queries: int, candidates: int, seed: int) -> np.ndarray:
    """int64[Q]: ranks of random scores, which are uniform over the candidates."""
    return np.random.default_rng(seed).integers(candidates, size=queries)


def oracle(rows: Sequence[Instructed], truth: Path) -> np.ndarray:
    """float32[Q, C]: 1 where the meaning of a caption is the meaning that the instruction asks for, else 0.

    R@1 of 100 % under pessimistic ties shows that no two captions have one meaning.

    Args:
        truth: JSON lines {image_id, regions: {region_id: [object, colour, shape]}}.
    Raises:
        ValueError: a row of the benchmark has no meaning there.
    """
    truth = expect(Path(truth), "the embedded world's truth")
    known = {}
    for number, entry in read_json_lines(truth):
        where = f"{truth} row {number}"
        image_id = field_of(entry, "image_id", int, where)
        known |= {(image_id, region): tuple(meaning) for region, meaning in field_of(entry, "regions", dict, where).items()}
    numbers: dict[tuple, int] = {}
    meanings = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        key = (row.image_id, str(row.region_id))
        if key not in known:
            raise ValueError(f"{truth} has no meaning for region {row.region_id} of image {row.image_id} (row {i} of the benchmark)")
        meanings[i] = numbers.setdefault(known[key], len(numbers))
    return (meanings[:, None] == meanings[None]).astype(np.float32)


def shuffled_instructions(rows: Sequence[Instructed], seed: int) -> list[str]:
    """For each row an instruction of another picture, drawn without regard to which of the picture's captions is right.

    Raises:
        ValueError: all rows are of one picture.
    """
    texts: dict[int, list[str]] = {}
    for row in rows:
        texts.setdefault(row.image_id, []).append(row.instruction)
    if len(texts) < 2:
        raise ValueError(f"{len(rows)} rows of {len(texts)} picture; instructions of another one were wanted")
    rng = np.random.default_rng(seed)
    circle = rng.permutation(sorted(texts)).tolist()  # each picture asks what the next one in the circle was asked
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    decks = {image: [texts[following[image]][k] for k in rng.permutation(len(texts[following[image]]))] for image in circle}
    dealt: Counter = Counter()
    out = []
    for row in rows:
        deck = decks[row.image_id]
        out.append(deck[dealt[row.image_id] % len(deck)])
        dealt[row.image_id] += 1
    return out


# --- 4. by kind -----------------------------------------------------------------------------------------------------------------


def per_kind(rank: np.ndarray, kinds: Sequence[str]) -> list[dict]:
    """R@k in per cent and number of queries for each kind of instruction: [{kind, r1, r5, r10, n}], sorted by kind."""
    rank, kinds = np.asarray(rank), np.asarray(kinds)
    if len(rank) != len(kinds):
        raise ValueError(f"{len(rank)} ranks for {len(kinds)} kinds")
    parts = {str(kind): rank[kinds == kind] for kind in np.unique(kinds)}
    return [{"kind": kind, **{f"r{k}": recall(part, k) for k in KS}, "n": len(part)} for kind, part in parts.items()]


# --- 5. examples ----------------------------------------------------------------------------------------------------------------


def examples(bench: Benchmark, with_emb, without_emb, c_emb, rank: np.ndarray, quantiles=(0.9, 0.5, 0.1), top: int = 3) -> list[dict]:
    """Pages for `figures.plot_retrieved`: the pictures at these quantiles of mean reciprocal rank, with two instructions each.

    Args:
        with_emb, without_emb: float32[Q, d] of the queries with and without their instruction; c_emb: float32[C, d].
        rank: int[Q], ranks with the instruction. top: captions shown of each.
    """
    pictures = np.unique(bench.groups)
    mrr = np.array([np.mean(1 / (1 + np.asarray(rank)[bench.groups == p])) for p in pictures])
    order = np.argsort(mrr, kind="stable")
    page = []
    for quantile in quantiles:
        picture = pictures[order[round(quantile * (len(order) - 1))]]
        for q in np.flatnonzero(bench.groups == picture)[:2]:
            entry = {"image": open_image(bench.rows[q].image), "instruction": bench.rows[q].instruction}
            for name, emb in (("with", with_emb), ("without", without_emb)):
                scores = c_emb @ emb[q]
                best = np.argsort(-scores, kind="stable")[:top]
                entry[name] = [(bench.captions[j], float(scores[j]), bool(j == bench.gold[q])) for j in best]
            page.append(entry)
    return page
