"""A small world for the recipes: a random backbone, eight pairs, and four pictures with nine instructed regions each, on disk."""

import json

import tiny

CAPTIONS = ["an owl", "two blue cups on a card", "a red owl", "a cup", "an owl on a red card beside two blue cups", "x", "cards", "owls"]
ASKED = ["what is on the left?", "which colour has the owl?"]


def write(root) -> dict[str, str]:
    """The folders, by the names that `RecipeJob` has for them."""
    tiny.save("qwen2_vl", root / "backbone")
    pictures = tiny.pictures(8)
    (root / "pairs").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(root / "pairs" / f"{k}.png")
    (root / "pairs" / "Train_GCC-training.tsv").write_text("".join(f"{c}\t{k}.png\n" for k, c in enumerate(CAPTIONS)))
    _regions(root / "regions", pictures[:4])
    return {name: str(root / name) for name in ("backbone", "pairs", "regions")}


def _regions(folder, pictures) -> None:
    (folder / "VG_100K").mkdir(parents=True)
    described, measured, asked = [], [], []
    for image, picture in enumerate(pictures, start=1):
        picture.save(folder / "VG_100K" / f"{image}.jpg")
        ids = {"image_id": image}
        box = lambda k: {"x": 0, "y": 0, "width": 9 + k, "height": 9}  # noqa: E731
        rows = [ids | box(k) | {"region_id": 9 * image + k, "phrase": CAPTIONS[(image + k) % 8]} for k in range(9)]
        described.append({"id": image, "regions": rows})
        measured.append(ids | {"width": picture.width, "height": picture.height})
        asked += [ids | {"region_id": r["region_id"], "kind": "content", "instructions": ASKED} for r in rows]
    (folder / "region_descriptions.json").write_text(json.dumps(described))
    (folder / "image_data.json").write_text(json.dumps(measured))
    (folder / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
