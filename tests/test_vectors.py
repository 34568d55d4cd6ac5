"""vectors: a whole corpus in one file, batch by batch, that goes on where it was stopped and never takes half for all."""

import json
import resource

import numpy as np
import pytest

from abc_core.vectors import embed_to_file

ITEMS = [f"caption {k}" for k in range(23)]


def embed(items: list[str]) -> np.ndarray:
    """float32[n, 3] that differs from item to item."""
    numbers = np.array([int(text.split()[1]) for text in items], dtype=np.float32)
    return np.stack([numbers, numbers**2, np.cos(numbers)], axis=1)


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
    assert np.array_equal(array, embed(ITEMS)) and rest == ITEMS[5 * good :]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.npy", "c.progress.json"]


def test_a_whole_file_is_read_and_not_made_again(tmp_path):
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3)
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", pytest.fail, ITEMS, 3), embed(ITEMS))


def test_a_file_without_its_progress_is_made_anew(tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((23, 3), dtype=np.float32))
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3), embed(ITEMS))


def test_a_file_of_other_items_or_another_width_is_refused(tmp_path):
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3)
    for items, width in ((ITEMS[:20], 3), (ITEMS, 4)):
        with pytest.raises(ValueError, match=rf"c\.npy holds embeddings \(23, 3\); \({len(items)}, {width}\) are wanted. Delete it"):
            embed_to_file(tmp_path / "c.npy", embed, items, width)


def test_embeddings_that_are_not_finite_or_of_another_shape_are_named_and_not_counted_as_done(tmp_path):
    def broken(part):
        out = embed(part)
        out[[text == "caption 12" for text in part], 1] = np.inf
        return out

    with pytest.raises(ValueError, match=r"c\.npy: the embedding of item 12 is not finite"):
        embed_to_file(tmp_path / "c.npy", broken, ITEMS, 3, batch=5)
    assert json.loads((tmp_path / "c.progress.json").read_text()) == {"done": 10}
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
    assert json.loads((tmp_path / "c.progress.json").read_text()) == {"done": 10}
    assert np.array_equal(embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3, batch=5), embed(ITEMS))


def test_an_item_that_cannot_be_read_is_not_blamed_on_the_disk(tmp_path):
    def missing(part):
        raise FileNotFoundError("7.jpg")

    with pytest.raises(FileNotFoundError, match=r"^7\.jpg$"):
        embed_to_file(tmp_path / "c.npy", missing, ITEMS, 3)


def test_every_eighth_batch_is_reported(tmp_path):
    said = []
    embed_to_file(tmp_path / "c.npy", embed, ITEMS, 3, batch=1, report=said.append)
    assert said == ["c.npy: 8 of 23 embedded", "c.npy: 16 of 23 embedded"]
