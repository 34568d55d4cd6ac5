"""Instruction data and CtrlBench out of one folder of Visual Genome (Sec. 3.2, 4.4, Appendix A), as anyone with the files can make both.

Steps of `prepare`: (1) set CtrlBench's pictures aside and ask for five regions of each; (2) build the benchmark; (3) leave out of the
others what training may not see, draw pictures, and ask for four regions of each. `plan` says what the asking would take. Where the
instructions lie in the folder already, only (2) is done, and where the benchmark has a folder of its own, nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from abc_core.ctrlbench import construction as ctrlbench
from abc_core.ctrlbench.benchmark import CARD
from abc_core.data.genome import GenomeImage, read_genome
from abc_core.data.karpathy import Region
from abc_core.data.reading import Skipped
from abc_core.instructions import generate as ask
from abc_core.instructions.held_out import HeldOut, exclude, split_images
from abc_core.instructions.regions import select_regions
from abc_core.runs.files import read_json

TRAINING, BENCHMARK = "instructions.jsonl", "instructions_ctrlbench.jsonl"


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a folder in the layout of Visual Genome."""

    folder: Path
    seed: int
    pictures: int | None = None  # of training, to ask for; the paper's set has 12,500; None: all that are left
    each: int = 4  # regions of a picture of training, Sec. 3.2
    drop_largest: int = 5  # Sec. 3.2
    test_pictures: int = 0  # of CtrlBench; Sec. 4.4: 1000; 0: the benchmark is made of another folder
    spare: float = 0.2  # pictures set aside beyond those, for some cannot give five captions and instructions of their own
    per_image: int = 5  # regions of a picture of CtrlBench, Sec. 4.4
    karpathy: Path | None = None  # dataset_coco.json, whose test pictures training goes without

    @cached_property
    def genome(self) -> tuple[list[GenomeImage], Skipped]:
        """The folder's pictures and what was left out; read once, as all of Visual Genome takes half a minute."""
        return read_genome(self.folder)


def plan(wanted: Wanted, bench: Path, generator, cache: Path, prices: Sequence[float] = (0.0, 0.0)) -> dict[str, dict]:
    """What asking would take, for "ctrlbench" and for "training", as `generate.plan`; nothing is contacted and nothing written.

    Captions of the benchmark are not known before it is in `bench`, so training may take a few calls less than this says.
    """
    genome, _ = wanted.genome
    aside, rest = _set_aside(wanted, genome)
    said = {"ctrlbench": ask.plan(_of_benchmark(wanted, aside)[0], generator, cache, prices)} if aside else {}
    built = aside and (bench / CARD).exists()
    held = ctrlbench.held_out(bench if built else None, wanted.karpathy)
    kept, _ = exclude(genome if built else rest, held)
    return said | {"training": ask.plan(_of_training(wanted, kept, held)[0], generator, cache, prices)}


def prepare(
    wanted: Wanted,
    out: Path,
    bench: Path,
    generator=None,
    cache: Path | None = None,
    prices: Sequence[float] = (0.0, 0.0),
    source: str = "not stated",
    licence: str = "not stated",
    report: Callable = print,
) -> tuple[Path | None, Path | None]:
    """Make what is wanted, resuming where a killed call stopped.

    Args:
        out: folder for the two files of instructions that `generator` makes.
        bench: folder for the benchmark. source, licence: of pictures and captions, in words, for its card.
        generator, cache, prices: as for `generate.generate`; None takes the instructions that lie in the folder, for the benchmark
            instructions_ctrlbench.jsonl if there is one.
        report: told every count, so that they can be added up.
    Returns:
        instructions of training, None where the folder's own are to be used; and the benchmark's folder, None if none was wanted.
    """
    if generator is None and not wanted.test_pictures:
        return None, None
    genome, skipped = wanted.genome
    report(skipped)
    aside, _ = _set_aside(wanted, genome)
    if aside:
        written = _own(wanted.folder)
        if generator is not None:
            regions, counts = _of_benchmark(wanted, aside)
            report({"for CtrlBench": counts})
            report(ask.generate(regions, generator, written := out / BENCHMARK, cache, prices, report=report))
        options = {"pictures": wanted.test_pictures, "source": source, "licence": licence}
        ctrlbench.build(aside, written, bench, wanted.seed, wanted.per_image, wanted.drop_largest, **options)
        report((bench / "README.md").read_text())
        found = read_json(bench / CARD)["images"]
        if found < wanted.test_pictures:
            report(f"CtrlBench has {found:,} pictures of the {wanted.test_pictures:,} wanted; with a larger `spare` more are set aside")
    made = bench if aside else None
    if generator is None:
        return None, made
    held = ctrlbench.held_out(made, wanted.karpathy)
    kept, apart = exclude(genome, held)
    regions, counts = _of_training(wanted, kept, held)
    report({"for training": apart | {"drawn": counts}})
    report(ask.generate(regions, generator, out / TRAINING, cache, prices, report=report))
    return out / TRAINING, made


def _own(folder: Path) -> Path:
    """The folder's instructions for the benchmark."""
    return folder / BENCHMARK if (folder / BENCHMARK).exists() else folder / TRAINING


def _set_aside(wanted: Wanted, genome: list[GenomeImage]) -> tuple[list[GenomeImage], list[GenomeImage]]:
    """CtrlBench's pictures, some spare ones among them, and the others."""
    if not wanted.test_pictures:
        return [], genome
    return split_images(genome, wanted.test_pictures + round(wanted.spare * wanted.test_pictures), wanted.seed)


def _of_benchmark(wanted: Wanted, aside: list[GenomeImage]) -> tuple[list[Region], dict]:
    """Five regions of each picture, no caption twice; and counts."""
    chosen, counts = select_regions(aside, wanted.drop_largest, wanted.per_image, wanted.seed, once=True)
    return list(chain(*chosen.values())), counts


def _of_training(wanted: Wanted, images: list[GenomeImage], held: HeldOut) -> tuple[list[Region], dict]:
    """Four regions of each drawn picture, those that `jobs.InstructJob` will draw; and counts."""
    if wanted.pictures is not None and wanted.pictures < len(images):
        images, _ = split_images(images, wanted.pictures, wanted.seed)
    chosen, counts = select_regions(images, wanted.drop_largest, wanted.each, wanted.seed, held.captions)
    return list(chain(*chosen.values())), counts
