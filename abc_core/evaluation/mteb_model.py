"""Any system as a model of `mteb` (the extra `mteb`), so that its own tasks evaluate ours: mteb.evaluate(MtebModel(system), tasks).

**Caveat:** mteb breaks ties by the names of candidates or their order; its figures are not `zero_shot`'s where scores tie.
"""

import numpy as np
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta


class MtebModel(AbsEncoder):
    """A picture with a text is the picture under that instruction; a task's own prompts are not used.

    Args:
        system: as `zero_shot.score` takes it; its embeddings are vectors, not one vector a token.
    """

    def __init__(self, system):
        self.system = system
        about = {"name": f"abc_core/{system.name}", "revision": system.fingerprint, "modalities": ["image", "text"]}
        self.mteb_model_meta = ModelMeta.create_empty(about)

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs) -> np.ndarray:
        """float32[N, D] of batches with "text", "image" or both (mteb's `EncoderProtocol`).

        Raises:
            ValueError: a batch with neither.
        """
        return np.concatenate([self._embed(batch, task_metadata.name) for batch in inputs])

    def _embed(self, batch: dict, task: str) -> np.ndarray:
        images, texts = batch.get("image"), batch.get("text")
        if images is None and texts is None:
            raise ValueError(f"{task}: a batch with neither pictures nor texts but {', '.join(batch)}")
        if images is None:
            return self.system.embed(texts=list(texts))
        return self.system.embed(images=list(images), **({} if texts is None else {"instructions": [[text] for text in texts]}))

    def similarity(self, embeddings1, embeddings2) -> torch.Tensor:
        """float32[Q, C] as the system compares: its own `score`, or the matrix product."""
        q, c = (np.asarray(e, dtype=np.float32) for e in (embeddings1, embeddings2))
        compare = getattr(self.system, "score", None) or (lambda q, c: q @ c.T)
        return torch.from_numpy(np.ascontiguousarray(compare(q, c)))
