"""Ask a generative backbone: exact match by kind of question, and single answers token by token."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from abc_core.answer_loss import answer_logits, hidden_of, seen_by
from abc_core.data import open_image
from abc_core.lessons import Lessons


@torch.no_grad()
def exact_match(model, lessons: Lessons, per_kind: int = 500, seed: int = 1) -> dict:
    """Share of questions whose whole answer greedy decoding would give, per kind: {"content": {"exact_match": …, "n": …}, …}.

    Greedy decoding gives the answer exactly if the most likely token is right at each of its positions, so one forward pass of all
    questions of a picture tells it (a test compares with `generate`).
    """
    model.eval()
    rng = np.random.default_rng(seed)
    wanted = defaultdict(list)
    for r, record in enumerate(lessons.records):
        for t, kind in enumerate(record["kinds"]):
            wanted[kind].append((r, t))
    by_record = defaultdict(list)
    for kind in sorted(wanted):
        for i in rng.permutation(len(wanted[kind]))[:per_kind]:
            r, t = wanted[kind][i]
            by_record[r].append(t)
    right = defaultdict(list)
    for r in sorted(by_record):
        for t, ok in zip(by_record[r], _answers_right(model, lessons, lessons.records[r], by_record[r])):
            right[lessons.records[r]["kinds"][t]].append(ok)
    return {k: {"exact_match": round(float(np.mean(v)), 4), "n": len(v)} for k, v in sorted(right.items())}


def _answers_right(model, lessons, record, turns) -> list[bool]:
    """For each asked turn of one picture: is every answer token the most likely one?"""
    batch = lessons.collate([record], [turns], [False])
    logits, targets = answer_logits(model, batch, hidden_of(model, batch, seen_by(model, batch)))
    ok = (logits.argmax(-1) == targets).tolist()
    out = []
    for t in turns:
        answer = lessons.block(record, t, False)[1]
        out.append(all(ok[:answer]))
        ok = ok[answer:]
    return out


@torch.no_grad()
def answer(model, processor, image: Path, question: str, max_new_tokens: int = 24) -> str:
    """What the model generates, greedily, when asked about a picture: the ordinary way, chat template and `generate`."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[open_image(image)], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
