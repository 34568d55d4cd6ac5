"""Conversations about pictures (LLaVA-style JSON lines) as batches for the generative training of the tiny backbone.

All questions about a picture share one row: a block mask lets each see the picture and itself alone, and each starts at the position
after the picture, so a row equals its single-turn conversations at the cost of one picture.

Steps: (1) `Lessons` reads the conversations; (2) `Lessons.batch` draws pictures and questions with the weights of a `Stage`;
(3) `Lessons.collate` lays them out in rows; `prefix_positions` are the positions that the model itself would give.
"""

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from abc_core import prompts
from abc_core.data.pictures import open_image
from abc_core.runs.files import expect, field_of, read_json_lines

IGNORED = -100  # a label that no loss counts
DESCRIBE_ALL = "Describe everything in the picture."


@dataclass(frozen=True)
class Stage:
    """A stretch of training: until step `end`, pictures and questions are drawn with these weights."""

    end: int
    pictures: dict  # "single" (one card), "small" (up to four), "full" -> weight
    kinds: dict  # question kind -> weight; others are not asked
    questions: int = 6  # per picture, at most
    words: bool = False  # train the vision tower alone, on which words every region shows
    rate: float = 1.0  # of the learning rate
    size: float = 1.0  # of a batch


def read_conversations(folder: Path, dense: bool = False) -> list[dict]:
    """Records of folder/conversations.jsonl, with `turns`: (kind, question, answer, region that it is about or -1), equal texts kept once.

    With `dense`, each has one more turn, of the kind "dense": a description of all its regions, in a random order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record lacks a field, or has not one kind for each question and answer.
    """
    path, records = expect(Path(folder) / "conversations.jsonl", "LLaVA-style conversations"), []
    for row, record in read_json_lines(path):
        where = f"{path} row {row}"
        kinds = [sys.intern(kind) for kind in field_of(record, "kinds", list, where)]
        said = [sys.intern(turn["value"].removeprefix("<image>\n")) for turn in field_of(record, "conversations", list, where)]
        if len(said) != 2 * len(kinds):
            raise ValueError(f"{where}: {len(kinds)} kinds need a question and an answer each, but there are {len(said)} turns")
        facts = {"image": field_of(record, "image", str, where)} | {k: field_of(record, k, int, where) for k in ("width", "height")}
        regions = field_of(record, "regions", list, where)
        facts["regions"] = [(*field_of(r, "box", list, where), *map(sys.intern, field_of(r, "words", list, where))) for r in regions]
        about = field_of(record, "about", list, where)
        if len(about) != len(kinds):
            raise ValueError(f"{where}: {len(kinds)} questions need the number of a region each, or -1; 'about' has {len(about)}")
        turns = list(zip(kinds, said[::2], said[1::2], about))
        if dense:
            caption = _dense_caption(facts["regions"], np.random.default_rng(row))
            kinds, turns = [*kinds, "dense"], [*turns, ("dense", DESCRIBE_ALL, caption, -1)]
        records.append(facts | {"kinds": kinds, "turns": turns})
    return records


def _dense_caption(regions: list, rng: np.random.Generator) -> str:
    """All regions, each after its place, its looks or its thing: what follows can be read off the picture in one look."""
    parts = []
    for k in rng.permutation(len(regions)):
        thing, colour, shape, place = regions[k][4:]
        look, there = f"on the {colour} {shape}", f"in the {place}" if place else ""
        first, *rest = [part for part in rng.permutation([thing, look, there]).tolist() if part]
        parts.append(f"{first}: {' '.join(rest)}")
    return "; ".join(parts)


class Lessons:
    """Conversations about pictures, drawn by (seed, step) alone, so that a resumed run sees what the killed one would have seen."""

    def __init__(self, folder: Path, processor, seed: int = 0, dense: bool = False, relight: float = 0.0):
        self.folder, self.processor, self.seed, self.relight = Path(folder), processor, seed, relight
        self.records = read_conversations(self.folder, dense)
        self.groups = defaultdict(list)  # (complexity, width, height) -> record numbers; a batch has one size, so no pixel is padded
        for k, record in enumerate(self.records):
            cards = sum(kind == "look" for kind in record["kinds"])
            size = (record["width"], record["height"])
            self.groups["single" if cards <= 1 else "small" if cards <= 4 else "full", size].append(k)
        self.tokens = {}

    def batch(self, step: int, stage: Stage, tokens: int) -> dict:
        """Model inputs of one step: pictures of one size with `stage.questions` questions each, about `tokens` tokens in all."""
        rng = np.random.default_rng([self.seed, step])
        keys = sorted(self.groups, key=str)
        weights = np.array([stage.pictures.get(c, 0.0) * len(self.groups[c, s]) / self._total(c) for c, s in keys])
        if weights.sum() == 0:
            there = {c: self._total(c) for c, _ in keys}
            raise ValueError(f"step {step} asks for pictures of {stage.pictures}; {self.folder} has no such picture, only {there}")
        _, size = keys[rng.choice(len(keys), p=weights / weights.sum())]
        pool = np.concatenate([self.groups[k] for k in keys if k[1] == size and stage.pictures.get(k[0], 0.0) > 0])
        text = 0 if stage.words else 23 + 27 * stage.questions
        count = min(256, max(8, round(stage.size * tokens / (2 * size[0] * size[1] / 28**2 + text))))  # a visual token costs two of text
        rows = [self.records[i] for i in rng.choice(pool, size=count)]
        light = 1 + self.relight * (rng.uniform(-0.6, 0.6, (count, 1)) + rng.uniform(-0.4, 0.4, (count, 3)))  # of all colours, of each
        if stage.words:
            return self._look(rows, light)
        return self.collate(rows, [self._draw(r, stage, rng) for r in rows], rng.random(count) < 0.25, light)

    def _total(self, complexity):
        return sum(len(v) for (c, _), v in self.groups.items() if c == complexity)

    def _draw(self, record, stage, rng):
        """Turn numbers of a record, drawn without replacement by kind weight."""
        counts = defaultdict(int)
        for kind in record["kinds"]:
            counts[kind] += 1
        w = np.array([stage.kinds.get(kind, 0.0) / counts[kind] for kind in record["kinds"]])
        if w.sum() == 0:
            raise ValueError(f"{self.folder} picture {record['image']} has no question of {stage.kinds}, only {dict(counts)}")
        return rng.choice(len(w), size=min(stage.questions, int((w > 0).sum())), replace=False, p=w / w.sum())

    def turns(self, record: dict) -> list[tuple[str, str, str, int]]:
        """(kind, question, answer, region) of every turn of a record."""
        return record["turns"]

    def ids(self, text: str, template: bool = False) -> list[int]:
        """Token ids of a text, each distinct one tokenised once; special tokens are such in pieces of the template alone."""
        if (text, template) not in self.tokens:
            tokenizer = self.processor.tokenizer
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] if template else prompts.plain_ids(tokenizer, text)
            self.tokens[text, template] = ids
        return self.tokens[text, template]

    def collate(self, rows: list[dict], turns: list, prefixed, light=None) -> dict:
        """Pictures and packed question blocks as tensors: ids, labels int64[B, L], positions int64[3, B, L], mask bool[B, 1, L, L], and
        `read`, bool[B, L], 1 at the words of questions.

        Rows with `prefixed` have "Instruction: " before their questions, as the embedder's prompt will.
        """
        vision = self._look(rows, light)
        grid = vision["image_grid_thw"][0].tolist()
        high, wide = grid[1] // 2, grid[2] // 2
        before, after = self.ids(prompts.BEFORE_IMAGE, True), self.ids(prompts.AFTER_IMAGE, True)
        prefix = before + self.ids(prompts.IMAGE_PAD, True) * (high * wide) + after
        blocks = [[self.block(record, t, p) for t in chosen] for record, chosen, p in zip(rows, turns, prefixed)]
        length = len(prefix) + max(sum(len(ids) for ids, _ in row) for row in blocks)
        end, asked = self.ids(prompts.END, True)[0], len(self.ids(prompts.BEFORE_ANSWER, True))
        packed = _pack(prefix, len(before), (high, wide), blocks, length, end, asked)
        pointers = self._pointers(rows, turns, blocks, prefixed, len(prefix))
        return {**vision, **packed, "first_visual": len(before), **pointers}

    def _pointers(self, rows, turns, blocks, prefixed, start: int) -> dict[str, torch.Tensor]:
        """Which regions the questions are about, int64[Q, 3] each: the row, a position and the region's row in `shares`.

        "named": where a question has named a thing, that thing's region. "asked": where the answer is predicted, the region to look at
        first, which is that of the thing named, or else the one the answer is read off. "stepped": where the answer is predicted, the
        latter, if it is another one ("What is to the right of the owl?").
        """
        found, before = {"named": [], "asked": [], "stepped": []}, 0
        for r, (record, chosen, row, prefix) in enumerate(zip(rows, turns, blocks, prefixed)):
            at = start
            for turn, (ids, answer) in zip(chosen, row):
                _, question, _, region = self.turns(record)[turn]
                things, last = _mentioned(question, record["regions"]), at + len(ids) - answer - 1
                for k, end in things:
                    said = self.ids(prompts.INSTRUCTION * bool(prefix) + question[:end])
                    found["named"].append((r, at + len(said) - 1, before + k))
                if region >= 0:
                    first = things[0][0] if things else region
                    found["asked"].append((r, last, before + first))
                    if first != region:
                        found["stepped"].append((r, last, before + region))
                at += len(ids)
            before += len(record["regions"])
        return {name: torch.tensor(p, dtype=torch.long).view(-1, 3) for name, p in found.items()}

    def _look(self, rows: list[dict], light=None) -> dict:
        """Pictures of one size as the vision tower wants them, and of each of their R regions: its picture int64[R], the share of it in
        every visual token float32[R, tokens] and the token ids of its words, with and without a space before them (R sets)."""
        pictures = [open_image(self.folder / r["image"]) for r in rows]
        if light is not None:
            levels = np.arange(256)
            pictures = [p.point(np.clip(np.outer(gain, levels).round(), 0, 255).ravel().tolist()) for p, gain in zip(pictures, light)]
        vision = self.processor.image_processor(images=pictures, return_tensors="pt")
        high, wide = (n // 2 for n in vision["image_grid_thw"][0].tolist()[1:])
        regions = [(k, region, r) for k, r in enumerate(rows) for region in r["regions"]]
        shares = [
            np.outer(_overlap(y, h, r["height"], high), _overlap(x, w, r["width"], wide)).ravel() for _, (x, y, w, h, *_), r in regions
        ]
        said = [{i for word in region[4:] if word for text in (word, " " + word) for i in self.ids(text)} for _, region, _ in regions]
        shares = torch.from_numpy(np.stack(shares)).float()
        owner = torch.tensor([k for k, _, _ in regions])
        return {**vision, "picture": owner, "shares": shares / shares.sum(1, keepdim=True), "words": said}

    def block(self, record, turn: int, prefixed: bool) -> tuple[list[int], int]:
        """Token ids of one question with its answer, and how many of them are the answer (with its end)."""
        _, question, answer, _ = self.turns(record)[turn]
        answer = self.ids(answer) + self.ids(prompts.IM_END, True)
        return self.ids(prompts.INSTRUCTION * bool(prefixed) + question) + self.ids(prompts.BEFORE_ANSWER, True) + answer, len(answer)


def _mentioned(question: str, regions: list) -> list[tuple[int, int]]:
    """The region whose thing a question names, where the name ends, if there is just one; of names within names the longest."""
    found = [(k, re.search(rf"\b{re.escape(region[4])}\b", question)) for k, region in enumerate(regions)]
    ends = [(k, match.end(), len(match[0])) for k, match in found if match]
    longest = max((length for *_, length in ends), default=0)
    ends = [(k, end) for k, end, length in ends if length == longest]
    return ends if len(ends) == 1 else []


def _overlap(start: int, length: int, of: int, cells: int) -> np.ndarray:
    """How much of each of `cells` equal parts of `of` pixels lies in start … start + length."""
    edges = np.linspace(0, of, cells + 1)
    return np.clip(np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start), 0, None)


def _pack(prefix, at, grid, blocks, length, pad, header: int) -> dict:
    """Lay prefix and blocks out in rows of `length`; the module's docstring says what a token sees and where it stands."""
    b, p, cells = len(blocks), len(prefix), grid[0] * grid[1]
    ids = torch.full((b, length), pad)
    labels = torch.full((b, length), IGNORED)
    read = torch.zeros(b, length, dtype=torch.bool)
    owner = torch.full((b, length), -1)  # 0: the prefix; k: block k; -1: padding
    positions = torch.zeros(3, b, length, dtype=torch.long)
    ids[:, :p], owner[:, :p] = torch.tensor(prefix), 0
    positions[:, :, :p] = prefix_positions(p, at, grid)[:, None]
    start = p - cells + max(grid)
    for r, row in enumerate(blocks):
        c = p
        for k, (tokens, answer) in enumerate(row, start=1):
            n = len(tokens)
            ids[r, c : c + n] = torch.tensor(tokens)
            labels[r, c + n - answer : c + n] = ids[r, c + n - answer : c + n]
            owner[r, c : c + n] = k
            read[r, c : c + n - answer - header] = True
            positions[:, r, c : c + n] = torch.arange(start, start + n)
            c += n
    see = (owner[:, None, :] == 0) | (owner[:, :, None] == owner[:, None, :])  # keys of the prefix, or of the same block
    mask = (see & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "mask": mask, "read": read}


def prefix_positions(length: int, at: int, grid: tuple[int, int]) -> torch.Tensor:
    """M-RoPE positions int64[3, length] of text, a picture of `grid` tokens that starts at `at`, and text after it."""
    high, wide = grid
    picture = torch.stack(
        [torch.zeros(high * wide, dtype=torch.long), torch.arange(high).repeat_interleave(wide), torch.arange(wide).repeat(high)]
    )
    before = torch.arange(at).expand(3, -1)
    after = torch.arange(length - at - high * wide).expand(3, -1) + at + max(grid)
    return torch.cat([before, picture + at, after], dim=1)
