"""What the demo begins with: pictures to choose from, of regions with instructions or of any folder, captions of a file, and new scenes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from abc_core.data.karpathy import read_genome
from abc_core.demo.regions import Box
from abc_core.instructions import regions as instructions
from abc_core.miniature import words
from abc_core.miniature.questions import REGION_KINDS, questions
from abc_core.miniature.scene import draw, sample_scene
from abc_core.miniature.world import World, pools

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Example(NamedTuple):
    """A picture, instructions for it with the caption that is right, and its regions, as far as they are known."""

    picture: Path | bytes | Image.Image
    asked: Mapping[str, str] = MappingProxyType({})
    boxes: Sequence[Box] = ()


def of_regions(folder: Path, per_image: int, seed: int) -> dict[str, Example]:
    """Pictures in the layout of Visual Genome that have instructions, each with `per_image` of its regions, by name."""
    regions, _ = instructions.select_regions(read_genome(folder)[0], take=per_image, seed=seed)
    rows, _ = instructions.instruct(regions, instructions.read_instructions(Path(folder) / "instructions.jsonl")[0], seed)
    return {
        f"Picture {group[0].image_id}": Example(group[0].image, {r.instruction: r.caption for r in group}, [r.box for r in group])
        for group in instructions.by_image(rows)
    }


def of_folder(folder: Path) -> dict[str, Example]:
    """All pictures in a folder and below it, by their path in it, sorted; what is a picture is told by the suffix.

    Raises:
        FileNotFoundError, ValueError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of pictures")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ValueError(f"{folder} holds no picture: no file ends in {', '.join(SUFFIXES)}")
    return {str(p.relative_to(folder)): Example(p) for p in found}


def read_captions(path: Path) -> list[str]:
    """The captions of a text file, one a line; blank lines and repeated captions are left out.

    Raises:
        FileNotFoundError, ValueError: no such file, not UTF-8, or no caption in it.
    """
    try:
        lines = dict.fromkeys(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    captions = [line for line in lines if line]
    if not captions:
        raise ValueError(f"{path} holds no caption")
    return captions


def draw_scene(rng: np.random.Generator, known: Sequence[str], world: World) -> Example:
    """A scene nobody has seen, with what can be asked about it in shuffled order.

    Its cards are held-out meanings, those whose caption is in `known` where there are enough of them.
    """
    drawn, known = pools(world), set(known)
    meanings = [m for m in drawn.held_out if words.caption(m) in known]
    meanings = meanings if len(meanings) >= 50 else drawn.held_out
    chosen = [meanings[i] for i in rng.choice(len(meanings), size=int(rng.integers(5, 8)), replace=False)]
    scene = sample_scene(rng, chosen, (3, 3), 56)
    asked = [q for q in questions(scene, rng) if q.kind in REGION_KINDS]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    right = {q.ask(rng): words.caption(q.card.meaning) for q in asked}
    return Example(draw(scene, drawn.sprites), right, [card.box for card in scene.cards])
