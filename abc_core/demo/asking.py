"""The demo without its page: a picture that is looked at, and what it retrieves.

Steps: (1) `Demo.show` opens a picture, within bounds, and computes its visual tokens, once for each number of them; (2) `Demo.ask` embeds
it alone and under instructions and finds the nearest captions; (3) `Demo.pictures_for` searches the other way; (4) `Demo.heat` says which
part of the picture a vector resembles.

What cannot be done raises an error whose message is a sentence for a visitor, and changes nothing: the picture shown before stays.
"""

import io
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from abc_core import adapters
from abc_core.backbone import set_visual_tokens
from abc_core.data.pictures import FORMATS, UnreadableImage, open_image
from abc_core.demo.index import Index
from abc_core.demo.regions import Box, corners, grid_boxes
from abc_core.model import Visual

MOST_PIXELS = 30_000_000  # of a picture that a visitor brings


@dataclass(frozen=True)
class Answer:
    """What a picture retrieves under an instruction (None: alone). found: (caption, cosine), best first; emb: float32[D]."""

    instruction: str | None
    found: list[tuple[str, float]]
    emb: np.ndarray


@dataclass
class _Seen:
    """A picture and what was computed of it, by number of visual tokens asked for."""

    image: Image.Image
    boxes: list[Box]
    visual: dict[int | None, Visual] = field(default_factory=dict)
    alone: dict[int | None, np.ndarray] = field(default_factory=dict)
    crops: np.ndarray | None = None  # float32[R, D]


class Demo:
    """A picture that is looked at, and questions about it.

    Args:
        embedder: with a stage-2 adapter, or it can only be asked without instructions.
        captions: what pictures retrieve. pictures: what captions retrieve, if that is wanted.

    seconds: how long the last look ("see"), answer ("ask"), search ("search"), search for pictures ("pictures") and heat map ("heat") took.
    """

    def __init__(self, embedder, captions: Index, pictures: Index | None = None):
        self.embedder, self.captions, self.pictures = embedder, captions, pictures
        self.seconds: dict[str, float] = {}
        self._seen: _Seen | None = None
        self._asked_for: int | None = None

    # --- the picture --------------------------------------------------------------------------------------------------------------

    def show(self, picture: Path | bytes | Image.Image, name: str = "the picture", boxes: Sequence[Box] = ()) -> None:
        """Look at a picture from now on.

        Args:
            name: what to call it in a message. boxes: its regions, for `heat`; none: a grid.
        Raises:
            ValueError, OSError: it cannot be read as a picture, or is too large; the one before stays.
        """
        with self._timed("see"):
            image = open_picture(picture, name)
            seen = _Seen(image, list(boxes) or grid_boxes(image))
            seen.visual[self._asked_for] = self._see(seen.image, self._asked_for)
            self._seen = seen

    @property
    def image(self) -> Image.Image:
        """The picture that is looked at, RGB; ValueError if there is none yet."""
        return self._now.image

    @property
    def boxes(self) -> list[Box]:
        """R regions of the picture that is looked at."""
        return self._now.boxes

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the picture that is looked at."""
        return len(self._visual.outputs.pooler_output[0])

    def use_visual_tokens(self, count: int | None) -> None:
        """Resize pictures to about so many visual tokens; None: as the embedder does by itself.

        Raises:
            ValueError: the model cannot.
        """
        if self._seen is not None and count not in self._seen.visual:
            with self._timed("see"):
                self._seen.visual[count] = self._see(self._seen.image, count)
        self._asked_for = count

    @torch.no_grad()
    def _see(self, image: Image.Image, count: int | None) -> Visual:
        processor = self.embedder.processor
        own = processor.image_processor
        try:
            if count is not None:
                processor.image_processor = deepcopy(own)
                set_visual_tokens(processor, count, count)
            return self.embedder.see([image])
        finally:
            processor.image_processor = own

    # --- asking -------------------------------------------------------------------------------------------------------------------

    def ask(self, *instructions: str, k: int = 5) -> list[Answer]:
        """The k best captions of the picture alone, then under each instruction.

        Raises:
            ValueError: no picture yet, an empty instruction, or a model without a stage-2 adapter.
        """
        if not all(text.strip() for text in instructions):
            raise ValueError("the instruction is empty: type one, or choose one")
        if instructions and not adapters.has_adapter(self.embedder.model, "instruct"):
            maker = "notebooks/03_instruction_tuning.ipynb trains one"
            raise ValueError(f"this model has no stage-2 adapter, so it cannot follow an instruction; {maker}")
        with self._timed("ask"):
            if self._asked_for not in self._now.alone:
                self._now.alone[self._asked_for] = self._embed([None])
            emb = np.concatenate([self._now.alone[self._asked_for], *([self._embed(list(instructions))] if instructions else [])])
        with self._timed("search"):
            return [Answer(text, self.captions.nearest(e, k), e) for text, e in zip((None, *instructions), emb)]

    def pictures_for(self, caption: str, k: int = 5) -> list[tuple[Path, float]]:
        """The other way: the k pictures, alone, that are nearest to a caption, with their cosines.

        Raises:
            ValueError: an empty caption, or no pictures to search.
        """
        if self.pictures is None:
            raise ValueError("there are no pictures to search")
        if not caption.strip():
            raise ValueError("the caption is empty: type one, or choose one of those that were found")
        with self._timed("pictures"):
            return self.pictures.nearest(self.embedder.embed(texts=[caption])[0], k)

    @torch.no_grad()
    def _embed(self, texts: list[str | None]) -> np.ndarray:
        """float32[N, D]: the picture under each text, its visual tokens shared; the adapter is on unless a text is None."""
        model, prompts = self.embedder.model, self.embedder.prompts
        ids = [prompts.image(self._visual.placeholders[0], text) for text in texts]
        with adapters.instructed(model, texts != [None]) if adapters.has_adapter(model, "instruct") else nullcontext():
            return self.embedder.encode(ids, self._visual, [0] * len(ids))[0].cpu().numpy()

    # --- what moved ---------------------------------------------------------------------------------------------------------------

    def heat(self, answer: Answer) -> np.ndarray:
        """float32[R]: cosines of an answer's vector to the crops of the regions, each embedded alone, once a picture."""
        with self._timed("heat"):
            if self._now.crops is None:
                self._now.crops = self.embedder.embed(images=[self.image.crop(corners(box, self.image.size)) for box in self.boxes])
            return self._now.crops @ answer.emb

    # --- state --------------------------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> _Seen:
        if self._seen is None:
            raise ValueError("there is no picture yet: choose one, or upload one")
        return self._seen

    @property
    def _visual(self) -> Visual:
        return self._now.visual[self._asked_for]

    @contextmanager
    def _timed(self, what: str):
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start


def open_picture(source: Path | bytes | Image.Image, name: str) -> Image.Image:
    """RGB of a file, of its bytes, or of a picture.

    Raises:
        ValueError: not a picture or more than MOST_PIXELS pixels, as a sentence with its name.
    """
    try:
        return open_image(io.BytesIO(source) if isinstance(source, bytes) else source, MOST_PIXELS)
    except UnreadableImage as error:
        no_picture = isinstance(error.__cause__, UnidentifiedImageError)
        why = f"it is none of {', '.join(FORMATS)}" if no_picture else error.__cause__
        raise ValueError(f"“{name}” cannot be read as a picture: {why}") from error
