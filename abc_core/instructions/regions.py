"""Instruction data from region captions (Sec. 3.2): which regions of a picture, and which instruction asks for each.

Steps: (1) `select_regions` drops the five largest boxes of a picture and draws four of the rest; (2) `read_instructions` reads the
instructions that were made for regions (in the paper by a language model, Appendix A; in the embedded world by templates);
(3) `instruct` draws one for each region. Every draw depends on the seed and the picture alone, not on the other pictures.

`read_instructed` reads what comes out of all three, in the layout in which the authors released theirs (ABC-VG-Instruct).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abc_core.data import index
from abc_core.data.genome import GenomeImage, Region
from abc_core.data.reading import Pictures, Skipped
from abc_core.data.texts import NO_TEXT
from abc_core.instructions.held_out import comparable
from abc_core.runs.files import NUMBER, expect, field_of, read_json_lines, shorten

Options = dict[str, list[str]]  # of one region: kind of instruction -> its wordings


class Instructed(NamedTuple):
    """One training row: a picture, an instruction about one of its regions, and the caption that answers it."""

    image: Path
    image_id: int
    region_id: int
    box: tuple[float, float, float, float]  # x, y, width, height in pixels
    kind: str
    instruction: str
    caption: str


# --- 1. regions -----------------------------------------------------------------------------------------------------------------


def small_regions(image: GenomeImage, drop_largest: int, seed: int) -> list[Region]:
    """The regions of a picture but the `drop_largest` largest boxes (width · height), in random order."""
    by_area = sorted(image.regions, key=lambda r: (-r.width * r.height, r.region_id))[drop_largest:]
    return [by_area[i] for i in np.random.default_rng([seed, image.image_id, 0]).permutation(len(by_area))]


def select_regions(
    images: Iterable[GenomeImage],
    drop_largest: int = 5,
    take: int = 4,
    seed: int = 0,
    without: Collection[str] = (),
    once: bool = False,
) -> tuple[dict[int, list[Region]], dict[str, int]]:
    """Draw `take` regions of each picture, the largest boxes apart.

    Args:
        without: captions, as `held_out.comparable` gives them, whose regions are not drawn: CtrlBench's, in training.
        once: no caption is drawn twice, in the order of `images`: of CtrlBench's pictures, the regions that need instructions.
    Returns:
        image_id -> its regions; and counts that add up: images, kept, too_few_regions, too_few_other_captions (both left out).
    **Paper:** Sec. 3.2, the five largest boxes "often do not represent specific objects"; Sec. 4.4, "duplicated captions" are removed.
    """
    if drop_largest < 0 or take < 1:
        raise ValueError(f"drop_largest = {drop_largest} and take = {take}; at least 0 and 1 were expected")
    selected, why, used = {}, Counter(too_few_regions=0, too_few_other_captions=0), set(without)
    for image in images:
        regions = small_regions(image, drop_largest, seed)
        drawn = _other_captions(regions, take, used, once) if used or once else regions[:take]
        if len(drawn) == take:
            selected[image.image_id] = drawn
            used.update(comparable(r.caption) for r in drawn if once)
        else:
            why["too_few_regions" if len(regions) < take else "too_few_other_captions"] += 1
    return selected, {"images": len(selected) + why.total(), "kept": len(selected), **why}


def _other_captions(regions: list[Region], take: int, used: set[str], once: bool) -> list[Region]:
    """The first `take` regions whose caption is not used, and with `once` not that of another of them."""
    drawn: dict[str | int, Region] = {}
    for region in regions:
        caption = comparable(region.caption)
        if caption not in used and len(drawn) < take:
            drawn.setdefault(caption if once else region.region_id, region)
    return list(drawn.values())


# --- 2. instructions ------------------------------------------------------------------------------------------------------------


def read_instructions(path: Path) -> tuple[dict[tuple[int, int], Options], Skipped]:
    """Read JSON lines {image_id, region_id, kind, instructions: [wordings]} as (image_id, region_id) -> kind -> wordings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row is not in the layout; the message has file, row and value.
    """
    path, table, skipped = expect(Path(path), "instructions for Visual Genome's regions"), {}, Skipped()
    for row, entry in read_json_lines(path):
        where = f"{path} row {row}"
        key = field_of(entry, "image_id", int, where), field_of(entry, "region_id", int, where)
        kind, wordings = field_of(entry, "kind", str, where), field_of(entry, "instructions", list, where)
        for text in wordings:
            if not isinstance(text, str):
                raise ValueError(f"{where}: an instruction should be a text, not {text!r}")
            if NO_TEXT.search(text):
                skipped.leave_out("instruction that is not Unicode", path, row, text)
            elif text.strip():
                table.setdefault(key, {}).setdefault(kind, []).append(text)
            else:
                skipped.leave_out("empty instruction", path, row, text)
    return table, skipped


# --- 3. one for each region -----------------------------------------------------------------------------------------------------


def _check_kinds(table: dict[tuple[int, int], Options], kinds: dict[str, float]) -> None:
    """Raise ValueError for a kind that no row has, or a weight that is none."""
    known = sorted({kind for options in table.values() for kind in options})
    for kind, weight in kinds.items():
        if kind not in known:
            raise ValueError(f"no instruction is of the kind {kind!r}; known kinds: {', '.join(known)}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of kind {kind!r} is {weight}; a number of at least 0 was expected")


def choose(options: Options, rng: np.random.Generator, weights: dict[str, float] | None = None) -> tuple[str, str] | None:
    """Draw (kind, instruction): the kind by weight (all alike by default) among those that the region has, then one of its wordings.

    None if the region has no wording of a kind with weight.
    """
    weights = dict.fromkeys(options, 1.0) if weights is None else weights
    kinds = sorted(kind for kind, texts in options.items() if texts and weights.get(kind, 0) > 0)
    if not kinds:
        return None
    share = np.array([weights[kind] for kind in kinds], dtype=np.float64)
    kind = kinds[rng.choice(len(kinds), p=share / share.sum())]
    return kind, options[kind][rng.integers(len(options[kind]))]


def instruct(
    selected: dict[int, list[Region]],
    instructions: dict[tuple[int, int], Options],
    seed: int,
    wordings: int | None = None,
    kinds: dict[str, float] | None = None,
    without: Collection[str] = (),
) -> tuple[list[Instructed], dict[str, int]]:
    """Draw one instruction for every selected region; a picture with a region that has none is left out whole.

    Args:
        selected: of `select_regions`. instructions: of `read_instructions`.
        wordings: draw among the first so many wordings of each kind; None means all (1 is one template for everything, Sec. 5.3).
        kinds: kind -> weight; a kind that is not named is not drawn; None means all alike.
        without: instructions, as `held_out.comparable` gives them, that are not drawn: CtrlBench's.
    Returns:
        rows, the regions of a picture one after the other; and counts: images, kept, without_instruction (left out), and rows per kind.
    """
    if wordings is not None and wordings < 1:
        raise ValueError(f"wordings = {wordings}; None or at least 1 was expected")
    _check_kinds(instructions, kinds or {})
    rows, left_out = [], 0
    for image_id, regions in selected.items():
        rng = np.random.default_rng([seed, image_id, 1])
        options = [instructions.get((image_id, r.region_id), {}) for r in regions]
        if without:
            options = [{k: [t for t in texts if comparable(t) not in without] for k, texts in o.items()} for o in options]
        drawn = [choose({k: texts[:wordings] for k, texts in o.items()}, rng, kinds) for o in options]
        if None in drawn:
            left_out += 1
        else:
            rows += [Instructed(r.image, image_id, r.region_id, r.box, *d, r.caption) for r, d in zip(regions, drawn, strict=True)]
    by_kind = Counter(row.kind for row in rows)
    return rows, {"images": len(selected), "kept": len(selected) - left_out, "without_instruction": left_out, **by_kind}


def by_image(rows: list[Instructed]) -> list[list[Instructed]]:
    """The rows of each picture together, in the order of the rows; stage 2 keeps them in one batch (Sec. 3.2)."""
    groups: dict[int, list[Instructed]] = {}
    for row in rows:
        groups.setdefault(row.image_id, []).append(row)
    return list(groups.values())


def all_texts(path: Path) -> list[str]:
    """Every wording of every instruction of a file: what must not occur in a benchmark that tests on others."""
    return [text for options in read_instructions(path)[0].values() for texts in options.values() for text in texts]


# --- ABC-VG-Instruct ------------------------------------------------------------------------------------------------------------


def instructed_files(folder: Path) -> list[Path]:
    """The files of a folder in the layout of ABC-VG-Instruct, Parquet (in data/ perhaps) or JSON lines; none of a folder in another."""
    folder = Path(folder)
    if (folder / "region_descriptions.json").exists():
        return []
    lines = [path for path in folder.glob("*.jsonl") if path.name != "instructions.jsonl"]
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]) or sorted(lines)


def read_instructed(folder: Path) -> tuple[list[list[Instructed]], Skipped]:
    """Instructed regions, picture by picture, in the layout of ABC-VG-Instruct.

    A row is a picture; its columns "0", "1", … ("3" in the released set) are regions {id, image, instruction, phrase, x, y, width, height}.
    Pictures are `{image}.jpg` in the folder, or in VG_100K/ and VG_100K_2/ below it. A row with a region that cannot be used is left out.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: a row is not in the layout, or none can be used; the message has file, row and value.
    """
    files, pictures, skipped, groups = instructed_files(folder), Pictures(folder), Skipped(), []
    if not files:
        raise FileNotFoundError(f"{folder} has no *.parquet, data/*.parquet or *.jsonl in the layout of ABC-VG-Instruct")
    for path, row, entry in _instructed_rows(files):
        where = f"{path} row {row}"
        regions = [entry[name] for name in sorted(filter(str.isdecimal, entry), key=int)] if isinstance(entry, dict) else []
        if not regions:
            raise ValueError(f'{where} has no columns "0", "1", …: {shorten(entry)}')
        if None in regions:
            skipped.leave_out("region that is missing", path, row, regions)
            continue
        group = [_instructed(region, f"{where}, region {k}") for k, region in enumerate(regions)]
        names = [f"{part}{group[0].image_id}.jpg" for part in ("", "VG_100K_2/", "VG_100K/")]
        found = next((name for name in names if name in pictures), None)
        if len({r.image_id for r in group}) > 1:
            skipped.leave_out("regions of several pictures", path, row, [r.image_id for r in group])
        elif not all(r.instruction.strip() and r.caption.strip() for r in group):
            skipped.leave_out("empty instruction or phrase", path, row, [(r.instruction, r.caption) for r in group])
        elif any(NO_TEXT.search(r.instruction + r.caption) for r in group):
            skipped.leave_out("instruction or phrase that is not Unicode", path, row, [(r.instruction, r.caption) for r in group])
        elif not np.isfinite([r.box for r in group]).all():
            skipped.leave_out("box without end", path, row, [r.box for r in group])
        elif found is None:
            skipped.leave_out("missing picture", path, row, names[0])
        else:
            groups.append([r._replace(image=Path(folder) / found) for r in group])
    if not groups:
        raise ValueError(f"{folder} has no row that can be used\n{skipped}")
    return groups, skipped


def _instructed_rows(files: list[Path]) -> Iterator[tuple[Path, int, Any]]:
    """(file, row, content) of all rows."""
    for path in files:
        if path.suffix == ".jsonl":
            yield from ((path, row, entry) for row, entry in read_json_lines(path))
        else:
            batches = index.batches(index.parquet(path), path, 1024)
            yield from ((path, row, entry) for row, entry in enumerate(entry for batch in batches for entry in batch.to_pylist()))


def _instructed(region: Any, where: str) -> Instructed:
    """A region of a row, its picture not yet looked for. Numbers of pictures and regions may be written as text."""
    numbers = [field_of(region, name, (int, str), where) for name in ("image", "id")]
    for name, value in zip(("image", "id"), numbers):
        if not str(value).isdecimal() or len(str(value)) > 18:
            raise ValueError(f"{where}: {name!r} is no number: {shorten(value)}")
    box = tuple(_float(field_of(region, name, NUMBER, where)) for name in ("x", "y", "width", "height"))
    said = (field_of(region, name, str, where) for name in ("instruction", "phrase"))
    return Instructed(Path(), *map(int, numbers), box, "released", *said)


def _float(number: int | float) -> float:
    """A number of a file, infinite if it is beyond all floats."""
    try:
        return float(number)
    except OverflowError:
        return float("inf")
