"""How varied the texts of a benchmark are, and how much a score depends on the wording of a question (Sec. 5.3).

(1) `diversity` counts n-grams, and what training has seen of them; (2) `trained_wordings` finds how training words each question of a
benchmark, `draw_wordings` takes some of these and of those that were kept from training; (3) `wording_spread` asks in all of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from abc_core.ctrlbench.probes import task_ranks
from abc_core.data.tasks import Task
from abc_core.data.texts import normalise
from abc_core.evaluation.metrics import bootstrap_interval
from abc_core.evaluation.zero_shot import in_memory, queries
from abc_core.instructions.regions import Instructed
from abc_core.runs.files import expect, field_of, read_json_lines

Wordings = list[dict[int, str]]  # of each query: number of a wording -> text; in drawn data a number is a template of the query's kind


# --- 1. diversity ---------------------------------------------------------------------------------------------------------------


def diversity(texts: Sequence[str], training: Iterable[str] | None = None, most: int = 3) -> dict:
    """Numbers about a set of texts; n-grams are of words, without case and punctuation.

    Returns:
        texts, distinct (different texts); words, the mean length; distinct_1 … distinct_3, different n-grams in per cent of all n-grams;
        with `training`: in_training, texts that it holds (`data.normalise`), and seen_1 … seen_3, n-grams that occur there, in per cent.
    **Caveat:** distinct_n falls with the number of texts; compare sets of one size only.
    """
    if not texts:
        raise ValueError("no texts, so nothing can be said about their diversity")
    said, exact = [_words(text) for text in texts], [normalise(text) for text in texts]
    out = {"texts": len(texts), "distinct": len(set(exact)), "words": float(np.mean([len(words) for words in said]))}
    known = None
    if training is not None:
        trained = {normalise(text) for text in training}
        known = {_words(text) for text in trained}
        out["in_training"] = 100 * float(np.mean([text in trained for text in exact]))
    for n in range(1, most + 1):
        grams = [gram for words in said for gram in _grams(words, n)]
        out[f"distinct_{n}"] = 100 * len(set(grams)) / max(1, len(grams))
        if known is not None:
            seen = {gram for words in known for gram in _grams(words, n)}
            out[f"seen_{n}"] = 100 * sum(gram in seen for gram in grams) / max(1, len(grams))
    return out


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", normalise(text).casefold()))


def _grams(words: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    return [words[k : k + n] for k in range(len(words) - n + 1)]


# --- 2. wordings ----------------------------------------------------------------------------------------------------------------


def trained_wordings(rows: Sequence[Instructed], path: Path, trained: Path) -> list[list[str]]:
    """The wordings that training has for the question of each row of a benchmark.

    Args:
        path: the instructions.jsonl from which the benchmark was built. trained: the same questions, row by row, in training's wordings.
    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a question is not in `path`, or the two files do not have the same rows.
    """
    questions: dict[tuple, list[tuple[int, list[str]]]] = {}
    for number, entry in read_json_lines(expect(Path(path), "instructions for Visual Genome's regions")):
        questions.setdefault(_key(entry, path, number), []).append((number, field_of(entry, "instructions", list, f"{path} row {number}")))
    twins = dict(read_json_lines(expect(Path(trained), "the same instructions in training's wordings")))
    out = []
    for i, row in enumerate(rows):
        key = (row.image_id, row.region_id, row.kind)
        number = next((number for number, texts in questions.get(key, []) if row.instruction in texts), None)
        if number is None:
            raise ValueError(f"{path} has no {row.kind} question {row.instruction!r} for region {row.region_id} (row {i} of the benchmark)")
        if number not in twins or _key(twins[number], trained, number) != key:
            raise ValueError(f"{trained} row {number} is not the question of {path} row {number}: {twins.get(number)}")
        out.append(field_of(twins[number], "instructions", list, f"{trained} row {number}"))
    return out


def _key(entry: dict, path: Path, number: int) -> tuple[int, int, str]:
    """(image_id, region_id, kind) of a row of instructions."""
    where = f"{path} row {number}"
    return field_of(entry, "image_id", int, where), field_of(entry, "region_id", int, where), field_of(entry, "kind", str, where)


def draw_wordings(
    sets: Mapping[str, Sequence[Sequence[str]]], groups: np.ndarray, pictures: int, most: int, seed: int
) -> dict[str, Wordings]:
    """At most `most` wordings, with their numbers, of each query of `pictures` pictures and each set; other queries have none."""
    rng = np.random.default_rng(seed)
    taken = np.isin(groups, rng.permutation(np.unique(groups))[:pictures])
    few = lambda said: {k: said[k] for k in sorted(rng.permutation(len(said))[:most].tolist())}  # noqa: E731
    return {name: [few(said) if take else {} for said, take in zip(every, taken, strict=True)] for name, every in sets.items()}


# --- 3. the spread --------------------------------------------------------------------------------------------------------------


def wording_spread(
    embedder, task: Task, wordings: Mapping[str, Wordings], c_emb: np.ndarray, kinds: Sequence[str], seed: int = 0, report=None
) -> list[dict]:
    """R@1 of the same questions in different wordings; all wordings of a picture share its visual tokens.

    Args:
        wordings: set of wordings -> those of each query (`draw_wordings`); queries without any are left out.
        c_emb: float32[C, D] of the task's candidates. kinds: Q kinds of question. report: called with progress.
    Returns:
        rows {wordings, kind, wording, r1, r1_low, r1_high, every, any, std, n, asked}, in per cent but for n queries and asked wordings.
        With wording "all": r1 is the mean over queries of the share of their wordings that are answered right; `every` and `any` the
        share of queries that are right in every wording (R@1 in the worst one), and in at least one (in the best one), each with an
        interval over pictures; std the standard deviation of R@1 over the wordings of a kind, in points (kind "all": mean of the kinds,
        by queries). With a number: R@1 of that wording of that kind alone, NaN for the others.
    Raises:
        ValueError: no wording in one of the sets.
    """
    owner, texts, names, number = [], [], [], []
    for name, every in wordings.items():
        if not any(every):
            raise ValueError(f"no question has a wording of the set {name!r}")
        for i, said in enumerate(every):
            owner += [i] * len(said)
            texts += said.values()
            names += [name] * len(said)
            number += said.keys()
    owner, names, number, kinds = np.array(owner), np.array(names), np.array(number), np.asarray(kinds)
    asked = Task(
        task.name, task.pictures, np.asarray(task.shown)[owner], texts, task.candidates, [task.right[i] for i in owner],
        None if task.choices is None else [task.choices[i] for i in owner],
    )  # fmt: skip
    q_emb = in_memory(queries, asked, embedder, report)
    hit = task_ranks(asked, lambda first, last: q_emb[first:last] @ c_emb.T) < 1
    rows = []
    for name in wordings:
        own = [_spread(hit[m], owner[m], number[m], task.groups, seed) for m in _masks(names == name, kinds[owner])]
        labels = ["all", *np.unique(kinds[owner[names == name]]).tolist()]
        for kind, (summary, _) in zip(labels, own):
            rows.append({"wordings": name, "kind": kind, "wording": "all"} | summary)
        rows[-len(own)]["std"] = float(np.average([s["std"] for s, _ in own[1:]], weights=[s["n"] for s, _ in own[1:]]))
        rows += [{"wordings": name, "kind": kind} | part for kind, (_, parts) in zip(labels[1:], own[1:]) for part in parts]
    return rows


def _masks(own: np.ndarray, kinds: np.ndarray) -> list[np.ndarray]:
    """A mask of all, then one of each kind."""
    return [own, *(own & (kinds == kind) for kind in np.unique(kinds[own]))]


def _spread(hit: np.ndarray, owner: np.ndarray, number: np.ndarray, groups: np.ndarray, seed: int) -> tuple[dict, list[dict]]:
    """The summary of some wordings, and a row for each of their numbers."""
    items, of = np.unique(owner, return_inverse=True)
    size, right = np.bincount(of), np.bincount(of, weights=hit)
    out = {}
    for name, value in (("r1", right / size), ("every", right == size), ("any", right > 0)):
        low, high = bootstrap_interval(value, groups[items], seed=seed)
        out |= {name: 100 * float(value.mean()), f"{name}_low": low, f"{name}_high": high}
    parts = []
    for k in np.unique(number):
        mine = number == k
        low, high = bootstrap_interval(hit[mine], groups[owner[mine]], seed=seed)
        share = 100 * float(hit[mine].mean())
        parts.append({"wording": int(k), "r1": share, "r1_low": low, "r1_high": high, "n": int(mine.sum()), "asked": int(mine.sum())})
    return out | {"std": float(np.std([part["r1"] for part in parts])), "n": len(items), "asked": len(hit)}, parts
