"""The embedded world on disk, in the public layouts of the data it stands for; read back only through the readers of `abc_core.data`.

folder          layout                                         used by
backbone/       LLaVA-style conversations (JSON lines)         generative training of the tiny VLM (training meanings)
backbone_test/  the same, held-out meanings                    exact match of the backbone
cc/             Conceptual Captions TSV + pictures             mining and stage 1 (training meanings)
cc_val/ cc_ood/ the same: new scenes · held-out meanings in another look   validation in and out of distribution
vg/             Visual Genome regions + instructions.jsonl     stage 2 (training meanings, trained wordings)
vg_test/        the same, held-out meanings and wordings       CtrlBench; also with instructions_trained.jsonl
retrieval/      Karpathy JSON, held-out meanings               image ↔ text retrieval
low_pixel/ high_pixel/ the same: single cards · full scenes at twice the size   accuracy by resolution
mmeb/           MMEB Parquet files, held-out meanings          zero-shot classification and VQA (`mmeb_part`)

The pairs of cc, cc_val and cc_ood come in fours, a scene and its twins (`_with_twins`).
All but the first two also have truth.jsonl (which meanings a picture shows, which a caption claims), for audits and the oracle alone.

The split is by meaning: of every family of look-alike glyphs, `HELD_OUT_COLOURS` of the ten colours are held out, with all shapes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np

from abc_core import paths
from abc_core.openmoji import words
from abc_core.openmoji.glyphs import ATTRIBUTION, load_glyphs
from abc_core.openmoji.questions import REGION_KINDS, questions
from abc_core.openmoji.scene import LOOKS, OOD_LOOKS, Meaning, Scene, draw, enlarge, regions, resample_meanings, sample_scene
from abc_core.runlog import fingerprint

VERSION = 6  # part of the fingerprint; raise it when a drawing or a wording changes
NEWER = {"vg_test": 7}  # parts that have more files than VERSION says; the others keep their folders
HELD_OUT_COLOURS = 4
FULL_GRIDS = ((3, 3), (3, 3), (2, 3), (3, 2))
SMALL_GRIDS = ((1, 2), (2, 1), (2, 2), (2, 2))
SINGLE = ((1, 1),)


@dataclass(frozen=True)
class World:
    """Which world: a seed, the number of glyphs, and optionally a folder of PNG pictures in their place."""

    seed: int = 0
    glyphs: int = 300
    sprites: str | None = None


@dataclass(frozen=True)
class _Pools:
    train: list[Meaning]
    held_out: list[Meaning]
    sprites: dict[str, np.ndarray]


@lru_cache(maxsize=2)
def pools(world: World) -> _Pools:
    """Training and held-out meanings, and the sprites by name."""
    glyphs = load_glyphs(world.glyphs, Path(world.sprites) if world.sprites else None)
    train, held = [], []
    for g in glyphs:
        family_seed = int(hashlib.sha256(f"{world.seed}/{g.family}".encode()).hexdigest()[:8], 16)
        out = set(np.random.default_rng(family_seed).permutation(len(words.COLOURS))[:HELD_OUT_COLOURS].tolist())
        for k, colour in enumerate(words.COLOURS):
            (held if k in out else train).extend((g.name, colour, shape) for shape in words.SHAPES)
    return _Pools(train, held, {g.name: g.rgba for g in glyphs})


# --- sampling -----------------------------------------------------------------------------------------------------------------


def _scenes(rng: np.random.Generator, pool: list[Meaning], n: int, mix: dict, looks=tuple(LOOKS)) -> Iterator[Scene]:
    """n scenes; `mix` maps a tuple of grids to its share. One in eight is a sibling of the last full scene."""
    kinds, shares = list(mix), np.array(list(mix.values()))
    last = None
    for _ in range(n):
        grids = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
        grid = grids[rng.integers(len(grids))]
        if grids is FULL_GRIDS and last is not None and rng.random() < 1 / 8:
            yield resample_meanings(last, rng, pool, keep=0.7)
            last = None
            continue
        room = grid[0] * grid[1]
        low = {1: 1, 2: 1, 4: 2, 6: 5, 9: 6}[room]
        drawn = [pool[i] for i in rng.choice(len(pool), size=int(rng.integers(low, room + 1)), replace=False)]
        if len(drawn) > 3 and rng.random() < 0.15:  # the same glyph on two cards
            drawn[1] = next(m for m in _shuffled(rng, pool) if m[0] == drawn[0][0] and m[1:] != drawn[0][1:])
        cell = int(rng.choice([56] * 7 + [84]) if room > 1 else rng.choice([56] * 6 + [84, 112]))
        scene = sample_scene(rng, drawn, grid, cell, looks)
        last = scene if grids is FULL_GRIDS else last
        yield scene


def _shuffled(rng, pool):
    start = int(rng.integers(len(pool)))
    return pool[start:] + pool[:start]


def _dealt(rng: np.random.Generator, pool: list[Meaning], n: int) -> Iterator[Scene]:
    """Full scenes whose cards are dealt from one shuffled deck of all meanings: no meaning appears twice in the whole set."""
    deck = [pool[i] for i in rng.permutation(len(pool))]
    for _ in range(n):
        grid = FULL_GRIDS[rng.integers(len(FULL_GRIDS))]
        wanted = int(rng.integers(5, 8 if grid == (3, 3) else 7))
        if len(deck) < wanted:
            raise ValueError(f"the held-out meanings ({len(pool)}) do not suffice for {n} scenes; ask for fewer or for more glyphs")
        yield sample_scene(rng, [deck.pop() for _ in range(wanted)], grid, 56)


def _with_twins(rng: np.random.Generator, scenes: Iterator[Scene], pool: list[Meaning]) -> Iterator[tuple[Scene, list[int]]]:
    """Each scene with the cards that its caption will name, one or two, then its twins, painted anew, in which one of these cards differs:

    it has either of the other shapes, and, in a third twin, another object or another colour. No random negative asks a model to see that.
    """
    known, things = set(pool), sorted({m[0] for m in pool})
    for scene in scenes:
        named = _some_cards(scene, rng, 2)
        yield scene, named
        k = named[rng.integers(len(named))]
        obj, colour, shape = scene.cards[k].meaning
        others = [(o, colour, shape) for o in things] if rng.random() < 0.5 else [(obj, c, shape) for c in words.COLOURS]
        others = [m for m in others if m in known and m != scene.cards[k].meaning]
        for other in [*((obj, colour, s) for s in words.SHAPES if s != shape), others[rng.integers(len(others))]]:
            cards = [replace(c, meaning=other) if i == k else c for i, c in enumerate(scene.cards)]
            yield replace(scene, cards=tuple(cards), seed=int(rng.integers(2**31))), named


def _some_cards(scene: Scene, rng: np.random.Generator, most: int = 3) -> list[int]:
    """One to `most` cards of a scene, in order."""
    return sorted(rng.permutation(len(scene.cards))[: int(rng.integers(1, most + 1))].tolist())


def _caption(meanings: list[Meaning], opening: int, wordings: list[int | None]) -> str:
    """A caption of several cards."""
    return words.OPENINGS[opening % len(words.OPENINGS)] + words.join([words.caption(m, k) for m, k in zip(meanings, wordings)])


# --- writing ------------------------------------------------------------------------------------------------------------------


def draw_part(root: Path, part: str, count: int, world: World = World(), report=None) -> Path:
    """The folder of one part of the world with `count` pictures, drawn first if it is not there yet, whole or not at all.

    Its name carries a fingerprint of everything that determines it, so another number or another version is another folder.

    Raises:
        ValueError: an unknown part, no pictures, or more scenes without a repeated meaning than there are meanings.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r} of the world; known are {', '.join(PARTS)}")
    if count < 1:
        raise ValueError(f"{count} pictures of {part!r} were asked for; at least one is needed")
    facts = {"part": part, "count": count, "version": NEWER.get(part, VERSION), **asdict(world)}
    credit = ATTRIBUTION
    if world.sprites is not None:
        facts["sprites"] = fingerprint(Path(world.sprites))
        credit = f"Pictures: those of the folder {Path(world.sprites).name}, under their own licence."
    folder = Path(root) / "openmoji" / f"{part}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    if report is not None:
        report(f"drawing {count:,} pictures of {folder.name} …")
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    PARTS[part](unfinished, count, world, report=report)
    (unfinished / "ATTRIBUTION.txt").write_text(credit + "\n")
    (unfinished / "world.json").write_text(json.dumps(facts, indent=1))
    unfinished.rename(folder)
    return folder


def data_folder(source: str, count: int, world: World = World(), report=None) -> Path:
    """The folder of `source`: a part of the world with `count` pictures, drawn if needed, or a folder of real data as it is.

    Raises:
        FileNotFoundError: neither a part of the world nor a folder.
    """
    if source in PARTS:
        return draw_part(paths.DATA, source, count, world, report)
    folder = paths.ROOT / source  # an absolute one stays as it is
    if not folder.is_dir():
        raise FileNotFoundError(f"{source!r} is no folder ({folder}), and no part of the drawn world: {', '.join(PARTS)}")
    return folder


LESSON = {SINGLE: 0.25, SMALL_GRIDS: 0.25, FULL_GRIDS: 0.5}
PHOTO = {SINGLE: 0.4, SMALL_GRIDS: 0.4, FULL_GRIDS: 0.2}
FULL = {FULL_GRIDS: 1.0}


def _conversations(path: Path, count: int, world: World, mix: dict, held_out: bool, report=None) -> None:
    rng, pool = _stream(world, path), pools(world)
    scenes = list(_scenes(rng, pool.held_out if held_out else pool.train, count, mix))
    _paint(path, scenes, world, "images/{:06d}.jpg", report)
    _lines(path / "conversations.jsonl", (_conversation(i, s, rng, held_out) for i, s in enumerate(scenes)))


def _pairs(path: Path, count: int, world: World, looks: dict, held_out: bool, report=None) -> None:
    rng, pool = _stream(world, path), pools(world)
    meanings = pool.held_out if held_out else pool.train
    drawn = list(islice(_with_twins(rng, _scenes(rng, meanings, count, PHOTO, tuple(looks)), meanings), count))
    _paint(path, [scene for scene, _ in drawn], world, "images/{:06d}.jpg", report)
    claims = [[scene.cards[i].meaning for i in named] for scene, named in drawn]
    captions = [_caption(m, words.own_number(m), [None] * len(m)) for m in claims]
    (path / "Train_GCC-training.tsv").write_text("".join(f"{c}\timages/{i:06d}.jpg\n" for i, c in enumerate(captions)))
    _lines(path / "truth.jsonl", ({"shows": _meanings(scene), "claims": m} for (scene, _), m in zip(drawn, claims)))


def _regions(path: Path, count: int, world: World, held_out: bool, report=None) -> None:
    rng, pool = _stream(world, path), pools(world)
    scenes = list(_dealt(rng, pool.held_out, count) if held_out else _scenes(rng, pool.train, count, FULL))
    _paint(path, scenes, world, "VG_100K/{}.jpg", report)
    _genome(path, scenes, rng, held_out)


def _retrieval(path: Path, count: int, world: World, mix: dict = PHOTO, times: int = 1, report=None) -> None:
    rng, pool = _stream(world, path), pools(world)
    scenes = [enlarge(scene, times) for scene in _scenes(rng, pool.held_out, count, mix)]
    _paint(path, scenes, world, "images/{:06d}.jpg", report)
    claims = [[[scene.cards[i].meaning for i in _some_cards(scene, rng)] for _ in range(5)] for scene in scenes]
    captions = [[_caption(m, int(rng.integers(2**16)), rng.integers(2**16, size=len(m)).tolist()) for m in five] for five in claims]
    images = [_karpathy(i, c) for i, c in enumerate(captions)]
    (path / "dataset_openmoji.json").write_text(json.dumps({"images": images, "dataset": "openmoji"}))
    _lines(path / "truth.jsonl", ({"shows": _meanings(s), "claims": five} for s, five in zip(scenes, claims)))


def _mmeb(path: Path, count: int, world: World, report=None) -> None:
    from abc_core.openmoji import mmeb_part  # which draws with this module's functions

    mmeb_part.write(path, count, world, report)


# Part -> function(path, count, world, report=None) that writes it; the table in the module's docstring says what each is for.
PARTS = {
    "backbone": partial(_conversations, mix=LESSON, held_out=False),
    "backbone_test": partial(_conversations, mix=FULL, held_out=True),
    "cc": partial(_pairs, looks=LOOKS, held_out=False),
    "cc_val": partial(_pairs, looks=LOOKS, held_out=False),
    "cc_ood": partial(_pairs, looks=OOD_LOOKS, held_out=True),
    "vg": partial(_regions, held_out=False),
    "vg_test": partial(_regions, held_out=True),
    "retrieval": _retrieval,
    "low_pixel": partial(_retrieval, mix={SINGLE: 1.0}),
    "high_pixel": partial(_retrieval, mix=FULL, times=2),
    "mmeb": _mmeb,
}


def _stream(world: World, path: Path) -> np.random.Generator:
    """The random stream of a part, by its name alone: parts do not depend on each other."""
    part = path.name.split("-")[0]
    return np.random.default_rng([world.seed, int(hashlib.sha256(part.encode()).hexdigest()[:8], 16)])


def _paint(path: Path, scenes: list[Scene], world: World, pattern: str, report=None) -> None:
    """Draw and save all pictures, two processes at a time; image k gets the number k (Visual Genome: k + 1)."""
    from abc_core.resumable import timed  # brings torch, which a drawn picture does not need

    first = 1 if "VG" in pattern else 0
    (path / pattern).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(scene, str(path / pattern.format(k + first)), world) for k, scene in enumerate(scenes)]
    with ProcessPoolExecutor(2) as pool:
        for _ in timed(pool.map(_paint_one, jobs, chunksize=64), len(jobs), "pictures", report):
            pass


def _paint_one(job) -> None:
    scene, path, world = job
    draw(scene, pools(world).sprites).save(path, quality=92)


def _conversation(i: int, scene: Scene, rng: np.random.Generator, held_out: bool) -> dict:
    """One LLaVA record: question and answer turns with their kinds; a question about one card may ask for the whole caption.

    With `held_out`, each question comes once in a trained and once in a held-out wording (kind + "_reworded").
    """
    turns = []
    for q in questions(scene, rng):
        about = -1 if q.card is None else scene.cards.index(q.card)
        turns.append((q.kind, q.ask(rng), q.answer, about))
        if held_out:
            turns.append((q.kind + "_reworded", q.ask(rng, held_out=True), q.answer, about))
        if q.kind in REGION_KINDS:
            describe = words.DESCRIBE[rng.integers(len(words.DESCRIBE))].format(q=q.ask(rng))
            turns.append((q.kind + "_described", describe, words.caption(q.card.meaning, 0), about))
    talk = []
    for k, (_, question, answer, _) in enumerate(turns):
        talk += [{"from": "human", "value": ("<image>\n" if k == 0 else "") + question}, {"from": "gpt", "value": answer}]
    picture = {"id": i, "image": f"images/{i:06d}.jpg", "width": scene.width, "height": scene.height}
    seen = [{"box": c.box, "words": (*c.meaning, words.place(c.cell, scene.grid))} for c in scene.cards]
    about = {"kinds": [kind for kind, *_ in turns], "about": [region for *_, region in turns]}
    return picture | about | {"conversations": talk, "regions": seen}


def _genome(path: Path, scenes: list[Scene], rng: np.random.Generator, held_out: bool) -> None:
    """Visual Genome's two files, the instructions of every region that can be asked for, and the truth.

    With `held_out`, the same questions in trained wordings too, row by row: for the spread over wordings, not for the benchmark.
    """
    described, images, truth = [], [], []
    asked = {"instructions": (held_out, [])} | ({"instructions_trained": (False, [])} if held_out else {})
    region_id = 0
    for image_id, scene in enumerate(scenes, start=1):
        rows, by_card = [], {}
        for (x, y, w, h), phrase, card in regions(scene):
            region_id += 1
            rows.append({"region_id": region_id, "image_id": image_id, "phrase": phrase, "x": x, "y": y, "width": w, "height": h})
            if card is not None:
                by_card[card] = region_id
        described.append({"id": image_id, "regions": rows})
        url = f"VG_100K/{image_id}.jpg"
        images.append({"image_id": image_id, "url": url, "width": scene.width, "height": scene.height, "coco_id": None, "flickr_id": None})
        for q in questions(scene, rng):
            if q.kind in REGION_KINDS:
                about = {"image_id": image_id, "region_id": by_card[q.card], "kind": q.kind}
                for reworded, lines in asked.values():
                    lines.append(about | {"instructions": q.wordings(reworded)})
        truth.append({"image_id": image_id, "regions": {by_card[c]: c.meaning for c in scene.cards}})
    (path / "region_descriptions.json").write_text(json.dumps(described))
    (path / "image_data.json").write_text(json.dumps(images))
    for name, (_, lines) in asked.items():
        _lines(path / f"{name}.jsonl", lines)
    _lines(path / "truth.jsonl", truth)


def _karpathy(i: int, captions: list[str]) -> dict:
    """One image record of a Karpathy split, in its test part."""
    sentences = [{"tokens": c.split(), "raw": c, "imgid": i, "sentid": 5 * i + k} for k, c in enumerate(captions)]
    picture = {"filename": f"{i:06d}.jpg", "filepath": "images", "imgid": i, "split": "test"}
    return picture | {"sentids": [s["sentid"] for s in sentences], "sentences": sentences}


def _meanings(scene: Scene) -> list[Meaning]:
    return [c.meaning for c in scene.cards]


def _lines(path: Path, rows) -> None:
    """Write JSON lines."""
    with path.open("w") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
