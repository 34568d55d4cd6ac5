"""One's own folder: each fault has its sentence, with file, row and value; what is set aside stays apart; the photographs pass."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from abc_core.data.pairs import read_pairs
from abc_core.miniature.glyphs import load_glyphs
from abc_core.own_pictures import folder as own_folder
from abc_core.runs import paths

pytestmark = pytest.mark.usefixtures("runs")


def picture(path, seed: int = 0, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)


def write(folder, *rows: str):
    (folder / "captions.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Three pictures with a caption each, two of them below a sub-folder."""
    folder = tmp_path / "mine"
    for k, name in enumerate(("owl.png", "more/cup.jpg", "more/key.png")):
        picture(folder / name, k)
    write(folder, "an owl\towl.png", "a cup\tmore/cup.jpg", "a key\tmore/key.png")
    return folder


def faults(folder, **options) -> list[str]:
    return own_folder.check(folder, **{"least": 3, **options})


def test_a_sound_folder_has_no_fault_and_is_read_as_it_is(folder):
    assert faults(folder) == []
    assert [(p.caption, p.image) for p in read_pairs(folder)[0]][1] == ("a cup", folder / "more" / "cup.jpg")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a cat\tcat.png", "captions.tsv row 3: 'cat.png': missing picture"),
        (" \towl.png", "captions.tsv row 3: ' ': empty caption"),
        ("an owl", "captions.tsv row 3: b'an owl\\n': 1 columns instead of 2"),
        ("an owl\towl.png\t7", "captions.tsv row 3: b'an owl\\towl.png\\t7\\n': 3 columns instead of 2"),
        ("a cat\t../cat.png", "captions.tsv row 3: '../cat.png': path leaves the folder"),
        ("a cat\t/etc/passwd", "captions.tsv row 3: '/etc/passwd': path leaves the folder"),
        ("a cat\thttps://a.b/c.jpg", "captions.tsv row 3: 'https://a.b/c.jpg': picture is a web address, not a downloaded file"),
        ("An  OWL\towl.png", "captions.tsv row 3: 'owl.png' has the caption of row 0 again: 'An  OWL'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_value(folder, row, sentence):
    write(folder, "an owl\towl.png", "a cup\tmore/cup.jpg", "a key\tmore/key.png", row)
    assert faults(folder) == [sentence]


def test_a_picture_may_have_several_captions(folder):
    write(folder, "an owl\towl.png", "a bird\towl.png", "a cup\tmore/cup.jpg", "a key\tmore/key.png")
    assert faults(folder) == []


def test_pictures_that_cannot_be_seen_are_named_and_do_not_count(folder):
    (folder / "owl.png").write_text("not a picture")
    picture(folder / "more" / "cup.jpg", size=(200, 100))
    picture(folder / "more" / "key.png", size=(60, 12))
    said = faults(folder, max_pixels=10_000)
    assert said[0].startswith("captions.tsv row 0: owl.png is not a whole picture in one of JPEG, PNG")
    assert "captions.tsv row 1: more/cup.jpg is not a whole picture" in said[1] and "200 x 100 pixels are more than the limit" in said[1]
    assert said[2] == "captions.tsv row 2: more/key.png is 60 x 12 pixels; a visual token alone shows 784"
    assert said[3:] == ["captions.tsv has 0 pictures that can be used; at least 3 are needed"]


def test_names_that_differ_in_capitals_alone_are_a_fault(folder):
    picture(folder / "Owl.png", 5)
    write(folder, "an owl\towl.png", "a cup\tmore/cup.jpg", "a key\tmore/key.png", "an eagle owl\tOwl.png")
    if len(list(folder.glob("*.png"))) == 2:  # this disk tells them apart
        assert faults(folder) == ["captions.tsv row 3: 'Owl.png' and 'owl.png' differ in capitals alone; on some disks they are one file"]


def test_too_few_pictures_are_counted(folder):
    assert faults(folder, least=4) == ["captions.tsv has 3 pictures that can be used; at least 4 are needed"]


def test_a_folder_without_a_table_or_without_one_good_row_says_so(folder):
    write(folder, "a cat\tcat.png")
    assert faults(folder) == ["captions.tsv has no row that can be used", "captions.tsv row 0: 'cat.png'"]
    (folder / "captions.tsv").unlink()
    assert faults(folder) == ["captions.tsv is missing; a row of it is `caption<TAB>path of the picture in the folder`"]


def test_many_rows_of_one_fault_are_told_by_three_and_a_count(folder):
    write(folder, "an owl\towl.png", *(f"a cat\t{k}.png" for k in range(9)))
    said = faults(folder, least=1)
    assert len(said) == 4 and said[-1] == "6 more rows: missing picture"


# --- stage 2 ------------------------------------------------------------------------------------------------------------------


def box(number: int, **values) -> dict:
    side = 60 - 2 * number
    return {"region_id": number, "image_id": 1, "phrase": f"thing {number}", "x": 0, "y": 0, "width": side, "height": 30} | values


@pytest.fixture
def regions(folder):
    """The same folder with one picture for stage 2: nine boxes, a question for each."""
    picture(folder / "VG_100K" / "1.jpg")
    rewrite(folder, [box(k) for k in range(9)])
    (folder / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 60, "height": 40}]))
    ask(folder, *({"region_id": k} for k in range(9)))
    return folder


def rewrite(folder, rows):
    (folder / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": rows}]))


def ask(folder, *rows: dict):
    lines = [{"image_id": 1, "kind": "content", "instructions": [f"What is thing {k}?"]} | row for k, row in enumerate(rows)]
    (folder / "instructions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def of_regions(folder, least: int = 1) -> list[str]:
    return own_folder.check(folder, least=least)


def test_a_sound_folder_for_stage_2_has_no_fault(regions):
    assert of_regions(regions) == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"x": 70}, "box wholly outside its picture"),
        ({"x": 1, "width": 60}, "box partly outside its picture"),
        ({"width": 0}, "box without area"),
        ({"phrase": " "}, "empty phrase"),
        ({"region_id": 7}, "region number used twice in a picture"),
    ],
)
def test_a_box_that_does_not_fit_its_picture_is_named(regions, wrong, reason):
    rewrite(regions, [*(box(k) for k in range(9)), box(9, **wrong)])
    (said,) = of_regions(regions)
    assert said.startswith("region_descriptions.json row 0, region 9: ") and said.endswith(f": {reason}")


def test_an_instruction_for_a_region_that_is_not_there_is_named(regions):
    ask(regions, *({"region_id": k} for k in range(9)), {"region_id": 12}, {"image_id": 4, "region_id": 0})
    assert of_regions(regions) == [
        "instructions.jsonl row 9: region 12 of picture 1 is not in region_descriptions.json, or cannot be used",
        "instructions.jsonl row 10: picture 4 is not in region_descriptions.json, or cannot be used",
    ]


def test_an_instruction_out_of_its_layout_is_named(regions):
    ask(regions, {"region_id": "7"})
    assert of_regions(regions) == ["instructions.jsonl row 0: 'region_id' is missing or of a wrong type: '7'"]


def test_pictures_that_stage_2_cannot_use_are_counted_with_the_reason(regions):
    rewrite(regions, [box(k) for k in range(8)])
    ask(regions, *({"region_id": k} for k in range(8)))
    (said,) = of_regions(regions)
    assert said.startswith("stage 2 can use 0 of 1 pictures; at least 1 are needed: 1 have fewer than 5 + 4 boxes")
    rewrite(regions, [box(k) for k in range(9)])
    ask(regions, {"region_id": 0})
    assert of_regions(regions)[0].endswith("1 a drawn box that no question asks for")


def test_a_picture_of_another_size_than_said_is_named(regions):
    picture(regions / "VG_100K" / "1.jpg", size=(80, 40))
    assert of_regions(regions) == ["image_data.json, picture 1: VG_100K/1.jpg is 80 x 40 pixels, not 60 x 40; boxes would not fit it"]


def test_files_of_stage_2_that_are_missing_are_named(regions):
    (regions / "image_data.json").unlink()
    assert of_regions(regions) == ["image_data.json is missing; it belongs to the layout of Visual Genome"]


# --- setting apart ------------------------------------------------------------------------------------------------------------


def test_what_is_set_aside_is_apart_whole_and_the_same_again(tmp_path):
    folder = tmp_path / "many"
    for k in range(30):
        picture(folder / f"{k}.png", k % 25)  # five pictures have a copy
    write(folder, *(f"picture {k}\t{k}.png" for k in range(30)))
    train, held = own_folder.split(folder, tmp_path / "out", 0.4, seed=1)
    parts = [{p.caption: p.image.read_bytes() for p in read_pairs(part)[0]} for part in (train, held)]
    assert len(parts[0]) + len(parts[1]) == 30 and min(map(len, parts)) >= 5
    assert not set(parts[0].values()) & set(parts[1].values()), "a copy of a held-out picture is trained on"
    assert own_folder.split(folder, tmp_path / "out", 0.4, seed=1) == (train, held)
    picture(folder / "30.png", 99)
    write(folder, *(f"picture {k}\t{k}.png" for k in range(31)))
    again = own_folder.split(folder, tmp_path / "out", 0.4, seed=1)[1]
    assert again != held and {p.caption for p in read_pairs(again)[0]} - {"picture 30"} == set(parts[1])


def test_a_share_that_leaves_nothing_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"held_out = 0 of 3 rows of .*mine leaves nothing to test on"):
        own_folder.split(folder, tmp_path, 0.0)
    with pytest.raises(ValueError, match=r"leaves nothing to train on"):
        own_folder.split(folder, tmp_path, 1.0)


# --- the photographs of this repository ---------------------------------------------------------------------------------------


def test_the_photographs_pass_the_check_are_all_distinct_sprites_and_have_a_source_each():
    folder = paths.ASSETS / "photos"
    assert own_folder.check(folder) == []
    names = {path.name for path in folder.glob("*.png")}
    assert len(load_glyphs(len(names), folder)) == len(names) == len(read_pairs(folder)[0])
    with (folder / "SOURCES.csv").open(encoding="utf-8") as rows:
        listed = list(csv.DictReader(rows))
    assert {row["picture"] for row in listed} == names and all(row["author"] for row in listed)
    assert {row["licence"] for row in listed} == {"GPL-2.0-or-later", "public domain"} and (folder / "COPYING").exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
