"""vectors: a whole corpus in one file, batch by batch, that goes on where it was stopped and never takes half for all."""

import resource
from types import SimpleNamespace

import numpy as np
import pytest

from abc_core.data.pictures import UnreadableImage
from abc_core.data.vectors import embed_to_file
from abc_core.runs import arrays as resumable

ITEMS = [f"caption {k}" for k in range(23)]


def embed(items: list[str]) -> np.ndarray:
    """float32[n, 3] that differs from item to item."""
    numbers = np.array([int(text.split()[1]) for text in items], dtype=np.float32)
    return np.stack([numbers, numbers**2, np.cos(numbers)], axis=1)


def done(record) -> int:
    """How many of the first rows are written; no others may be."""
    marks = np.fromfile(record, dtype=np.uint8)
    assert not marks[marks.argmin() :].any()
    return int(marks.argmin())


def test_the_file_holds_what_the_items_become_in_one_go(tmp_path):
    sizes = []
    array = embed_to_file(tmp_path / "c.npy", lambda part: (sizes.append(len(part)), embed(part))[1], ITEMS, 3, batch=5)
    assert isinstance(array, np.memmap) and not array.flags.writeable and array.dtype == np.float32
    assert np.array_equal(array, embed(ITEMS)) and np.array_equal(np.load(tmp_path / "c.npy"), embed(ITEMS))
    assert sizes == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("good", [0, 1, 3])
@pytest.mark.parametrize("batch", [5, 23])
def test_a_call_that_was_stopped_goes_on_where_it_stopped(good, batch, tmp_path):
    seen = []

    def stopped(part):
        if len(seen) == good:
            raise KeyboardInterrupt
        seen.append(part)
        return embed(part)

    with pytest.raises(KeyboardInterrupt):
        embed_to_file(tmp_path / "c.npy", stopped, ITEMS, 3, batch=5)
    rest = []
    array = embed_to_file(tmp_path / "c.npy", lambda part: (rest.extend(part), embed(part))[1], ITEMS, 3, batch=batch)
    assert np.array_equal(array, embed(ITEMS)) and rest == (ITEMS[5 * good :] if batch == 5 else ITEMS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.done", "c.npy"]


def test_a_whole_file_is_read_and_not_made_again(tmp_path):
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3)
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", pytest.fail, ITEMS, 3), embed(ITEMS))


def test_a_file_without_its_record_is_made_anew(tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((23, 3), dtype=np.float32))
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3), embed(ITEMS))


def test_a_file_of_other_items_or_another_width_is_refused(tmp_path):
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3)
    for items, width in ((ITEMS[:20], 3), (ITEMS, 4)):
        with pytest.raises(ValueError, match=rf"c\.npy holds float32\[23, 3\]; {len(items)} rows of .*{width}.* are wanted. Delete it"):
            embed_to_file(tmp_path / "c.npy", embed, items, width)


def test_embeddings_that_are_not_finite_or_of_another_shape_are_named_and_not_counted_as_done(tmp_path):
    def broken(part):
        out = embed(part)
        out[[text == "caption 12" for text in part], 1] = np.inf
        return out

    with pytest.raises(ValueError, match=r"c\.npy: the embedding of item 12 is not finite"):
        embed_to_file(tmp_path / "c.npy", broken, ITEMS, 3, batch=5)
    assert done(tmp_path / "c.done") == 10
    for wrong in (lambda part: embed(part)[:1], lambda part: embed(part)[:, :2], lambda part: embed(part).astype(np.float64)):
        with pytest.raises(ValueError, match=r"c\.npy: the items from 10 on became float.*; float32\[5, 3\] was expected"):
            embed_to_file(tmp_path / "c.npy", wrong, ITEMS, 3, batch=5)
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3), embed(ITEMS))


@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk_is_named_and_what_was_written_stays(room, tmp_path):
    before, seen = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(part):
        if len(seen) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        seen.append(part)
        return embed(part)

    try:
        with pytest.raises(OSError, match=r"could not write .*c\.npy: .* Is the disk full\?"):
            embed_to_file(tmp_path / "c.npy", fill, ITEMS, 3, batch=5)
        with pytest.raises(OSError, match=r"could not write .*new\.npy: .* Is the disk full\?"):
            embed_to_file(tmp_path / "new.npy", embed, ITEMS, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done(tmp_path / "c.done") == 10
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3, batch=5), embed(ITEMS))


def test_an_item_that_cannot_be_read_is_not_blamed_on_the_disk(tmp_path):
    def missing(part):
        raise FileNotFoundError("7.jpg")

    with pytest.raises(FileNotFoundError, match=r"^7\.jpg$"):
        embed_to_file(tmp_path / "c.npy", missing, ITEMS, 3)


def test_progress_says_what_is_done_and_how_long_the_rest_takes(tmp_path, monkeypatch):
    said, clock = [], iter(range(0, 1000, 6))
    monkeypatch.setattr(resumable, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3, batch=5, report=said.append)
    assert said == ["c.npy: 10 of 23 rows · 16 s left", "c.npy: 20 of 23 rows · 4 s left"]


# --- items that cannot be read ----------------------------------------------------------------------------------------------------

MANY = [f"caption {k}" for k in range(200)]


def reader(broken: set):
    """`embed`, which raises for a list with a broken item and names it, as `Embedder.embed` does."""

    def read(part):
        for text in part:
            if text in broken:
                raise UnreadableImage(f"{text}.jpg is not a whole picture", text)
        return embed(part)

    return read


def test_unreadable_items_stay_zero_and_are_counted_and_named(tmp_path):
    broken, said = {"caption 3", "caption 150"}, []
    array = embed_to_file(tmp_path / "c.npy", reader(broken), MANY, 3, batch=32, report=said.append, unreadable=0.01)
    expected = embed(MANY)
    expected[[3, 150]] = 0
    assert np.array_equal(array, expected) and resumable.blank_rows(tmp_path / "c.npy").tolist() == [3, 150]
    assert said == [
        "c.npy: 2 of 200 items are unreadable and stay zero, such as "
        "item 3: caption 3.jpg is not a whole picture; item 150: caption 150.jpg is not a whole picture"
    ]
    with pytest.raises(ValueError, match=r"^caption 3\.jpg is not"):
        embed_to_file(tmp_path / "strict.npy", reader(broken), MANY, 3)


def test_too_many_unreadable_items_end_the_call_and_are_read_again_once_repaired(tmp_path):
    broken = {"caption 3", "caption 40", "caption 41"}
    with pytest.raises(ValueError, match=r"3 of 200 rows could not be made, more than 1%, such as row 3: caption 3\.jpg is not a whole"):
        embed_to_file(tmp_path / "c.npy", reader(broken), MANY, 3, batch=32, unreadable=0.01)
    rest = []
    array = embed_to_file(tmp_path / "c.npy", lambda part: (rest.extend(part), embed(part))[1], MANY, 3, batch=32, unreadable=0.01)
    assert np.array_equal(array, embed(MANY)) and len(rest) == 200


def test_a_disk_without_room_is_refused_with_the_figures_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    with pytest.raises(OSError, match=r"has 2 MB free; c\.npy, c\.done need 4\.001 GB more"):
        embed_to_file(tmp_path / "c.npy", pytest.fail, range(1_000_000), 1000)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3), embed(ITEMS))


def test_what_takes_long_says_every_ten_seconds_what_is_left(monkeypatch):
    clock, said = iter(range(0, 1000, 4)), []  # four seconds an item
    monkeypatch.setattr(resumable, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(resumable.timed("abcdefgh", 8, "letters", said.append)) == list("abcdefgh")
    assert said == ["2 of 8 letters · 36 s left", "5 of 8 letters · 14 s left"]
    assert list(resumable.timed("ab", 2, "letters", None)) == ["a", "b"]
