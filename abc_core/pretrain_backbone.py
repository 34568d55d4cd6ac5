"""Generative training of the tiny Qwen2-VL that stands in for the paper's Qwen2-VL-7B-Instruct.

The paper needs a *generative, instruction-tuned* VLM (Sec. 3.1, 4); this trains one of under 8 million parameters from scratch on
conversations about pictures (LLaVA-style JSON lines), in the chat template of Qwen2-VL, through the real transformers classes.

Steps: (1) `train` takes a random model (`abc_core.build_backbone`) and minimises cross-entropy on answers, easiest pictures and questions
first (`CURRICULUM`, drawn by `abc_core.lessons`), resumable to the bit; (2) `exact_match` and `answer` ask the model.

(3) `python -m abc_core.pretrain_backbone` trains or goes on, then writes assets/backbone (`abc_core.export_backbone`).
"""

import argparse
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from abc_core import checkpoint, paths, pointing, runlog
from abc_core.backbone import autocast_attention, batch_vision_attention, linear_patches
from abc_core.build_backbone import build, tokenizer_texts
from abc_core.data import open_image
from abc_core.lessons import IGNORED, Lessons, Stage

TEST_IMAGES = 1_600  # scenes of held-out meanings; one in three has a largest card to ask about


# --- 1. training --------------------------------------------------------------------------------------------------------------


def answer_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """Mean cross-entropy over answer tokens, plus `word_loss` of the same visual tokens, plus `pointing_loss` of questions and of names.

    Without the words, questions that are learned late find a vision tower that has forgotten what the early ones did not ask for; without
    the pointing, a question finds its card only after thousands of steps. Returns (loss, numbers for the log).
    """
    seen = _seen(model, batch)
    with pointing.watch(model, pointing.NAMED_LAYER) as named, pointing.watch(model, pointing.ASKED_LAYER) as asked:
        logits, targets = _answer_logits(model, batch, seen)
    answers = F.cross_entropy(logits, targets)
    words, out = _region_loss(model, batch, seen)
    names, found = pointing.pointing_loss(batch, batch["named"], *named[0])
    points, hits = pointing.pointing_loss(batch, batch["asked"], *asked[0])
    out = {"word_loss": words.item(), "word_accuracy": out["accuracy"], "tokens": len(targets)}
    out |= {"naming_loss": names.item(), "naming": found, "pointing_loss": points.item(), "pointing": hits}
    return answers + words + names + points, out | {"accuracy": (logits.argmax(-1) == targets).float().mean().item()}


def word_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """Which words does every region show? Cross-entropy of its mean visual token, read through the word embeddings, with its words' tokens.

    A vision tower that starts from nothing needs this first (Qwen2-VL's was a trained image encoder): it has no text to hide behind.
    Regions say where a word belongs, and their places are among the words (as in location-aware captioners).
    """
    return _region_loss(model, batch, _seen(model, batch))


def _seen(model, batch: dict):
    """The vision tower's output for a batch; pooler_output is one float[V, H] per picture."""
    return model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)


def _answer_logits(model, batch: dict, seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32[T, V] and targets int64[T] of a batch's T answer tokens, row by row; no other position gets logits."""
    hidden = model.model(
        input_ids=batch["input_ids"], attention_mask={"full_attention": batch["mask"]}, position_ids=batch["position_ids"],
        mm_encoder_outputs={"image": seen}, image_grid_thw=batch["image_grid_thw"], use_cache=False,
    ).last_hidden_state  # fmt: skip
    targets = batch["labels"][:, 1:]
    keep = targets != IGNORED
    return model.lm_head(hidden[:, :-1][keep]).float(), targets[keep]


def _region_loss(model, batch: dict, seen) -> tuple[torch.Tensor, dict]:
    tokens = torch.stack(list(seen.pooler_output))[batch["picture"]].float()
    logits = model.lm_head(torch.einsum("rc,rcd->rd", batch["shares"], tokens)).float()
    bags = torch.zeros_like(logits)
    for row, words in enumerate(batch["words"]):
        bags[row, list(words)] = 1.0
    bags /= bags.sum(1, keepdim=True)
    loss = -(bags * logits.log_softmax(-1)).sum(1).mean()
    best = logits.topk(12).indices
    return loss, {"accuracy": bags.gather(1, best).sum(1).mean().item(), "tokens": int((bags > 0).sum())}


# Each stretch is long enough for its questions to be learned; exact match by kind decides, not the loss.
_ASK = {"content": 1, "place": 2, "look": 1, "property": 1.5, "where": 0.5}
CURRICULUM = (
    Stage(500, {"single": 0.2, "small": 0.3, "full": 0.5}, {}, words=True),
    Stage(
        800, {"single": 0.1, "small": 0.5, "full": 0.4}, {"content": 2, "property": 2, "look": 1.5, "place": 2.5, "where": 1.5},
        questions=5,
    ),
    Stage(950, {"single": 0.1, "small": 0.9}, {"content": 4, "look": 1}, questions=4),
    Stage(1400, {"single": 0.05, "small": 0.5, "full": 0.45}, {"content": 2, "look": 1, "place": 3}, questions=5),
    Stage(1550, {"single": 0.05, "small": 0.6, "full": 0.35}, {"dense": 20, "content": 1, "look": 1, "place": 2}, questions=4),
    Stage(
        1850, {"single": 0.05, "small": 0.6, "full": 0.35}, {"dense": 20, "content": 1, "look": 1, "place": 2},
        questions=4, rate=0.3, size=0.4,
    ),
    Stage(
        2250, {"single": 0.05, "small": 0.4, "full": 0.55}, {"dense": 4, "content": 2, "place": 3, "look": 1, "property": 1, "where": 1},
        questions=5, rate=0.3, size=0.5,
    ),
    Stage(2500, {"single": 0.05, "small": 0.45, "full": 0.5}, _ASK, questions=5, rate=0.5, size=0.5),
    Stage(2650, {"single": 0.05, "small": 0.45, "full": 0.5}, _ASK, questions=6, rate=0.2, size=0.5),
    Stage(2900, {"single": 0.05, "small": 0.45, "full": 0.5}, _ASK | {"property": 4, "where": 1}, questions=7, rate=0.25, size=0.5),
    Stage(
        3100, {"single": 0.05, "small": 0.4, "full": 0.55},
        {"content": 1, "place": 1.5, "look": 0.5, "property": 2.5, "where": 1, "neighbour": 1, "content_described": 0.5,
         "place_described": 0.5},
        questions=7, rate=0.2, size=0.5,
    ),
    Stage(
        10**9, {"single": 0.05, "small": 0.25, "full": 0.7},
        {"content": 1.5, "place": 1.5, "property": 2, "neighbour": 2.5, "size": 0.4, "look": 0.5, "where": 1, "count": 0.2,
         "content_described": 0.7, "place_described": 0.7, "property_described": 0.7, "neighbour_described": 0.7, "size_described": 0.2},
        questions=7, rate=0.25, size=0.5,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class BackboneConfig:
    """Numbers of the generative training; `tokens` is the size of a batch (see `Lessons.batch`)."""

    steps: int = 4200
    tokens: int = 10_000
    learning_rate: float = 1.5e-3  # of AdamW
    muon_factor: float = 4.0  # Muon's learning rate is this many times higher; its update of a matrix has 0.2 of AdamW's size
    weight_decay: float = 0.01
    warmup: int = 20
    cooldown: float = 0.2  # last part of the steps, in which the learning rate falls linearly to zero
    save_every: int = 50
    keep: tuple[float, ...] = (0.1, 0.5)  # shares of the steps whose weights are kept, for the study of backbones
    seed: int = 0
    bf16: bool = True  # autocast; several times faster where the processor has AMX


def optimizers(model: nn.Module, config: BackboneConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, patches, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups, lr = [{"params": matrices, "factor": config.muon_factor}], config.learning_rate
    muon = torch.optim.Muon(groups, lr=lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    # The zeros that an optimizer starts from, for all parameters now: a checkpoint has to be complete while the vision tower trains alone.
    for p in matrices:
        muon.state[p]["momentum_buffer"] = torch.zeros_like(p)
    for p in rest:
        adamw.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return {"muon": muon, "adamw": adamw}


def learning_rate(step: int, config: BackboneConfig) -> float:
    """Linear warm-up, constant, linear cool-down."""
    left = (config.steps - step) / max(1, config.cooldown * config.steps)
    return config.learning_rate * min(1.0, (step + 1) / config.warmup, left)


def train(model, lessons: Lessons, config: BackboneConfig, out: Path, curriculum=CURRICULUM, report=print) -> None:
    """Train to `config.steps`, continuing from out/last.safetensors if there is one; one JSON line per step in out/metrics.jsonl.

    The weights at the shares `config.keep` of the steps stay beside it, as out/step-000125.safetensors.
    """
    if curriculum[-1].end < config.steps:
        raise ValueError(f"the curriculum ends at step {curriculum[-1].end}, before the {config.steps} steps of this run")
    autocast_attention(linear_patches(batch_vision_attention(model)))
    opts = optimizers(model, config)
    out.mkdir(parents=True, exist_ok=True)
    last, log = out / "last.safetensors", runlog.Run(out)
    first = restore(model, last, lessons.folder.name, opts) if last.exists() else 0
    log.truncate(first)

    def draw(step):
        stage = next(s for s in curriculum if step < s.end)
        return stage, lessons.batch(step, stage, config.tokens)

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(draw, first)
        for step in range(first, config.steps):
            start, (stage, batch) = time.perf_counter(), ahead.result()
            ahead = reader.submit(draw, min(step + 1, config.steps - 1))
            task = word_loss if stage.words else answer_loss
            metrics = _train_step(model, opts, batch, task, stage.rate * learning_rate(step, config), config.bf16)
            metrics |= {"step": step, "pictures": len(batch["image_grid_thw"]), "seconds": round(time.perf_counter() - start, 3)}
            log.log(**metrics)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save(last, model, lessons, step + 1, opts)
                quality = f"loss {metrics['loss']:.3f} · token accuracy {metrics['accuracy']:.2f}"
                report(f"step {step + 1}/{config.steps} · {quality} · {metrics['seconds']:.1f} s a step")
            if step + 1 in [round(share * config.steps) for share in config.keep]:
                _save(out / f"step-{step + 1:06d}.safetensors", model, lessons, step + 1)


def _save(path: Path, model, lessons: Lessons, step: int, opts=None) -> None:
    checkpoint.save(path, dict(model.named_parameters()), opts, step=step, data=lessons.folder.name)


def restore(model, path: Path, data: str, opts: dict | None = None) -> int:
    """Put weights, and the states of `opts`, back from a checkpoint that was trained on `data`; returns its step.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it was trained on other data, or holds tensors of other names or shapes than the model's.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: no training of the backbone has saved anything there yet")
    tensors, numbers = checkpoint.load(path, opts)
    if numbers.get("data", data) != data:
        raise ValueError(f"{path} was trained on {numbers['data']}, whose tokens are others than those of {data}; name another folder")
    for name, own in model.named_parameters():
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != tuple(own.shape):
            raise ValueError(f"{path} holds {found} for {name}; this model needs {tuple(own.shape)}")
    model.load_state_dict(tensors, strict=False)  # tied weights are in it once
    return numbers["step"]


def _train_step(model, opts, batch, task, lr: float, bf16: bool) -> dict:
    """One update of all parameters at learning rate `lr`; returns the row for the log."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):  # bf16 products run on AMX
        loss, metrics = task(model, batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in opts.values():
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": round(loss.item(), 5), "gradient_norm": round(norm.item(), 4)} | {k: round(v, 5) for k, v in metrics.items()}


# --- 2. exact match and answers -----------------------------------------------------------------------------------------------


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
    logits, targets = _answer_logits(model, batch, _seen(model, batch))
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


# --- 3. the command line ------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> None:
    """Train the tiny backbone, or go on where training stopped, and write it to assets/backbone."""
    from abc_core.export_backbone import export
    from abc_core.openmoji.world import draw_part

    parser = argparse.ArgumentParser(prog="python -m abc_core.pretrain_backbone", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=BackboneConfig.steps, help="steps of the whole training")
    parser.add_argument("--images", type=int, default=40_000, help="pictures to learn from; drawn first if they are not there")
    parser.add_argument("--out", type=Path, default=paths.RUNS / "backbone", help="folder of the checkpoints and the log")
    parser.add_argument("--export", action="store_true", help="train no further: write the last checkpoint to assets/backbone")
    args = parser.parse_args(words)
    report = partial(print, flush=True)
    data = draw_part(paths.DATA, "backbone", args.images, report=report)
    test = draw_part(paths.DATA, "backbone_test", TEST_IMAGES, report=report)
    config = BackboneConfig(steps=args.steps)
    model, processor = build(tokenizer_texts(data), seed=config.seed)
    if not args.export:
        train(model, Lessons(data, processor, config.seed, dense=True, relight=0.3), config, args.out, report=report)
    for kind, row in export(model, processor, args.out, config, data, test).items():
        report(f"{kind:24s} {100 * row['exact_match']:5.1f} %   n = {row['n']}")


if __name__ == "__main__":
    main()
