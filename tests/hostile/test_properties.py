"""Whatever bytes, values and words come in: a reader reads what is right, or says what is wrong; nothing else comes out."""

import io
import json
import math
import tarfile
import zipfile
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import jpeg, member, mined_damaged, picture
from PIL import Image

from abc_core import checkpoint
from abc_core.config import InstructConfig, MiningConfig, PretrainConfig
from abc_core.data import genome, shards
from abc_core.data import karpathy as readers
from abc_core.data.genome import GenomeImage, Region
from abc_core.data.pictures import UnreadableImage, open_image
from abc_core.data.reading import Skipped
from abc_core.data.texts import NO_TEXT, caption_id, normalise
from abc_core.data.zips import Zipped
from abc_core.instructions import replies
from abc_core.instructions.regions import read_instructed, read_instructions, select_regions
from abc_core.runs import paths
from abc_core.runs import run as runlog

TEXT = st.text(st.characters(), max_size=40)  # halves of characters among them
NUMBERS = st.integers() | st.integers(10**20, 10**400) | st.floats()
VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | TEXT, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3))


@st.composite
def damage(draw, most: int = 6):
    """How to damage a file: bytes to be replaced, at shares of its length, and the share of it that is kept."""
    places = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=most))
    return places, draw(st.just(1.0) | st.floats(0, 1))


def damaged(raw: bytes, how) -> bytes:
    places, kept = how
    out = bytearray(raw)
    for at, byte in places:
        out[int(at * len(out))] = byte
    return bytes(out[: int(kept * len(out))])


# --- bytes ----------------------------------------------------------------------------------------------------------------------------


@cache
def encoded() -> list[bytes]:
    """A picture in every format, with EXIF data where there is a place for it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112], exif[0x11A] = 6, 72.0  # turned; a fraction
    out = []
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("PNG", {"exif": exif}),
        ("WEBP", {"exif": exif}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
    ):
        image.save(file := io.BytesIO(), kind, **options)
        out.append(file.getvalue())
    return out


@given(which=st.integers(0, 5), how=damage())
def test_a_damaged_picture_is_decoded_within_bounds_or_refused(which, how, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(damaged(encoded()[which], how))
    try:
        read = open_image(path, max_pixels=100_000)
    except UnreadableImage as error:
        assert "a" in str(error) and error.source == path
    else:
        assert read.mode == "RGB" and 0 < read.width * read.height <= 100_000


@cache
def archives() -> tuple[bytes, bytes]:
    """A tar shard and a zip file of three samples."""
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out, zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as other:
        for k in range(3):
            for name, content in ((f"{k}.jpg", jpeg()), (f"{k}.txt", b"an owl")):
                info, _ = member(name, content)
                out.addfile(info, io.BytesIO(content))
                other.writestr(name, content)
    return tar.getvalue(), zipped.getvalue()


@given(how=damage())
def test_of_a_damaged_shard_only_what_lies_in_it_is_read(how, tmp_path):
    path, skipped = tmp_path / "a.tar", Skipped()
    path.write_bytes(damaged(archives()[0], how))
    for sample in shards.samples(path, skipped):
        if sample is not None:
            name, caption, offset, size = sample
            assert 0 <= offset <= offset + size <= path.stat().st_size and size >= 0
            assert not name.startswith("/") and ".." not in name.split("/") and caption.strip()


@given(how=damage(), near=st.booleans())
def test_of_a_damaged_zip_file_members_are_found_or_it_is_refused(how, near, tmp_path):
    raw, (places, kept) = archives()[1], how
    at = 0.75 if near else 0  # where the archive's own list is
    (tmp_path / "a.zip").write_bytes(damaged(raw, ([(at + place * (1 - at), byte) for place, byte in places], kept)))
    try:
        for found in map(Zipped(tmp_path / "a.zip").find, ("0.jpg", "1.jpg", "none.jpg")):
            assert found is None or (found.offset >= 0 and found.size >= 0)
    except ValueError as error:
        assert "a.zip" in str(error)


@given(lines=st.lists(st.binary(max_size=30) | TEXT.map(lambda t: t.encode(errors="surrogatepass")), max_size=5))
def test_every_line_of_a_table_is_a_pair_or_is_counted(lines, tmp_path, runs):
    picture(tmp_path / "a.jpg")
    content = b"an owl\ta.jpg\n" + b"\n".join(lines)
    (tmp_path / "Train_GCC-training.tsv").write_bytes(content)
    pairs, skipped = readers.read_pairs(tmp_path)
    assert pairs[0][1:] == ("an owl", 0)
    assert len(pairs) + skipped.counts.total() == len(content.split(b"\n")) - content.endswith(b"\n")


@given(how=damage(most=1))
def test_a_damaged_checkpoint_is_whole_or_refused_and_never_another(how, tmp_path):
    path, weight = tmp_path / "a.safetensors", torch.arange(200.0)
    checkpoint.save(path, {"weight": weight}, step=3)
    path.write_bytes(damaged(path.read_bytes(), how))
    try:
        tensors, numbers = checkpoint.load(path)
    except ValueError as error:
        assert "a.safetensors" in str(error)
    else:
        assert numbers == {"step": 3} and tensors.keys() == {"weight"} and torch.equal(tensors["weight"], weight)


@given(at=st.floats(0.001, 0.98))
def test_a_bit_that_turned_in_a_file_of_mined_pairs_is_found(at, tmp_path, runs):
    with pytest.raises(ValueError, match=r"m\.parquet"):
        mined_damaged(tmp_path, at)


# --- values ---------------------------------------------------------------------------------------------------------------------------


def refused(error: Exception, *names: str) -> None:
    """An error names the file and the row."""
    assert all(name in str(error) for name in names), error


@given(field=st.sampled_from(["region_id", "phrase", "x", "y", "width", "height"]), value=VALUES)
def test_every_region_that_is_read_is_a_box_in_its_picture_with_words(field, value, tmp_path):
    box = {"phrase": "an owl", "x": 0, "y": 0, "width": 9, "height": 9}
    rows = [{"id": 1, "regions": [{"region_id": 1} | box, {"region_id": 2} | box | {field: value}]}]
    picture(tmp_path / "VG_100K" / "1.jpg")
    (tmp_path / "region_descriptions.json").write_text(json.dumps(rows))
    (tmp_path / "image_data.json").write_text('[{"image_id": 1, "width": 30, "height": 20}]')
    try:
        (image,), skipped = genome.read_genome(tmp_path)
    except ValueError as error:
        return refused(error, "region_descriptions.json", "row 0")
    assert len(image.regions) + skipped.counts.total() == 2
    for region in image.regions:
        x, y, w, h = region.box
        assert all(map(math.isfinite, region.box)) and w > 0 and h > 0 and x < 30 and y < 20 and x + w > 0 and y + h > 0
        assert region.caption.strip() and region.caption.encode()


@given(field=st.sampled_from(["filename", "filepath", "split", "sentences"]), value=VALUES | TEXT.map(lambda t: [{"raw": t}]))
def test_every_picture_of_a_split_is_in_its_folder_and_has_words(field, value, tmp_path):
    good = {"filename": picture(tmp_path / "a.jpg").name, "split": "test", "sentences": [{"raw": "an owl"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [good, good | {field: value}]}))
    try:
        rows, _ = readers.read_karpathy(tmp_path / "dataset_coco.json")
    except ValueError as error:
        return refused(error, "dataset_coco.json")
    for image, captions in rows:
        assert image == tmp_path / "a.jpg" and captions and all(c.strip() and c.encode() for c in captions)


@given(field=st.sampled_from(["image_id", "region_id", "kind", "instructions"]), value=VALUES | st.lists(TEXT))
def test_every_instruction_that_is_read_is_a_text(field, value, tmp_path):
    row = {"image_id": 1, "region_id": 1, "kind": "content", "instructions": ["what"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {field: value}) + "\n")
    try:
        table, _ = read_instructions(tmp_path / "a.jsonl")
    except ValueError as error:
        return refused(error, "a.jsonl", "row 1")
    assert all(text.strip() and text.encode() for options in table.values() for texts in options.values() for text in texts)


@given(field=st.sampled_from(["id", "image", "instruction", "phrase", "x", "y", "width", "height"]), value=VALUES)
def test_every_released_instruction_that_is_read_is_a_text_about_a_finite_box(field, value, tmp_path):
    good = {"id": 1, "image": 1, "instruction": "what", "phrase": "an owl", "x": 0, "y": 0, "width": 9, "height": 9}
    picture(tmp_path / "1.jpg")
    (tmp_path / "a.jsonl").write_text(json.dumps({"0": good}) + "\n" + json.dumps({"0": good | {field: value}}) + "\n")
    try:
        groups, _ = read_instructed(tmp_path)
    except ValueError as error:
        return refused(error, "a.jsonl", "row 1")
    for (row,) in groups:
        assert row.image == tmp_path / "1.jpg" and np.isfinite(row.box).all() and row.instruction.encode() and row.caption.encode()


@given(content=TEXT | VALUES.map(json.dumps) | st.lists(VALUES).map(json.dumps), chunk=st.integers(1, 9))
def test_records_are_those_of_the_whole_list_however_it_is_cut(content, chunk, tmp_path):
    (tmp_path / "a.json").write_text(content, errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genome, "CHUNK", chunk)
        try:
            read = list(genome.records(tmp_path / "a.json"))
        except ValueError as error:
            return refused(error, "a.json")
    assert json.dumps(read) == json.dumps(json.loads(content))


@given(line=VALUES.map(json.dumps) | TEXT | st.builds(lambda a, b: json.dumps({"key": "a", "answer": a, "tokens": b}), VALUES, VALUES))
def test_every_cached_answer_is_a_text_or_nothing(line, tmp_path):
    content = line.encode(errors="surrogatepass").replace(b"\n", b" ")
    (tmp_path / "a.jsonl").write_bytes(content + b"\n")
    try:
        answers, _ = replies.read_answers(tmp_path / "a.jsonl")
    except ValueError as error:
        return refused(error, "a.jsonl", "row 0")
    for answer in answers.values():
        assert isinstance(answer.text, str | None) and all(type(n) is int for n in answer.tokens)
        assert replies.judge(answer, "an owl") or replies.instruction_of(answer).encode()


@given(line=VALUES.map(json.dumps).map(str.encode) | st.binary())
def test_every_row_of_a_log_is_a_mapping(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line.replace(b"\n", b" ") + b"\n")
    try:
        assert all(isinstance(row, dict) for row in runlog.Run(tmp_path).rows())
    except ValueError as error:
        refused(error, "metrics.jsonl", "row 0")


NAMED = [(kind, f.name) for kind in (PretrainConfig, InstructConfig, MiningConfig) for f in fields(kind)]


@given(
    which=st.sampled_from(NAMED), value=VALUES | st.tuples(NUMBERS, NUMBERS) | st.dictionaries(st.sampled_from(["rank", "alpha"]), NUMBERS)
)
def test_a_parameter_fits_or_is_refused_by_its_name(which, value):
    kind, name = which
    try:
        made = getattr(kind.from_mapping({name: value}, "a.yaml"), name)
    except ValueError as error:
        return refused(error, "a.yaml", name if not isinstance(value, dict) else kind.__name__)
    for number in made if isinstance(made, tuple) else (made,):
        assert not isinstance(number, int | float) or abs(number) < 2**31 or number == math.inf or isinstance(number, float)


# --- boxes, words and paths -----------------------------------------------------------------------------------------------------------

SIDE = st.floats(0.5, 60) | st.integers(1, 60)


@given(sizes=st.lists(st.tuples(SIDE, SIDE), max_size=14), drop=st.integers(0, 6), take=st.integers(1, 5), seed=st.integers(0, 2**31 - 1))
def test_regions_are_drawn_from_all_but_the_largest_whatever_their_order(sizes, drop, take, seed):
    regions = [Region(Path("a"), 1, k, f"caption {k}", 0, 0, w, h) for k, (w, h) in enumerate(sizes)]
    drawn = [
        select_regions([GenomeImage(Path("a"), Path(), 1, 60, 60, None, r)], drop, take, seed)[0].get(1) for r in (regions, regions[::-1])
    ]
    assert drawn[0] == drawn[1] and (drawn[0] is None) == (len(sizes) < drop + take)
    if drawn[0] is not None:
        assert len({r.region_id for r in drawn[0]}) == take
        larger = sorted((w * h for w, h in sizes), reverse=True)
        assert drop == 0 or all(r.width * r.height <= larger[drop - 1] for r in drawn[0])


@given(parts=st.lists(TEXT | st.sampled_from(["..", ".", "/", "//", "in", "out", "link", "\0", "~"]), max_size=6))
def test_no_path_of_a_data_file_leaves_its_folder(parts, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(tmp_path)
    try:
        path = paths.inside(folder, "/".join(parts))
        assert path.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError) as error:  # OSError: a name that no disk takes
        assert str(error)


@given(text=TEXT)
def test_captions_compare_alike_however_often_they_are_normalised(text):
    assert normalise(normalise(text)) == normalise(text) and caption_id(text) == caption_id(normalise(text)) == caption_id(f" {text}\n")


@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def test_any_words_have_a_unit_vector_or_are_refused_with_their_row(texts):
    try:
        vectors = made().embed(texts=texts)
    except ValueError as error:
        row = next(k for k, text in enumerate(texts) if not text.strip() or NO_TEXT.search(text))
        return refused(error, f"text {row} is ")
    assert np.isfinite(vectors).all() and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@cache
def made():
    return tiny.embedder("qwen2_vl")
