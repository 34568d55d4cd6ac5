"""Shared by tests of several rooms; out of test_pretrain_backbone."""

from abc_core.miniature.backbone.lessons import Stage

WORDS = Stage(2, {"single": 1.0}, {"content": 1}, questions=1, words=True)


ANSWERS = Stage(99, {"single": 1.0}, {"content": 1, "count": 1}, questions=1)
