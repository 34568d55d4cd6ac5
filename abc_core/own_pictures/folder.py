"""Your own pictures: what a folder has to hold, what is wrong with it, and a part of it set aside for testing.

    my_pictures/
      captions.tsv              a row a caption: caption<TAB>path of the picture in the folder; no header; a picture may have several
      …/*.jpg, *.png, …         the pictures, anywhere below
      region_descriptions.json  for stage 2, in the layout of Visual Genome: captioned boxes,
      image_data.json           the sizes of their pictures,
      VG_100K/{image_id}.jpg    these pictures,
      instructions.jsonl        and for each box, by kind, the questions that it answers

Steps: (1) `check` names what is wrong, by file, row and value; (2) `split` sets pictures aside, and writes both parts as folders that
`pairs.read_pairs`, and so `jobs.PretrainJob`, read. The last four files are read where they are, by `jobs.InstructJob`.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from abc_core.data import pairs
from abc_core.data.genome import GenomeImage, read_genome
from abc_core.data.pairs import Pair
from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.data.reading import Skipped
from abc_core.instructions import regions as instructions
from abc_core.runs.files import read_json_lines

LEAST = 28 * 28  # pixels, which one visual token shows
REGIONS = ("region_descriptions.json", "image_data.json", "instructions.jsonl")


# --- 1. what is wrong ---------------------------------------------------------------------------------------------------------


def check(folder: Path, least: int = 20, max_pixels: int = 50_000_000, drop_largest: int = 5, per_picture: int = 4) -> list[str]:
    """What is wrong with a folder, a sentence each; an empty list: it can be trained on. Rows count from 0.

    Args:
        least: pictures that it must have. max_pixels: that a picture may have.
        drop_largest, per_picture: of stage 2 (Sec. 3.2): a picture needs that many boxes, and questions for all that are drawn.
    """
    folder = Path(folder).absolute()
    faults: list[str] = []
    for look in (_pairs, _regions) if any((folder / name).exists() for name in REGIONS) else (_pairs,):
        wanted = (least, max_pixels) if look is _pairs else (least, max_pixels, drop_largest, per_picture)
        try:
            faults += look(folder, *wanted)
        except (FileNotFoundError, ValueError) as error:  # not in its layout at all, or nothing can be used
            faults.append(str(error).split("\n")[0].split(". `make")[0])
            faults += [line.strip() for line in str(error).split("\n")[1:] if " row " in line]
    return [fault.replace(f"{folder}/", "") for fault in faults]


def _pairs(folder: Path, least: int, max_pixels: int) -> Iterator[str]:
    """Faults of captions.tsv and of its pictures."""
    rows, skipped = pairs.read_pairs(_with_table(folder))
    table = pairs.table_of(folder).name
    yield from _left_out(skipped)
    whole, first, cases = set(), {}, {}
    for pair, said in zip(rows, rows.caption_ids.tolist()):
        where, name = f"{table} row {pair.row}", pairs.name_of(pair.image, folder)
        if (before := first.setdefault((name, said), pair.row)) != pair.row:
            yield f"{where}: {name!r} has the caption of row {before} again: {pair.caption!r}"
        if (other := cases.setdefault(name.lower(), name)) != name:
            yield f"{where}: {name!r} and {other!r} differ in capitals alone; on some disks they are one file"
        elif name not in whole and not (faults := list(_picture(where, pair.image, max_pixels))):
            whole.add(name)
        elif name not in whole:
            yield from faults
    if len(whole) < least:
        yield f"{table} has {len(whole):,} pictures that can be used; at least {least:,} are needed"


def _with_table(folder: Path) -> Path:
    """`folder`, if its pairs are in a table."""
    if not pairs.table_of(folder).exists():
        raise FileNotFoundError(f"{folder / pairs.OWN_TSV} is missing; a row of it is `caption<TAB>path of the picture in the folder`")
    return folder


def _picture(where: str, path: Path, max_pixels: int) -> Iterator[str]:
    """Faults of one picture, which is decoded."""
    try:
        size = open_image(path, max_pixels).size
    except UnreadableImage as error:
        yield f"{where}: {error}"
    else:
        if size[0] * size[1] < LEAST:
            yield f"{where}: {path} is {size[0]} x {size[1]} pixels; a visual token alone shows {LEAST}"


def _regions(folder: Path, least: int, max_pixels: int, drop_largest: int, per_picture: int) -> Iterator[str]:
    """Faults of the files for stage 2."""
    genome, skipped = read_genome(folder)
    yield from _left_out(skipped)
    for image in genome:
        where = f"image_data.json, picture {image.image_id}"
        faults = list(_picture(where, image.image, max_pixels))
        yield from faults
        if not faults and (size := open_image(image.image, max_pixels).size) != (image.width, image.height):
            yield f"{where}: {image.image} is {size[0]} x {size[1]} pixels, not {image.width} x {image.height}; boxes would not fit it"
    file = folder / "instructions.jsonl"
    options, skipped = instructions.read_instructions(file)
    yield from _left_out(skipped)
    yield from _unknown(file, genome)
    chosen, counts = instructions.select_regions(genome, drop_largest, per_picture, seed=0)
    kept = instructions.instruct(chosen, options, seed=0)[1]["kept"] if chosen else 0
    if kept < least:
        why = f"{counts['too_few_regions']:,} have fewer than {drop_largest} + {per_picture} boxes"
        why += f", {len(chosen) - kept:,} a drawn box that no question asks for"
        yield f"stage 2 can use {kept:,} of {counts['images']:,} pictures; at least {least:,} are needed: {why}"


def _unknown(file: Path, genome: Sequence[GenomeImage]) -> Iterator[str]:
    """Instructions for regions that are not there."""
    known = {image.image_id: {region.region_id for region in image.regions} for image in genome}
    for row, entry in read_json_lines(file):
        image, region = entry["image_id"], entry["region_id"]
        if region not in known.get(image, ()):
            said = f"picture {image}" if image not in known else f"region {region} of picture {image}"
            yield f"{file} row {row}: {said} is not in region_descriptions.json, or cannot be used"


def _left_out(skipped: Skipped) -> Iterator[str]:
    """A reader's account as sentences: the first few rows of each fault, and how many more there are."""
    for reason, count in (skipped.counts + skipped.odd).items():
        told = skipped.examples[reason]
        yield from (f"{example}: {reason}" for example in told)
        if count > len(told):
            yield f"{count - len(told):,} more rows: {reason}"


# --- 2. setting apart ---------------------------------------------------------------------------------------------------------


def split(folder: Path, out: Path, held_out: float = 0.2, seed: int = 0) -> tuple[Path, Path]:
    """Copy the pictures with their captions into two folders below `out`, one to train on and one to test on; returns both.

    Pictures are drawn by a hash of the seed and their bytes, so copies of a picture stay together, and a picture that is added later
    moves no other. The folders' name carries a fingerprint of the table; what is there already is not written again.

    Raises:
        FileNotFoundError: no table.
        ValueError: a share that leaves one of the two without a picture.
    """
    folder = _with_table(Path(folder).absolute())
    name = f"{folder.name}-{pairs.fingerprint(folder)}-{held_out:g}-{seed}"
    made = Path(out) / name
    if not made.exists():
        rows, _ = pairs.read_pairs(folder)
        apart = [_drawn(seed, pair.image) < held_out for pair in rows]
        if len(set(apart)) < 2:
            lost = "train" if all(apart) else "test"
            raise ValueError(f"held_out = {held_out:g} of {len(rows):,} rows of {folder} leaves nothing to {lost} on")
        unfinished = made.with_name(name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        for part, wanted in (("train", False), ("held_out", True)):
            _copy([pair for pair, away in zip(rows, apart) if away is wanted], folder, unfinished / part)
        unfinished.rename(made)
    return made / "train", made / "held_out"


def _drawn(seed: int, picture: Path) -> float:
    """A number from 0 to 1 that a picture's bytes decide."""
    digest = hashlib.blake2b(f"{seed} ".encode() + picture.read_bytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _copy(rows: Sequence[Pair], source: Path, folder: Path) -> None:
    """Pictures and table of one part."""
    folder.mkdir(parents=True)
    lines = []
    for pair in rows:
        name = pairs.name_of(pair.image, source)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pair.image, folder / name)
        lines.append(f"{pair.caption}\t{name}\n")
    (folder / pairs.OWN_TSV).write_text("".join(lines), encoding="utf-8")
