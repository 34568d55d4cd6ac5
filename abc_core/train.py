"""One training loop and the paper's two steps, side by side: their difference is its second contribution.

    pretrain_step (Sec. 3.2, stage 1)   pictures against captions and mined negatives; both sides, head and temperature train
    instruct_step (Sec. 3.2, stage 2)   instructed pictures against frozen captions; several instructions of one picture in a batch

Steps of `train`: (1) what the config says of the embedder; (2) optimizer and last checkpoint; (3) draw, step, log; (4) validate; (5) save.

Everything random is a function of (seed, step), so a killed run that continues ends with the same weights, bit for bit; in another number
of processes, up to rounding (and with another draw of dropout, if LoRA has any).
"""

import math
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from abc_core import adapters, checkpoint
from abc_core.backbone import set_visual_tokens
from abc_core.batches import Batch
from abc_core.data.pictures import UnreadableImage
from abc_core.loss import Temperature, check_finite, duplicate_mask, info_nce
from abc_core.parallel import Rows, gather, summed
from abc_core.runs.processes import aloud, any_process, rank_and_count, wait

# --- the two steps ------------------------------------------------------------------------------------------------------------


def pretrain_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """Equation 2 over pictures (no instructions) and their captions with mined negatives; gradients reach both sides and τ."""
    rows = rows or Rows()
    q_emb, seen = rows(embedder.encode_images, batch.images, batch.instructions)  # B, D
    c_emb, read = rows(embedder.encode_texts, batch.candidates)  # B·(1+K), D
    ids = gather(batch.candidate_ids.to(q_emb.device))
    duplicates = duplicate_mask(ids[:: len(c_emb) // len(q_emb)], ids)
    loss, out = info_nce(q_emb, c_emb, embedder.temperature(), duplicates, label_smoothing=config.label_smoothing)
    return loss, out | {k: seen[k] + read[k] for k in seen}


def instruct_step(embedder, batch: Batch, config, bank: torch.Tensor, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """Equation 2 over instructed pictures and their frozen captions; τ is frozen.

    The captions of `bank`, float[M, D], were embedded once by the stage-1 model, so those of other pictures may serve as further
    negatives (`InstructConfig.negatives`) for the price of a product; a picture's visual tokens are computed once for all its instructions.
    **Authors' code:** both towers run at every step, the vision tower once per instruction; the numbers are the same.
    """
    rows = rows or Rows()
    q_emb, seen = rows(partial(_encode_instructed, embedder), batch.images, batch.instructions)  # B = images · instructions, D
    own = bank[batch.candidates], batch.candidate_ids  # the bank stays where it is, a batch of it moves
    c_emb, ids = (gather(rows_of.to(q_emb.device)) for rows_of in own)  # B·(1+K), D
    duplicates = duplicate_mask(ids[:: len(c_emb) // len(q_emb)], ids)
    loss, out = info_nce(q_emb, c_emb, embedder.temperature(), duplicates, label_smoothing=config.label_smoothing)
    return loss, out | seen


def _encode_instructed(embedder, images: list, instructions: list) -> tuple[torch.Tensor, dict]:
    """With the stage-2 adapter on, in a replayed forward pass too."""
    with adapters.instructed(embedder.model, True):
        return embedder.encode_images(images, instructions)


# --- the loop -----------------------------------------------------------------------------------------------------------------


class Keeper(NamedTuple):
    """What of a model the loop trains, loads and saves; by default the adapter of a stage, with head and temperature."""

    prepare: Callable  # (embedder, stage, config) -> names of what trains
    load: Callable  # (embedder, stage, tensors, source) puts saved tensors back
    save: Callable  # (embedder, path, optimizers, **numbers) writes them


def train(
    run, embedder, stage: str, batches, step_fn, config, validate=None, report=print, keeper: Keeper | None = None
) -> None:
    """Train `stage` of `embedder` for config.steps, logging one row per step; continues a killed run; saves model.safetensors.

    Args:
        run: the open run folder (`runlog.open_run`). A finished one is loaded, not trained.
        batches: step -> Batch. step_fn: (embedder, batch, config, rows=…) -> (loss, out).
        validate: embedder -> dict of numbers, called every config.validate_every steps and at the end; optional.
        keeper: what trains and is saved, if it is no adapter of this `stage`.

    In several processes all call this with the same arguments; the first alone validates, logs and saves, and a stop stops all.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the last good checkpoint is intact.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step under way is saved; a second one stops at once.
    """
    keeper = keeper or Keeper(prepare, adapters.load_stage, adapters.save_embedder)
    names, lead = keeper.prepare(embedder, stage, config), rank_and_count()[0] == 0
    last, final = run.folder / "last.safetensors", run.folder / "model.safetensors"
    if run.finished:
        keeper.load(embedder, stage, checkpoint.load(final)[0], final)
        return last.unlink(missing_ok=True)
    optimizer = make_optimizer(embedder, config)
    first = _resume(run, embedder, stage, optimizer, last, lead, keeper)
    count = sum(adapters.count_trained(embedder).values())
    broken, tell = [], report  # every process names the first broken pictures of its own
    report = report if lead else lambda line: None
    report(f"{stage}: {len(names)} tensors, {count:,} numbers train; from step {first} of {config.steps}")
    started = told = time.perf_counter()
    with ThreadPoolExecutor(1) as reader, uninterrupted() as interrupted:
        for step, batch in _read_ahead(reader, batches, first, config.steps):
            done = step + 1
            with aloud(f"is in step {done}"):
                row, stop = one_step(embedder, optimizer, batch, step_fn, config, step), any_process(bool(interrupted))
            for line in batch.unreadable[: max(0, 3 - len(broken))]:
                broken.append(tell(f"step {done}: another picture takes the place of {line}"))
            validates = validate is not None and (done % config.validate_every == 0 or done == config.steps)
            saves = stop or done % config.save_every == 0 or done == config.steps
            if lead:
                row |= validate(embedder) if validates else {}
                run.log(**row)
                if saves:
                    keeper.save(embedder, last, {"adamw": optimizer}, step=done)
            if validates or saves:  # no process ends while the first still saves
                wait(f"process 0 to validate and save step {done}")
            if stop:
                raise KeyboardInterrupt(f"stopped after step {done} of {config.steps}; run again to continue")
            if done % max(1, config.steps // 20) == 0 or done == config.steps or time.perf_counter() - told > 300:  # seconds
                told = time.perf_counter()
                report(_progress(row, done, config.steps, (told - started) / (done - first)))
    if lead:
        end = run.rows()[-1]
        keeper.save(embedder, final)
        run.finish(steps=config.steps, loss=end["loss"], temperature=end["temperature"])
        last.unlink()
    wait(f"process 0 to write {final.name}")


def prepare(embedder, stage: str, config) -> list[str]:
    """Apply what the config says of the embedder: its visual tokens, its temperature, what trains; returns the names of what trains.

    Raises:
        ValueError: the stage's adapter is missing, or is not the one of the config.
    """
    if embedder.lora.get(stage) != asdict(config.lora):
        raise ValueError(f"the embedder's {stage!r} adapter is {embedder.lora.get(stage)}; the config wants {asdict(config.lora)}")
    set_visual_tokens(embedder.processor, config.min_visual_tokens, config.max_visual_tokens)
    embedder.built |= {"min_visual_tokens": config.min_visual_tokens, "max_visual_tokens": config.max_visual_tokens}
    adapters.freeze_but(embedder, stage)
    if config.activation_checkpointing:
        adapters.checkpoint_activations(embedder.model)
    embedder.eval()  # the layers of a new adapter come in training mode
    if stage == "pretrain":
        set_temperature(embedder, config)
    return [name for name, p in embedder.named_parameters() if p.requires_grad]


def set_temperature(embedder, config) -> None:
    """Give the embedder a fresh τ (Sec. 3.1): its value before the first step, how it is parametrised, whether it is learned."""
    embedder.temperature = Temperature(config.temperature, config.temperature_parametrisation).to(embedder.device)
    embedder.temperature.requires_grad_(config.learn_temperature)
    embedder.built["temperature_parametrisation"] = config.temperature_parametrisation


def one_step(embedder, optimizer, batch: Batch, step_fn, config, step: int) -> dict:
    """Forward, backward, update; returns the row to log."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)  # first, so that nothing is left over from a step that failed
    trained = [p for p in embedder.parameters() if p.requires_grad]
    embedder.train()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
            rows = Rows(config.chunk, partial(_arithmetic, config.bf16, embedder.device))
            loss, out = step_fn(embedder, batch, config, rows=rows)
            check_finite(gather(loss.detach()[None]).sum(), step)  # of all processes: they stop together
            rows.backward(loss, trained, list(embedder.temperature.parameters()))
    finally:
        embedder.eval()
    norm = nn.utils.clip_grad_norm_(trained, config.clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm.item()} at step {step}; the run's last checkpoint is intact")
    rate = schedule(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    seconds = time.perf_counter() - start
    return {
        "step": step, "loss": loss.item(), "temperature": embedder.temperature().item(), "accuracy": float(out["accuracy"]),
        "candidates": int(out["candidates"]), "masked_duplicates": int(out["masked_duplicates"]), "gradient_norm": norm.item(),
        "learning_rate": rate, "tokens": out["tokens"], "padded_tokens": out["padded_tokens"],
        "unreadable_pictures": summed({"": len(batch.unreadable)})[""],
        "tokens_per_second": round(out["tokens"] / seconds), "seconds": round(seconds, 3),
    }  # fmt: skip


def make_optimizer(embedder, config) -> torch.optim.AdamW:
    """AdamW (Sec. 4) without weight decay on the temperature. **Authors' code:** decays it."""
    decayed = [p for n, p in embedder.named_parameters() if p.requires_grad and not n.startswith("temperature.")]
    free = [p for n, p in embedder.named_parameters() if p.requires_grad and n.startswith("temperature.")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay, "factor": 1.0}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0, "factor": config.temperature_factor})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas))


def schedule(step: int, config) -> float:
    """Learning rate: linear warm-up over config.warmup of the steps (Sec. 4: 3 %), then a cosine to zero."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def _resume(run, embedder, stage, optimizer, last, lead: bool, keeper: Keeper) -> int:
    """Put the last checkpoint back, or write one of the start; returns the next step."""
    if lead and not last.exists():
        keeper.save(embedder, last, step=0)
    wait(f"process 0 to write {last.name}")
    tensors, numbers = checkpoint.load(last)
    keeper.load(embedder, stage, tensors, last)
    step = numbers["step"]
    if step:  # before the first step the optimizer has no state
        checkpoint.load(last, {"adamw": optimizer})
    if lead:
        run.truncate(step)
    wait(f"process 0 to truncate the rows of {run.folder.name}")
    if len(run.rows()) != step:
        raise ValueError(f"{run.folder / 'metrics.jsonl'} has {len(run.rows())} rows of {step} steps; delete {run.folder} to begin anew")
    return step


def _read_ahead(reader, batches, first: int, steps: int):
    """(step, batch) of the steps left; the next batch is read while one is computed."""
    ahead = [reader.submit(batches, step) for step in range(first, min(first + 1, steps))]
    for step in range(first, steps):
        batch = ahead.pop().result()
        if step + 1 < steps:
            ahead.append(reader.submit(batches, step + 1))
        yield step, batch


def _progress(row: dict, done: int, steps: int, seconds: float) -> str:
    """One line about a step, with the time left at `seconds` a step."""
    shown = " · ".join(f"{k} {row[k]:.4g}" for k in ("loss", "temperature", "accuracy", "val_accuracy") if k in row)
    return f"step {done}/{steps} · {shown} · {seconds * (steps - done):.0f} s left"


@contextmanager
def _arithmetic(bf16: bool | str, device: torch.device):
    """Autocast to bfloat16 where asked for; "auto": on GPUs, and on CPUs that multiply it in hardware (AMX)."""
    if bf16 == "auto":
        bf16 = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(bf16)):
        yield


@contextmanager
def uninterrupted():
    """Hold the first Ctrl-C or SIGTERM until the step under way is saved; yields a list that is non-empty once it came."""
    caught: list[float] = []  # when

    def hold(number, _):
        again = caught and (number == signal.SIGINT or time.monotonic() > caught[0] + 1)  # a dying parent may send SIGTERM once a thread
        if again:
            raise KeyboardInterrupt("stopped at once; run again to continue from the last checkpoint")
        caught.append(time.monotonic())

    try:
        before = {s: signal.signal(s, hold) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: leave signals alone
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- validation ---------------------------------------------------------------------------------------------------------------


def validator(sets: dict[str, list], count: int = 800):
    """embedder -> {"val_accuracy": …} for each named set of pairs: the share of pictures whose own caption is the nearest of the batch's.

    **Paper:** App. C, "an 800 sample validation batch using in-batch negatives". Equal captions count as one; ties are lost.
    **Caveat:** depends on `count`: compare only at the same one. Pairs whose picture is broken are left out.
    """

    def validate(embedder) -> dict:
        out = {}
        for name, pairs in sets.items():
            pairs, images = _embed_readable(embedder, pairs[:count])
            captions = list(dict.fromkeys(p.caption for p in pairs))
            scores = torch.from_numpy(images) @ torch.from_numpy(embedder.embed(texts=captions)).T
            own = scores.gather(1, torch.tensor([captions.index(p.caption) for p in pairs])[:, None])
            out[f"{name}_accuracy"] = ((scores >= own).sum(1) == 1).float().mean().item()
        return out

    return validate


def _embed_readable(embedder, pairs: list):
    """The pairs whose pictures can be read, and the embeddings of these, float32[n, D]. UnreadableImage if there is none."""
    while True:
        try:
            return pairs, embedder.embed(images=[p.image for p in pairs])
        except UnreadableImage as error:
            pairs = [p for p in pairs if p.image != error.source]
            if not pairs:
                raise


# --- what stage 2 saves -------------------------------------------------------------------------------------------------------


