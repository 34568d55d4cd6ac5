"""Ask a generative backbone: exact match by kind of question, single answers token by token, and instructions for regions (Appendix A)."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from abc_core.backbone import PICTURE_INPUTS, load_backbone
from abc_core.data.pictures import open_image
from abc_core.instructions.replies import Answer, Question
from abc_core.miniature.backbone.answer_loss import answer_logits, hidden_of, seen_by
from abc_core.miniature.backbone.lessons import Lessons
from abc_core.prompts import Prompts
from abc_core.runs.arrays import timed
from abc_core.runs.run import fingerprint


@torch.no_grad()
def exact_match(model, lessons: Lessons, per_kind: int = 500, seed: int = 1, report: Callable | None = None) -> dict:
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
    for r in timed(sorted(by_record), len(by_record), "pictures asked about", report):
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


def answer(model, processor, image: Path, question: str, max_new_tokens: int = 24) -> str:
    """What the model generates, greedily, when asked about a picture: the ordinary way, chat template and `generate`."""
    return answer_all(model, processor, [open_image(image)], [question], max_new_tokens)[0]


@torch.no_grad()
def answer_all(model, processor, pictures: list, questions: list[str], max_new_tokens: int = 24) -> list[str]:
    """The `answer` to one question about each PIL picture, in one batch; special tokens in a question are text.

    Raises:
        ValueError: the model was made bidirectional, and no longer decodes.
    """
    if getattr(model.config.get_text_config(), "is_causal", True) is False:
        raise ValueError("this backbone was made bidirectional, so it no longer generates; load it anew")
    prompts, images = Prompts(processor), getattr(processor, "images_kwargs", {})
    seen = processor.image_processor(images=pictures, return_tensors="pt", **images).to(model.device)
    rows = [prompts.question(processor.replace_image_token(seen, k), question) for k, question in enumerate(questions)]
    length = max(map(len, rows))
    ids = torch.tensor([[prompts.pad] * (length - len(row)) + row for row in rows], device=model.device)  # B, L
    mask = torch.arange(length, 0, -1, device=model.device) <= torch.tensor([[len(row)] for row in rows], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": seen["pixel_values"]}
    inputs |= {name: seen[name] for name in PICTURE_INPUTS[model.config.model_type]}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == prompts.image_token).int()
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[:, length:]
    return processor.tokenizer.batch_decode(out, skip_special_tokens=True)


class Backbone:
    """The backbone of a folder as a generator for `generate.generate`: on this machine, before it becomes an embedder.

    Args:
        batch: pictures of one call. max_tokens: of an answer. options: of `backbone.load_backbone`.
    **Caveat:** the embedded backbone has learned to answer questions, not to ask them: what it says here is no instruction.
    """

    picture_tokens = None  # nobody counts them

    def __init__(self, folder: Path, batch: int = 16, max_tokens: int = 40, **options):
        self.model, self.processor = load_backbone(folder, **options)
        if self.processor is None:
            raise ValueError(f"{folder} has no tokenizer, so it cannot be asked")
        self.batch, self.max_tokens = batch, max_tokens
        self.name = f"backbone {fingerprint(Path(folder))}, answers up to {max_tokens}"

    def __call__(self, questions: list[Question], deliver: Callable) -> None:
        """Answer `batch` questions at a time; (question, Answer, or the exception of its picture) goes to `deliver`."""
        for start in range(0, len(questions), self.batch):
            seen, pictures = [], []
            for question in questions[start : start + self.batch]:
                try:
                    pictures.append(open_image(question.image))
                    seen.append(question)
                except (OSError, ValueError) as error:
                    deliver(question, error)
            texts = answer_all(self.model, self.processor, pictures, [q.prompt for q in seen], self.max_tokens) if seen else []
            for question, text in zip(seen, texts, strict=True):
                deliver(question, Answer(text))
