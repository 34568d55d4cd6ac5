"""What a benchmark gives to systems that miss something, BM25 the picture, chance everything, and to an oracle that misses nothing.

`chance` is exact, `random_ranks` one draw of it. `shuffled_instructions` are instructions that do not belong to their pictures.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

from abc_core.data.tasks import Task
from abc_core.instructions.regions import Instructed
from abc_core.runs.files import expect, field_of, read_json_lines


def bm25(instructions: Sequence[str], captions: Sequence[str]) -> np.ndarray:
    """float32[Q, C]: BM25 of instructions as queries against captions; no shared word scores 0, so such captions tie."""
    import bm25s

    retriever = bm25s.BM25()
    queries, documents = (bm25s.tokenize(list(texts), return_ids=False, show_progress=False) for texts in (instructions, captions))
    if not any(documents):  # nothing but stop words
        return np.zeros((len(queries), len(documents)), dtype=np.float32)
    retriever.index(documents, show_progress=False)
    return np.stack([retriever.get_scores_from_ids(retriever.get_tokens_ids(query)) for query in queries]).astype(np.float32)


def chance(task: Task, k: int) -> np.ndarray:
    """float64[Q]: how probable it is that a random order without ties has a right candidate among the first k."""
    right = np.array([len(np.unique(own)) for own in task.right])
    among = np.array([len(task.candidates) if task.choices is None else len(task.choices[i]) for i in range(len(right))])
    return 1 - hypergeom.pmf(0, among, right, np.minimum(k, among))


def random_ranks(queries: int, candidates: int, seed: int) -> np.ndarray:
    """int64[Q]: ranks of random scores, which are uniform over the candidates."""
    return np.random.default_rng(seed).integers(candidates, size=queries)


def oracle(rows: Sequence[Instructed], truth: Path) -> np.ndarray:
    """float32[Q, C]: 1 where the meaning of a caption is the meaning that the instruction asks for, else 0.

    R@1 of 100 % under pessimistic ties shows that no two captions have one meaning.

    Args:
        truth: JSON lines {image_id, regions: {region_id: [object, colour, shape]}}.
    Raises:
        ValueError: a row of the benchmark has no meaning there.
    """
    truth = expect(Path(truth), "the embedded world's truth")
    known = {}
    for number, entry in read_json_lines(truth):
        where = f"{truth} row {number}"
        image_id = field_of(entry, "image_id", int, where)
        known |= {(image_id, region): tuple(meaning) for region, meaning in field_of(entry, "regions", dict, where).items()}
    numbers: dict[tuple, int] = {}
    meanings = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        key = (row.image_id, str(row.region_id))
        if key not in known:
            raise ValueError(f"{truth} has no meaning for region {row.region_id} of image {row.image_id} (row {i} of the benchmark)")
        meanings[i] = numbers.setdefault(known[key], len(numbers))
    return (meanings[:, None] == meanings[None]).astype(np.float32)


def shuffled_instructions(texts: Sequence[str], groups: Sequence[int], seed: int) -> list[str]:
    """For each query an instruction of another picture, drawn without regard to which of the picture's captions is right.

    Args:
        texts: Q instructions. groups: the picture of each.
    Raises:
        ValueError: all queries are of one picture.
    """
    said: dict[int, list[str]] = {}
    for text, picture in zip(texts, groups, strict=True):
        said.setdefault(int(picture), []).append(text)
    if len(said) < 2:
        raise ValueError(f"{len(texts)} queries of {len(said)} picture; instructions of another one were wanted")
    rng = np.random.default_rng(seed)
    circle = rng.permutation(sorted(said)).tolist()  # each picture asks what the next one in the circle was asked
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    decks = {picture: [said[following[picture]][k] for k in rng.permutation(len(said[following[picture]]))] for picture in circle}
    dealt: Counter = Counter()
    out = []
    for picture in map(int, groups):
        deck = decks[picture]
        out.append(deck[dealt[picture] % len(deck)])
        dealt[picture] += 1
    return out
