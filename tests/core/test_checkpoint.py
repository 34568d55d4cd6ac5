"""Checkpoints: everything comes back, and a full disk, a killed write or a damaged file never costs the last good one."""

import errno

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from abc_core import checkpoint


def model_and_optimizer(kind=torch.optim.AdamW, steps: int = 3):
    """A small layer after a few deterministic steps."""
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(16.0).reshape(4, 4) / 16)
    optimizer = kind(layer.parameters(), lr=0.1)
    for k in range(steps):
        advance(layer, optimizer, k)
    return layer, optimizer


def advance(layer, optimizer, k: int) -> None:
    optimizer.zero_grad()
    layer(torch.full((1, 4), 0.5 + k)).square().sum().backward()
    optimizer.step()


def test_tensors_and_numbers_come_back_to_the_bit(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a/b.c": whole, "same": whole, "view": whole.T, "bf16": whole.bfloat16(), "ints": torch.tensor([3]), "scalar": whole[1, 1]}
    path = tmp_path / "new" / "last.safetensors"
    checkpoint.save(path, tensors, step=7, built={"backbone": "x"}, present=["pretrain"])
    back, numbers = checkpoint.load(path)
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())
    assert numbers == {"step": 7, "built": {"backbone": "x"}, "present": ["pretrain"]}
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(kind, tmp_path):
    layer, optimizer = model_and_optimizer(kind)
    checkpoint.save(tmp_path / "last.safetensors", {"weight": layer.weight}, {"main": optimizer}, step=3)
    again, fresh = model_and_optimizer(kind, steps=0)
    tensors, _ = checkpoint.load(tmp_path / "last.safetensors", {"main": fresh})
    again.load_state_dict(tensors)
    for k in range(3, 6):
        advance(layer, optimizer, k)
        advance(again, fresh, k)
    assert torch.equal(layer.weight, again.weight)


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    layer, optimizer = model_and_optimizer()
    checkpoint.save(tmp_path / "last.safetensors", {"weight": layer.weight}, {"main": optimizer})
    larger = torch.optim.AdamW([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=r"last\.safetensors holds the state of 1 parameters for optimizer 'main'; this run trains 2"):
        checkpoint.load(tmp_path / "last.safetensors", {"main": larger})
    with pytest.raises(ValueError, match="holds the state of 0 parameters for optimizer 'second'; this run trains 1"):
        checkpoint.load(tmp_path / "last.safetensors", {"second": optimizer})


@pytest.mark.parametrize("kept", [0, 7, 40, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(kept, tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"weight": torch.zeros(64, 64)}, step=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"last\.safetensors is not a checkpoint of this project"):
        checkpoint.load(path)


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    (tmp_path / "c.safetensors").write_text("weights")
    for name in "abc":
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is not a checkpoint of this project"):
            checkpoint.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match=r"d\.safetensors"):
        checkpoint.load(tmp_path / "d.safetensors")


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"weight": torch.ones(3)}, step=1)

    def full(tensors, filename, metadata=None):
        filename.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        OSError, match=r"could not write the checkpoint .*last\.safetensors: .*No space left on device.*previous .* is intact"
    ):
        checkpoint.save(path, {"weight": torch.zeros(3)}, step=2)
    tensors, numbers = checkpoint.load(path)
    assert torch.equal(tensors["weight"], torch.ones(3)) and numbers == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_what_a_killed_write_left_is_never_taken_for_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"weight": torch.ones(3)}, step=1)

    def killed(tensors, filename, metadata=None):
        filename.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, "save_file", killed)
        checkpoint.save(path, {"weight": torch.zeros(3)}, step=2)
    assert checkpoint.load(path)[1] == {"step": 1}
    checkpoint.save(path, {"weight": torch.zeros(3)}, step=2)  # the leftovers are in nobody's way
    assert checkpoint.load(path)[1] == {"step": 2} and [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
