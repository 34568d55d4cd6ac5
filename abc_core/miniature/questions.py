"""Every question that a scene can answer without ambiguity, with its short answer and the card it is about.

kinds: content (what is on the red disc) · place (what is in the top left) · property (what is the owl on) · neighbour · size are about
one card, so a region caption answers them; look · where · count have short answers only and teach the backbone to look.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from abc_core.miniature import words
from abc_core.miniature.scene import Card, Scene

REGION_KINDS = ("content", "place", "property", "neighbour", "size")


@dataclass(frozen=True)
class Question:
    """`{x}` of a template is `referent`; `answer` is the canonical short answer; `card` is where to look for it, if it is one card."""

    kind: str
    referent: str
    answer: str
    card: Card | None

    def ask(self, rng: np.random.Generator, held_out: bool = False) -> str:
        """One wording of the question."""
        templates = (words.HELD_OUT if held_out else words.TRAIN)[self.kind]
        return templates[rng.integers(len(templates))].format(x=self.referent)

    def wordings(self, held_out: bool = False) -> list[str]:
        """Every wording of the question."""
        return [t.format(x=self.referent) for t in (words.HELD_OUT if held_out else words.TRAIN)[self.kind]]


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """All unambiguous questions about a scene, in card order."""
    cards_of = Counter(c.meaning[1:] for c in scene.cards)
    objects = Counter(c.meaning[0] for c in scene.cards)
    at = {c.cell: c for c in scene.cards}
    out = []
    for card in scene.cards:
        obj, colour, shape = card.meaning
        wording = int(rng.integers(2))
        spot = words.place(card.cell, scene.grid, wording)
        if spot:  # the only cell of a grid has no name
            out.append(Question("place", spot, obj, card))
            out.append(Question("look", spot, f"{colour} {shape}", card))
        if cards_of[colour, shape] == 1:
            out.append(Question("content", f"{colour} {shape}", obj, card))
            if spot:
                out.append(Question("where", f"{colour} {shape}", words.place(card.cell, scene.grid), card))
        if objects[obj] == 1:
            out.append(Question("property", obj, f"{colour} {shape}", card))
            if spot:
                out.append(Question("where", obj, words.place(card.cell, scene.grid), card))
            for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                other = at.get((card.cell[0] + step[0], card.cell[1] + step[1]))
                if other is not None:
                    out.append(Question("neighbour", words.neighbour(obj, step), other.meaning[0], other))
        if card.size == "large":
            out.append(Question("size", "", obj, card))
    for shape in words.SHAPES:
        out.append(Question("count", shape + "s", words.NUMBERS[sum(c.meaning[2] == shape for c in scene.cards)], None))
    return out
