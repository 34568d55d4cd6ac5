"""What training goes without: by COCO's number, by file, by content and by text; and what is counted of near-duplicates."""

import json
import time
from pathlib import Path

import pytest

from abc_core.data.karpathy import GenomeImage
from abc_core.instructions import held_out
from abc_core.instructions.held_out import HeldOut, coco_ids, comparable, exclude, exclude_groups, near, near_duplicates, split_images
from abc_core.instructions.regions import Instructed


def images(folder, contents, coco=None):
    """Pictures with these bytes in `folder`, numbered from 1."""
    folder.mkdir(exist_ok=True)
    out = []
    for k, content in enumerate(contents, start=1):
        (folder / f"{k}.jpg").write_bytes(content)
        out.append(GenomeImage(folder / f"{k}.jpg", folder, k, 8, 8, (coco or {}).get(k), []))
    return out


def test_texts_are_compared_without_regard_to_case_white_space_and_spelling_of_characters():
    assert comparable(" The\u00a0 RED\n\uff42all ") == comparable("the red ball") == "the red ball"
    assert comparable("a ball") != comparable("ball") and comparable("Stra\u00dfe") == comparable("STRASSE")


def test_near_duplicates_have_the_same_words():
    assert near("The dog, on a cat.") == near("cat on (dog)") != near("dog cat") and near("a, the!") == ""
    found = near_duplicates(["a red ball", "the ball: red", "a cat", "cats", "...", "a !"], ["Red Ball", "A RED BALL", "Cat"])
    within = [["a red ball", "the ball: red"], ["the ball: red", "a red ball"]]
    across = [["a red ball", "Red Ball"], ["the ball: red", "Red Ball"], ["a cat", "Cat"]]
    assert found == {"within": 2, "with_training": 3, "examples": within + across}
    assert near_duplicates(["a cat"], ["A  cat"]) == {"within": 0, "with_training": 0, "examples": []}  # equal is not near


def test_near_duplicates_of_many_captions_take_seconds():
    started = time.process_time()
    mine = [f"a {k} dog on the {k % 7} mat" for k in range(5_000)]
    found = near_duplicates(mine, (f"the mat {k % 7}, on {k} dog" for k in range(50_000)))
    assert found["with_training"] == 5_000 and found["within"] == 0 and len(found["examples"]) == 5
    assert time.process_time() - started < 10


def test_a_draw_of_pictures_does_not_depend_on_their_order_and_hardly_on_one_that_is_missing():
    pool = [GenomeImage(Path(f"{k}.jpg"), Path(), k, 8, 8, None, []) for k in range(1, 201)]
    drawn, rest = split_images(pool, 50, seed=3)
    numbers = {i.image_id for i in drawn}
    assert len(numbers) == 50 and len(rest) == 150 and sorted([*drawn, *rest], key=lambda i: i.image_id) == pool
    other = {i.image_id for i in split_images(pool, 50, seed=4)[0]}
    assert {i.image_id for i in split_images(pool[::-1], 50, seed=3)[0]} == numbers != other
    without = [i for i in pool if i is not drawn[0]]
    assert len({i.image_id for i in split_images(without, 50, seed=3)[0]} & numbers) == 49
    assert not {i.image_id for i in split_images(rest, 50, seed=3)[0]} & numbers
    for count in (0, 201):
        with pytest.raises(ValueError, match=f"{count} pictures were to be drawn of 200"):
            split_images(pool, count, seed=0)


def test_pictures_are_left_out_by_number_by_file_and_by_content_and_counted_once(tmp_path):
    pool = images(tmp_path / "vg", [b"a", b"b", b"c", b"d", b"b", b"e"], coco={1: 70, 2: 71, 4: 72})
    elsewhere = images(tmp_path / "other", [b"x", b"y", b"d"])  # the numbers 1 to 3 are of other pictures here
    held = HeldOut(frozenset({70, 99}), frozenset({pool[1].image, pool[0].image, *(i.image for i in elsewhere)}))
    kept, counts = exclude(pool, held)
    assert [i.image_id for i in kept] == [3, 6]
    assert counts == {"images": 6, "kept": 2, "coco_test": 1, "in_ctrlbench": 1, "copy_of_ctrlbench": 2}
    assert exclude(pool, HeldOut()) == (pool, {"images": 6, "kept": 6, "coco_test": 0, "in_ctrlbench": 0, "copy_of_ctrlbench": 0})


def test_rows_that_are_drawn_already_go_picture_by_picture(tmp_path):
    pool = images(tmp_path / "vg", [b"a", b"b", b"c", b"d"])
    groups = [[Instructed(i.image, k, 10 * k + r, (0, 0, 1, 1), "released", f"ask {k}{r}", f"say {k}{r}") for r in (0, 1)]
              for k, i in enumerate(pool)]  # fmt: skip
    (tmp_path / "copy").write_bytes(b"a")
    held = HeldOut(images=frozenset({tmp_path / "copy"}), captions=frozenset({"say 11"}), instructions=frozenset({"ask 20"}))
    kept, counts = exclude_groups(groups, held)
    assert kept == groups[3:]
    assert counts == {"images": 4, "kept": 1, "in_ctrlbench": 1, "with_its_captions": 1, "with_its_instructions": 1}
    with pytest.raises(ValueError, match="have no coco_id"):
        exclude_groups(groups, HeldOut(frozenset({1})))


def test_leakage_counts_pictures_captions_and_instructions_once(tmp_path):
    pool = images(tmp_path / "vg", [b"a", b"b", b"a"])
    rows = [Instructed(i.image, k, k, (0, 0, 1, 1), "made", f"ask {k}", f"say {k}") for k, i in enumerate(pool)]
    found = held_out.leakage(rows, [pool[0].image], ["SAY  1", "say 1", "x"], ["ask 0", "ask 2"])
    assert found == {"images": 2, "captions": 1, "instructions": 2}
    assert held_out.leakage(rows, [], [], []) == {"images": 0, "captions": 0, "instructions": 0}
    assert held_out.same_bytes([pool[1].image], [pool[0].image]) == set()  # of one size


def test_the_numbers_of_a_karpathy_split_are_read_strictly(tmp_path):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": [{"split": s, "cocoid": n} for s, n in (("test", 5), ("val", 6), ("test", 7), ("test", 5))]}))
    assert coco_ids(path) == {5, 7} and coco_ids(path, "val") == {6}
    with pytest.raises(ValueError, match=r"dataset_coco\.json has no picture of the split 'tests'"):
        coco_ids(path, "tests")
    path.write_text(json.dumps({"images": [{"split": "test"}]}))
    with pytest.raises(ValueError, match=r"dataset_coco\.json row 0: 'cocoid' is missing"):
        coco_ids(path)
    with pytest.raises(FileNotFoundError, match="Karpathy"):
        coco_ids(tmp_path / "none.json")
