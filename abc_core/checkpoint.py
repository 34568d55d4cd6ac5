"""Atomic checkpoints in safetensors: tensors, optimizer state and plain numbers, no pickle.

A checkpoint is one file, written beside its place and renamed, so it is whole or absent; the last good one stays until then.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def save(path: Path, tensors: dict[str, torch.Tensor], optimizers: dict[str, torch.optim.Optimizer] | None = None, **numbers) -> None:
    """Write `tensors`, the state of each named optimizer and JSON-able `numbers` into one file, atomically and durably."""
    path = Path(path)
    flat = {f"tensor/{k}": v for k, v in tensors.items()}
    for name, optimizer in (optimizers or {}).items():
        for index, state in optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{name}/{index}/{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        flat = {k: v.detach().contiguous().clone() for k, v in flat.items()}
        save_file(flat, partial, metadata={"numbers": json.dumps(numbers | {"digest": _digest(flat, numbers)})})
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"could not write the checkpoint {path}: {error}. Is the disk full? The previous checkpoint is intact.") from error


def load(path: Path, optimizers: dict[str, torch.optim.Optimizer] | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Read a checkpoint: returns (tensors, numbers) and puts the state back into the named optimizers.

    Raises:
        ValueError: the file is not a checkpoint, is damaged (one of before digests were written is not checked), or lacks the state of an
            optimizer.
    """
    try:
        with safe_open(path, "pt") as handle:
            flat = {k: handle.get_tensor(k) for k in handle.keys()}
            numbers = dict(json.loads(handle.metadata()["numbers"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project: {error}") from error
    if numbers.pop("digest", None) not in (None, digest := _digest(flat, numbers)):
        raise ValueError(f"{path} is damaged: what it holds has the digest {digest}, not the one that was written; delete it to begin anew")
    for name, optimizer in (optimizers or {}).items():
        state = {}
        for key, value in flat.items():
            if key.startswith(f"optimizer/{name}/"):
                index, field = key.removeprefix(f"optimizer/{name}/").split("/", 1)
                state.setdefault(int(index), {})[field] = value
        wanted = sum(len(g["params"]) for g in optimizer.param_groups)
        if len(state) != wanted:
            raise ValueError(f"{path} holds the state of {len(state)} parameters for optimizer {name!r}; this run trains {wanted}")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return {k.removeprefix("tensor/"): v for k, v in flat.items() if k.startswith("tensor/")}, numbers


def _digest(flat: dict[str, torch.Tensor], numbers: dict) -> str:
    """16 hex digits of all that a checkpoint holds."""
    read = json.loads(json.dumps(numbers))  # as they will come back: names as text, tuples as lists
    digest = hashlib.sha256(json.dumps(read, sort_keys=True).encode())
    for name, tensor in sorted(flat.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """16 hex digits of the weights in a folder: name, type and shape of each tensor, and its first, middle and last row.

    Cheap (about 15 MB are read of a model of 7 billion numbers), and the same however the tensors are spread over files.
    **Caveat:** two models that differ in other rows alone look the same; training moves every row.
    """
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as handle:
                tensors |= {name: _sample(handle, name) for name in handle.keys()}
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]


def _sample(handle, name: str) -> list:
    """[type, shape, hash of some rows]; of a vector all numbers."""
    part = handle.get_slice(name)
    shape = part.get_shape()
    digest = hashlib.sha256()
    rows = [handle.get_tensor(name)] if len(shape) < 2 else [part[k : k + 1] for k in (0, shape[0] // 2, shape[0] - 1)]
    for row in rows:
        digest.update(row.flatten().view(torch.uint8).numpy().tobytes())
    return [part.get_dtype(), shape, digest.hexdigest()]
