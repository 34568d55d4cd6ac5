"""What an evaluation set is to an embedder: queries, candidates, and which of them are right.

Retrieval in both directions, classification, visual question answering and CtrlBench are all a `Task`; readers make one (`readers`,
`mmeb`, `ctrlbench`), `evaluate` scores it, `probes` asks how much of it a blind system gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Task:
    """Q queries against C candidates.

    A query is a picture, a text, or a picture with an instruction. A candidate is a text or a picture, all of one task alike.
    Pictures are whatever `data.open_image` opens; each stands once in `pictures`, however many queries show it.

    Raises:
        ValueError: parts that do not fit, or a query with nothing right.
    """

    name: str
    pictures: Sequence  # P pictures of the queries; none where queries are texts
    shown: np.ndarray  # int64[Q]: the picture of each query, -1 for none
    texts: Sequence[str | None]  # Q instructions (with a picture) or texts (without one); None: a picture alone
    candidates: Sequence  # C texts, or C pictures
    right: Sequence[np.ndarray]  # Q times int64[≥ 1]: the right candidates; finding the best of them counts
    choices: Sequence[np.ndarray] | None = None  # Q times int64[≥ 2]: the candidates it chooses among, right ones too; None: all of them
    kind: str = ""  # what a table puts together: "retrieval", "classification", "vqa"

    def __post_init__(self):
        q, c, p = len(self.shown), len(self.candidates), len(self.pictures)
        if not q or len(self.texts) != q or len(self.right) != q or (self.choices is not None and len(self.choices) != q):
            raise ValueError(f"{self.name}: {q} queries with {len(self.texts)} texts and {len(self.right)} right answers")
        for i, (picture, text, right) in enumerate(zip(self.shown, self.texts, self.right)):
            if not -1 <= picture < p or (picture < 0 and not text):
                raise ValueError(f"{self.name}: query {i} shows picture {picture} of {p} and has the text {text!r}")
            if len(right) == 0 or not all(0 <= r < c for r in right):
                raise ValueError(f"{self.name}: the right candidates of query {i} are {list(right)}, of {c}")
            if self.choices is not None and not np.isin(right, self.choices[i]).all():
                raise ValueError(f"{self.name}: query {i} cannot choose its right answer: {list(right)} of {list(self.choices[i])[:10]}")

    @property
    def of_texts(self) -> bool:
        """Are the candidates texts?"""
        return isinstance(self.candidates[0], str)

    @cached_property
    def groups(self) -> np.ndarray:
        """int64[Q]: queries that hang together: those of one picture; without a picture, those of one (first) right candidate."""
        return np.where(self.shown >= 0, self.shown, len(self.pictures) + np.array([right[0] for right in self.right]))
