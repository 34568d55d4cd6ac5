"""The parts of the drawn world as folders: each is drawn once, whole or not at all, in the layout of the data that it stands for."""

import hashlib
import json
import shutil
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from abc_core.miniature import words
from abc_core.miniature.glyphs import ATTRIBUTION
from abc_core.miniature.questions import REGION_KINDS, questions
from abc_core.miniature.scene import LOOKS, OOD_LOOKS, Scene, enlarge, regions
from abc_core.miniature.world import (
    FULL,
    LESSON,
    NEWER,
    PHOTO,
    SINGLE,
    VERSION,
    World,
    _caption,
    _dealt,
    _lines,
    _meanings,
    _paint,
    _scenes,
    _some_cards,
    _stream,
    _with_twins,
    pools,
)
from abc_core.runs import paths
from abc_core.runs.run import fingerprint

WORLD = World()


def draw_part(root: Path, part: str, count: int, world: World = WORLD, report=None) -> Path:
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


def data_folder(source: str, count: int, world: World = WORLD, report=None) -> Path:
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
    from abc_core.miniature import mmeb_part

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
