"""CtrlBench (Sec. 4.4): find the one caption that an instruction about a picture asks for, among the captions of all pictures.

Steps: (1) `build` draws five regions a picture as for training (Sec. 3.2), captions unique, nothing shared with training, and writes
ctrlbench.parquet and card.json; (2) `load` reads them back, whole or not at all; (3) blind baselines and the oracle; (4) R@k by kind.
A system that ignores the instruction cannot tell the five captions of a picture apart: 20 % R@1 at most, in expectation.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.data import expect, field_of, normalise, open_image, read_json, read_json_lines, whole_file
from abc_core.evaluate import KS, recall
from abc_core.instructions import Instructed, Options, choose, read_instructions, small_regions
from abc_core.paths import inside
from abc_core.readers import GenomeImage

FILE, CARD = "ctrlbench.parquet", "card.json"


@dataclass(frozen=True)
class Benchmark:
    """Q queries (picture, instruction); the caption of query i is candidate i. `folder` holds the pictures; `card` says what it is."""

    rows: list[Instructed]
    folder: Path
    card: dict

    @property
    def instructions(self) -> list[str]:
        """Q instructions."""
        return [row.instruction for row in self.rows]

    @property
    def captions(self) -> list[str]:
        """C = Q captions, the candidates."""
        return [row.caption for row in self.rows]

    @property
    def kinds(self) -> list[str]:
        """Q kinds of instruction."""
        return [row.kind for row in self.rows]

    @property
    def groups(self) -> np.ndarray:
        """int64[Q], the image_id of each query."""
        return np.array([row.image_id for row in self.rows])

    @property
    def gold(self) -> np.ndarray:
        """int64[Q], the right candidate of each query."""
        return np.arange(len(self.rows))


# --- 1. building ----------------------------------------------------------------------------------------------------------------


def build(
    images: Iterable[GenomeImage],
    instructions: Path,
    out: Path,
    seed: int,
    per_image: int = 5,
    drop_largest: int = 5,
    training_images: Iterable[Path] = (),
    training_captions: Iterable[str] = (),
    training_instructions: Iterable[str] = (),
) -> Path:
    """Write the benchmark into the folder `out`; returns `out`.

    per_image and drop_largest are the rule of Sec. 3.2 with five regions. Pictures are taken in the order of their image_id.
    One that cannot give `per_image` regions with captions that no earlier picture gave and training never saw, each with an instruction
    that training never saw, is left out and counted in the card, as is a picture that training saw (byte for byte).

    Raises:
        ValueError: no picture can be used, pictures of several folders, or something is shared with training after all.
    """
    images = sorted(images, key=lambda image: image.image_id)
    folders = {image.folder for image in images}
    if len(folders) != 1:
        raise ValueError(f"the pictures should be of one folder, not of {len(folders)}: {sorted(map(str, folders))}")
    table, skipped = read_instructions(instructions)
    training_images = list(training_images)
    seen = _same_bytes((image.image for image in images), training_images)
    captions, asked = ({normalise(t) for t in texts} for texts in (training_captions, training_instructions))
    taken, rows, why = set(captions), [], Counter(kept=0)
    for image in images:
        drawn = [] if image.image in seen else _draw(image, table, taken, asked, seed, per_image, drop_largest)
        if len(drawn) == per_image:
            rows += drawn
            taken.update(normalise(row.caption) for row in drawn)
            why["kept"] += 1
        else:
            why["seen in training" if image.image in seen else "too few regions that can be asked for"] += 1
    if not rows:
        raise ValueError(f"no picture can be used for CtrlBench: {dict(why)}")
    shared = leakage(rows, training_images, captions, asked)
    if any(shared.values()):
        raise ValueError(f"the benchmark shares data with training: {shared}")
    facts = {"seed": seed, "per_image": per_image, "drop_largest": drop_largest, "pictures": dict(why), "shared_with_training": shared}
    return _write(rows, folders.pop(), Path(out), facts | {"instructions_left_out": dict(skipped.counts)})


def _draw(image: GenomeImage, table: dict, taken: set, asked: set, seed: int, per_image: int, drop_largest: int) -> list[Instructed]:
    """Up to `per_image` rows of one picture: captions not `taken`, instructions not `asked` before, no text twice in the picture."""
    rng = np.random.default_rng([seed, image.image_id, 1])
    captions: set[str] = set()
    texts: set[str] = set()
    rows = []
    for region in small_regions(image, drop_largest, seed):
        options: Options = table.get((image.image_id, region.region_id), {})
        fresh = {kind: [w for w in said if (n := normalise(w)) not in asked and n not in texts] for kind, said in options.items()}
        caption = normalise(region.caption)
        drawn = None if caption in taken or caption in captions else choose(fresh, rng)
        if drawn is not None and len(rows) < per_image:
            rows.append(Instructed(region.image, image.image_id, region.region_id, region.box, *drawn, region.caption))
            captions.add(caption)
            texts.add(normalise(drawn[1]))
    return rows


def leakage(rows: list[Instructed], images: Iterable[Path], captions: Iterable[str], instructions: Iterable[str]) -> dict[str, int]:
    """How many pictures (byte for byte), captions and instructions (normalised) of the benchmark training saw."""
    mine = {row.image for row in rows}
    return {
        "images": len(_same_bytes(mine, images)),
        "captions": len({normalise(row.caption) for row in rows} & {normalise(c) for c in captions}),
        "instructions": len({normalise(row.instruction) for row in rows} & {normalise(i) for i in instructions}),
    }


def _same_bytes(mine: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Those files of `mine` that have the content of one of `others`; only files of equal size are read."""
    by_size: dict[int, list[Path]] = {}
    for path in mine:
        by_size.setdefault(path.stat().st_size, []).append(path)
    digest = lambda path: hashlib.sha256(path.read_bytes()).digest()  # noqa: E731
    seen = {digest(path) for path in others if path.stat().st_size in by_size}
    return {path for paths in by_size.values() for path in paths if seen and digest(path) in seen}


# --- 2. on disk -----------------------------------------------------------------------------------------------------------------


def _write(rows: list[Instructed], folder: Path, out: Path, facts: dict) -> Path:
    """Write rows and card; the card comes last and carries the fingerprint of the rows."""
    records = [
        {"image_id": r.image_id, "image": r.image.relative_to(folder).as_posix(), "region_id": r.region_id}
        | dict(zip(("x", "y", "width", "height"), map(float, r.box), strict=True))
        | {"kind": r.kind, "instruction": r.instruction, "caption": r.caption}
        for r in rows
    ]
    counts = {"queries": len(rows), "images": len({r.image_id for r in rows}), "kinds": dict(Counter(r.kind for r in rows))}
    card = {"name": "CtrlBench", "folder": os.path.relpath(folder, out), "fingerprint": _fingerprint(records), **counts, **facts}
    with whole_file(out / FILE) as partial:
        pq.write_table(pa.Table.from_pylist(records), partial)
    with whole_file(out / CARD) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n")
    return out


def _fingerprint(records: list[dict]) -> str:
    """16 hex digits of the rows' content."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path, folder: Path | None = None) -> Benchmark:
    """Read a benchmark folder; `folder` says where the pictures are if they are no longer where they were.

    Raises:
        FileNotFoundError: a file or the picture folder is missing.
        ValueError: rows and card do not belong together, a path leaves the folder, or the files are not a benchmark's.
    """
    path = Path(path)
    for name in (FILE, CARD):
        if not (path / name).exists():
            raise FileNotFoundError(f"{path / name} is missing; notebook 06 builds the benchmark")
    card = read_json(path / CARD)
    where = str(path / CARD)
    try:
        records = pq.read_table(path / FILE).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path / FILE} is not a Parquet file: {error}") from error
    if _fingerprint(records) != field_of(card, "fingerprint", str, where):
        raise ValueError(f"{path / FILE} is not what {where} describes (fingerprint {card['fingerprint']}); build the benchmark again")
    folder = Path(folder) if folder else Path(os.path.normpath(path / field_of(card, "folder", str, where)))
    if not folder.is_dir():
        raise FileNotFoundError(f"the pictures of {path} are missing: no folder {folder}. `make reproduce` draws the embedded ones.")
    rows = [
        Instructed(
            inside(folder, r["image"]), r["image_id"], r["region_id"], (r["x"], r["y"], r["width"], r["height"]),
            r["kind"], r["instruction"], r["caption"],
        )
        for r in records
    ]  # fmt: skip
    return Benchmark(rows, folder, card)


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
