"""A batch that no device holds at once, and several processes as one: the loss of the whole batch, and its whole gradient.

Equation 2 needs every candidate beside every query. `Rows` encodes the rows of this process, all at once or `chunk` at a time without
gradient, and gathers those of the others, so that every process computes the loss of the whole batch. That loss has a complete gradient
with respect to this process's own embeddings; `Rows.backward` takes it through the encoder, chunk by chunk, in a second forward pass with
the same random numbers (gradient caching), and adds what all processes' rows gave to the parameters.

Steps: (1) `share` cuts a list for a process, `any_process` lets all stop at the same step, `wait` and `aloud` tell of one that hangs;
(2) `gather` joins rows in order of rank, `summed` adds counts; (3) `Rows` encodes, and differentiates.

**Authors' code:** gathers the candidates of other processes without gradient, so its stage-1 gradient is not that of equation 2.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from abc_core.runs.processes import _device, rank_and_count


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows [n, …] of all processes in order of rank, [W·n, …]; only this process's own carry gradient (see `Rows`)."""
    rank, count = rank_and_count()
    if count == 1:
        return rows
    parts = [torch.empty_like(rows, requires_grad=False) for _ in range(count)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[rank] = rows
    return torch.cat(parts)


@dataclass
class Rows:
    """How a step encodes its rows, and how the loss goes back through them; one for each step.

    Args:
        chunk: rows (pictures with all their instructions, or texts) of one forward pass; None: all at once, one forward pass in all.
        arithmetic: context in which forward passes run, autocast for example; called anew for each.
    """

    chunk: int | None = None
    arithmetic: Callable[[], AbstractContextManager] = nullcontext
    _replays: list = field(default_factory=list)

    def __call__(self, encode, *columns) -> tuple[torch.Tensor, dict]:
        """encode(*columns) -> (float[n, D], counts), over this process's rows; returns (float[W·n, D], counts of all processes)."""
        if self.chunk is None:
            with self.arithmetic():
                emb, counts = encode(*columns)
            return gather(emb), summed(counts)
        parts, counts, pieces = [], {}, []
        for start in range(0, len(columns[0]), self.chunk):
            piece, state = [column[start : start + self.chunk] for column in columns], _random_state()
            with torch.no_grad(), self.arithmetic():
                emb, seen = encode(*piece)
            parts.append(emb)
            pieces.append((piece, state, len(emb)))
            counts = {k: counts.get(k, 0) + v for k, v in seen.items()}
        leaf = torch.cat(parts).requires_grad_()
        self._replays.append((encode, pieces, leaf))
        return gather(leaf), summed(counts)

    def backward(self, loss: torch.Tensor, parameters: list, everywhere: list = ()) -> None:
        """Gradients of the whole batch's loss in every process, in `parameters`.

        Args:
            everywhere: those parameters that act on all rows in every process, as τ does, so that their gradient is complete already.
        """
        loss.backward()
        after = _random_state()
        for encode, pieces, leaf in self._replays:
            for (piece, state, _), gradient in zip(pieces, leaf.grad.split([size for _, _, size in pieces])):
                _set_random_state(state)
                with self.arithmetic():
                    emb, _ = encode(*piece)
                emb.backward(gradient)
        _set_random_state(after)
        _, count = rank_and_count()
        complete = {id(p) for p in everywhere}
        for p in parameters if count > 1 else ():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            if id(p) in complete:
                p.grad /= count


def summed(counts: dict) -> dict:
    """Counts over all processes."""
    if rank_and_count()[1] == 1:
        return counts
    total = torch.tensor([float(v) for v in counts.values()], dtype=torch.float64, device=_device())
    dist.all_reduce(total)
    return {k: int(v) for k, v in zip(counts, total.tolist())}


def _random_state():
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
