"""What the other systems minimise: losses as pure functions, and a training step for each, side by side.

    symmetric_step   CLIP      each picture finds its caption and each caption its picture
    sigmoid_step     SigLIP    each pair of a batch for itself: does this caption belong to this picture?
    token_step       FILIP     as CLIP, on the mean over tokens of the best match among the other side's tokens
    caption_step     CoCa      as CLIP, and the caption is written out from the picture
    text_step        E5-V      a caption with words left out finds itself; no picture is seen

UniIR's score fusion, MagicLens' fusion transformer and VLM2Vec minimise equation 2, `train.pretrain_step`, as ABC's stage 1 does. All
take the loop's arguments (`train.train`), run in one process, and leave equal captions of a batch out, as ABC does.
"""

import torch
import torch.nn.functional as F

from abc_core.batches import Batch
from abc_core.loss import duplicate_mask, info_nce
from abc_core.parallel import Rows, gather

CAPTIONING = 2.0  # CoCa, Sec. 3.2: λ of captioning, against 1 of the contrast
CUT = 0.2  # share of a caption's words that are left out; ConSERT (Yan et al., 2021) cuts tokens as SimCSE drops activations


# --- the losses -----------------------------------------------------------------------------------------------------------------


def symmetric_loss(q_emb: torch.Tensor, c_emb: torch.Tensor, temperature, ids: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Mean of equation 2 from pictures to captions and from captions to pictures (CLIP, Fig. 3); `out` is that of the former.

    Args:
        q_emb, c_emb: float[B, D] and float[B, D], unit vectors. ids: int64[B], equal for equal captions.
    """
    duplicates = duplicate_mask(ids, ids)
    loss, out = info_nce(q_emb, c_emb, temperature, duplicates)
    return (loss + info_nce(c_emb, q_emb, temperature, duplicates)[0]) / 2, out


def sigmoid_loss(q_emb: torch.Tensor, c_emb: torch.Tensor, temperature, bias, duplicates: torch.Tensor | None = None) -> torch.Tensor:
    """−1/B · Σᵢ Σⱼ log σ(zᵢⱼ (qᵢ · cⱼ / τ + b)) with z = 1 for a query's own candidate and −1 for the others (SigLIP, Sec. 3.2).

    Args:
        q_emb, c_emb: float[B, D] and float[B, D], unit vectors.
        duplicates: bool[B, B], 1 where a candidate is neither (see `loss.duplicate_mask`).
    """
    scores = q_emb.float() @ c_emb.float().T / temperature + bias  # B, B
    signs = 2 * torch.eye(len(scores), device=scores.device) - 1
    terms = F.logsigmoid(signs * scores)
    if duplicates is not None:
        terms = terms.masked_fill(duplicates, 0.0)
    return -terms.sum() / len(scores)


def token_scores(q_tokens: torch.Tensor, c_tokens: torch.Tensor) -> torch.Tensor:
    """float[Q, C]: mean over a query's tokens of the best product with any token of the candidate (FILIP, eq. 4 and 5).

    Args:
        q_tokens, c_tokens: float[Q, T, D] and float[C, S, D], unit vectors, and zeros where there is no token (see `token_mask`).
    """
    q_mask, c_mask = token_mask(q_tokens), token_mask(c_tokens)
    products = torch.einsum("qtd,csd->qcts", q_tokens, c_tokens)
    best = products.masked_fill(~c_mask[None, :, None], -torch.inf).amax(-1)  # Q, C, T
    return (best * q_mask[:, None]).sum(-1) / q_mask.sum(-1)[:, None]


def token_mask(tokens: torch.Tensor) -> torch.Tensor:
    """bool[N, T]: where float[N, T, D] holds a token; the rest is zeros, as a unit vector never is."""
    return (tokens != 0).any(-1)


def caption_loss(logits: torch.Tensor, ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every caption token given those before it (CoCa, Sec. 3.2).

    Args:
        logits: float[B, L, vocabulary], at each token for the next one. ids: int64[B, L].
        words: bool[B, L], the tokens to predict: those of the caption and its end; neither template nor padding.
    """
    wanted = words[:, 1:]
    return F.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted])


def cut_words(text: str, share: float = CUT) -> str:
    """A text of which every word is left out with a probability of `share`, by torch's random numbers; one word stays at least."""
    words = text.split()
    kept = [word for word, stays in zip(words, (torch.rand(len(words)) >= share).tolist()) if stays]
    return " ".join(kept or words[:1])


# --- the steps ------------------------------------------------------------------------------------------------------------------


def symmetric_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """CLIP: `symmetric_loss` of pictures and captions."""
    q_emb, c_emb, counts = _both(embedder, batch, rows)
    loss, out = symmetric_loss(q_emb, c_emb, embedder.temperature(), gather(batch.candidate_ids.to(q_emb.device)))
    return loss, out | counts


def sigmoid_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """SigLIP: `sigmoid_loss` of pictures and captions, with the bias that the temperature carries."""
    q_emb, c_emb, counts = _both(embedder, batch, rows)
    ids = gather(batch.candidate_ids.to(q_emb.device))
    duplicates = duplicate_mask(ids, ids)
    temperature = embedder.temperature
    _, out = info_nce(q_emb.detach(), c_emb.detach(), temperature().detach(), duplicates)  # for the log
    return sigmoid_loss(q_emb, c_emb, temperature(), temperature.bias, duplicates), out | counts


def token_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """FILIP: equation 2 in both directions on `token_scores`, which depend on the direction."""
    q_tokens, c_tokens, counts = _both(embedder, batch, rows)
    ids = gather(batch.candidate_ids.to(q_tokens.device))
    duplicates = duplicate_mask(ids, ids)
    each = torch.eye(len(q_tokens), device=q_tokens.device)  # scores · 1 = scores
    loss, out = info_nce(token_scores(q_tokens, c_tokens), each, embedder.temperature(), duplicates)
    back, _ = info_nce(token_scores(c_tokens, q_tokens), each, embedder.temperature(), duplicates)
    return (loss + back) / 2, out | counts


def caption_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """CoCa: `symmetric_loss`, and twice `caption_loss` of the decoder that sees the picture."""
    with (rows or Rows()).arithmetic():
        q_emb, c_emb, captioning, counts = embedder.describe(batch.images, batch.candidates)
    loss, out = symmetric_loss(q_emb, c_emb, embedder.temperature(), batch.candidate_ids.to(q_emb.device))
    return loss + CAPTIONING * captioning, out | counts


def text_step(embedder, batch: Batch, config, rows: Rows | None = None) -> tuple[torch.Tensor, dict]:
    """E5-V: equation 2 between captions with words left out (`cut_words`) and whole ones."""
    rows = rows or Rows()
    q_emb, cut = rows(embedder.encode_texts, [cut_words(caption) for caption in batch.candidates])
    c_emb, whole = rows(embedder.encode_texts, batch.candidates)
    ids = gather(batch.candidate_ids.to(q_emb.device))
    loss, out = info_nce(q_emb, c_emb, embedder.temperature(), duplicate_mask(ids, ids))
    return loss, out | {k: cut[k] + whole[k] for k in cut}


def _both(embedder, batch: Batch, rows: Rows | None) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """What the two towers make of pictures and captions, and their counts."""
    rows = rows or Rows()
    q_emb, seen = rows(embedder.encode_images, batch.images, batch.instructions)
    c_emb, read = rows(embedder.encode_texts, batch.candidates)
    return q_emb, c_emb, {k: seen[k] + read[k] for k in seen}
