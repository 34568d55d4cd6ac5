"""What the two steps are fed: every row once an epoch, the own caption first, all instructions of a picture together."""

import math

import numpy as np
import pytest
import torch
from training import CAPTIONS, QUESTIONS, asked, made, small_backbone, small_config, small_pictures

from abc_core.batches import InstructBatches, PairBatches, positions
from abc_core.data.karpathy import Pair
from abc_core.data.pictures import open_image
from abc_core.data.texts import caption_ids
from abc_core.loss import duplicate_mask


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(backbone, pictures) on disk."""
    folder = tmp_path_factory.mktemp("world")
    return small_backbone(folder / "backbone"), small_pictures(folder)


@pytest.mark.parametrize(("count", "rows"), [(5, 12), (12, 12), (30, 12)])
def test_every_epoch_shows_every_row_once_in_another_order(count, rows):
    drawn = np.concatenate([positions(step, count, rows, seed=0) for step in range(60 // math.gcd(60, count))])
    epochs = drawn[: len(drawn) // rows * rows].reshape(-1, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
    assert len(np.unique(epochs, axis=0)) == len(epochs) >= 5


def test_the_rows_of_a_step_depend_on_its_number_and_the_seed_alone():
    before = np.random.get_state()[1].copy()
    assert np.array_equal(positions(7, 5, 12, seed=0), positions(7, 5, 12, seed=0))
    assert not np.array_equal(positions(7, 12, 12, seed=0), positions(7, 12, 12, seed=1))
    assert np.array_equal(np.random.get_state()[1], before)
    with pytest.raises(ValueError, match="nothing to draw a batch from: 0 rows"):
        positions(0, 5, 0, seed=0)


def test_candidates_lie_query_by_query_with_the_own_caption_first(world):
    _, batches, _, config = made(world, "pretrain")
    batch, rows = batches(4), positions(4, 3, 10, config.seed)
    assert [np.asarray(i).tolist() for i in batch.images] == [np.asarray(open_image(world[1][r])).tolist() for r in rows]
    assert batch.instructions == [[None]] * 3 and len(batch.candidates) == len(batch.candidate_ids) == 9
    for q, row in enumerate(rows):
        positive, first, second = batch.candidates[3 * q : 3 * q + 3]
        assert (positive, first) == (CAPTIONS[row], CAPTIONS[(row + 1) % 10])
        assert second == CAPTIONS[(row + 2) % 10] or row % 2 == 0  # an even row has one negative only
    assert batch.candidate_ids.tolist() == [caption_ids(CAPTIONS)[CAPTIONS.index(c)] for c in batch.candidates]


def test_missing_negatives_are_replaced_by_random_captions_and_an_own_one_among_them_is_masked(world):
    config = small_config("pretrain", queries=4)
    pairs = [Pair(path, caption, row) for row, (path, caption) in enumerate(zip(world[1], CAPTIONS))]
    batches = PairBatches(pairs, CAPTIONS, caption_ids(CAPTIONS), np.full((10, 2), -1), config)
    drawn, own = [], 0
    for step in range(12):
        ids = batches(step).candidate_ids.reshape(4, 3)
        drawn += ids[:, 1:].flatten().tolist()
        mask = duplicate_mask(ids[:, 0], ids.flatten()).reshape(4, 4, 3)
        for q in range(4):
            assert torch.equal(mask[q, q, 1:], ids[q, 1:] == ids[q, 0])  # masked where it says the same, and there alone
            own += int(mask[q, q, 1:].sum())
    assert own > 0 and set(drawn) == set(caption_ids(CAPTIONS))
    assert batches(3).candidates == batches(3).candidates != batches(4).candidates


def test_fewer_negatives_than_the_config_wants_are_refused(world):
    for negatives, given in ((None, 0), (np.zeros((10, 1), dtype=np.int64), 1)):
        with pytest.raises(ValueError, match=f"wants 2 negatives of each picture; {given} are given"):
            PairBatches([], CAPTIONS, caption_ids(CAPTIONS), negatives, small_config("pretrain"))


def test_all_instructions_of_a_picture_are_in_one_batch(world):
    _, batches, _, config = made(world, "instruct")
    batch, groups = batches(2), positions(2, 2, 10, config.seed)
    assert batch.instructions == [QUESTIONS[:2]] * 2
    captions = [CAPTIONS[(g + q) % 10] for g in groups for q in range(2)]
    assert [sorted(set(CAPTIONS))[i] for i in batch.candidates] == captions
    with pytest.raises(ValueError, match=r"0\.png has 2 instructions; the config wants 4 of each picture"):
        InstructBatches(batches.groups, batches.bank_rows, small_config("instruct", instructions_per_image=4))


def test_further_captions_of_the_bank_come_once_and_are_nobodys_own(world):
    _, batches, _, _ = made(world, "instruct")
    drawn = set()
    for step in range(4):
        config = small_config("instruct", negatives=1)
        batch = InstructBatches(batches.groups, batches.bank_rows, config)(step)
        rows = batch.candidates.reshape(4, 2)
        plain = batches(step)
        assert torch.equal(rows[:, 0], plain.candidates) and batch.instructions == plain.instructions
        others = rows[:, 1].tolist()
        assert len(set(others)) == 4 and not set(others) & set(rows[:, 0].tolist())
        drawn.add(tuple(others))
    assert len(drawn) > 1
    greedy = InstructBatches(batches.groups, batches.bank_rows, small_config("instruct", negatives=99))(0)
    assert len(greedy.candidates) == 4 + (len(batches.bank_rows) - len(set(plain_rows(greedy)))) // 4 * 4


def plain_rows(batch) -> list:
    """The queries' own rows of the bank."""
    return batch.candidates.reshape(sum(map(len, batch.instructions)), -1)[:, 0].tolist()


def test_captions_of_the_bank_that_differ_in_case_or_white_space_alone_are_equal(world):
    one, other = world[1][:2]
    groups = [[asked(one, 0, "An  owl"), asked(one, 1, "an owl")], [asked(other, 0, "x"), asked(other, 1, "a cup")]]
    bank_rows = {"x": 0, "An  owl": 1, "a cup": 2, "an owl": 3}
    batch = InstructBatches(groups, bank_rows, small_config("instruct", images=2))(0)
    by_row = dict(zip(batch.candidates.tolist(), batch.candidate_ids.tolist()))
    assert by_row.keys() == {0, 1, 2, 3} and by_row[1] == by_row[3] and len(set(by_row.values())) == 3
