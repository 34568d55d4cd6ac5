"""How many visual tokens the pictures of a folder are worth: their sizes, read off the files' headers, and a recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from abc_core.data.pictures import Member
from abc_core.data.reading import Skipped

SIDE = 28  # pixels of a token's side; Qwen2-VL


SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def tokens_of(width: int, height: int, largest: int, smallest: int = 4, side: int = SIDE) -> int:
    """Visual tokens of a picture of so many pixels across and down, under a budget of `largest` of them.

    ValueError: a picture more than 200 times as long as wide, which the processor refuses.
    """
    high, wide = smart_resize(height, width, side, smallest * side**2, largest * side**2)
    return high * wide // side**2


def size_of(picture) -> tuple[int, int]:
    """(width, height) in pixels, from the header of a file or of a member of a zip file or shard; nothing is decoded."""
    with Image.open(BytesIO(picture.read()) if isinstance(picture, Member) else picture) as image:
        return image.size


def sizes(pictures: Sequence) -> np.ndarray:
    """int64[N, 2]: width and height of every picture."""
    return np.array([size_of(picture) for picture in pictures], dtype=np.int64)


@dataclass(frozen=True)
class Recommendation:
    """A budget of visual tokens for a folder of pictures; printed, it says why."""

    budget: int
    because: str
    pictures: int
    megapixels: tuple[float, float, float]  # 5 %, median, 95 %
    tokens: float  # of a picture on average, under this budget
    shrunk: float  # share of the pictures that lose pixels
    skipped: Skipped

    def __str__(self) -> str:
        low, median, high = (f"{1e6 * m:,.0f}" for m in self.megapixels)
        return (
            f"{self.budget} visual tokens: {self.because}\n{self.pictures:,} pictures, half above {median} pixels ({low} – {high}); "
            f"{self.tokens:.0f} tokens each, {100 * self.shrunk:.0f} % are shrunk\n{self.skipped}"
        )


def recommend(
    folder: Path | str, share: float = 0.95, smallest: int = 4, largest: int = 512, seconds: float | None = None, curve: dict | None = None
) -> Recommendation:
    """The smallest budget that leaves a `share` of the pictures of a folder as they are, if it is affordable.

    Args:
        smallest, largest: bounds of the budget; of Sec. 4, a model that was trained with at most 512 tokens.
        seconds: that a picture may take; then `curve` is that of a row of `row_of`, measured on the machine that will do the work.
    Raises:
        ValueError: no picture in the folder, seconds without a curve, or none of its budgets in that time.
    """
    skipped, found = Skipped(), []
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            width, height = size_of(path)
            tokens_of(width, height, largest, smallest)
            found.append((width, height))
        except (OSError, ValueError, ZeroDivisionError, Image.DecompressionBombError) as error:  # OSError: no picture that PIL knows, too
            skipped.leave_out(f"no picture that can be used ({type(error).__name__})", path, "header", str(error))
    if not found:
        raise ValueError(f"{folder} has no picture that can be used\n{skipped}")
    free = np.array([tokens_of(w, h, 1 << 30, smallest) for w, h in found])
    wanted = int(np.quantile(free, share, method="higher"))
    options = {wanted: f"{100 * share:g} % of the pictures keep their pixels", largest: "the model was trained with no more"}
    if seconds is not None:
        options[_affordable(curve, seconds)] = f"more would take longer than {1000 * seconds:g} ms a picture"
    budget = max(smallest, min(options))
    tokens = np.array([tokens_of(w, h, budget, smallest) for w, h in found])
    pixels = np.quantile(np.prod(np.array(found, dtype=float), axis=1) / 1e6, [0.05, 0.5, 0.95])
    because = options.get(budget, "the fewest that are allowed")
    return Recommendation(budget, because, len(found), tuple(pixels.tolist()), float(tokens.mean()), float((free > budget).mean()), skipped)


def _affordable(curve: dict | None, seconds: float) -> int:
    """Tokens of a picture in a given time, by the line through the slowest set's points."""
    if curve is None:
        raise ValueError("seconds were given without a curve of `row_of` to tell what a token takes")
    high = [k for k, name in enumerate(curve["set"]) if name == "high"]
    tokens, took = (np.array([curve[column][k] for k in high]) for column in ("tokens", "seconds"))
    slope, start = np.polyfit(tokens, took, 1)
    if slope <= 0:  # of so few tokens that their time drowns in what every picture takes
        return 1 << 30
    if seconds <= start:
        raise ValueError(f"{1000 * seconds:g} ms a picture is less than the {1000 * start:.1f} ms that a picture takes whatever its tokens")
    return int((seconds - start) / slope)
