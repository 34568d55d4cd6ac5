"""One batch however it is split: into chunks, over processes, or not at all, the loss and every gradient are those of equation 2."""

import math
from datetime import timedelta

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from abc_core import parallel, train
from abc_core.batches import Batch
from abc_core.loss import Temperature, duplicate_mask, info_nce
from abc_core.parallel import Rows, gather
from abc_core.runs.processes import share

PICTURES, K, WIDTH = 6, 2, 5
IDS = torch.tensor([0, 3, 4, 1, 5, 3, 0, 6, 7, 2, 8, 9, 3, 1, 0, 4, 4, 5])  # captions repeat, also across halves


class Toy(nn.Module):
    """Two towers with dropout and a temperature, in float64: what a step needs of an embedder."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.image, self.text = (nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, WIDTH)) for _ in range(2))
            self.temperature = Temperature(0.1)
        self.double()

    def encode_images(self, rows, instructions=None):
        return F.normalize(self.image(torch.stack(list(rows))), dim=-1), {"tokens": len(rows)}

    def encode_texts(self, rows):
        return F.normalize(self.text(torch.stack(list(rows))), dim=-1), {"tokens": len(rows)}


class Config:
    label_smoothing = 0.1


def data():
    """(pictures float64[6, 7], captions float64[18, 7])."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(PICTURES, 7, generator=generator).double(), torch.randn(len(IDS), 7, generator=generator).double()


def gradients(rows: Rows, rank: int = 0, count: int = 1, dropout: float = 0.0) -> dict:
    """Loss, counts and every gradient of one step of process `rank`."""
    toy, (pictures, captions) = Toy(dropout), data()
    mine = lambda x: share(x, rank, count)  # noqa: E731
    with torch.random.fork_rng():
        torch.manual_seed(3)
        batch = Batch(list(mine(pictures)), [[None]] * (PICTURES // count), list(mine(captions)), mine(IDS))
        loss, out = train.pretrain_step(toy, batch, Config, rows)
        rows.backward(loss, list(toy.parameters()), list(toy.temperature.parameters()))
    found = {name: p.grad.clone() for name, p in toy.named_parameters()}
    return found | {"loss": loss.detach(), "tokens": torch.tensor(out["tokens"]), "masked": out["masked_duplicates"]}


def dense() -> dict:
    """The same without any of our code but equation 2 itself, written out."""
    toy, (pictures, captions) = Toy(), data()
    q, c = toy.encode_images(pictures)[0], toy.encode_texts(captions)[0]
    own = torch.arange(PICTURES) * (1 + K)
    same = IDS[own][:, None] == IDS[None]
    same[torch.arange(PICTURES), own] = False
    scores = (q @ c.T / toy.temperature()).masked_fill(same, -math.inf)
    log_p = scores.log_softmax(1)
    evenly = torch.stack([-row[~hidden].mean() for row, hidden in zip(log_p, same)])
    loss = (0.9 * -log_p[torch.arange(PICTURES), own] + 0.1 * evenly).mean()
    loss.backward()
    return {name: p.grad for name, p in toy.named_parameters()} | {"loss": loss.detach(), "tokens": torch.tensor(24), "masked": same.sum()}


def equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name].double(), other[name].double(), atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 100])
def test_any_chunk_size_gives_the_dense_loss_and_every_gradient(chunk):
    equal(gradients(Rows(chunk)), dense())


def test_a_replayed_forward_pass_draws_the_same_dropout(monkeypatch):
    toy, (pictures, captions) = Toy(0.5), data()
    torch.manual_seed(3)
    q = torch.cat([toy.encode_images(part)[0] for part in pictures.split(4)])
    c = torch.cat([toy.encode_texts(part)[0] for part in captions.split(4)])
    own = IDS[:: 1 + K]
    loss, _ = info_nce(q, c, toy.temperature(), duplicate_mask(own, IDS), Config.label_smoothing)
    loss.backward()
    found = gradients(Rows(4), dropout=0.5)
    equal({k: found[k] for k in found if k not in ("tokens", "masked", "loss")}, {name: p.grad for name, p in toy.named_parameters()})
    monkeypatch.setattr(parallel, "_set_random_state", lambda state: None)
    other = gradients(Rows(4), dropout=0.5)
    assert (found["image.0.weight"] - other["image.0.weight"]).abs().max() > 1e-3


def test_random_numbers_after_a_step_do_not_depend_on_the_replay():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        toy, (pictures, captions) = Toy(0.5), data()
        rows = Rows(4)
        batch = Batch(list(pictures), [[None]] * PICTURES, list(captions), IDS)
        loss, _ = train.pretrain_step(toy, batch, Config, rows)
        before = torch.get_rng_state()
        rows.backward(loss, list(toy.parameters()))
        assert torch.equal(torch.get_rng_state(), before)


def process(rank: int, count: int, chunk, folder) -> None:
    """One of `count` processes; writes what it got."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count, timeout=timeout)
    try:
        torch.save(gradients(Rows(chunk), rank, count), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("count", "chunk"), [(2, None), (2, 2), (3, 4)])
def test_several_processes_give_the_loss_and_the_gradients_of_one(tmp_path, count, chunk):
    mp.spawn(process, (count, chunk, tmp_path), nprocs=count)
    for rank in range(count):
        equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), dense())


def test_candidates_of_other_processes_without_gradient_would_give_another_one():
    toy, (pictures, captions) = Toy(), data()
    q, c = toy.encode_images(pictures)[0], toy.encode_texts(captions)[0]
    half = len(captions) // 2
    loss, _ = info_nce(q, torch.cat([c[:half], c[half:].detach()]), toy.temperature(), duplicate_mask(IDS[:: 1 + K], IDS), 0.1)
    loss.backward()
    assert (toy.text[0].weight.grad - dense()["text.0.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_chunks_do_not_change_the_gradients_of_a_real_embedder(stage):
    found = []
    for chunk in (None, 1, 2):
        made, rows = tiny.with_lora("qwen2_vl", stage), Rows(chunk)
        trained = [p for p in made.parameters() if p.requires_grad]
        rows.backward(tiny.step_of(stage, made, rows), trained)
        found.append([p.grad for p in trained])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=5e-6, rtol=1e-4)  # float32; 1.7e-6 without AVX-512's order


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    assert share([1, 2, 3, 4], 1, 2) == [3, 4] and torch.equal(gather(torch.ones(2)), torch.ones(2))
    with pytest.raises(ValueError, match="5 rows of a batch cannot be shared evenly by 2 processes"):
        share([1, 2, 3, 4, 5], 0, 2)
