"""Generative training of the tiny Qwen2-VL that stands in for the paper's Qwen2-VL-7B-Instruct.

The paper needs a *generative, instruction-tuned* VLM (Sec. 3.1, 4); this trains one of under 8 million parameters from scratch on
conversations about pictures (LLaVA-style JSON lines), in the chat template of Qwen2-VL, through the real transformers classes.

Steps: (1) `train` takes a random model (`build`) and minimises `answer_loss`, the easiest pictures first (`CURRICULUM`, drawn by
`lessons`), resumable to the bit; (2) `python -m abc_core.miniature.backbone` trains or goes on, then writes assets/backbone
(`export`). `answers` asks the model.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from abc_core import checkpoint
from abc_core.backbone import autocast_attention, batch_vision_attention, linear_patches
from abc_core.miniature.backbone.answer_loss import answer_loss, word_loss
from abc_core.miniature.backbone.lessons import Lessons, Stage
from abc_core.runs import run as runlog

TEST_IMAGES = 1_600  # scenes of held-out meanings; one in three has a largest card to ask about


# --- 1. training --------------------------------------------------------------------------------------------------------------


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
        4200, {"single": 0.05, "small": 0.25, "full": 0.7},
        {"content": 1.5, "place": 1.5, "property": 2, "neighbour": 2.5, "size": 0.4, "look": 0.5, "where": 1, "count": 0.2,
         "content_described": 0.7, "place_described": 0.7, "property_described": 0.7, "neighbour_described": 0.7, "size_described": 0.2},
        questions=7, rate=0.25, size=0.5,
    ),
    Stage(
        5000, {"single": 0.05, "small": 0.35, "full": 0.6},
        {"content": 1, "place": 1, "property": 1.5, "neighbour": 4, "size": 0.4, "look": 0.4, "where": 0.8, "count": 0.2,
         "content_described": 0.4, "place_described": 0.4, "property_described": 0.4, "neighbour_described": 1, "size_described": 0.2},
        questions=8, rate=0.4, size=0.5,
    ),
    Stage(
        10**9, {"single": 0.15, "small": 0.3, "full": 0.55},
        {"content": 2, "place": 1.5, "property": 2, "neighbour": 2, "size": 0.4, "look": 0.7, "where": 0.8, "count": 0.2,
         "content_described": 0.7, "place_described": 0.5, "property_described": 0.5, "neighbour_described": 0.5, "size_described": 0.2},
        questions=6, rate=0.6, size=0.5,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class BackboneConfig:
    """Numbers of the generative training; `tokens` is the size of a batch (see `Lessons.batch`)."""

    steps: int = 5350
    tokens: int = 10_000
    learning_rate: float = 1.5e-3  # of AdamW
    muon_factor: float = 4.0  # Muon's learning rate is this many times higher; its update of a matrix has 0.2 of AdamW's size
    weight_decay: float = 0.01
    warmup: int = 20
    cooldown: float = 0.2  # last part of the steps, in which the learning rate falls linearly to zero
    save_every: int = 50
    keep: tuple[float, ...] = (0.1, 0.3, 0.5)  # shares of the steps whose weights are kept, for the study of backbones
    seed: int = 0
    bf16: bool = True  # autocast; several times faster where the processor has AMX, slower where it has not


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

    Raises:
        FloatingPointError: a gradient is not finite; the last checkpoint is intact. RuntimeError: another process trains in `out`.
    """
    if curriculum[-1].end < config.steps:
        raise ValueError(f"the curriculum ends at step {curriculum[-1].end}, before the {config.steps} steps of this run")
    autocast_attention(linear_patches(batch_vision_attention(model)))
    opts = optimizers(model, config)
    out.mkdir(parents=True, exist_ok=True)
    last, log = out / "last.safetensors", runlog.Run(out)
    runlog.hold(out)  # until this process ends, or the training
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
            metrics = _train_step(model, opts, batch, task, stage.rate * learning_rate(step, config), config.bf16, step)
            metrics |= {"step": step, "pictures": len(batch["image_grid_thw"]), "seconds": round(time.perf_counter() - start, 3)}
            log.log(**metrics)
            if step + 1 in [round(share * config.steps) for share in config.keep]:  # before `last`, from which a killed run goes on
                _save(out / f"step-{step + 1:06d}.safetensors", model, lessons, step + 1)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save(last, model, lessons, step + 1, opts)
                quality = f"loss {metrics['loss']:.3f} · token accuracy {metrics['accuracy']:.2f}"
                report(f"step {step + 1}/{config.steps} · {quality} · {metrics['seconds']:.1f} s a step")
    log.release()


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


def _train_step(model, opts, batch, task, lr: float, bf16: bool, step: int) -> dict:
    """One update of all parameters at learning rate `lr`; returns the row for the log.

    Raises:
        FloatingPointError: the gradient is not finite; nothing was updated.
    """
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):  # bf16 products run on AMX
        loss, metrics = task(model, batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        model.zero_grad(set_to_none=True)
        raise FloatingPointError(f"the gradient's norm is {norm.item()} at step {step}; the run's last checkpoint is intact")
    for optimizer in opts.values():
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": round(loss.item(), 5), "gradient_norm": round(norm.item(), 4)} | {k: round(v, 5) for k, v in metrics.items()}


# --- 2. the command line ------------------------------------------------------------------------------------------------------




