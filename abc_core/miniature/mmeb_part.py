"""Classification and VQA sets of the embedded world in MMEB's layout, of held-out meanings and in held-out wordings.

set              kind            pictures                                  answers
Objects          classification  one card                                  the object, among up to LABELS objects
Cards            classification  those of Objects                          colour and shape of the card, among all
MainObjects      classification  two to four cards, one of them larger     the object on the larger card
Objects-OOD      classification  one card, in a look never trained on      the object
Content-VQA      vqa             five to nine cards                        what is on the red disc
Place-VQA        vqa             the same                                  what is in the top left
Property-VQA     vqa             the same                                  what is the owl on
Neighbour-VQA    vqa             the same                                  what is to the right of the owl

A row of a VQA set chooses among all answers that questions of its kind have in the set's scenes, so what else its own scene shows is there.
truth.jsonl has {image, shows, answers: {set: answer}} for the oracle alone.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abc_core.data.mmeb import PLACEHOLDER, QUESTION
from abc_core.miniature import words
from abc_core.miniature.questions import questions
from abc_core.miniature.scene import OOD_LOOKS, Scene

CLASSIFICATION = ("Objects", "Cards", "MainObjects", "Objects-OOD")
VQA = {"Content-VQA": "content", "Place-VQA": "place", "Property-VQA": "property", "Neighbour-VQA": "neighbour"}
LABELS = 200  # objects of a world that are labels at most
CLASSIFY = "Represent the given image for classification"


def write(path: Path, count: int, world, report=None) -> None:
    """Write all sets of `count` pictures together: a quarter each single cards, unfamiliar ones, small scenes and full scenes.

    Raises:
        ValueError: fewer than four pictures.
    """
    from abc_core.miniature import world as drawing

    if count < 4:
        raise ValueError(f"{count} pictures for sets of four sorts of pictures; at least four are needed")
    rng, pools = drawing._stream(world, path), drawing.pools(world)
    names = sorted(pools.sprites)
    labels = sorted(names[k] for k in rng.permutation(len(names))[:LABELS])
    known = [m for m in pools.held_out if m[0] in set(labels)]
    sizes = [len(part) for part in np.array_split(np.arange(count), 4)]
    pictures = {
        "Objects": list(drawing._scenes(rng, known, sizes[0], {drawing.SINGLE: 1.0})),
        "Objects-OOD": list(drawing._scenes(rng, known, sizes[1], {drawing.SINGLE: 1.0}, tuple(OOD_LOOKS))),
        "MainObjects": _with_large_card(drawing, rng, known, sizes[2]),
        "Scenes": list(drawing._scenes(rng, pools.held_out, sizes[3], drawing.FULL)),
    }
    answers = {name: [{} for _ in scenes] for name, scenes in pictures.items()}  # of each picture: set -> (question, answer)
    for name in ("Objects", "Objects-OOD", "MainObjects"):
        for said, scene in zip(answers[name], pictures[name]):
            said[name] = CLASSIFY, _main(scene)[0]
    for said, scene in zip(answers["Objects"], pictures["Objects"]):
        said["Cards"] = CLASSIFY, " ".join(_main(scene)[1:])
    cards = [f"{colour} {shape}" for colour in words.COLOURS for shape in words.SHAPES]
    offered = dict.fromkeys(CLASSIFICATION, labels) | {"Cards": cards} | _ask(answers["Scenes"], pictures["Scenes"], rng)
    for name, scenes in pictures.items():
        drawing._paint(path, scenes, world, f"images/{name}/{{:06d}}.jpg", report)
    rows = [(f"{name}/{k:06d}.jpg", said) for name, per_picture in answers.items() for k, said in enumerate(per_picture)]
    for name, candidates in offered.items():
        _write_set(path / name, [(image, *said[name]) for image, said in rows if name in said], candidates, rng)
    shown = [scene for scenes in pictures.values() for scene in scenes]
    drawing._lines(path / "truth.jsonl", (_truth(image, scene, said) for (image, said), scene in zip(rows, shown)))


def _with_large_card(drawing, rng: np.random.Generator, pool: list, count: int) -> list[Scene]:
    """Small scenes with one card that is larger than the others."""
    found: list[Scene] = []
    while len(found) < count:
        drawn = drawing._scenes(rng, pool, count, {drawing.SMALL_GRIDS: 1.0})
        found += [scene for scene in drawn if any(card.size == "large" for card in scene.cards)]
    return found[:count]


def _main(scene: Scene) -> tuple[str, str, str]:
    """The meaning of the larger card, or of the only one."""
    return next((card.meaning for card in scene.cards if card.size == "large"), scene.cards[0].meaning)


def _ask(answers: list[dict], scenes: list[Scene], rng: np.random.Generator) -> dict[str, list[str]]:
    """One question of each set about each scene that has one, into `answers`; returns the answers that each set offers."""
    offered: dict[str, set[str]] = {name: set() for name in VQA}
    for said, scene in zip(answers, scenes):
        possible = questions(scene, rng)
        for name, kind in VQA.items():
            asked = [q for q in possible if q.kind == kind]
            offered[name].update(q.answer for q in asked)
            if asked:
                chosen = asked[rng.integers(len(asked))]
                said[name] = f"{QUESTION} {chosen.ask(rng, held_out=True)}", chosen.answer
    return {name: sorted(found) for name, found in offered.items()}


def _write_set(folder: Path, rows: list[tuple[str, str, str]], candidates: list[str], rng: np.random.Generator) -> None:
    """The Parquet file of one set: of each row the right answer first, then all others in an order of its own."""
    folder.mkdir()
    records = []
    for image, question, answer in rows:
        others = [candidates[k] for k in rng.permutation(len(candidates)) if candidates[k] != answer]
        record = {"qry_text": f"{PLACEHOLDER}\n{question}\n", "qry_img_path": image, "tgt_text": [answer, *others]}
        records.append(record | {"tgt_img_path": [""] * (1 + len(others))})
    pq.write_table(pa.Table.from_pylist(records), folder / "test-00000-of-00001.parquet")


def _truth(image: str, scene: Scene, said: dict) -> dict:
    return {"image": image, "shows": [c.meaning for c in scene.cards], "answers": {name: answer for name, (_, answer) in said.items()}}
