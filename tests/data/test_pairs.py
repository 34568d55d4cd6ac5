"""Pairs at size: tables and tar shards become an index that is made once, and batches out of it are the same whoever reads them."""

import io
import itertools
import json
import os
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from abc_core import batches
from abc_core.batches import InstructBatches, PairBatches
from abc_core.data import index, pairs, shards
from abc_core.data.mined import read_mined, write_mined
from abc_core.data.pairs import Pair, read_pairs
from abc_core.data.pictures import Member, open_image
from abc_core.data.reading import Skipped
from abc_core.data.texts import caption_ids
from abc_core.instructions.regions import Instructed

CONFIG = SimpleNamespace(queries=4, negatives=2, seed=0)


@pytest.fixture(autouse=True)
def _runs(runs):
    """Every test has its own indexes."""


def jpeg(shade: int) -> bytes:
    """A small grey picture."""
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (shade,) * 3).save(out, "JPEG", quality=95)
    return out.getvalue()


def sample(key: str, shade: int) -> list[tuple[str, bytes]]:
    """The members of a whole sample."""
    return [(f"{key}.jpg", jpeg(shade)), (f"{key}.json", b"{}"), (f"{key}.txt", f"shade {shade}".encode())]


def shard(path, members) -> None:
    """Write a tar file; a member is (name, bytes), or a TarInfo without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            info.size = 0 if info is member else len(member[1])
            tar.addfile(info, None if info is member else io.BytesIO(member[1]))


@pytest.fixture
def wds(tmp_path):
    """Two shards of three samples each."""
    for s in range(2):
        shard(tmp_path / "wds" / f"cc3m-train-{s:04d}.tar", itertools.chain(*(sample(f"{s}{k:04d}", 90 * s + 30 * k) for k in range(3))))
    return tmp_path / "wds"


@pytest.fixture
def table(tmp_path):
    """Twelve pairs beside their pictures, long enough ago that their folder's listing counts as settled."""
    folder = tmp_path / "cc"
    (folder / "images").mkdir(parents=True)
    for k in range(12):
        (folder / "images" / f"{k}.jpg").write_bytes(jpeg(20 * k))
    (folder / "Train_GCC-training.tsv").write_text("".join(f"shade {k}\timages/{k}.jpg\n" for k in range(12)))
    settle(folder / "images")
    return folder


def settle(folder, seconds: int = 100) -> None:
    """Let a folder have changed some time ago."""
    then = folder.stat().st_mtime - seconds
    os.utime(folder, (then, then))


def shade_of(image) -> int:
    return round(np.asarray(open_image(image)).mean())


# --- shards ---------------------------------------------------------------------------------------------------------------------


def test_samples_of_shards_are_pairs_whose_pictures_are_read_in_place(wds):
    read, skipped = read_pairs(wds)
    assert [(p.caption, p.row) for p in read] == [(f"shade {30 * k}", k) for k in range(6)] and not skipped.counts
    assert [shade_of(p.image) for p in read] == pytest.approx([30 * k for k in range(6)], abs=2)
    assert read[-1].image.name == "10002.jpg" and read[-1].image.path == wds / "cc3m-train-0001.tar" and read[1:3] == [read[1], read[2]]
    assert list(read.captions) == [p.caption for p in read] and list(read.images) == [p.image for p in read]
    assert np.array_equal(read.caption_ids, caption_ids(read.captions))
    with pytest.raises(IndexError):
        read[6]


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1536, 3584, 5120, 6500, 7168, 10752])  # bytes; a sample has 3,584
def test_a_shard_that_breaks_off_gives_the_samples_before_the_break_and_is_named(wds, kept):
    broken = wds / "cc3m-train-0000.tar"
    captions = [p.caption for p in read_pairs(wds)[0]]
    broken.write_bytes(broken.read_bytes()[:kept])
    read, skipped = read_pairs(wds)
    assert [p.caption for p in read] == captions[: kept // 3584] + captions[3:]
    assert skipped.counts["shard breaks off here"] == 1 and "cc3m-train-0000.tar row" in str(skipped)
    for pair in read:
        open_image(pair.image)


def test_a_shard_that_is_damaged_in_the_middle_is_named_too(wds):
    with (wds / "cc3m-train-0000.tar").open("r+b") as file:
        file.seek(3584)
        file.write(b"\x07" * 512)  # where the header of the second sample is
    read, skipped = read_pairs(wds)
    assert [p.row for p in read] == [0, 1, 2, 3] and skipped.counts == {"shard breaks off here": 1}


def test_stray_members_are_left_out_counted_and_never_unpacked(tmp_path):
    link, hard, folder = (tarfile.TarInfo(name) for name in ("link.jpg", "hard.jpg", "sub"))
    link.type, link.linkname, hard.type, hard.linkname = tarfile.SYMTYPE, "/etc/passwd", tarfile.LNKTYPE, "a.jpg"
    folder.type = tarfile.DIRTYPE
    members = [
        folder, ("README.md", b"hello"), *sample("sub/a", 30), link, ("link.txt", b"x"), hard, ("hard.txt", b"x"),
        ("../b.jpg", jpeg(1)), ("../b.txt", b"x"), ("/c.jpg", jpeg(1)), ("/c.txt", b"x"),
        ("d.jpg", jpeg(1)), ("e.txt", b"x"), ("f.jpg", jpeg(1)), ("f.txt", b" \n"), ("g.jpg", jpeg(1)), ("g.txt", b"\xff\xfe"),
        ("h.jpg", jpeg(1)), ("h.txt", b"x" * 70_000), ("i\n.jpg", jpeg(1)), ("sub/a.jpg", jpeg(250)), ("sub/a.txt", b"another"),
        ("k.PNG", jpeg(60)), ("k.TXT", "a \u2028 hibou ".encode()), ("k.seg.png", jpeg(1)),
    ]  # fmt: skip
    shard(tmp_path / "wds" / "x-0.tar", members)
    read, skipped = read_pairs(tmp_path / "wds")
    assert [(p.image.name, p.caption) for p in read] == [("sub/a.jpg", "shade 30"), ("k.PNG", "a \u2028 hibou ")]
    assert shade_of(read[0].image) == pytest.approx(30, abs=2)
    assert skipped.counts == {
        "member that is no plain file": 2, "path leaves the folder": 4, "picture without caption": 1, "caption without picture": 3,
        "empty caption": 1, "not UTF-8": 1, "caption of more than 65,536 bytes": 1, "name that cannot be printed": 1,
        "second picture of a sample": 1, "second caption of a sample": 1,
    }  # fmt: skip
    assert "x-0.tar row" in str(skipped) and "'../b.jpg'" in str(skipped)
    assert [p.name for p in tmp_path.iterdir()] == ["wds"] or not (tmp_path / "b.jpg").exists()


def test_shards_of_several_sets_are_not_mixed_and_missing_ones_are_counted(wds):
    names = [f"cc3m-train-{k:04d}.tar" for k in range(4)]
    splits = {"train": {"filenames": names}, "validation": {"filenames": ["cc3m-validation-0000.tar"]}}
    (wds / "_info.json").write_text(json.dumps({"splits": splits}))
    read, skipped = read_pairs(wds)
    assert len(read) == 6 and skipped.odd == {"shard that is missing": 2} and "_info.json row 3: 'cc3m-train-0003.tar'" in str(skipped)
    shard(wds / "cc3m-validation-0000.tar", sample("a", 1))
    with pytest.raises(ValueError, match=r"several sets, cc3m-train-\*\.tar, cc3m-validation-\*\.tar; give each a folder of its own"):
        read_pairs(wds)


def test_shards_without_any_usable_sample_are_an_error_that_says_why(tmp_path):
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "0.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(ValueError, match=r"wds has no row that can be used[\s\S]*breaks off here[\s\S]*0\.tar row 0"):
        read_pairs(tmp_path / "wds")


def test_shards_read_by_several_processes_are_those_read_by_one(wds, monkeypatch):
    (wds / "cc3m-train-0001.tar").write_bytes((wds / "cc3m-train-0001.tar").read_bytes()[:5000])
    for k in range(2, 7):
        shard(wds / f"cc3m-train-{k:04d}.tar", itertools.chain(*(sample(f"{n:04d}", n) for n in range(3)), [("d.jpg", jpeg(1))]))
    one, several = Skipped(), Skipped()
    plain = list(shards.samples_of_all(shards.find(wds), one))
    monkeypatch.setattr(shards, "FEW", 2)
    monkeypatch.setattr(shards.os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(shards, "samples", None)  # in this process
    assert list(shards.samples_of_all(shards.find(wds), several)) == plain
    assert several == one and len(one.counts) > 1 and max(map(len, one.examples.values())) == 3


def test_mined_pairs_name_pictures_in_shards_and_find_them_again(wds, tmp_path):
    read, _ = read_pairs(wds)
    path = write_mined(tmp_path / "m.parquet", read, wds, [[(k + 1) % 6] for k in range(6)])
    assert pq.read_table(path)["image"].to_pylist()[4] == "cc3m-train-0001.tar/10001.jpg"
    mined, skipped = read_mined(path, wds)
    assert list(mined.queries) == list(read) and not skipped.counts
    turned = pq.read_table(path).take(pa.array([5, 0, 3]))  # in another order, and one that is not there
    rows = {"negatives": [[1], [0], [0]], "image": [*turned["image"].to_pylist()[:2], "cc3m-train-0001.tar/../x.jpg"]}
    for name, column in rows.items():
        turned = turned.set_column(turned.column_names.index(name), name, pa.array(column))
    pq.write_table(turned, path)
    mined, skipped = read_mined(path, wds)
    assert list(mined.queries) == [read[5]._replace(row=0), read[0]._replace(row=1)] and skipped.counts == {"missing picture": 1}
    with pytest.raises(ValueError, match="is not in the subpath"):
        write_mined(tmp_path / "m.parquet", read, tmp_path / "elsewhere", [[1]] * 6)


# --- the index ------------------------------------------------------------------------------------------------------------------


def test_a_second_reader_reads_the_index_alone_and_says_the_same(table, wds, monkeypatch):
    (table / "images" / "3.jpg").unlink()
    settle(table / "images")
    shard(wds / "cc3m-train-0002.tar", [("d.jpg", jpeg(1))])
    first = [read_pairs(folder) for folder in (table, wds)]
    for name in ("usable", "caption_id"):
        monkeypatch.setattr(pairs, name, None)
    monkeypatch.setattr(shards, "samples", None)
    for (read, skipped), folder in zip(first, (table, wds)):
        again, said = read_pairs(folder)
        assert list(again) == list(read) and said == skipped and said.counts.total() == 1


def test_an_index_is_made_anew_when_a_source_or_a_folder_of_pictures_changes(table):
    assert len(read_pairs(table)[0]) == 12
    moved = (table / "images" / "3.jpg").rename(table / "3.jpg")
    assert [p.row for p in read_pairs(table)[0]] == [0, 1, 2, *range(4, 12)]
    moved.rename(table / "images" / "3.jpg")  # within the same tick of the clock, perhaps
    assert len(read_pairs(table)[0]) == 12
    with (table / "Train_GCC-training.tsv").open("a") as lines:
        lines.write("again\timages/0.jpg\n")
    assert len(read_pairs(table)[0]) == 13


def test_an_index_that_was_not_finished_is_made_anew(table, monkeypatch, runs):
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"could not write .*account\.json.*disk full"):
        patch.setattr(index.json, "dumps", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        read_pairs(table)
    assert [p.name for p in runs.rglob("*") if p.suffix in (".json", ".partial")] == []
    assert len(read_pairs(table)[0]) == 12


def test_several_processes_that_start_at_once_read_the_same(table):
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(0 if [p.row for p in read_pairs(table)[0]] == list(range(12)) else 1)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_rows_and_negatives_are_the_same_however_many_are_written_at_a_time(table, tmp_path, monkeypatch):
    negatives = [[j for j in range(12) if j != k][: k % 5] for k in range(12)]
    scores = [[1 / (1 + j) for j in row] for row in negatives]
    seen = []
    for size in (100, 5, 1):
        monkeypatch.setattr(index, "BATCH", size)
        monkeypatch.setattr(index, "LAYOUT", str(size))  # so that no index is found
        read, _ = read_pairs(table)
        path = write_mined(tmp_path / f"{size}.parquet", read, table, negatives, scores)
        mined, skipped = read_mined(path, table)
        assert [mined.negatives(k).tolist() for k in range(12)] == negatives
        assert np.allclose(np.concatenate([mined.scores(k) for k in range(12)]), np.concatenate(scores))
        assert mined.padded(3)[[2, 9, 0]].tolist() == [[0, 1, -1], [0, 1, 2], [-1, -1, -1]] and mined.padded(3).shape == (12, 3)
        assert skipped.odd == {"no negatives": 3} and list(mined.ids) == list(range(12))
        seen.append((list(read), list(mined.queries), list(mined.captions), mined.caption_ids.tolist()))
    assert seen[0] == seen[1] == seen[2]


def test_a_folder_of_parquet_files_is_one_set_with_rows_counted_on(table, tmp_path):
    whole = pq.read_table(write_mined(tmp_path / "m.parquet", read_pairs(table)[0], table, [[(k + 1) % 12] for k in range(12)]))
    for k in range(3):
        (tmp_path / "parts").mkdir(exist_ok=True)
        pq.write_table(whole.slice(5 * k, 5), tmp_path / "parts" / f"train-{k:05d}-of-00003.parquet")
    mined, parts = (read_mined(path, table)[0] for path in (tmp_path / "m.parquet", tmp_path / "parts"))
    assert list(parts.queries) == list(mined.queries) and parts.negatives(11).tolist() == [0]
    pq.write_table(whole.slice(0, 5), tmp_path / "parts" / "train-00000-of-00003.parquet.txt")
    with pytest.raises(ValueError, match=r"empty has no Parquet file"):
        (tmp_path / "empty").mkdir()
        read_mined(tmp_path / "empty", table)


def test_captions_share_a_number_if_and_only_if_they_say_the_same():
    one, two, other, strange = caption_ids(["An  Owl", " an owl ", "an ow", "\udcff"])
    assert one == two and len({one, other, strange}) == 3
    assert caption_ids(["an owl"]).tolist() == [-7520690512622972242]  # in every process and run
    assert caption_ids([]).dtype == np.int64


# --- batches --------------------------------------------------------------------------------------------------------------------


def pair_batches(folder) -> PairBatches:
    """As a process that starts makes them."""
    read = read_pairs(folder)[0].numbered()
    negatives = np.array([[(k + 1) % len(read), -1] for k in range(len(read))])
    return PairBatches(read, read.captions, read.caption_ids, negatives, CONFIG)


def group_batches(folder) -> InstructBatches:
    """Two questions about every picture."""
    groups = [[Instructed(p.image, p.row, q, (0, 0, 1, 1), "", f"{q}?", f"{p.caption} {q}") for q in (0, 1)] for p in read_pairs(folder)[0]]
    config = SimpleNamespace(images=4, instructions_per_image=2, negatives=1, seed=0)
    return InstructBatches(groups, {r.caption: k for k, r in enumerate(itertools.chain(*groups))}, config)


def content(batch) -> tuple:
    """A batch in a form that can be compared."""
    seen = [shade_of(picture) for picture in batch.images]
    return seen, batch.instructions, list(batch.candidates), batch.candidate_ids.tolist(), len(batch.unreadable)


@pytest.mark.parametrize("make", [pair_batches, group_batches])
def test_a_process_that_goes_on_in_the_middle_of_an_epoch_sees_what_the_killed_one_would_have_seen(make, table):
    before = [content(make(table)(step)) for step in range(7)]  # an epoch has three steps
    assert [content(make(table)(step)) for step in (5, 1, 6)] == [before[step] for step in (5, 1, 6)]
    assert len({str(seen) for seen, *_ in before}) == 7


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("make", [pair_batches, group_batches])
def test_the_shares_of_two_processes_are_disjoint_and_join_to_the_batch_of_one(make, broken, table, monkeypatch):
    if broken:
        (table / "images" / "7.jpg").write_bytes(jpeg(7)[:-90])
    for step in range(3):
        whole, parts = make(table)(step), []
        for rank in range(2):
            opened = []
            with monkeypatch.context() as patch:
                patch.setattr(batches, "rank_and_count", lambda rank=rank: (rank, 2))
                patch.setattr(batches, "open_image", lambda image, opened=opened: (opened.append(image), open_image(image))[1])
                parts.append(make(table)(step))
            assert len(opened) == 2 + len(parts[-1].unreadable)  # it reads its own share and no more
        one, two = map(content, parts)
        assert tuple(a + b for a, b in zip(one, two)) == content(whole)
        assert broken or not set(map(str, one[0])) & set(map(str, two[0]))


@pytest.mark.parametrize("make", [pair_batches, group_batches])
def test_a_broken_picture_gives_its_place_to_another_with_all_that_belongs_to_it_and_is_named(make, table):
    before = [content(make(table)(step)) for step in range(6)]
    (table / "images" / "7.jpg").write_bytes(b"\xff\xd8 not a picture")
    after = [make(table)(step) for step in range(6)]
    changed = [step for step in range(6) if after[step].unreadable]
    assert len(changed) == 2  # once an epoch
    for step, batch in enumerate(after):
        seen, *_ = content(batch)
        assert (content(batch) == before[step]) == (step not in changed)
        asked = before[0][2] if make is group_batches else None
        names = [batch.candidates[k] for k in range(0, len(batch.candidates), len(batch.candidates) // 4)]
        shades = [int(n) // 2 for n in names] if asked else [int(n.split()[1]) for n in names]
        assert [20 * s for s in shades] == pytest.approx(seen, abs=3)  # each picture beside its own caption
        assert all("7.jpg is not a whole picture" in line for line in batch.unreadable)
    assert [content(make(table)(step)) for step in range(6)] == [content(batch) for batch in after]


def test_a_data_set_that_is_broken_or_gone_stops_with_names(table):
    for k in range(12):
        (table / "images" / f"{k}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 4 pictures of step 0 cannot be read:\n.*\.jpg is not a whole picture.*\n.*\.jpg is not"):
        pair_batches(table)(0)
    made = pair_batches(table)
    for k in range(12):
        (table / "images" / f"{k}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"\.jpg"):
        made(0)


def test_a_damaged_stretch_of_a_shard_costs_its_pictures_alone(tmp_path):
    shard(tmp_path / "wds" / "x-0.tar", itertools.chain(*(sample(f"{k:04d}", k) for k in range(200))))
    read, _ = read_pairs(tmp_path / "wds")
    with (tmp_path / "wds" / "x-0.tar").open("r+b") as file:
        for pair in read[40:50]:
            file.seek(pair.image.offset)
            file.write(bytes(pair.image.size))
    made = PairBatches(read, read.captions, read.caption_ids, None, SimpleNamespace(queries=40, negatives=0, seed=0))
    assert sum(len(made(step).unreadable) for step in range(5)) >= 10  # all of an epoch, and perhaps one drawn in place of another


def test_a_member_that_could_not_fit_its_pixels_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tar/a\.jpg is not a whole picture .* 900,000,000 bytes are more than"):
        open_image(Member(tmp_path / "x.tar", "a.jpg", 0, 900_000_000))


def test_a_pair_of_a_list_and_one_of_an_index_are_alike(table):
    assert read_pairs(table)[0][2] == Pair(table / "images" / "2.jpg", "shade 2", 2)
