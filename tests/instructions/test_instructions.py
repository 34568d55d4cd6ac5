"""Which regions are drawn and which instruction asks for each: the paper's rule, seeded per picture."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from abc_core.config import InstructConfig
from abc_core.data.karpathy import GenomeImage, Region
from abc_core.instructions.held_out import comparable
from abc_core.instructions.regions import Instructed, instruct, instructed_files, read_instructed, read_instructions, select_regions
from abc_core.jobs.stages import InstructJob


def image(image_id, sides):
    """A picture in memory with square regions of the given sides, numbered from 1."""
    path = Path(f"vg/VG_100K/{image_id}.jpg")
    regions = [Region(path, image_id, k, f"caption {image_id}-{k}", 0, 0, side, side) for k, side in enumerate(sides, start=1)]
    return GenomeImage(path, Path("vg"), image_id, 100, 100, None, regions)


def table(images, kinds=("content", "place"), wordings=3):
    """Instructions for every region."""
    return {
        (i.image_id, r.region_id): {kind: [f"{kind} {i.image_id}-{r.region_id} {w}" for w in range(wordings)] for kind in kinds}
        for i in images
        for r in i.regions
    }


def test_the_five_largest_boxes_are_never_drawn_and_equal_boxes_fall_by_number():
    sides = [9, 1, 8, 2, 7, 3, 6, 4, 5]
    drawn = [select_regions([image(1, sides)], seed=seed)[0][1] for seed in range(20)]
    assert all(sorted(r.width for r in regions) == [1, 2, 3, 4] for regions in drawn)
    assert len({tuple(r.region_id for r in regions) for regions in drawn}) > 1  # in random order
    equal = image(1, [5] * 9)
    equal.regions.reverse()  # the order in the file does not matter
    assert {r.region_id for r in select_regions([equal])[0][1]} == {6, 7, 8, 9}


def test_size_is_width_times_height():
    path = Path("1.jpg")
    boxes = [(30, 1), (6, 6), (1, 31)]
    regions = [Region(path, 1, k, "c", 0, 0, *box) for k, box in enumerate(boxes)]
    kept, _ = select_regions([GenomeImage(path, Path(), 1, 40, 40, None, regions)], drop_largest=1, take=2)
    assert {r.region_id for r in kept[1]} == {0, 2}


def test_pictures_with_too_few_regions_are_left_out_and_counted():
    kept, counts = select_regions([image(1, range(1, 10)), image(2, range(1, 9)), image(3, [])])
    assert list(kept) == [1] and counts == {"images": 3, "kept": 1, "too_few_regions": 2, "too_few_other_captions": 0}


def test_regions_with_captions_of_the_benchmark_are_not_drawn_and_the_others_as_ever():
    images = [image(k, range(1, 12)) for k in (1, 2, 3)]
    plain, _ = select_regions(images, 5, 4, seed=2)
    banned = plain[2][1].caption
    assert select_regions(images, 5, 4, seed=2, without={"another"})[0] == plain
    kept, counts = select_regions(images, 5, 4, seed=2, without={banned})
    assert {k: kept[k] for k in (1, 3)} == {k: plain[k] for k in (1, 3)} and banned not in [r.caption for r in kept[2]]
    assert [r for r in plain[2] if r.caption != banned] == kept[2][:3] and counts["kept"] == 3
    gone = {f"caption 2-{k}" for k in (1, 2, 3)}  # three of six small ones
    kept, counts = select_regions(images, 5, 4, seed=2, without=gone)
    assert list(kept) == [1, 3] and counts == {"images": 3, "kept": 2, "too_few_regions": 0, "too_few_other_captions": 1}


def test_drawn_once_no_caption_comes_twice_in_any_spelling():
    images = [image(k, range(1, 15)) for k in range(1, 9)]
    for i in images:
        i.regions[:4] = [r._replace(caption=f"{'  Blue' if i.image_id % 2 else 'blue'} {r.region_id // 2}") for r in i.regions[:4]]
    kept, counts = select_regions(images, 5, 5, seed=0, once=True)
    said = [comparable(r.caption) for regions in kept.values() for r in regions]
    assert len(set(said)) == len(said) == 40 and counts["kept"] == 8
    again, counts = select_regions(images, 5, 8, seed=0, once=True)  # of nine small ones two are one caption, and three are taken
    assert list(again) == [1] and counts["too_few_other_captions"] == 7


def test_instructions_of_the_benchmark_are_not_drawn():
    images = [image(k, range(1, 10)) for k in (1, 2)]
    regions, asked = select_regions(images)[0], table(images, ("content",))
    plain = instruct(regions, asked, seed=0)[0]
    assert instruct(regions, asked, 0, without={"another"})[0] == plain
    held = {f"content 1-{k} {w}" for k in range(10) for w in (0, 2)}
    rows, counts = instruct(regions, asked, 0, without=held)
    assert {r.instruction[-1] for r in rows if r.image_id == 1} == {"1"} and counts["kept"] == 2
    rows, counts = instruct(regions, asked, 0, without=held | {f"content 1-{regions[1][0].region_id} 1"})
    assert {r.image_id for r in rows} == {2} and counts["without_instruction"] == 1


def test_the_draw_for_a_picture_does_not_depend_on_the_other_pictures():
    images = [image(k, range(1, 30)) for k in range(1, 6)]
    everything, _ = select_regions(images, seed=3)
    turned, _ = select_regions(images[::-1], seed=3)
    alone, _ = select_regions(images[2:3], seed=3)
    assert everything == turned and alone[3] == everything[3]
    asked = table(images)
    rows = {r for r in instruct(everything, asked, seed=3)[0] if r.image_id == 3}
    assert rows == set(instruct(alone, asked, seed=3)[0])
    assert select_regions(images, seed=4)[0] != everything and instruct(everything, asked, seed=4) != instruct(everything, asked, seed=3)


def test_regions_are_drawn_evenly():
    images = [image(k, [50] * 5 + [1] * 8) for k in range(1, 501)]
    kept, _ = select_regions(images, seed=0)
    times = Counter(r.region_id for regions in kept.values() for r in regions)
    assert set(times) == set(range(6, 14)) and all(200 < n < 300 for n in times.values())  # 250 expected, sigma 11


def test_every_picture_keeps_its_rows_together_with_different_regions():
    images = [image(k, range(1, 12)) for k in range(1, 4)]
    rows, counts = instruct(select_regions(images)[0], table(images), seed=0)
    assert [r.image_id for r in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(len({r.region_id for r in rows[i : i + 4]}) == 4 for i in (0, 4, 8))
    first = rows[0]
    assert first.caption == f"caption 1-{first.region_id}" and first.instruction.startswith(f"{first.kind} 1-{first.region_id} ")
    assert first.image == Path("vg/VG_100K/1.jpg") and len(first.box) == 4
    assert counts["kept"] == 3 and counts["content"] + counts["place"] == 12


def test_a_picture_with_a_region_that_cannot_be_asked_for_is_left_out_whole():
    images = [image(k, range(1, 10)) for k in (1, 2)]
    asked = table(images)
    del asked[2, 3]  # region 3 is among the four smallest
    rows, counts = instruct(select_regions(images)[0], asked, seed=0)
    assert {r.image_id for r in rows} == {1} and counts["without_instruction"] == 1 and counts["images"] == 2


def test_kinds_follow_their_weights_and_wordings_their_limit():
    images = [image(k, [50] * 5 + [1] * 4) for k in range(1, 301)]
    regions, asked = select_regions(images)[0], table(images)
    even = instruct(regions, asked, 0)[1]
    assert abs(even["content"] - 600) < 75  # of 1200, sigma 17
    skewed = instruct(regions, asked, 0, kinds={"content": 1, "place": 3})[1]
    assert abs(skewed["content"] - 300) < 65
    only = instruct(regions, asked, 0, kinds={"place": 0.5}, wordings=1)[0]
    assert {r.kind for r in only} == {"place"} and {r.instruction[-1] for r in only} == {"0"}
    assert {r.instruction[-1] for r in instruct(regions, asked, 0)[0]} == {"0", "1", "2"}


def test_unknown_kinds_and_impossible_numbers_are_errors_with_the_value():
    images = [image(1, range(1, 10))]
    regions, asked = select_regions(images)[0], table(images)
    for options, message in (
        ({"kinds": {"colour": 1}}, "kind 'colour'; known kinds: content, place"),
        ({"kinds": {"place": -1}}, "weight of kind 'place' is -1"),
        ({"kinds": {"place": float("nan")}}, "is nan"),
        ({"wordings": 0}, "wordings = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            instruct(regions, asked, 0, **options)
    with pytest.raises(ValueError, match="take = 0"):
        select_regions(images, take=0)


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_instructions_are_read_by_region_and_kind_and_empty_ones_are_counted(tmp_path):
    row = {"image_id": 1, "region_id": 2, "kind": "place"}
    size = {"kind": "size", "instructions": ["c"]}
    path = write(tmp_path / "i.jsonl", row | {"instructions": ["a", "  "]}, row | {"instructions": ["b"]}, row | size)
    read, skipped = read_instructions(path)
    assert read == {(1, 2): {"place": ["a", "b"], "size": ["c"]}}
    assert skipped.counts == {"empty instruction": 1} and "i.jsonl row 0: '  '" in str(skipped)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image_id": 1', r"row 1 is not JSON .*image_id"),
        ({"image_id": "1", "region_id": 2, "kind": "k", "instructions": []}, r"row 1: 'image_id' .*'1'"),
        ({"image_id": 1, "kind": "k", "instructions": []}, r"row 1: 'region_id' is missing"),
        ({"image_id": 1, "region_id": 2, "kind": "k", "instructions": "What?"}, r"row 1: 'instructions' .*'What\?'"),
        ({"image_id": 1, "region_id": 2, "kind": "k", "instructions": [7]}, r"row 1: an instruction should be a text, not 7"),
        ("[]", r"row 1: 'image_id' is missing .*\[\]"),
    ],
)
def test_a_row_of_another_form_is_an_error_with_file_row_and_value(tmp_path, row, message):
    path = write(tmp_path / "i.jsonl", {"image_id": 1, "region_id": 1, "kind": "k", "instructions": ["a"]}, row)
    with pytest.raises(ValueError, match=rf"i\.jsonl {message}"):
        read_instructions(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl is missing"):
        read_instructions(tmp_path / "none.jsonl")


# --- ABC-VG-Instruct ------------------------------------------------------------------------------------------------------------


def released(image_id, **changes):
    """A row of four regions of a picture."""
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    row = [{"id": 10 + k, "image": image_id, "instruction": f"what is {k}?", "phrase": f"thing {k}", **box} for k in range(4)]
    return {str(k): region | (changes if k == 2 else {}) for k, region in enumerate(row)}


@pytest.fixture
def released_folder(tmp_path):
    """Two pictures, one of them where Visual Genome keeps it."""
    (tmp_path / "VG_100K").mkdir()
    for name in ("1.jpg", "VG_100K/2.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    return tmp_path


def write_released(folder, rows, name):
    (folder / name).parent.mkdir(exist_ok=True)
    if name.endswith("jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)


@pytest.mark.parametrize("name", ["rows.parquet", "data/train-00000-of-00001.parquet", "rows.jsonl"])
def test_released_instructions_are_read_picture_by_picture_and_oddities_are_counted(name, released_folder):
    rows = [released(1), released(2), released(3), released(1, phrase=" "), released(1, image=2), released(1) | {"3": None}]
    write_released(released_folder, rows, name)
    groups, skipped = read_instructed(released_folder)
    assert [[r.region_id for r in g] for g in groups] == [[10, 11, 12, 13]] * 2
    assert groups[1][2] == Instructed(released_folder / "VG_100K/2.jpg", 2, 12, (1, 2, 3, 4), "released", "what is 2?", "thing 2")
    assert skipped.counts == {
        "missing picture": 1, "empty instruction or phrase": 1, "regions of several pictures": 1, "region that is missing": 1,
    }  # fmt: skip
    assert f"{name} row 2: '3.jpg'" in str(skipped)
    job = InstructJob(config=InstructConfig(instructions_per_image=3), stage1="", regions=str(released_folder))
    assert job.groups() == [group[:3] for group in groups]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (released(1, image="../1"), r"row 0, region 2: 'image' is no number: '\.\./1'"),
        (released(1, x="5"), r"row 0, region 2: 'x' is missing or of a wrong type: '5'"),
        (released(1, phrase=7), r"row 0, region 2: 'phrase' is missing or of a wrong type: 7"),
        ({"a": 1}, r"row 0 has no columns \"0\", \"1\", …: \{'a': 1\}"),
        (released(8), r"no row that can be used[\s\S]*row 0: '8\.jpg'"),
    ],
)
def test_released_instructions_of_another_form_are_errors_with_file_row_and_value(row, message, released_folder):
    write_released(released_folder, [row], "rows.jsonl")
    with pytest.raises(ValueError, match=message):
        read_instructed(released_folder)


def test_a_folder_of_visual_genome_is_not_taken_for_released_instructions(released_folder):
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet"):
        read_instructed(released_folder)
    write_released(released_folder, [released(1)], "rows.jsonl")
    (released_folder / "region_descriptions.json").write_text("[]")
    assert instructed_files(released_folder) == []
