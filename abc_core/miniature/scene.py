"""One drawn scene of the embedded world: what is in it, and its picture.

A scene is a grid of cards under a sky, before a horizon, on a textured ground, lit from the left: the surroundings of a card tell
where it is, as in a photograph (the backbone has no absolute positions). Pixels have their origin at the top left, x to the right.

Steps: (1) `sample_scene` draws cells, meanings, sizes; (2) `draw` paints; (3) `regions` lists boxes, the larger ones first.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from abc_core.miniature import words

MARGIN = 0.06  # of a cell, kept free around a card
JITTER = 2  # px, a card's distance from the middle of its cell
# look -> (sky top, sky bottom, ground near, ground far, texture grain in px); "studio" is the out-of-distribution look.
LOOKS = {
    "meadow": ((120, 178, 236), (214, 234, 250), (96, 150, 70), (150, 196, 110), 2),
    "beach": ((92, 190, 226), (206, 240, 246), (206, 176, 122), (240, 216, 166), 1),
    "dusk": ((120, 104, 170), (246, 190, 166), (84, 86, 78), (140, 128, 112), 3),
    "snow": ((150, 170, 196), (222, 230, 238), (196, 206, 218), (236, 240, 246), 2),
}
OOD_LOOKS = {"studio": ((206, 196, 186), (186, 176, 168), (120, 96, 84), (150, 124, 108), 6)}
Meaning = tuple[str, str, str]  # object, colour, shape


@dataclass(frozen=True)
class Card:
    """A coloured card with a glyph: its meaning, its grid cell, its size ("small", "large") and its box (x, y, w, h) in pixels."""

    meaning: Meaning
    cell: tuple[int, int]
    size: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `grid` is (rows, columns); `horizon` a fraction of the height; `seed` drives the painting alone."""

    width: int
    height: int
    grid: tuple[int, int]
    look: str
    horizon: float
    cards: tuple[Card, ...]
    seed: int


def sample_scene(rng: np.random.Generator, meanings: list[Meaning], grid: tuple[int, int], cell: int, looks=tuple(LOOKS)) -> Scene:
    """Place `meanings` on distinct cells of a grid of `cell` × `cell` pixels; one card in three scenes is much larger than the others."""
    rows, cols = grid
    if len(meanings) > rows * cols:
        raise ValueError(f"{len(meanings)} cards do not fit a grid of {rows} x {cols}")
    cells = rng.permutation(rows * cols)[: len(meanings)]
    hero = int(rng.integers(len(meanings))) if len(meanings) > 1 and rng.random() < 1 / 3 else None
    cards = []
    for k, (meaning, c) in enumerate(zip(meanings, sorted(cells.tolist()))):
        size = "large" if k == hero else "small"
        scale = 1.0 if size == "large" else rng.uniform(0.80, 0.86) if hero is not None else rng.uniform(0.94, 1.0)
        side = int(cell * (1 - 2 * MARGIN) * scale)
        dx, dy = np.clip((cell - side) // 2 + rng.integers(-JITTER, JITTER + 1, 2), 0, cell - side).tolist()
        x, y = (c % cols) * cell + dx, (c // cols) * cell + dy
        cards.append(Card(meaning, (c // cols, c % cols), size, (x, y, side, side)))
    horizon = float(rng.uniform(0.42, 0.58))
    return Scene(cols * cell, rows * cell, grid, str(rng.choice(list(looks))), horizon, tuple(cards), int(rng.integers(2**31)))


def resample_meanings(scene: Scene, rng: np.random.Generator, pool: list[Meaning], keep: float) -> Scene:
    """A sibling: the same layout in which each card keeps its meaning with probability `keep` (scenes that share most objects)."""
    cards = tuple(c if rng.random() < keep else replace(c, meaning=pool[rng.integers(len(pool))]) for c in scene.cards)
    return replace(scene, cards=cards, seed=int(rng.integers(2**31)))


def enlarge(scene: Scene, times: int) -> Scene:
    """The same scene with every length, in pixels, so many times as long: more pixels, and nothing more to see."""
    cards = tuple(replace(c, box=tuple(times * v for v in c.box)) for c in scene.cards)
    return replace(scene, width=times * scene.width, height=times * scene.height, cards=cards)


def draw(scene: Scene, sprites: dict[str, np.ndarray]) -> Image.Image:
    """Paint a scene: background, then each card with its shadow and glyph. RGB, scene.width × scene.height."""
    rng = np.random.default_rng(scene.seed)
    picture = Image.fromarray(_background(scene, rng))
    for card in scene.cards:
        _paint_card(picture, card, sprites[card.meaning[0]], rng)
    return picture


def regions(scene: Scene) -> list[tuple[tuple[int, int, int, int], str, Card | None]]:
    """(box, phrase, card) of five larger regions, then of every card; the paper's rule (Sec. 3.2) drops the five largest boxes."""
    w, h, line = scene.width, scene.height, int(scene.height * scene.horizon)
    left = [c for c in scene.cards if c.box[0] + c.box[2] / 2 < w / 2]
    lower = [c for c in scene.cards if c.box[1] + c.box[3] / 2 > h / 2]
    large = [
        ((0, 0, w, h), f"{words.NUMBERS[len(scene.cards)]} cards under the sky"),
        ((0, 0, w, line), f"the sky of a {scene.look}"),
        ((0, line, w, h - line), f"the ground of a {scene.look}"),
        ((0, 0, w // 2, h), f"{_things(left)} on the left"),
        ((0, h // 2, w, h - h // 2), f"{_things(lower)} at the bottom"),
    ]
    return [(box, phrase, None) for box, phrase in large] + [(c.box, words.caption(c.meaning), c) for c in scene.cards]


def _things(cards: list[Card]) -> str:
    return f"{words.NUMBERS[len(cards)]} thing" + "s" * (len(cards) != 1)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """uint8[H, W, 3]: sky and ground gradients, ground texture, and light that fades from left to right."""
    top, bottom, near, far, grain = {**LOOKS, **OOD_LOOKS}[scene.look]
    h, w, line = scene.height, scene.width, scene.height * scene.horizon
    y = np.arange(h, dtype=np.float32)[:, None, None]
    top, bottom, near, far = (np.array(c, dtype=np.float32) for c in (top, bottom, near, far))
    sky = top + (bottom - top) * np.clip(y / line, 0, 1)
    ground = far + (near - far) * np.clip((y - line) / (h - line), 0, 1)
    noise = 9 * rng.standard_normal((h // grain + 1, w // grain + 1, 1), dtype=np.float32).repeat(grain, 0).repeat(grain, 1)[:h, :w]
    picture = np.where(y < line, sky + noise * 0.2, ground + noise)
    light = np.linspace(1.22, 0.62, w, dtype=np.float32)[None, :, None]
    warm = np.linspace(26, -22, w, dtype=np.float32)[None, :, None] * np.array([1, 0.4, -1], dtype=np.float32)
    return np.clip(picture * light + warm, 0, 255).astype(np.uint8)


def _paint_card(picture: Image.Image, card: Card, rgba: np.ndarray, rng: np.random.Generator) -> None:
    """Paste one card, drawn at twice its size and scaled down: shadow to the right, outline, glyph in the middle."""
    _, colour, shape = card.meaning
    x, y, side, _ = card.box
    s = 2 * side
    fill = tuple(int(v) for v in np.clip(np.add(words.COLOURS[colour], rng.integers(-10, 11, 3)), 0, 255))
    outline = tuple(int(v * 0.6) for v in fill)
    layer = Image.new("RGBA", (s, s))
    pen, edge = ImageDraw.Draw(layer), max(2, s // 40)
    if shape == "card":
        pen.rounded_rectangle((edge, edge, s - edge, s - edge), s // 12, fill, outline, edge)
        glyph = 0.84
    elif shape == "disc":
        pen.ellipse((edge, edge, s - edge, s - edge), fill, outline, edge)
        glyph = 0.78
    else:
        pen.polygon([(s / 2, 0), (s, s / 2), (s / 2, s), (0, s / 2)], fill, outline, edge)
        glyph = 0.67
    g = int(s * glyph)
    sprite = Image.fromarray(rgba).resize((g, g), Image.Resampling.BILINEAR)
    layer.alpha_composite(sprite, ((s - g) // 2, (s - g) // 2))
    layer = layer.resize((side, side), Image.Resampling.BOX)
    shadow = layer.getchannel("A").point(lambda a: a // 3).filter(ImageFilter.BoxBlur(1))
    picture.paste((20, 20, 30), (x + max(1, side // 24), y + max(1, side // 24)), shadow)
    picture.paste(layer, (x, y), layer)
