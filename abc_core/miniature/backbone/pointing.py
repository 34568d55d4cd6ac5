"""Where the tiny backbone's language model looks: attention that is told, in training, which region a question is about.

Next-token loss alone takes thousands of steps to find that "the red disc" of a question is a place in the picture: no head looks there
by chance, so no gradient says that it helped. Qwen2-VL learned it from boxes written into its text (grounding data); a model of 256
dimensions learns it sooner from the attention itself.

Steps: (1) `watch` collects an attention module's queries and keys; (2) `pointing_loss` compares where they look with where to look.
"""

from contextlib import contextmanager

import torch

# Which layer looks where (`Lessons._pointers`); each look but the first finds its region by what the look before it has found.
LAYERS = {
    "named": 1,  # from the end of a thing's name in a question: at that thing
    "asked": 3,  # from where the answer begins: at that thing, or, if none was named, at the region that the answer is read off
    "stepped": 4,  # from there: at the region that the answer is read off, if it is another one ("What is to the right of the owl?")
}


@contextmanager
def watch(model, layer: int):
    """A list that takes (query, key), rotated, float[B, heads, L, d] each, of a decoder layer whenever it runs (`autocast_attention`)."""
    attention = model.model.language_model.layers[layer].self_attn
    attention.watched = []
    try:
        yield attention.watched
    finally:
        attention.watched = None


def pointing_loss(batch: dict, pointers: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean over pointers and heads of -log(attention on the visual tokens of the region), and how often it is looked at most of all.

    Args:
        batch: a batch of `Lessons`; a token belongs to a region if its share of it is above half of the largest share.
        pointers: int64[Q, 3], sorted by row: row, position that looks, region (`Lessons.batch`'s "named", "asked" or "stepped").
        query, key: float[B, heads, L, d], float[B, key heads, L, d].
    """
    row, at, region = pointers.T.contiguous()
    if len(row) == 0:
        return query.new_zeros(()), 0.0
    (b, heads, length, d), groups = query.shape, key.shape[1]
    slot = torch.arange(len(row)) - torch.searchsorted(row, row)  # the how-manieth of its row
    asking = query.new_zeros(b, int(slot.max()) + 1, heads, d)
    asking[row, slot] = query[row, :, at]
    asking = asking.transpose(1, 2).reshape(b, groups, -1, d)  # the heads of one key head together
    scores = (asking @ key.transpose(2, 3)).view(b, heads, -1, length).transpose(1, 2)[row, slot].float() / d**0.5  # Q, heads, L
    scores = scores.masked_fill(~batch["mask"][row, 0, at][:, None], float("-inf")).log_softmax(-1)
    shares = batch["shares"][region]
    inside = shares > shares.amax(1, keepdim=True) / 2
    seen = scores[..., batch["first_visual"] :][..., : inside.shape[1]]
    loss = -seen.masked_fill(~inside[:, None], float("-inf")).logsumexp(-1).mean()
    return loss, inside.gather(1, seen.mean(1).argmax(-1)[:, None]).float().mean().item()
