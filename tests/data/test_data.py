"""Pictures are bounded and upright; every oddity of the public layouts is left out, counted and named, never changed."""

import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from abc_core.data import genome as genome_of
from abc_core.data.genome import records
from abc_core.data.karpathy import Pair, read_genome, read_karpathy, read_pairs
from abc_core.data.mined import read_mined, write_mined
from abc_core.data.pictures import open_image
from abc_core.data.reading import Pictures, Skipped
from abc_core.data.texts import normalise
from abc_core.runs.files import read_json_lines, whole_file


def picture(path, size=(6, 4), colour=(200, 30, 90), **options):
    """Save a picture of one colour; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


# --- pictures -------------------------------------------------------------------------------------------------------------------


def test_an_open_picture_is_treated_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (5, 3), (0, 0, 0, 0)).save(tmp_path / "b.png")
    for path in (picture(tmp_path / "a.jpg", exif=exif), tmp_path / "b.png"):
        assert np.array_equal(open_image(Image.open(path)), open_image(path))
    with pytest.raises(ValueError, match="6 x 4 pixels are more than the limit of 20"):
        open_image(Image.new("RGB", (6, 4)), max_pixels=20)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    opened = open_image(picture(tmp_path / "a.jpg", (6, 4), exif=exif))
    assert (opened.mode, opened.size) == ("RGB", (4, 6))


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "LA", "1", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb_with_the_same_colours(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(path)
    opened = open_image(path)
    assert opened.mode == "RGB" and opened.getpixel((2, 2)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    levels = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_transparent_pixels_of_a_palette_show_white(tmp_path):
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "a.png", transparency=0)
    opened = open_image(tmp_path / "a.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((1, 1)) == (255, 0, 0)


def test_a_huge_picture_is_refused_by_its_header_alone(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (8_000, 60_000):  # above our limit, and above Pillow's own
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        with pytest.raises(ValueError, match=r"bomb\.png.* pixels"):
            open_image(tmp_path / "bomb.png")


def test_the_limit_of_pixels_can_be_set(tmp_path):
    path = picture(tmp_path / "a.png", (6, 4))
    assert open_image(path, max_pixels=24).size == (6, 4)
    with pytest.raises(ValueError, match=r"6 x 4 pixels .* 23"):
        open_image(path, max_pixels=23)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_a_truncated_picture_is_an_error_that_names_the_file(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"cut\.{suffix} is not a whole picture"):
        open_image(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_that_is_no_picture_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "text.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.jpg is not a whole picture"):
        open_image(tmp_path / "text.jpg")


def test_a_missing_picture_and_float_levels_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(IsADirectoryError):  # of the disk, not of the picture
        open_image(tmp_path)
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif.*mode F"):
        open_image(tmp_path / "a.tif")


def test_files_are_found_by_one_listing_and_never_outside_the_folder(tmp_path):
    picture(tmp_path / "in" / "sub" / "a.png")
    picture(tmp_path / "out.png")
    pictures = Pictures(tmp_path / "in")
    assert pictures.find("sub/a.png") == tmp_path / "in" / "sub" / "a.png"
    (tmp_path / "in" / "sub" / "a.png").unlink()
    assert pictures.find("sub/a.png") is not None  # the listing was kept
    for absent in ("sub/b.png", "sub", "other/a.png", "sub/a.png/c.png", "", ".", "x" * 300 + "/a.png"):
        assert pictures.find(absent) is None
    for outside in ("../out.png", "sub/../../out.png", str(tmp_path / "out.png"), "/out.png"):
        with pytest.raises(ValueError, match=r"leaves its folder|absolute"):
            pictures.find(outside)


# --- texts and accounts -----------------------------------------------------------------------------------------------------------


def test_normalised_texts_differ_in_more_than_white_space_and_unicode_form():
    assert normalise("  an\u00a0owl \n on\ta  card ") == "an owl on a card"
    assert normalise("cafe\u0301 \uff11") == "caf\u00e9 1"
    assert normalise("Owl") != normalise("owl")


def test_what_was_left_out_is_counted_and_the_first_few_are_named():
    skipped = Skipped()
    for row in range(5):
        skipped.leave_out("empty caption", "f.tsv", row, " " * row)
    skipped.keep("box partly outside", "g.json", "7, region 1", (1, 2))
    text = str(skipped)
    assert skipped.counts == {"empty caption": 5} and skipped.odd == {"box partly outside": 1}
    assert "left out: 5" in text and "f.tsv row 2: '  '" in text and "row 3" not in text and "g.json row 7, region 1: (1, 2)" in text


def test_broken_json_lines_name_file_and_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl row 2 is not JSON .*\{\"a\""):
        list(read_json_lines(tmp_path / "a.jsonl"))


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("old")
    with pytest.raises(OSError, match=r"could not write .*a\.txt.*disk full"), whole_file(path) as partial:
        partial.write_text("new")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


# --- Conceptual Captions ----------------------------------------------------------------------------------------------------------


def test_usable_pairs_are_read_unchanged_and_the_rest_is_counted_by_reason(tmp_path):
    picture(tmp_path / "images" / "0.jpg")
    lines = [
        b"  an  owl \ton a card\timages/0.jpg",  # three columns
        b"  an  owl  \timages/0.jpg\r",
        b" \t images/0.jpg",
        b"an owl\timages/none.jpg",
        b"an owl\thttp://example.org/0.jpg",
        b"an owl\t../0.jpg",
        b"an owl",
        b"\xff\xfe\timages/0.jpg",
        "a \u2028 hibou\timages/0.jpg".encode(),
    ]
    (tmp_path / "Train_GCC-training.tsv").write_bytes(b"\n".join(lines) + b"\n")
    pairs, skipped = read_pairs(tmp_path)
    image = tmp_path / "images" / "0.jpg"
    assert list(pairs) == [Pair(image, "  an  owl  ", 1), Pair(image, "a \u2028 hibou", 8)]
    assert skipped.counts == {
        "3 columns instead of 2": 1, "empty caption": 1, "missing picture": 1, "picture is a web address, not a downloaded file": 1,
        "path leaves the folder": 1, "1 columns instead of 2": 1, "not UTF-8": 1,
    }  # fmt: skip
    for said in ("training.tsv row 2: ' '", "training.tsv row 3: 'images/none.jpg'", "training.tsv row 5: '../0.jpg'"):
        assert said in str(skipped)


def test_a_missing_folder_says_which_file_of_which_layout_and_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Train_GCC-training\.tsv is missing.*Conceptual Captions.*make reproduce"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"region_descriptions\.json is missing.*Visual Genome.*make reproduce"):
        read_genome(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dataset_coco\.json is missing.*Karpathy.*make reproduce"):
        read_karpathy(tmp_path / "dataset_coco.json")
    with pytest.raises(FileNotFoundError, match=r"m\.parquet is missing.*ABC-Pretraining-Data.*make reproduce"):
        read_mined(tmp_path / "m.parquet", tmp_path)


def test_a_file_without_any_usable_pair_is_an_error_that_says_why(tmp_path):
    (tmp_path / "Train_GCC-training.tsv").write_text("an owl\tgone.jpg\n")
    with pytest.raises(ValueError, match=r"no row that can be used[\s\S]*missing picture[\s\S]*row 0: 'gone\.jpg'"):
        read_pairs(tmp_path)


# --- mined pairs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path):
    """Four pairs with pictures."""
    return [Pair(picture(tmp_path / "images" / f"{i}.jpg"), f"caption {i}", 10 + i) for i in range(4)]


def test_mined_pairs_come_back_as_written(tmp_path, four):
    negatives = np.array([[2, 1], [3, -1], [-1, -1], [0, 1]])
    scores = np.array([[0.5, 0.25], [0.125, np.nan], [np.nan, np.nan], [0.75, 0.5]], dtype=np.float32)
    mined, skipped = read_mined(write_mined(tmp_path / "m.parquet", four, tmp_path, negatives, scores), tmp_path)
    assert [(p.image, p.caption, p.row) for p in mined.queries] == [(p.image, p.caption, i) for i, p in enumerate(four)]
    assert list(mined.ids) == [10, 11, 12, 13] and list(mined.captions) == [p.caption for p in four]
    assert [mined.negatives(r).tolist() for r in range(4)] == [[2, 1], [3], [], [0, 1]]
    assert [mined.scores(r).tolist() for r in range(4)] == [[0.5, 0.25], [0.125], [], [0.75, 0.5]]
    assert mined.padded(2)[:].tolist() == negatives.tolist() and mined.padded(1)[:].tolist() == [[2], [3], [-1], [0]]
    assert skipped.odd == {"no negatives": 1} and not skipped.counts


def test_a_row_without_picture_is_no_query_but_its_caption_stays_for_others(tmp_path, four):
    path = write_mined(tmp_path / "m.parquet", four, tmp_path, [[1], [2], [3], [0]])
    four[1].image.unlink()
    mined, skipped = read_mined(path, tmp_path)
    assert [q.row for q in mined.queries] == [0, 2, 3] and mined.captions[mined.negatives(0)[0]] == "caption 1"
    assert "m.parquet row 1: 'images/1.jpg'" in str(skipped)
    with pytest.raises(ValueError, match="no column of scores"):
        mined.scores(0)


@pytest.mark.parametrize(
    ("negatives", "message"),
    [
        ([[1], [4], [3], [0]], "row 1: negative 4 is not a row of this file of 4 rows"),
        ([[1], [2], [-2], [0]], "row 2: negative -2 is not a row"),
        ([[1], [2], [2], [0]], "row 2: negative 2 is the row itself"),
        ([[1], [2], None, [0]], "row 2: 'negatives' has no value: None"),
        ([[1], [2], [3], [0, None]], r"row 3: 'negatives' has no value: \[0, None\]"),
        ([["a"], ["b"], ["c"], ["d"]], "column 'negatives' holds object, not whole numbers"),
        (["1", "2", "3", "0"], "column 'negatives' is of type string; it should be a list"),
    ],
)
def test_a_wrong_negative_is_an_error_with_file_row_and_value(tmp_path, four, negatives, message):
    images = [f"images/{i}.jpg" for i in range(4)]
    table = {"id": images, "url": images, "caption": images, "image": images, "negatives": negatives}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=rf"m\.parquet.*{message}"):
        read_mined(tmp_path / "m.parquet", tmp_path)


def test_a_negative_without_caption_and_scores_of_other_lengths_are_errors(tmp_path, four):
    images = [f"images/{i}.jpg" for i in range(4)]
    table = {"id": images, "url": images, "caption": ["a", "b", " ", None], "image": images, "negatives": [[1], [0], [], []]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    mined, skipped = read_mined(tmp_path / "m.parquet", tmp_path)
    assert len(mined.queries) == 2 and skipped.counts == {"empty caption": 2}
    pq.write_table(pa.table(table | {"negatives": [[1], [3], [], []]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet row 1: negative 3 is a row with an empty caption"):
        read_mined(tmp_path / "m.parquet", tmp_path)
    pq.write_table(pa.table(table | {"scores": [[0.5], [], [], []]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet row 1: 0 scores for 1 negatives"):
        read_mined(tmp_path / "m.parquet", tmp_path)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"m\.parquet has no column 'url'; it has id"):
        read_mined(tmp_path / "m.parquet", tmp_path)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"m\.parquet is not a Parquet file"):
        read_mined(tmp_path / "m.parquet", tmp_path)


def test_wrong_negatives_are_never_written(tmp_path, four):
    for negatives, scores, message in (
        ([[1], [2], [3], [9]], None, "row 3: negative 9"),
        ([[1], [2], [3], [-2]], None, "row 3: negative -2"),
        ([[1], [2], [3]], None, "4 pairs, but 3 rows"),
        ([[1], [2], [3], [0]], [[1], [1], [1], [1, 2]], "2 scores for 1 negatives of row 13: 'caption 3'"),
    ):
        with pytest.raises(ValueError, match=message):
            write_mined(tmp_path / "m.parquet", four, tmp_path, negatives, scores)
    assert not list(tmp_path.glob("m.parquet*"))


# --- Visual Genome ----------------------------------------------------------------------------------------------------------------


def genome(folder, regions_by_image, coco=None):
    """A made-up Visual Genome folder; returns it."""
    described, measured = [], []
    for image_id, regions in regions_by_image.items():
        described.append({"id": image_id, "regions": [region(image_id, *r) for r in regions]})
        measured.append({"image_id": image_id, "url": "", "width": 100, "height": 80, "coco_id": (coco or {}).get(image_id)})
    folder.mkdir(exist_ok=True)
    (folder / "region_descriptions.json").write_text(json.dumps(described))
    (folder / "image_data.json").write_text(json.dumps(measured))
    return folder


def region(image_id, region_id, phrase, x, y, w, h):
    return {"region_id": region_id, "image_id": image_id, "phrase": phrase, "x": x, "y": y, "width": w, "height": h}


def test_oddities_of_visual_genome_are_left_out_or_kept_and_counted(tmp_path):
    odd = [
        (1, " a  clock ", 0, 0, 10, 10), (2, "sticks out", -5, 70, 20, 20), (3, "beside", 100, 0, 10, 10),
        (4, "above", 0, -10, 10, 10), (9, "left", -10, 0, 10, 10),
        (5, "flat", 5, 5, 0, 10), (6, "negative", 5, 5, 10, -3), (7, " \t", 5, 5, 10, 10), (1, "a second 1", 5, 5, 10, 10),
    ]  # fmt: skip
    folder = genome(tmp_path / "vg", {1: odd, 2: [], 3: [(1, "a dog", 0, 0, 5, 5)], 4: []}, coco={1: 77})
    picture(folder / "VG_100K" / "1.jpg")
    picture(folder / "VG_100K_2" / "2.jpg")
    picture(folder / "VG_100K" / "4.jpg")
    described = json.loads((folder / "region_descriptions.json").read_text())
    described += [{"id": 9, "regions": []}, described[0]]
    (folder / "region_descriptions.json").write_text(json.dumps(described))
    images, skipped = read_genome(folder)
    assert [(i.image_id, i.image, i.coco_id, len(i.regions)) for i in images] == [
        (1, folder / "VG_100K/1.jpg", 77, 2), (2, folder / "VG_100K_2/2.jpg", None, 0), (4, folder / "VG_100K/4.jpg", None, 0),
    ]  # fmt: skip
    assert [(r.caption, r.box) for r in images[0].regions] == [(" a  clock ", (0, 0, 10, 10)), ("sticks out", (-5, 70, 20, 20))]
    assert skipped.counts == {
        "box wholly outside its picture": 3, "box without area": 2, "empty phrase": 1, "region number used twice in a picture": 1,
        "missing picture": 1, "picture without width and height in image_data.json": 1, "picture described twice": 1,
    }  # fmt: skip
    assert skipped.odd == {"box partly outside its picture": 1}
    assert "region_descriptions.json row 0, region 2: '(100, 0, 10, 10) in 100 x 80'" in str(skipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "5"}, r"region_descriptions\.json row 0, region 0: 'x' is missing or of a wrong type: '5'"),
        ({"phrase": None}, r"region_descriptions\.json row 0, region 0: 'phrase' is missing .*'region_id': 1"),
        ({"width": True}, r"row 0, region 0: 'width' .*: True"),
        ({"region_id": 1.5}, r"row 0, region 0: 'region_id' .*: 1\.5"),
    ],
)
def test_a_region_of_another_form_is_an_error_with_file_row_and_value(tmp_path, change, message):
    folder = genome(tmp_path / "vg", {1: [(1, "a dog", 0, 0, 5, 5)]})
    picture(folder / "VG_100K" / "1.jpg")
    described = json.loads((folder / "region_descriptions.json").read_text())
    described[0]["regions"][0] |= change
    (folder / "region_descriptions.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        read_genome(folder)


def test_files_of_another_form_are_errors_that_name_them(tmp_path):
    folder = genome(tmp_path / "vg", {1: []})
    with pytest.raises(FileNotFoundError, match="VG_100K is missing"):
        read_genome(folder)
    (folder / "VG_100K").mkdir()
    with pytest.raises(ValueError, match=r"no picture that can be used[\s\S]*row 0: '1\.jpg'"):
        read_genome(folder)
    (folder / "image_data.json").write_text('[{"image_id": 1, "width": 0, "height": 5}]')
    with pytest.raises(ValueError, match=r"image_data\.json row 0: a picture of 0 x 5 pixels"):
        read_genome(folder)
    (folder / "image_data.json").write_text('{"image_id": 1}')
    with pytest.raises(ValueError, match=r"image_data\.json should hold a list of records, not a dict"):
        read_genome(folder)
    (folder / "image_data.json").write_text('[{"image_id": 1')
    with pytest.raises(ValueError, match=r"image_data\.json is not JSON"):
        read_genome(folder)
    (folder / "image_data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_data\.json is missing"):
        read_genome(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10**6])
def test_records_are_those_of_the_whole_list_wherever_the_file_is_cut_into_chunks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(genome_of, "CHUNK", size)
    content = [{"a": [1, {"b": 'x\\"]}, \u00fc'}]}, {}, 12345, "two, ]words", None, {"c": -1.5e-3}]
    for text in (json.dumps(content), json.dumps(content, indent=3, ensure_ascii=False) + "\n"):
        (tmp_path / "list.json").write_text(text, encoding="utf-8")
        assert list(records(tmp_path / "list.json")) == content
    (tmp_path / "list.json").write_text(" [ ] ")
    assert list(records(tmp_path / "list.json")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2', "record 1: "),
        ('[{"a": 1} {"a": 2}]', "record 1: a comma or the end"),
        ("[1, 2", "record 1: the list does not"),
        ("[1, ]", "record 1: "),
        ("[1] 2", "more after the end of the list: '2'"),
        ("", "is not JSON"),
        ('[{"a": "\xff"}]', "is not JSON: .*utf-8"),
    ],
)
def test_a_list_that_breaks_off_is_an_error_that_names_the_record(tmp_path, monkeypatch, text, message):
    (tmp_path / "list.json").write_bytes(text.encode("latin-1"))
    for size in (1, 10**6):
        monkeypatch.setattr(genome_of, "CHUNK", size)
        with pytest.raises(ValueError, match=rf"list\.json.*{message}"):
            list(records(tmp_path / "list.json"))


def test_regions_look_like_a_list_and_are_made_when_looked_at(tmp_path):
    folder = genome(tmp_path / "vg", {1: [(5, "a", 0, 0, 5, 5)], 2: [(7, "\u00fc\U0001f600", 1, 2, 3.5, 4), (2**40, " b\n", 0, 0, 9, 9)]})
    for k in (1, 2):
        picture(folder / "VG_100K" / f"{k}.jpg")
    images, _ = read_genome(folder)
    regions = images[1].regions
    assert [r.caption for r in regions] == ["\u00fc\U0001f600", " b\n"] and len(regions) == 2 and len(images[0].regions) == 1
    assert regions[-1] == regions[1:][0] == (folder / "VG_100K/2.jpg", 2, 2**40, " b\n", 0, 0, 9, 9) and regions[0].box == (1, 2, 3.5, 4)
    assert regions[0] in regions and regions.index(regions[1]) == 1


def test_numbers_and_texts_that_no_file_can_hold_and_pictures_measured_twice_are_told(tmp_path):
    folder = genome(tmp_path / "vg", {1: [(1, "half \ud800", 0, 0, 5, 5), (2, "a dog", 0, 0, 5, 5)]})
    picture(folder / "VG_100K" / "1.jpg")
    measured = json.loads((folder / "image_data.json").read_text())
    (folder / "image_data.json").write_text(json.dumps([*measured, measured[0] | {"width": 1}]))
    images, skipped = read_genome(folder)
    assert skipped.counts == {"phrase that is not Unicode": 1, "picture measured twice": 1} and images[0].width == 100
    (folder / "image_data.json").write_text(json.dumps([measured[0] | {"coco_id": "7"}]))
    with pytest.raises(ValueError, match=r"image_data\.json row 0: 'coco_id' is missing or of a wrong type: '7'"):
        read_genome(folder)
    folder = genome(tmp_path / "vg", {1: [(2**70, "a dog", 0, 0, 5, 5)]})
    with pytest.raises(ValueError, match=r"row 0, region 0: a number is out of range: region 1180591620717411303424"):
        read_genome(folder)


# --- Karpathy splits --------------------------------------------------------------------------------------------------------------


def test_the_test_split_is_read_with_five_sentences_and_with_or_without_filepath(tmp_path):
    def record(name, split, sentences, **more):
        return {"filename": name, "split": split, "sentences": [{"raw": s} for s in sentences]} | more

    images = [
        record("a.jpg", "test", list("abcdef"), filepath="val2014"),
        record("b.jpg", "train", ["x"]),
        record("b.jpg", "test", ["one", " ", "two"]),
        record("gone.jpg", "test", ["x"]),
        record("b.jpg", "test", ["", " "]),
    ]
    picture(tmp_path / "val2014" / "a.jpg")
    picture(tmp_path / "b.jpg")
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    rows, skipped = read_karpathy(path)
    assert rows == [(tmp_path / "val2014" / "a.jpg", list("abcde")), (tmp_path / "b.jpg", ["one", "two"])]
    assert skipped.counts == {"empty sentence": 3, "missing picture": 1, "empty caption": 1}
    assert "dataset_coco.json row 3: 'gone.jpg'" in str(skipped)
    with pytest.raises(ValueError, match=r"no picture of the split 'tests'.*\{'test': 4, 'train': 1\}"):
        read_karpathy(path, "tests")
    path.write_text(json.dumps({"images": [{"filename": "a.jpg", "split": 3}]}))
    with pytest.raises(ValueError, match=r"dataset_coco\.json row 0: 'split' is missing or of a wrong type: 3"):
        read_karpathy(path)
