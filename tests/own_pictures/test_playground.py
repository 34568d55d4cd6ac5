"""The playground: angles and cosines of vectors that are known, and a page that shows them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from abc_core.own_pictures.playground import ALONE, explore, plot_explored

TURNED = {None: 0.0, "turn": 90.0, "half a turn": 180.0, "a little": 1e-3}  # degrees that an instruction turns a picture by
CAPTIONS = {"east": 0.0, "north": 90.0, "north-east": 45.0}


def vectors(degrees) -> np.ndarray:
    angle = np.radians(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def embed(images=None, texts=None, instructions=None):
    if texts is not None:
        return vectors([CAPTIONS[text] for text in texts])
    return vectors([TURNED[text] for row in (instructions or [[None]]) for text in row])


EMBEDDER = SimpleNamespace(embed=embed, score=lambda q, c: q @ c.T)
PICTURE = Image.new("RGB", (40, 30), "red")


def test_angles_cosines_and_nearest_captions_are_those_of_the_vectors():
    rows = explore(EMBEDDER, PICTURE, ["turn", "half a turn", "a little"], list(CAPTIONS), top=2)
    assert [row["instruction"] for row in rows] == [ALONE, "turn", "half a turn", "a little"]
    assert [row["moved"] for row in rows] == pytest.approx([0, 90, 180, 1e-3], rel=1e-6)
    assert np.allclose([row["similarity"] for row in rows], vectors(list(TURNED.values())) @ vectors(list(TURNED.values())).T)
    assert [row["nearest"][0][0] for row in rows] == ["east", "north", "north", "east"]
    assert rows[1]["nearest"][1] == ("north-east", pytest.approx(0.5**0.5))


def test_nothing_to_ask_or_to_find_is_refused():
    with pytest.raises(ValueError, match="0 instructions and 3 captions"):
        explore(EMBEDDER, PICTURE, [], list(CAPTIONS))
    with pytest.raises(ValueError, match="1 instructions and 0 captions"):
        explore(EMBEDDER, PICTURE, ["turn"], [])


def test_the_page_has_a_bar_an_instruction_and_every_cosine():
    rows = explore(EMBEDDER, PICTURE, ["turn", "half a turn"], list(CAPTIONS))
    fig = plot_explored(PICTURE, rows)
    said = [text.get_text() for part in fig.subfigs for axis in part.axes for text in axis.texts]
    assert said.count("90°") == 1 and said.count("180°") == 1 and said.count("1.00") >= 3 and "-1.00" in said and "north" in said
