"""MMEB's layouts, old and new, unpacked or in their zip file: what comes of them, what is left out, and what is refused."""

import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from abc_core.data import mmeb
from abc_core.data.mmeb import CLASSIFICATION, IN_TRAINING, VQA, read_mmeb
from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.data.zips import Zipped
from mmeb_folder import ASK, CLASSIFY, picture, write

LABELS = ["owl", "hot dog", "key"]






@pytest.fixture
def sets(tmp_path):
    """A folder with one classification and one VQA set, and three pictures."""
    for k, colour in enumerate(("red", "lime", "blue")):
        picture(tmp_path / "images" / "Things" / f"{k}.jpg", colour)
    rows = [(CLASSIFY, f"Things/{k}.jpg", [LABELS[k], *LABELS[:k], *LABELS[k + 1 :]]) for k in (0, 1, 2)]
    write(tmp_path, "ObjectNet", rows)
    asked = [("what is it?", 1, ["an owl", "a key"]), ("which colour?", 1, ["lime", "red", "an owl"]), ("what is it?", 0, ["a key", "red"])]
    write(tmp_path, "GQA", [(ASK.format(q), f"Things/{k}.jpg", answers) for q, k, answers in asked])
    return tmp_path


# --- the layouts ----------------------------------------------------------------------------------------------------------------


def test_a_classification_shows_the_picture_alone_and_has_its_labels_in_a_sentence(sets):
    task, skipped = read_mmeb(sets, "ObjectNet", "classification")
    assert task.candidates == ["A photo of a owl.", "A photo of a hot dog.", "A photo of a key."]
    assert task.texts == [None] * 3 and task.shown.tolist() == [0, 1, 2] and task.choices is None
    assert [r.tolist() for r in task.right] == [[0], [1], [2]]
    assert (task.name, task.kind) == ("ObjectNet", "classification") and not skipped.counts and not skipped.odd
    plain, _ = read_mmeb(sets, "ObjectNet", "classification", templates={"classification": None})
    assert plain.candidates == LABELS


def test_a_question_comes_without_the_placeholder_and_chooses_among_its_own_answers(sets):
    task, skipped = read_mmeb(sets, "GQA", "vqa")
    assert task.texts[0] == "Represent the given image with the following question: what is it?"
    assert task.candidates == ["an owl", "a key", "lime", "red"]  # as they are, and each once
    assert [c.tolist() for c in task.choices] == [[0, 1], [2, 3, 0], [1, 3]] and [r.tolist() for r in task.right] == [[0], [2], [1]]
    assert [p.name for p in task.pictures] == ["1.jpg", "0.jpg"] and task.shown.tolist() == [0, 0, 1]
    assert not skipped.counts and not skipped.odd
    said, _ = read_mmeb(sets, "GQA", "vqa", templates={"vqa": "It is {label}."})
    assert said.candidates[:2] == ["It is an owl.", "It is a key."]
    short, skipped = read_mmeb(sets, "GQA", "vqa", prefix=False)
    assert short.texts == ["what is it?", "which colour?", "what is it?"] and not skipped.odd


def test_both_versions_of_the_layout_give_the_same_task(sets):
    old, _ = read_mmeb(sets, "GQA", "vqa")
    table = pq.read_table(sets / "GQA" / "test-00000-of-00001.parquet").to_pylist()
    inst = f"<|image_1|> {mmeb.QUESTION}\n"
    rows = [((inst, row["qry_text"].split("question: ")[1]), row["qry_img_path"], row["tgt_text"]) for row in table]
    write(sets, "new/GQA", rows)
    for prefix in (True, False):
        new, _ = read_mmeb(sets / "new", "GQA", "vqa", images=sets / "images", prefix=prefix)
        assert new.texts == read_mmeb(sets, "GQA", "vqa", prefix=prefix)[0].texts
    assert new.candidates == old.candidates and new.pictures == old.pictures
    assert [c.tolist() for c in new.choices] == [c.tolist() for c in old.choices]


def test_the_nineteen_sets_of_table_2_are_read_under_their_own_names(tmp_path):
    assert (len(CLASSIFICATION), len(VQA)) == (9, 10) and not set(CLASSIFICATION) & set(VQA)
    assert set(IN_TRAINING) < {*CLASSIFICATION, *VQA}
    for name in CLASSIFICATION:
        write(tmp_path, name, [(CLASSIFY, f"{name}/a.jpg", ["yes", "no"])])
    for name in VQA:
        write(tmp_path, name, [(ASK.format("is it?"), f"{name}/a.jpg", ["yes", "no"])])
    for name in (*CLASSIFICATION, *VQA):
        picture(tmp_path / "images" / name / "a.jpg")
        task, _ = read_mmeb(tmp_path, name, "vqa" if name in VQA else "classification")
        assert task.name == name and task.pictures == [tmp_path / "images" / name / "a.jpg"]


def test_pictures_are_also_found_beside_the_sets(sets):
    (sets / "images" / "Things").rename(sets / "Things")
    (sets / "images").rmdir()
    assert read_mmeb(sets, "GQA", "vqa")[0].pictures[0] == sets / "Things" / "1.jpg"


# --- odd rows -------------------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_asked_are_left_out_and_named(sets):
    file = write(
        sets,
        "GQA",
        [
            (ASK.format("what?"), "Things/0.jpg", ["an owl", "a key"]),
            (ASK.format("what?"), "Things/0.jpg", []),
            (ASK.format("what?"), "Things/0.jpg", [" ", "a key"]),
            (ASK.format("what?"), "Things/0.jpg", ["an owl", "an owl"]),
            (ASK.format("what?"), "Things/9.jpg", ["an owl", "a key"]),
            (ASK.format("what?"), "../GQA/a.jpg", ["an owl", "a key"]),
            (ASK.format(" "), "Things/0.jpg", ["an owl", "a key"]),
            (ASK.format("what?"), "", ["an owl", "a key"]),
        ],
    )
    task, skipped = read_mmeb(sets, "GQA", "vqa")
    assert len(task.texts) == 1
    assert skipped.counts == {
        "no candidates": 1, "no right answer": 1, "no other candidate than the right answer": 1, "missing picture": 2,
        "path leaves the folder": 1, "no question": 1,
    }  # fmt: skip
    assert f"{file} row 4: 'Things/9.jpg'" in str(skipped) and f"{file} row 3: ['an owl', 'an owl']" in str(skipped)


def test_a_repeated_right_answer_is_one_candidate_and_right_and_a_respelt_one_stays_wrong(sets):
    write(
        sets,
        "GQA",
        [
            (ASK.format("a?"), "Things/0.jpg", ["yes", "no", "yes", "no", None]),
            (ASK.format("b?"), "Things/1.jpg", ["yes", "Yes ", "no"]),
        ],
    )
    task, skipped = read_mmeb(sets, "GQA", "vqa")
    assert task.candidates == ["yes", "no", "Yes "] and [c.tolist() for c in task.choices] == [[0, 1], [0, 2, 1]]
    assert [r.tolist() for r in task.right] == [[0], [0]] and not skipped.counts
    assert skipped.odd == {
        "blank candidates, which are not offered": 1, "the right answer again among the others: one candidate": 1,
        "a wrong answer more than once: one candidate": 1,
        "a wrong answer differs from the right one in case or white space alone": 1,
    }  # fmt: skip
    assert "row 1: ['yes', 'Yes ']" in str(skipped)


def test_what_is_not_the_layout_is_refused_with_file_and_value(sets, tmp_path):
    with pytest.raises(ValueError, match=r"unknown kind 'retrieval' of the set 'GQA'; known are classification, vqa"):
        read_mmeb(sets, "GQA", "retrieval")
    with pytest.raises(FileNotFoundError, match=r"TextVQA is missing.*MMEB"):
        read_mmeb(sets, "TextVQA", "vqa")
    with pytest.raises(ValueError, match="leaves its folder"):
        read_mmeb(sets, "../GQA", "vqa")
    with pytest.raises(FileNotFoundError, match=r"no folder or zip file of pictures at .*nowhere"):
        read_mmeb(sets, "GQA", "vqa", images=tmp_path / "nowhere")
    (sets / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no test\*\.parquet"):
        read_mmeb(sets, "empty", "vqa")
    file = sets / "empty" / "test.parquet"
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"test\.parquet is not a Parquet file"):
        read_mmeb(sets, "empty", "vqa")
    pq.write_table(pa.table({"qry_text": ["a"], "image": ["b"]}), file)
    with pytest.raises(ValueError, match=r"test\.parquet has no column qry_img_path, tgt_text; its columns: qry_text, image"):
        read_mmeb(sets, "empty", "vqa")
    pq.write_table(pa.table({"qry_text": ["a"], "qry_img_path": ["b"], "tgt_text": ["c"]}), file)
    with pytest.raises(ValueError, match=r"test\.parquet row 0: 'tgt_text' is missing or of a wrong type: 'c'"):
        read_mmeb(sets, "empty", "vqa")
    pq.write_table(pa.table({"qry_text": ["a"], "qry_img_path": ["b"], "tgt_text": [["c"]], "tgt_img_path": [["d.jpg"]]}), file)
    with pytest.raises(ValueError, match=r"row 0: the candidates of this set are pictures"):
        read_mmeb(sets, "empty", "vqa")
    write(sets, "ObjectNet", [(CLASSIFY, "gone.jpg", LABELS)])
    with pytest.raises(ValueError, match=r"ObjectNet has no row that can be used[\s\S]*missing picture[\s\S]*gone\.jpg"):
        read_mmeb(sets, "ObjectNet", "classification")


def test_nothing_is_fetched_unless_asked_for():
    with pytest.raises(FileNotFoundError, match=r"TIGER-Lab/MMEB-eval is neither a folder .* \(download=True fetches it once\)"):
        read_mmeb(mmeb.HUB, "GQA", "vqa")
    with pytest.raises(FileNotFoundError, match=r"TIGER-Lab/MMEB-eval is neither a folder .* \(no connection\)"):
        read_mmeb(mmeb.HUB, "GQA", "vqa", download=True)


def test_what_is_asked_for_is_one_set_and_the_pictures(sets, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(sets)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert len(read_mmeb(mmeb.HUB, "GQA", "vqa", download=True)[0].texts) == 3
    patterns = ["GQA/test*.parquet", "images.zip"]
    assert asked == {"name": mmeb.HUB, "repo_type": "dataset", "allow_patterns": patterns, "local_files_only": False}


# --- the zip file ---------------------------------------------------------------------------------------------------------------


def packed(sets, method=zipfile.ZIP_DEFLATED, top=""):
    """images.zip in place of the folder of pictures."""
    with zipfile.ZipFile(sets / "images.zip", "w", method) as archive:
        for path in sorted((sets / "images").rglob("*.jpg")):
            archive.write(path, top + path.relative_to(sets / "images").as_posix())
            path.unlink()
    (sets / "images" / "Things").rmdir()
    (sets / "images").rmdir()
    return sets / "images.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("top", ["", "images/"])
def test_pictures_in_a_zip_file_are_those_of_the_folder_and_nothing_is_unpacked(sets, method, top):
    loose = [np.asarray(open_image(p)) for p in read_mmeb(sets, "GQA", "vqa")[0].pictures]
    archive = packed(sets, method, top)
    before = sorted(sets.rglob("*"))
    task, skipped = read_mmeb(sets, "GQA", "vqa")
    assert all(np.array_equal(open_image(p), was) for p, was in zip(task.pictures, loose, strict=True)) and not skipped.counts
    assert str(task.pictures[0]) == f"{archive}/{top}Things/1.jpg" and sorted(sets.rglob("*")) == before


def test_a_member_that_would_leave_the_folder_is_never_found(sets):
    with zipfile.ZipFile(sets / "evil.zip", "w") as archive:
        archive.writestr("../../passwd.jpg", b"x")
        archive.writestr("/root.jpg", b"x")
    evil = Zipped(sets / "evil.zip")
    for name in ("../../passwd.jpg", "/root.jpg", "a/../../passwd.jpg"):
        with pytest.raises(ValueError, match="leaves its folder"):
            evil.find(name)
    write(sets, "GQA", [(ASK.format("a?"), "../../passwd.jpg", ["yes", "no"]), (ASK.format("a?"), "Things/0.jpg", ["yes", "no"])])
    packed(sets)
    assert read_mmeb(sets, "GQA", "vqa")[1].counts == {"path leaves the folder": 1}


def test_a_picture_that_expands_without_end_is_refused_before_it_is_expanded(sets):
    with zipfile.ZipFile(sets / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(5_000_000))
    member = Zipped(sets / "bomb.zip").find("a.jpg")
    assert member.packed < 10_000
    with pytest.raises(ValueError, match="5,000,000 bytes are more than a picture of 50,000 pixels may have"):
        open_image(member, max_pixels=50_000)
    assert len(member._replace(size=100).read()) == 100, "an archive that states a false size expands to no more than it states"


def test_broken_archives_and_members_are_named(sets):
    archive = packed(sets)
    good = archive.read_bytes()
    member = Zipped(archive).find("Things/0.jpg")
    with pytest.raises(UnreadableImage, match=r"images\.zip/Things/0\.jpg is not a whole picture"):
        open_image(member._replace(packed=member.packed // 2))
    archive.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"images\.zip is not a whole zip file"):
        read_mmeb(sets, "GQA", "vqa")
    archive.write_bytes(b"XXXX" + good[4:])
    with pytest.raises(ValueError, match=r"images\.zip/Things/0\.jpg has no header at byte 0"):
        Zipped(archive).find("Things/0.jpg")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as other:
        other.writestr("a.jpg", b"x")
    with pytest.raises(ValueError, match=r"images\.zip/a\.jpg is packed by method 12; only stored and deflated members are read"):
        Zipped(archive)
