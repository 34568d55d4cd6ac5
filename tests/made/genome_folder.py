"""A made-up Visual Genome folder in the exact layout, with every oddity that the real one may have, and an account of what was made.

`make` writes region_descriptions.json, image_data.json, VG_100K/, VG_100K_2/ and a Karpathy file, all from one seed. Most pictures are
plain: five large boxes, then six to eleven small ones with captions of their own. The others are odd in one way each, and some regions are
odd too. `Made` says how many of each there are, counted while they are written and not by reading them back.
"""

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
COLOURS, THINGS = ("red", "blue", "green", "white", "brown"), ("ball", "cat", "sign", "window", "shoe", "tree", "plate", "horse")
COMMON = ("blue sky", "the man's shirt", "green grass")  # captions that many pictures have
SPELT = ("blue sky", " blue  sky", "Blue Sky", "blue\u00a0sky", "\uff42lue sky")  # all of them equal
FILES = ("missing", "truncated", "cmyk", "palette", "sixteen bits", "animated", "turned", "grey")  # what can be with a picture's file
RECORDS = ("empty", "too few", "twice", "not measured", "measured twice", "only common captions", "copy")  # and with what is said of it
BOXES = ("outside", "flat", "sticks out", "no phrase", "same number")  # and with a region


@dataclass
class Made:
    """What was written."""

    folder: Path
    karpathy: Path
    described: int = 0  # records of region_descriptions.json
    left_out: Counter = field(default_factory=Counter)  # reason, as the reader words it -> how many
    odd: Counter = field(default_factory=Counter)
    readable: list[int] = field(default_factory=list)  # image_ids that a reader should give
    regions: int = 0  # of those, that can be used
    of: dict[str, list[int]] = field(default_factory=dict)  # oddity -> image_ids
    coco_test: list[int] = field(default_factory=list)  # image_ids, readable, whose coco_id is in the test split
    phrases: dict[int, str] = field(default_factory=dict)  # region_id -> phrase


def make(folder: Path, pictures: int = 300, of_each: int = 4, seed: int = 0) -> Made:
    """Write the folder: `pictures` records, `of_each` of them odd in each way of FILES and RECORDS, and as many regions of BOXES."""
    rng, made = np.random.default_rng(seed), Made(folder, folder / "dataset_coco.json")
    numbers = (rng.permutation(20 * pictures)[:pictures] + 1).tolist()
    oddities = [kind for kind in (*FILES, *RECORDS) for _ in range(of_each)]
    described, measured, karpathy = [], [], []
    odd_boxes = [kind for kind in BOXES for _ in range(of_each)]
    for place, image_id in enumerate(numbers):
        oddity = oddities[place] if place < len(oddities) else None
        made.of.setdefault(oddity or "plain", []).append(image_id)
        part = "VG_100K_2" if rng.random() < 0.5 else "VG_100K"
        _write_picture(folder / part / f"{image_id}.jpg", oddity, rng)
        odd_box = odd_boxes.pop() if oddity is None and odd_boxes else None
        regions = _regions(image_id, oddity, odd_box, rng, made)
        described.append({"id": image_id, "regions": regions})
        coco_id = int(rng.integers(10**6)) * 2 if rng.random() < 0.5 else None
        url = f"https://example.org/{part}/{image_id}.jpg"
        about = {"image_id": image_id, "url": url, "width": WIDTH, "height": HEIGHT, "coco_id": coco_id}
        measured.append(about | {"flickr_id": None if rng.random() < 0.5 else int(rng.integers(10**9))})
        split = ("train", "restval", "val", "test")[place % 4]
        if coco_id is not None:
            karpathy.append({"filepath": "val2014", "filename": f"{coco_id}.jpg", "cocoid": coco_id, "split": split, "sentences": []})
        if oddity not in ("missing", "not measured"):
            made.readable.append(image_id)
            made.coco_test += [image_id] if coco_id is not None and split == "test" else []
    karpathy.append({"filepath": "val2014", "filename": "1.jpg", "cocoid": 1, "split": "test", "sentences": []})  # of no picture here
    _distort(made, described, measured, folder)
    order = rng.permutation(len(described)).tolist()
    made.described = len(described)
    for name, content in (
        ("region_descriptions.json", [described[i] for i in order]), ("image_data.json", measured),
        (made.karpathy.name, {"images": karpathy, "dataset": "coco"}),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    return made


def _distort(made: Made, described: list, measured: list, folder: Path) -> None:
    """Oddities of whole records: described twice, measured twice or never; and pictures that are copies of others."""
    made.left_out["missing picture"] = len(made.of["missing"])
    by_number = {entry["id"]: entry for entry in described}
    for image_id in made.of["twice"]:
        described.append(by_number[image_id])
        made.left_out["picture described twice"] += 1
    gone = set(made.of["not measured"])
    made.left_out["picture without width and height in image_data.json"] = len(gone)
    measured[:] = [entry for entry in measured if entry["image_id"] not in gone]
    again = [entry | {"width": 1} for entry in measured if entry["image_id"] in made.of["measured twice"]]
    measured += again
    made.left_out["picture measured twice"] = len(again)
    file = {int(path.stem): path for path in folder.glob("VG_100K*/*.jpg")}
    for image_id, original in zip(made.of["copy"], made.of["plain"]):
        file[image_id].write_bytes(file[original].read_bytes())


def _regions(image_id: int, oddity: str | None, odd_box: str | None, rng: np.random.Generator, made: Made) -> list[dict]:
    """Regions of a picture: large ones, small ones, and an odd one perhaps."""
    count = {"empty": 0, "too few": 8}.get(oddity, int(rng.integers(11, 17)))
    counted = oddity not in ("missing", "not measured")  # nobody sees the regions of the others
    rows = []
    for k in range(count):
        region_id = 10_000 * image_id + k
        side = (WIDTH - 20, HEIGHT - 10) if k < 5 else (int(rng.integers(3, 12)), int(rng.integers(3, 12)))
        said = f"a {COLOURS[rng.integers(len(COLOURS))]} {THINGS[rng.integers(len(THINGS))]} numbered {region_id}"
        if oddity == "only common captions" and k >= 5:
            said = SPELT[k % len(SPELT)]
        elif k == 6:
            said = COMMON[rng.integers(len(COMMON))]
        elif k == 7:  # nearly the same in several pictures
            said = f"{'the ' * int(rng.integers(2))}small {'dog, brown' if rng.random() < 0.5 else 'brown dog'}{'.' * int(rng.integers(2))}"
        elif k == 8:
            said = f"  {said}\t\n"
        rows.append(_row(image_id, region_id, said, int(rng.integers(10)), int(rng.integers(5)), *side))
    made.regions += len(rows) * counted
    made.phrases |= {row["region_id"]: row["phrase"] for row in rows}
    if odd_box is not None:
        rows.insert(int(rng.integers(len(rows))), _odd_region(image_id, rows[-1]["region_id"], odd_box, made))
    return rows


def _odd_region(image_id: int, known: int, odd_box: str, made: Made) -> dict:
    """A region that a reader should leave out, or keep and count."""
    region_id = 10_000 * image_id + 9_000
    said = f"a thing numbered {region_id}"
    if odd_box == "sticks out":
        made.odd["box partly outside its picture"] += 1
        made.regions += 1
        made.phrases[region_id] = said
        return _row(image_id, region_id, said, -2, HEIGHT - 3, 6, 7)
    reason, row = {
        "outside": ("box wholly outside its picture", _row(image_id, region_id, said, WIDTH, 3, 5, 5)),
        "flat": ("box without area", _row(image_id, region_id, said, 3, 3, 5, 0)),
        "no phrase": ("empty phrase", _row(image_id, region_id, " \t\u3000", 3, 3, 5, 5)),
        "same number": ("region number used twice in a picture", _row(image_id, known, said, 3, 3, 5, 5)),
    }[odd_box]
    made.left_out[reason] += 1
    if odd_box == "same number":  # it comes before the one that it takes the number of
        made.phrases[known] = said
    return row


def _row(image_id, region_id, phrase, x, y, width, height) -> dict:
    return {"region_id": region_id, "image_id": image_id, "phrase": phrase, "x": x, "y": y, "width": width, "height": height}


def _write_picture(path: Path, oddity: str | None, rng: np.random.Generator) -> None:
    """A picture of noise, in the format that the oddity asks for, always named .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if oddity == "missing":
        return
    noise = Image.fromarray(rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8))
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees
    if oddity == "palette":
        noise.convert("P").save(data, "PNG")
    elif oddity == "sixteen bits":
        Image.fromarray(rng.integers(65536, size=(HEIGHT, WIDTH), dtype=np.uint16)).save(data, "PNG")
    elif oddity == "animated":
        noise.convert("P").save(data, "GIF", save_all=True, append_images=[noise.transpose(0).convert("P")])
    elif oddity == "turned":
        noise.save(data, "JPEG", exif=exif)
    else:
        noise.convert({"cmyk": "CMYK", "grey": "L"}.get(oddity, "RGB")).save(data, "JPEG")
    whole = data.getvalue()
    path.write_bytes(whole[: len(whole) // 2] if oddity == "truncated" else whole)
