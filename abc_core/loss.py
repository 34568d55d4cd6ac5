"""The contrastive loss of equation (2) as a pure function, and the temperature that it learns (Sec. 3.2, 4.3).

Steps: (1) `info_nce` scores every query against every candidate of the batch; (2) `duplicate_mask` finds the candidates that are no
negatives because they say what the positive says; (3) `Temperature` holds τ; (4) `check_finite` stops a run whose loss has failed.

The loss is that of the batch it is given: several processes, or micro-batches with cached gradients, pass the gathered embeddings.
"""

import math

import torch
from torch import nn

# --- 1. the loss --------------------------------------------------------------------------------------------------------------


def info_nce(
    q_emb: torch.Tensor,
    c_emb: torch.Tensor,
    temperature: torch.Tensor | float,
    duplicates: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, dict]:
    """Mean over queries of −log softmax(q · c / τ) at the query's own positive; all other candidates of the batch are its negatives.

    Args:
        q_emb: float[B, D], unit vectors.
        c_emb: float[B·(1+K), D], unit vectors, query by query: its positive first, then its K mined negatives.
        temperature: τ, a scalar that divides.
        duplicates: bool[B, C], 1 where a candidate is left out of a query's softmax (see `duplicate_mask`).
        label_smoothing: share of the target that is spread evenly over all candidates that are not left out.

    Returns:
        (loss, out): loss is a scalar, at least float32; out holds, detached, scores float32[B, C] (divided by τ, −inf where left out),
        accuracy (share of queries whose positive beats every other candidate, ties lost), temperature, candidates C and masked_duplicates.

    Raises:
        ValueError: shapes that do not fit, a mask that hides a positive, a float τ that is not positive, smoothing outside [0, 1).

    **Paper:** Sec. 3.2, equation (2), scaled by 1/B. **Authors' code:** label smoothing 0.1; duplicates stay in.
    **Caveat:** accuracy depends on C: never compare it between batches of different sizes.
    """
    own = _own_positives(q_emb, c_emb)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it divides and must be positive")
    dtype = torch.promote_types(q_emb.dtype, torch.float32)
    with torch.autocast(q_emb.device.type, enabled=False):  # a bf16 rounding, divided by a small τ, changes exp(score) by tens of per cent
        scores = q_emb.to(dtype) @ c_emb.to(dtype).T / temperature  # B, C
    if duplicates is not None:
        scores = scores.masked_fill(_checked(duplicates, scores.shape, own), -math.inf)
    log_p = scores.log_softmax(dim=1)
    nll = -log_p.gather(1, own[:, None]).squeeze(1)  # B
    if label_smoothing:
        left = torch.ones_like(scores, dtype=torch.bool) if duplicates is None else ~duplicates
        evenly = -log_p.masked_fill(~left, 0.0).sum(1) / left.sum(1)
        nll = (1 - label_smoothing) * nll + label_smoothing * evenly
    return nll.mean(), _describe(scores.detach(), own, temperature, duplicates)


def _own_positives(q_emb: torch.Tensor, c_emb: torch.Tensor) -> torch.Tensor:
    """int64[B]: the column of each query's positive, 0, 1+K, 2(1+K), …"""
    if q_emb.ndim != 2 or c_emb.ndim != 2 or q_emb.shape[1] != c_emb.shape[1]:
        raise ValueError(f"queries {list(q_emb.shape)} and candidates {list(c_emb.shape)} must be [B, D] and [B·(1+K), D]")
    b, c = len(q_emb), len(c_emb)
    if b == 0 or c == 0 or c % b:
        raise ValueError(f"{c} candidates are no multiple of {b} queries; every query brings its positive and the same number of negatives")
    return torch.arange(0, c, c // b, device=q_emb.device)


def _checked(duplicates: torch.Tensor, shape: torch.Size, own: torch.Tensor) -> torch.Tensor:
    """The mask itself, if it is bool[B, C] and leaves every positive in."""
    if duplicates.shape != shape or duplicates.dtype != torch.bool:
        raise ValueError(f"duplicates is {duplicates.dtype}{list(duplicates.shape)}; the scores need bool{list(shape)}")
    hidden = duplicates.gather(1, own[:, None]).squeeze(1)
    if hidden.any():
        raise ValueError(f"duplicates hides the positive of query {int(hidden.nonzero()[0, 0])} (column {int(own[hidden][0])})")
    return duplicates


def _describe(scores: torch.Tensor, own: torch.Tensor, temperature, duplicates) -> dict:
    positive = scores.gather(1, own[:, None])
    beaten = (scores >= positive).sum(1) == 1  # the positive reaches itself and nothing else does
    return {
        "scores": scores,
        "accuracy": beaten.float().mean(),
        "temperature": torch.as_tensor(temperature).detach(),
        "candidates": scores.shape[1],
        "masked_duplicates": torch.tensor(0) if duplicates is None else duplicates.sum(),
    }


# --- 2. duplicates ------------------------------------------------------------------------------------------------------------


def duplicate_mask(ids: torch.Tensor, candidate_ids: torch.Tensor) -> torch.Tensor:
    """bool[B, C]: 1 where a candidate is not the query's own positive but carries the same caption id, so is true of the picture too.

    Args:
        ids: int64[B], the caption id of each query's positive.
        candidate_ids: int64[B·(1+K)], the caption id of each candidate, laid out as in `info_nce`.

    Raises:
        ValueError: the first candidate of a query does not carry the query's id.
    """
    own = _own_positives(ids[:, None], candidate_ids[:, None])
    wrong = candidate_ids[own] != ids
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"query {row} has caption id {int(ids[row])}, but its positive carries {int(candidate_ids[own[row]])}")
    same = ids[:, None] == candidate_ids[None]
    return same.scatter(1, own[:, None], False)


# --- 3. the temperature -------------------------------------------------------------------------------------------------------


class Temperature(nn.Module):
    """The learned τ: one number, `parameter`, to be optimised without weight decay; calling the module gives τ as a scalar tensor.

    Args:
        initial: τ before training; the paper starts at 0.07.
        parametrisation: "log" learns log τ, so that τ stays positive whatever the optimizer does; "raw" learns τ itself.

    **Paper:** Sec. 3.2, 4.3. **Authors' code:** "raw", unclamped and with weight decay; kept for the study of its instability.
    """

    def __init__(self, initial: float = 0.07, parametrisation: str = "log"):
        super().__init__()
        if not 0 < initial < math.inf:
            raise ValueError(f"the initial temperature is {initial}; it must be positive and finite")
        if parametrisation not in ("log", "raw"):
            raise ValueError(f"unknown parametrisation {parametrisation!r} of the temperature; known: 'log', 'raw'")
        self.parametrisation = parametrisation
        self.parameter = nn.Parameter(torch.tensor(math.log(initial) if parametrisation == "log" else initial))

    def forward(self) -> torch.Tensor:
        """τ, a scalar with gradient."""
        return self.parameter.exp() if self.parametrisation == "log" else self.parameter

    def extra_repr(self) -> str:
        return f"τ = {float(self()):.4f}, {self.parametrisation}"


# --- 4. failure ---------------------------------------------------------------------------------------------------------------


def check_finite(loss: torch.Tensor | float, step: int) -> None:
    """Raise FloatingPointError with step and value if the loss is not finite, before its gradient reaches any weight."""
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {step}; the run stops here and its last checkpoint is intact")
