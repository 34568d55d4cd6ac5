"""The drawn world, which stands for Conceptual Captions, Visual Genome, COCO and MMEB; `backbone` trains the tiny VLM on it."""

from abc_core.miniature.glyphs import ATTRIBUTION
from abc_core.miniature.parts import data_folder
from abc_core.miniature.world import World

__all__ = ["ATTRIBUTION", "World", "data_folder"]
