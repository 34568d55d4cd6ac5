"""What the tiny backbone learns from: its answers, the words of each region, and where each question has to look.

`answer_loss` is the whole of it, `word_loss` the vision tower's part, with which training starts (`abc_core.miniature.backbone.pretrain`).
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F

from abc_core.miniature.backbone import pointing
from abc_core.miniature.backbone.lessons import IGNORED


def answer_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """Mean cross-entropy over answer tokens, plus `region_loss` twice, `reading_loss`, and `pointing_loss` of each of `pointing.LAYERS`.

    Without the words, questions that are learned late find a vision tower that has forgotten what the early ones did not ask for; without
    the pointing, a question finds its card only after thousands of steps. Returns (loss, numbers for the log).
    """
    seen = seen_by(model, batch)
    with ExitStack() as stack:
        watched = {name: stack.enter_context(pointing.watch(model, layer)) for name, layer in pointing.LAYERS.items()}
        hidden = hidden_of(model, batch, seen)
    logits, targets = answer_logits(model, batch, hidden)
    visual, bags = torch.stack(list(seen.pooler_output)), word_bags(model, batch)
    parts = {
        "answer": F.cross_entropy(logits, targets),
        "word": region_loss(model, batch, visual, bags)[0],
        "last_word": region_loss(model, batch, hidden[:, batch["first_visual"] :][:, : visual.shape[1]], bags)[0],
        "reading": reading_loss(model, batch, hidden),
    }
    out = {"tokens": len(targets), "accuracy": (logits.argmax(-1) == targets).float().mean().item()}
    for name, heads in watched.items():
        parts[name], out[name] = pointing.pointing_loss(batch, batch[name], *heads[0])
    return sum(parts.values()), out | {f"{name}_loss": part.item() for name, part in parts.items()}


def word_loss(model, batch: dict) -> tuple[torch.Tensor, dict]:
    """`region_loss` of the vision tower alone: it starts from nothing (Qwen2-VL's was trained before) and has no text to hide behind."""
    visual = torch.stack(list(seen_by(model, batch).pooler_output))
    loss, found = region_loss(model, batch, visual, word_bags(model, batch))
    return loss, {"tokens": sum(map(len, batch["words"])), "accuracy": found}


def region_loss(model, batch: dict, tokens: torch.Tensor, bags: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Which words does every region show? Cross-entropy of its mean visual token, read through the word embeddings, with its words' tokens.

    Regions say where a word belongs, and their places are among the words (as in location-aware captioners).

    Args:
        tokens: float[B, V, H], the visual tokens as the vision tower gives them, or behind the last layer: the states of a large model
            decode to the words that they stand for, and embeddings are made of them; a tiny model has to be taught.
        bags: float32[R, vocabulary] of `word_bags`.
    Returns:
        (loss, share of the words' tokens that are among the twelve most likely).
    """
    logits = model.lm_head(torch.einsum("rc,rcd->rd", batch["shares"], tokens[batch["picture"]].float())).float()
    found = bags.gather(1, logits.topk(12).indices).sum(1).mean().item()
    return -(bags * logits.log_softmax(-1)).sum(1).mean(), found


def word_bags(model, batch: dict) -> torch.Tensor:
    """float32[R, vocabulary]: the words' tokens of each of R regions, equal parts of 1."""
    bags = torch.zeros(len(batch["words"]), model.config.get_text_config().vocab_size)
    for row, words in enumerate(batch["words"]):
        bags[row, list(words)] = 1.0
    return bags / bags.sum(1, keepdim=True)


def reading_loss(model, batch: dict, hidden: torch.Tensor) -> torch.Tensor:
    """The same for text: behind the last layer, float[B, L, H], a word of a question says itself."""
    return F.cross_entropy(model.lm_head(hidden[batch["read"]]).float(), batch["input_ids"][batch["read"]])


def seen_by(model, batch: dict):
    """The vision tower's output for a batch; pooler_output is one float[V, H] per picture."""
    return model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)


def hidden_of(model, batch: dict, seen) -> torch.Tensor:
    """float[B, L, H] behind the last layer."""
    return model.model(
        input_ids=batch["input_ids"], attention_mask={"full_attention": batch["mask"]}, position_ids=batch["position_ids"],
        mm_encoder_outputs={"image": seen}, image_grid_thw=batch["image_grid_thw"], use_cache=False,
    ).last_hidden_state  # fmt: skip


def answer_logits(model, batch: dict, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32[T, V] and targets int64[T] of a batch's T answer tokens, row by row; no other position gets logits."""
    targets = batch["labels"][:, 1:]
    keep = targets != IGNORED
    return model.lm_head(hidden[:, :-1][keep]).float(), targets[keep]
