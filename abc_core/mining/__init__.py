"""Hard negatives that the model mines itself (Sec. 3.2): the exact search, the draw and the audit."""

from abc_core.mining.hard_negatives import audit, mine, random_negatives, similarities

__all__ = ["audit", "mine", "random_negatives", "similarities"]
