"""Does a benchmark need the picture and the instruction together (Sec. 5.3)? What blind probes get of it, for any `Task` and any system.

Steps: (1) `embed_probes` embeds each distinct query once, whole and with a part taken away or exchanged; (2) `probe_rows` scores these and
the probes that see no query at all (`answers`, `prior`, `chance`), and says by a stated rule what each result means; (3) `several_right`
counts items with a second right answer. A system is anything with `embed(images=None, texts=None, instructions=None) -> float32[N, D]`,
as in `model.Embedder`. Names of probes:

full         the query as it is                              bm25     words that instruction and candidate share
shuffled     the picture with another picture's instruction  prior    mean similarity of a candidate to the queries of other pictures
picture      the picture alone                               answers  how often a candidate is the right answer for other pictures
instruction  the instruction with a grey picture             chance   a random order, by arithmetic
text         the instruction embedded as a text
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import hypergeom

from abc_core import evaluate
from abc_core.ctrlbench import bm25, shuffled_instructions
from abc_core.data import caption_ids
from abc_core.evaluate import KS, bootstrap_interval, table_row
from abc_core.tasks import Task

ROWS = 320  # instructed pictures in one call, so that a picture with a thousand instructions takes no more memory than a batch
BLOCK = 512  # queries scored at a time
BLIND = ("shuffled", "picture", "instruction", "text", "bm25", "prior", "answers")  # none of them knows both halves of its query
Scores = Callable[[int, int], np.ndarray]  # (first, last) -> float[last - first, C], the scores of these queries


# --- 1. vectors -----------------------------------------------------------------------------------------------------------------


def embed_probes(embedder, task: Task, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of the probes that need a model.

    Args:
        seed: draws the other picture's instruction (`ctrlbench.shuffled_instructions`).
    Returns:
        probe -> float32[Q, D], only "full" if not every query has a picture and an instruction; and float32[C, D] of the candidates.
    """
    shown, texts = np.asarray(task.shown), list(task.texts)
    c_emb = _embed_candidates(embedder, task)
    if not _of_both(task):
        return {"full": embed_queries(embedder, task.pictures, shown, texts)}, c_emb
    others = shuffled_instructions([_Asked(int(p), text) for p, text in zip(shown, texts)], seed)
    both = embed_queries(embedder, task.pictures, np.tile(shown, 2), texts + others)  # one pass, so that visual tokens serve both
    grey, nothing = Image.new("RGB", (168, 168), (128, 128, 128)), [None] * len(texts)
    return {
        "full": both[: len(texts)],
        "shuffled": both[len(texts) :],
        "picture": embed_queries(embedder, task.pictures, shown, nothing),
        "instruction": embed_queries(embedder, [grey], np.zeros_like(shown), texts),
        "text": embed_queries(embedder, [], np.full_like(shown, -1), texts),
    }, c_emb


class _Asked(NamedTuple):
    """What `shuffled_instructions` reads of a row."""

    image_id: int
    instruction: str


def _of_both(task: Task) -> bool:
    """Has every query a picture and an instruction?"""
    return bool((np.asarray(task.shown) >= 0).all() and all(task.texts))


def _embed_candidates(embedder, task: Task) -> np.ndarray:
    """float32[C, D]; equal texts once."""
    if not task.of_texts:
        return embedder.embed(images=list(task.candidates))
    number = {text: k for k, text in enumerate(dict.fromkeys(task.candidates))}
    return embedder.embed(texts=list(number))[[number[text] for text in task.candidates]]


def embed_queries(embedder, pictures: Sequence, shown: Iterable[int], texts: Iterable[str | None], rows: int = ROWS) -> np.ndarray:
    """Vectors of queries as a `Task` has them; each distinct one is embedded once, and a picture's visual tokens serve its instructions.

    Args:
        shown: the picture of each query, -1 for none. texts: its instruction, or its text if it has no picture; None: the picture alone.
        rows: instructed pictures in one call of `embed`.
    Returns:
        float32[Q, D].
    """
    wanted = [(int(p), text) for p, text in zip(shown, texts, strict=True)]
    distinct = dict.fromkeys(wanted)
    alone, said = [key for key in distinct if key[1] is None], [key for key in distinct if key[0] < 0]
    asked: dict[int, list[str]] = {}
    for p, text in distinct:
        if p >= 0 and text is not None:
            asked.setdefault(p, []).append(text)
    parts = []
    if alone:
        parts.append((alone, embedder.embed(images=[pictures[p] for p, _ in alone])))
    if said:
        parts.append((said, embedder.embed(texts=[text for _, text in said])))
    for block in _blocks(asked, rows):
        emb = embedder.embed(images=[pictures[p] for p, _ in block], instructions=[lines for _, lines in block])
        parts.append(([(p, text) for p, lines in block for text in lines], emb))
    at = {key: k for k, key in enumerate(key for keys, _ in parts for key in keys)}
    return np.concatenate([emb for _, emb in parts])[[at[key] for key in wanted]]


def _blocks(asked: dict[int, list[str]], rows: int) -> Iterator[list[tuple[int, list[str]]]]:
    """Pictures with their instructions, at most `rows` instructions together; a picture with more comes several times."""
    block, room = [], rows
    for picture, texts in asked.items():
        for start in range(0, len(texts), rows):
            part = texts[start : start + rows]
            if len(part) > room:
                yield block
                block, room = [], rows
            block.append((picture, part))
            room -= len(part)
    if block:
        yield block


# --- 2. scores and verdicts -----------------------------------------------------------------------------------------------------


def probe_rows(task: Task, queries: dict[str, np.ndarray], c_emb: np.ndarray, seed: int = 0) -> list[dict]:
    """The table of probes, with a verdict each.

    Args:
        queries, c_emb: of `embed_probes`; or of another task with the same queries and candidates, whose choices differ.
        seed: of the bootstrap over pictures.
    Returns:
        rows {set, probe, r1, r5, r10, r1_low, r1_high, n, share, verdict}; all but n and the words in per cent.
        `share` is how much of what the full query gets above chance the probe gets above chance. A blind probe that is better than
        chance (its interval lies above) is "enough" if its interval reaches that of the full query, "half of it" if its share is 50 or
        more. One that is not, but whose interval reaches so far, is "unclear"; any other is "not enough". The verdict of the full query
        is that of the set, the first that fits:
        "one modality": queries have no two halves;
        "poorly constructed: …": a probe that is enough, or gets half of it, solves half of what chance leaves;
        "undecided: …": such a probe solves less, so the set may be poor, or this system does not see what is asked for;
        "not solved": the full query is not better than chance; "undecided: …": a probe is unclear, for too few queries; "multimodal".
    **Paper:** Sec. 5.3, "using only the image or the text should be insufficient to accomplish the task"; Figure 6.
    **Caveat:** the verdict is about this system and these probes: a better blind system may solve what these do not.
    """
    found = {name: _product(q_emb, c_emb) for name, q_emb in queries.items()}
    if task.of_texts and all(task.texts):
        found["bm25"] = _bm25(task)
    found["prior"] = _product(_mean_of_others(queries["full"], task.groups), c_emb)
    found["answers"] = _answers(task)
    rows = [{"probe": name} | table_row(name, task_ranks(task, scores), task.groups, seed) for name, scores in found.items()]
    rows = [{"set": task.name} | {k: v for k, v in row.items() if k != "system"} for row in [*rows, _chance(task, seed)]]
    return _judged(rows, _of_both(task))


def task_ranks(task: Task, scores: Scores) -> np.ndarray:
    """int64[Q]: `evaluate.task_ranks` of a task, BLOCK queries at a time, ties against the right candidate."""
    spans = range(0, len(task.shown), BLOCK)
    return evaluate.task_ranks((scores(i, min(i + BLOCK, len(task.shown))) for i in spans), task.right, task.choices)[0]


def _product(q_emb: np.ndarray, c_emb: np.ndarray) -> Scores:
    return lambda first, last: q_emb[first:last] @ c_emb.T


def _bm25(task: Task) -> Scores:
    number = {text: k for k, text in enumerate(dict.fromkeys(task.texts))}
    scores, row = bm25(list(number), task.candidates), [number[text] for text in task.texts]
    return lambda first, last: scores[row[first:last]]


def _mean_of_others(q_emb: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """float32[Q, D]: for each query the mean query of all other groups, zero if there is none."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    total = np.zeros((len(size), q_emb.shape[1]))
    np.add.at(total, group, q_emb)
    return ((total.sum(0) - total) / np.maximum(1, size.sum() - size)[:, None])[group].astype(np.float32)


def _answers(task: Task) -> Scores:
    """Of each candidate, or one with equal text, for how many queries of other groups it is right."""
    _, key = np.unique(caption_ids(task.candidates) if task.of_texts else np.arange(len(task.candidates)), return_inverse=True)
    _, group = np.unique(task.groups, return_inverse=True)
    own: list[list[int]] = [[] for _ in range(group.max() + 1)]
    for g, right in zip(group, task.right):
        own[g] += np.unique(key[right]).tolist()
    total = np.bincount(np.concatenate(own).astype(np.int64), minlength=key.max() + 1)
    count = lambda g: total - np.bincount(np.array(own[g], dtype=np.int64), minlength=len(total))  # noqa: E731
    return lambda first, last: np.stack([count(g)[key] for g in group[first:last]]).astype(np.float32)


def _chance(task: Task, seed: int) -> dict:
    """The expected row of a random order without ties."""
    right = np.array([len(np.unique(r)) for r in task.right])
    among = np.array([len(task.candidates) if task.choices is None else len(task.choices[i]) for i in range(len(right))])
    hit = {k: 1 - hypergeom.pmf(0, among, right, np.minimum(k, among)) for k in KS}  # some right one among the first k
    low, high = bootstrap_interval(hit[1], task.groups, seed=seed)
    return {"probe": "chance", **{f"r{k}": 100 * float(hit[k].mean()) for k in KS}, "r1_low": low, "r1_high": high, "n": len(right)}


def _judged(rows: list[dict], of_both: bool) -> list[dict]:
    """The rows with share and verdict, by the rule in `probe_rows`."""
    by_name = {row["probe"]: row for row in rows}
    full, chance = by_name["full"], by_name["chance"]["r1"]
    said: dict[str, list[dict]] = {"enough": [], "half of it": [], "unclear": [], "not enough": []}
    for row in rows:
        row["share"] = 100 * (row["r1"] - chance) / (full["r1"] - chance) if full["r1"] > chance else float("nan")
        row["verdict"] = ""
        if row["probe"] in BLIND and of_both:
            better, reaches, half = row["r1_low"] > chance, row["r1_high"] >= full["r1_low"], row["share"] >= 50
            row["verdict"] = ("enough" if better else "unclear") if reaches else "half of it" if better and half else "not enough"
            said[row["verdict"]].append(row)
    ways, unclear = said["enough"] + said["half of it"], said["unclear"]
    named = "; ".join(f"{', '.join(row['probe'] for row in found)} {how}" for how, found in said.items() if found and how != "not enough")
    if not of_both:
        full["verdict"] = "one modality"
    elif any(row["r1"] - chance >= (100 - chance) / 2 for row in ways):
        full["verdict"] = f"poorly constructed: {named}"
    elif not ways and full["r1_low"] <= chance:
        full["verdict"] = "not solved"
    else:
        full["verdict"] = f"undecided: {named}" if ways or unclear else "multimodal"
    return rows


# --- 3. second right answers ----------------------------------------------------------------------------------------------------


def several_right(task: Task, truth: np.ndarray | None = None, seed: int = 0) -> list[dict]:
    """How often another query's right answer, of the same picture, would be right as well.

    Args:
        truth: float[Q, C], above zero where a candidate is right (`ctrlbench.oracle`), for worlds that know it.
    Returns:
        rows {rule, share, low, high, n}: share of queries in per cent with its interval over pictures. Rules: "equal text" but for
        spaces and case; "same words", stop words apart, in any order; "all its words": the other one holds every word of the right one;
        and "truth". All but the last are lower bounds: texts alone do not tell that "a cab" and "the taxi" are one thing.
    Raises:
        ValueError: candidates that are pictures.
    """
    import bm25s

    if not task.of_texts:
        raise ValueError(f"{task.name}: its candidates are pictures; second right answers are looked for among texts")
    words = [frozenset(w) for w in bm25s.tokenize(list(task.candidates), return_ids=False, show_progress=False)]
    texts = caption_ids(task.candidates)
    rules: dict[str, Callable[[int, int, int], bool]] = {  # (query, its right candidate, another one)
        "equal text": lambda i, mine, other: texts[mine] == texts[other],
        "same words": lambda i, mine, other: bool(words[mine]) and words[mine] == words[other],
        "all its words": lambda i, mine, other: bool(words[mine]) and words[mine] <= words[other],
    }
    if truth is not None:
        rules["truth"] = lambda i, mine, other: truth[i, other] > 0
    answers: dict[int, set[int]] = {}
    for group, right in zip(task.groups.tolist(), task.right):
        answers.setdefault(group, set()).update(map(int, right))
    rows = []
    for rule, same in rules.items():
        hits = np.zeros(len(task.right))
        for i, (group, right) in enumerate(zip(task.groups.tolist(), task.right)):
            others = answers[group].difference(map(int, right))
            others = others if task.choices is None else others.intersection(map(int, task.choices[i]))
            hits[i] = any(same(i, int(mine), other) for mine in right for other in others)
        low, high = bootstrap_interval(hits, task.groups, seed=seed)
        rows.append({"rule": rule, "share": 100 * float(hits.mean()), "low": low, "high": high, "n": len(hits)})
    return rows
