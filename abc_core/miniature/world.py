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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from abc_core.miniature import words
from abc_core.miniature.glyphs import load_glyphs
from abc_core.miniature.scene import LOOKS, Meaning, Scene, draw, resample_meanings, sample_scene

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






LESSON = {SINGLE: 0.25, SMALL_GRIDS: 0.25, FULL_GRIDS: 0.5}
PHOTO = {SINGLE: 0.4, SMALL_GRIDS: 0.4, FULL_GRIDS: 0.2}
FULL = {FULL_GRIDS: 1.0}














def _stream(world: World, path: Path) -> np.random.Generator:
    """The random stream of a part, by its name alone: parts do not depend on each other."""
    part = path.name.split("-")[0]
    return np.random.default_rng([world.seed, int(hashlib.sha256(part.encode()).hexdigest()[:8], 16)])


def _paint(path: Path, scenes: list[Scene], world: World, pattern: str, report=None) -> None:
    """Draw and save all pictures, two processes at a time; image k gets the number k (Visual Genome: k + 1)."""
    from abc_core.runs.arrays import timed

    first = 1 if "VG" in pattern else 0
    (path / pattern).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(scene, str(path / pattern.format(k + first)), world) for k, scene in enumerate(scenes)]
    with ProcessPoolExecutor(2) as pool:
        for _ in timed(pool.map(_paint_one, jobs, chunksize=64), len(jobs), "pictures", report):
            pass


def _paint_one(job) -> None:
    scene, path, world = job
    draw(scene, pools(world).sprites).save(path, quality=92)








def _meanings(scene: Scene) -> list[Meaning]:
    return [c.meaning for c in scene.cards]


def _lines(path: Path, rows) -> None:
    """Write JSON lines."""
    with path.open("w") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
