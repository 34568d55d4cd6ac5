"""Does an adapter folder give the embeddings that were recorded for it? Run after an upgrade or a conversion.

    python -m abc_core.verify FOLDER

FOLDER holds base/, pretrain/, instruct/ and cases.safetensors: inputs (`input.image_ids`, `input.pixel_values`, `input.image_grid_thw`,
`input.text_ids`, `input.text_ids_padded`) and the vectors that were recorded for them (`expected.…`): a picture without (cand) and with
(inst) the stage-2 adapter, each with M-RoPE and with 0 … L − 1 positions; a text alone; the same text, padded, pooled as published.

One line per case with the largest difference; the exit code is 1 if any is above 1e-5.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from abc_core import adapters
from abc_core.model import Visual
from abc_core.runs.files import expect
from abc_core.systems.released import load_released

TOLERANCE = 1e-5
POSITIONS = {"mrope": "model", "arange": "as_published"}


@torch.no_grad()
def differences(folder: Path) -> dict[str, float]:
    """Case -> largest absolute difference between the recorded vector and ours.

    Raises:
        FileNotFoundError, ValueError: a part of the folder is missing or does not fit.
    """
    folder = Path(folder)
    cases = load_file(expect(folder / "cases.safetensors", "the recorded embeddings"))
    needed = {f"expected.{k}" for k in ("cand_mrope", "cand_arange", "inst_mrope", "inst_arange", "text", "text_padded")}
    needed |= {f"input.{k}" for k in ("image_ids", "pixel_values", "image_grid_thw", "text_ids", "text_ids_padded")}
    if needed - cases.keys():
        raise ValueError(f"{folder / 'cases.safetensors'} lacks {', '.join(sorted(needed - cases.keys()))}")
    embedder = load_released(folder / "base", folder / "pretrain", folder / "instruct")
    found = {}
    for side, on in (("cand", False), ("inst", True)):
        for name, embedder.positions in POSITIONS.items():
            found[f"{side}_{name}"] = _picture(embedder, cases, on)
    text, padded = cases["input.text_ids"][0].tolist(), cases["input.text_ids_padded"].shape[1]
    with adapters.instructed(embedder.model, False):
        embedder.positions = "model"
        found["text"] = embedder.encode([text])[0]
        embedder.positions, embedder.pooling = "as_published", "as_published"
        longer = text + text[:1] * (padded - len(text))  # a row of that length beside it pads the text
        found["text_padded"] = embedder.encode([text, longer])[0][:1]
    return {name: (vector - cases[f"expected.{name}"]).abs().max().item() for name, vector in found.items()}


def _picture(embedder, cases, on: bool) -> torch.Tensor:
    grid = cases["input.image_grid_thw"]
    with adapters.instructed(embedder.model, on):
        seen = embedder.model.model.get_image_features(cases["input.pixel_values"], grid, return_dict=True)
        return embedder.encode(cases["input.image_ids"].tolist(), Visual(seen, {"image_grid_thw": grid}, []), [0])[0]


def main(words: list[str] | None = None) -> int:
    """Print the differences of a folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m abc_core.verify", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with base/, pretrain/, instruct/ and cases.safetensors")
    try:
        found = differences(parser.parse_args(words).folder)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, difference in found.items():
        print(f"{name:12s} {difference:.1e}  {'ok' if difference <= TOLERANCE else 'DIFFERS'}")
    return int(not all(difference <= TOLERANCE for difference in found.values()))  # NaN differs


if __name__ == "__main__":
    sys.exit(main())
