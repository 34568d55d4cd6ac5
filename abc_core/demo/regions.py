"""The parts of a picture, by which a visitor sees where a vector points: boxes, and a colour with a number on each."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # x, y, width, height in pixels
GRID = (3, 3)  # rows and columns of a picture of which no regions are known
WARM, COLD = (230, 120, 0), (40, 90, 220)  # nearer, farther; the numbers in the picture say the same


def grid_boxes(image: Image.Image) -> list[Box]:
    """The regions of `GRID`, row by row."""
    (rows, columns), (w, h) = GRID, image.size
    return [(c * w / columns, r * h / rows, w / columns, h / rows) for r in range(rows) for c in range(columns)]


def corners(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) in whole pixels: the part of a box that lies in a picture of this width and height; at least a pixel."""
    (x, y, w, h), (width, height) = box, size
    left, upper = int(min(max(x, 0), width - 1)), int(min(max(y, 0), height - 1))
    return left, upper, max(left + 1, min(width, round(x + w))), max(upper + 1, min(height, round(y + h)))


def heat_map(picture: Image.Image, boxes: Sequence[Box], values: np.ndarray, signed: bool = False, side: int = 220) -> Image.Image:
    """The picture, its longer side `side` pixels, with a colour and the number on each region.

    Args:
        values: float[R], one for each of the boxes.
        signed: orange is above zero and blue below; without, orange is the largest and clear the smallest. Small differences stay pale.
    """
    scale = side / max(picture.size)
    out = picture.resize(tuple(max(1, round(scale * length)) for length in picture.size)).convert("RGBA")
    spread = max(0.2, np.abs(values).max() if signed else np.ptp(values))
    strength = np.abs(values) / spread if signed else (values - values.min()) / spread
    layer = Image.new("RGBA", out.size)
    pen, font = ImageDraw.Draw(layer), ImageFont.load_default(15)
    for box, value, much in zip(boxes, values, strength):
        x, y, right, lower = corners(tuple(scale * length for length in box), out.size)
        pen.rectangle((x, y, right - 1, lower - 1), (*(COLD if signed and value < 0 else WARM), int(175 * much)), (255, 255, 255, 120))
        text = f"{value:+.2f}" if signed else f"{value:.2f}"
        pen.text((x + 5, y + 3), text, "white", font, stroke_width=2, stroke_fill=(20, 20, 20))
    return Image.alpha_composite(out, layer).convert("RGB")
