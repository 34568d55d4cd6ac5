"""Does a benchmark need the picture and the instruction together (Sec. 5.3)? What blind probes get of it, for any `Task` and any system.

Steps: (1) `embed_probes` embeds each distinct query once, whole and with a part taken away or exchanged; (2) `probe_rows` scores these and
the probes that see no query at all (`answers`, `prior`, `chance`), and says by a stated rule what each result means; (3) `several_right`
counts items with a second right answer. A system is a `systems.System`, such as `model.Embedder`. Names of probes:

full         the query as it is                              bm25     words that instruction and candidate share
shuffled     the picture with another picture's instruction  prior    mean similarity of a candidate to the queries of other pictures
picture      the picture alone                               answers  how often a candidate is the right answer for other pictures
instruction  the instruction with a grey picture             chance   a random order, by arithmetic
text         the instruction embedded as a text
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from abc_core.ctrlbench import baselines
from abc_core.ctrlbench.baselines import bm25, shuffled_instructions
from abc_core.data.tasks import Task
from abc_core.data.texts import caption_ids
from abc_core.evaluation import metrics as evaluate
from abc_core.evaluation.metrics import KS, bootstrap_interval, table_row
from abc_core.evaluation.zero_shot import candidates, in_memory, queries

BLOCK = 512  # queries scored at a time
BLIND = ("shuffled", "picture", "instruction", "text", "bm25", "prior", "answers")  # none of them knows both halves of its query
Scores = Callable[[int, int], np.ndarray]  # (first, last) -> float[last - first, C], the scores of these queries


# --- 1. vectors -----------------------------------------------------------------------------------------------------------------


def embed_probes(embedder, task: Task, seed: int, report: Callable | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Vectors of the probes that need a model.

    Args:
        seed: draws the other picture's instruction (`baselines.shuffled_instructions`).
        report: called with a line of progress every ten seconds.
    Returns:
        probe -> float32[Q, D], only "full" if not every query has a picture and an instruction; and float32[C, D] of the candidates.
    """
    c_emb = in_memory(candidates, task, embedder, report)
    if not _of_both(task):
        return {"full": in_memory(queries, task, embedder, report)}, c_emb
    see = lambda **other: in_memory(queries, replace(task, **other), embedder, report)  # noqa: E731
    count, texts = len(task.shown), list(task.texts)
    others = shuffled_instructions(texts, task.shown, seed)
    twice = {name: None if rows is None else [*rows, *rows] for name, rows in (("right", task.right), ("choices", task.choices))}
    both = see(shown=np.tile(task.shown, 2), texts=texts + others, **twice)  # one pass, so that visual tokens serve both
    grey = Image.new("RGB", (168, 168), (128, 128, 128))
    return {
        "full": both[:count],
        "shuffled": both[count:],
        "picture": see(texts=[None] * count),
        "instruction": see(pictures=[grey], shown=np.zeros_like(task.shown)),
        "text": see(pictures=[], shown=np.full_like(task.shown, -1)),
    }, c_emb


def _of_both(task: Task) -> bool:
    """Has every query a picture and an instruction?"""
    return bool((np.asarray(task.shown) >= 0).all() and all(task.texts))


def poor_choices(task: Task, choices: int, seed: int) -> tuple[Task, np.ndarray]:
    """A poorly constructed set, as in Figure 6: queries that name something of their answer, among captions that have nothing of it.

    Args:
        task: whose query i has the one right candidate i, such as CtrlBench. choices: candidates of a query, the right one among them.
    Returns:
        the set, and int64[Q], its queries in `task`.
    Raises:
        ValueError: no instruction shares a word with its answer.
    """
    shared = bm25(list(task.texts), task.candidates)
    named = np.flatnonzero(shared.diagonal() > 0)
    offered = []
    for i in named:
        others = np.flatnonzero(shared[i] == 0)
        drawn = np.random.default_rng([seed, i]).choice(others, min(choices - 1, len(others)), replace=False)
        offered.append(np.append(drawn, i))
    texts = [task.texts[i] for i in named]
    return Task("Poor choices", task.pictures, task.shown[named], texts, task.candidates, list(named[:, None]), offered), named


# --- 2. scores and verdicts -----------------------------------------------------------------------------------------------------


def probe_rows(task: Task, vectors: dict[str, np.ndarray], c_emb: np.ndarray, seed: int = 0) -> list[dict]:
    """The table of probes, with a verdict each.

    Args:
        vectors, c_emb: of `embed_probes`; or of another task with the same queries and candidates, whose choices differ.
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
    found = {name: _product(q_emb, c_emb) for name, q_emb in vectors.items()}
    if task.of_texts and all(task.texts):
        found["bm25"] = _bm25(task)
    found["prior"] = _product(_mean_of_others(vectors["full"], task.groups), c_emb)
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
    hit = {k: baselines.chance(task, k) for k in KS}
    low, high = bootstrap_interval(hit[1], task.groups, seed=seed)
    return {"probe": "chance", **{f"r{k}": 100 * float(hit[k].mean()) for k in KS}, "r1_low": low, "r1_high": high, "n": len(hit[1])}


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
        truth: float[Q, C], above zero where a candidate is right (`baselines.oracle`), for worlds that know it.
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
