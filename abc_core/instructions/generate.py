"""Instructions made by a model (Appendix A): ask for each region's caption, keep every answer, write what the rules let pass.

Steps: (1) a region becomes a `Question`, the prompt of Appendix A beside its picture; (2) `plan` says what asking would take, and contacts
nothing; (3) `generate` asks a generator, `ask.Server` or `answers.Backbone`, what the cache of `replies` lacks, and keeps each raw answer
at once; (4) answers that the rules of `replies` let pass become instructions.jsonl, in the layout of `instructions.read_instructions`.

Nothing here knows an address: a generator that contacts a server was given one.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abc_core.data.karpathy import Region
from abc_core.instructions.replies import RULES, Answer, AnswerCache, Question, Unanswered, instruction_of, judge, read_answers
from abc_core.runs.files import shorten, whole_file
from abc_core.runs.run import fingerprint

# App. A; its <Image> is the picture that goes with the text
PROMPT = "Given this image, provide a user prompt where the following caption would be a reasonable answer: {}. Only return the prompt."
KIND = "generated"  # of all instructions that were made here
PAUSE = 10  # seconds between two lines of progress
CHARACTERS = 4  # of a token, about, in English; for a plan
ANSWER_TOKENS = 25  # of an answer, about; for a plan

# --- 1. questions -----------------------------------------------------------------------------------------------------------------


def questions_of(regions: Iterable[Region], name: str) -> list[tuple[Region, Question | None]]:
    """Each region with its question; None where the picture's file cannot be read. `name` is the generator's."""
    known: dict[Path, str | None] = {}
    asked = []
    for region in regions:
        if region.image not in known:
            try:
                known[region.image] = fingerprint(region.image)
            except OSError:
                known[region.image] = None
        picture, prompt = known[region.image], PROMPT.format(region.caption)
        asked.append((region, Question(fingerprint(prompt, picture, name), region.image, prompt) if picture else None))
    if not asked:
        raise ValueError("no regions were given, so there is nothing to ask")
    return asked


# --- 2. what it will take ---------------------------------------------------------------------------------------------------------


def plan(regions: Iterable[Region], generator, cache: Path, prices: Sequence[float] = (0.0, 0.0)) -> dict[str, float]:
    """What `generate` would take; nothing is contacted and nothing written.

    Tokens of a call are the mean of this generator's cached answers to these questions. Where there are none yet, a rule of thumb: a token
    is 4 characters, a picture as many as `generator.picture_tokens`, an answer 25; all zeros where that is None and nobody counts.

    Args:
        generator, cache, prices: as for `generate`.
    Returns:
        regions, unreadable picture, from cache, calls; tokens in, tokens out (of the calls); dollars.
    """
    asked, (answers, _) = questions_of(regions, generator.name), read_answers(cache)
    questions = {question.key: question for _, question in asked if question is not None}
    calls = [question for key, question in questions.items() if key not in answers]
    taken = [answers[key].tokens for key in questions if key in answers and any(answers[key].tokens)]
    unreadable = sum(question is None for _, question in asked)
    if taken:
        tokens = [round(len(calls) * sum(each) / len(taken)) for each in zip(*taken)]
    elif generator.picture_tokens is None:
        tokens = [0, 0]
    else:
        tokens = [sum(generator.picture_tokens + len(q.prompt) // CHARACTERS for q in calls), ANSWER_TOKENS * len(calls)]
    return {
        "regions": len(asked), "unreadable picture": unreadable, "from cache": len(asked) - unreadable - len(calls), "calls": len(calls),
        "tokens in": tokens[0], "tokens out": tokens[1], "dollars": round(_dollars(tokens, prices), 4),
    }  # fmt: skip


def _dollars(tokens: Sequence[int], prices: Sequence[float]) -> float:
    """Dollars for (tokens in, tokens out) at prices in dollars per million of each."""
    return sum(count * price for count, price in zip(tokens, prices, strict=True)) / 1e6


# --- 3. ask -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What came of the regions. regions = unreadable picture + from cache + asked; from cache + asked = kept + all other rules + failed.

    A question that several regions share (the same caption twice in a picture) is asked once; the other regions count as from cache.
    """

    counts: dict[str, int]
    left_out: dict[str, list[str]]  # rule, "failed" or "unreadable picture" -> the regions, each with the reason
    tokens: tuple[int, int]  # in and out, of this call's answers
    dollars: float  # for these
    torn: int  # half-written lines that were dropped from the cache: 0 or 1

    def __str__(self) -> str:
        lines = [" · ".join(f"{name} {count:,}" for name, count in self.counts.items())]
        took = f"tokens in {self.tokens[0]:,} · out {self.tokens[1]:,} · ${self.dollars:,.2f}"
        lines.append(f"{took} · half-written lines dropped {self.torn}")
        for rule, names in self.left_out.items():
            shown = names if rule == "failed" else names[:3]  # a failed region can be asked again
            lines += [f"left out, {rule}: {len(names):,}" + (", such as" if len(shown) < len(names) else ""), *(f"  {n}" for n in shown)]
        return "\n".join(lines)


def generate(
    regions: Iterable[Region],
    generator,
    path: Path,
    cache: Path,
    prices: Sequence[float] = (0.0, 0.0),
    give_up: int = 20,
    report: Callable = print,
) -> Account:
    """Make instructions for regions: ask what the cache lacks, apply the rules, write `path`, whole or not at all.

    A call that is killed, or interrupted, loses no answer that was there; the next one asks for the rest. A region that failed is left
    out, named in the account, and asked again by the next call.

    Args:
        generator: `ask.Server` or `answers.Backbone`, or what has a `name` that stands for all that its answers depend on,
            `picture_tokens` for `plan`, and, called with (questions, deliver), calls deliver(question, Answer or Exception) in this thread
            for each, in any order.
        path: instructions.jsonl, a line for each region that is kept, in the order of `regions`.
        cache: JSON lines to which every answer is appended; one file may serve many calls and generators, but one call at a time.
        prices: dollars per million tokens, in and out.
        give_up: stop after so many failed calls in a row.
        report: called with a line of progress every ten seconds.
    Raises:
        RuntimeError: another call uses the cache; the server refuses us; or `give_up` calls in a row failed.
        ValueError: no regions, or the rules left none.
    **Paper:** Sec. 3.2, "Instruction design", and Appendix A.
    """
    asked, trouble = questions_of(regions, generator.name), {}
    with AnswerCache(cache) as answers:
        questions = {q.key: q for _, q in asked if q is not None and q.key not in answers}
        progress = _Progress(len(questions), prices, give_up, report)

        def deliver(question: Question, outcome: Answer | Exception) -> None:
            if isinstance(outcome, Answer):
                answers.add(question, generator.name, outcome)
            else:
                trouble[question.key] = outcome
            progress.count(outcome)

        if questions:
            generator(list(questions.values()), deliver)
        found, torn = dict(answers), answers.torn
    return _settle(asked, questions, found, trouble, path, progress, torn)


class _Progress:
    """Counts outcomes, says how far it is, and gives up when nothing works."""

    def __init__(self, total: int, prices: Sequence[float], give_up: int, report: Callable):
        self.total, self.prices, self.give_up, self.report = total, prices, give_up, report
        self.done, self.failed, self.in_a_row, self.tokens = 0, 0, 0, (0, 0)
        self.started = self.said = time.monotonic()

    @property
    def dollars(self) -> float:
        return _dollars(self.tokens, self.prices)

    def count(self, outcome: Answer | Exception) -> None:
        self.done += 1
        if isinstance(outcome, Answer):
            self.in_a_row = 0
            self.tokens = tuple(a + b for a, b in zip(self.tokens, outcome.tokens))
        elif isinstance(outcome, Unanswered):
            self.failed, self.in_a_row = self.failed + 1, self.in_a_row + 1
            if self.in_a_row >= self.give_up:
                raise RuntimeError(
                    f"asking stopped, {self.done:,} of {self.total:,} done: {self.in_a_row} calls in a row failed, the last one with "
                    f"{str(outcome)!r}. All answers so far are kept, and the next call asks for the rest"
                )
        now = time.monotonic()
        if now - self.said >= PAUSE:
            from abc_core.runs.arrays import spell

            self.said, left = now, (now - self.started) / self.done * (self.total - self.done)
            self.report(f"{self.done:,} of {self.total:,} asked · {self.failed:,} failed · ${self.dollars:,.2f} · {spell(left)} left")


# --- 4. the file ------------------------------------------------------------------------------------------------------------------


def _settle(asked: list, called: dict, answers: dict, trouble: dict, path: Path, progress: _Progress, torn: int) -> Account:
    """Apply the rules, write the file, and account for every region."""
    left_out, rows, first_time = {name: [] for name in ("unreadable picture", *RULES, "failed")}, [], set(called)
    counts = {"regions": len(asked), "asked": 0, "from cache": 0}
    for region, question in asked:
        problem = None if question is None else trouble.get(question.key)
        if question is None or isinstance(problem, OSError | ValueError):
            left_out["unreadable picture"].append(_name(region, problem or region.image))
        else:
            counts["asked" if question.key in first_time else "from cache"] += 1
            rule = "failed" if problem else judge(answers[question.key], region.caption)
            if rule is None:
                said = {"instructions": [instruction_of(answers[question.key])]}
                rows.append({"image_id": region.image_id, "region_id": region.region_id, "kind": KIND} | said)
            else:
                left_out[rule].append(_name(region, problem or shorten(answers[question.key].refusal or answers[question.key].text)))
            first_time.discard(question.key)
    counts |= {"kept": len(rows)} | {rule: len(names) for rule, names in left_out.items()}
    account = Account(counts, {k: v for k, v in left_out.items() if v}, progress.tokens, progress.dollars, torn)
    if not rows:
        raise ValueError(f"no instruction is left for any of {len(asked):,} regions, so {path} was not written\n{account}")
    with whole_file(Path(path)) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return account


def _name(region: Region, why) -> str:
    return f"picture {region.image_id} region {region.region_id}: {why}"
