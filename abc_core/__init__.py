"""Embeddings of pictures that obey an instruction (ABC). The core is here: model, loss, adapters, the two steps and their loop.

Everything else has a room, and a room imports only rooms before it:

    runs · data · mining · (core) · evaluation · instructions · figures · ctrlbench · miniature · systems · verify · jobs ·
    own_pictures · recipes · studies · reproduce · demo
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abc_core.model import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str):
    """`from abc_core import Embedder` loads torch and transformers; `import abc_core` does not."""
    if name in __all__:
        return getattr(import_module("abc_core.model"), name)
    raise AttributeError(f"module 'abc_core' has no attribute {name!r}")
