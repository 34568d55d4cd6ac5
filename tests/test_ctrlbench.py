"""CtrlBench on a made-up folder: what is in it, what may not be in it, its files, its baselines."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from abc_core import ctrlbench
from abc_core.ctrlbench import bm25, build, chance, examples, leakage, load, oracle, per_kind, shuffled_instructions
from abc_core.data import normalise
from abc_core.evaluate import ranks, recall
from abc_core.readers import GenomeImage, Region

IMAGES, SMALL = 8, 6


@pytest.fixture
def world(tmp_path):
    """Eight pictures with five large regions and six small ones; (pictures, path of the instructions)."""
    folder = tmp_path / "vg"
    (folder / "VG_100K").mkdir(parents=True)
    images, asked, truth = [], [], []
    for i in range(1, IMAGES + 1):
        path = folder / "VG_100K" / f"{i}.jpg"
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
        regions = [Region(path, i, 100 * i + k, f"large {i} {k}", 0, 0, 8, 8) for k in range(5)]
        regions += [Region(path, i, 100 * i + 10 + k, f"object{i}x{k} on a card", k, 0, 1, 1) for k in range(SMALL)]
        images.append(GenomeImage(path, folder, i, 8, 8, None, regions))
        for r in regions:
            for kind in ("content", "place"):
                texts = [f"{kind} {w} of {r.region_id}?" for w in range(2)]
                asked.append({"image_id": i, "region_id": r.region_id, "kind": kind, "instructions": texts})
        truth.append({"image_id": i, "regions": {str(r.region_id): [f"object{i}", "red", str(r.region_id)] for r in regions[5:]}})
    for name, rows in (("instructions", asked), ("truth", truth)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return images, folder / "instructions.jsonl"


def renamed(images, change):
    """The pictures with captions changed by `change(region)`."""
    moved = []
    for image in images:
        regions = [r._replace(caption=change(r)) for r in image.regions]
        moved.append(GenomeImage(image.image, image.folder, image.image_id, image.width, image.height, None, regions))
    return moved


def test_five_small_regions_a_picture_with_unique_captions_and_instructions(world, tmp_path):
    images, asked = world
    bench = load(build(images, asked, tmp_path / "out", seed=0))
    assert len(bench.rows) == 5 * IMAGES and len(set(bench.captions)) == 5 * IMAGES
    assert bench.groups.tolist() == np.repeat(np.arange(1, IMAGES + 1), 5).tolist() and bench.gold.tolist() == list(range(5 * IMAGES))
    assert all(row.image.is_file() and row.box[2:] == (1, 1) and str(row.region_id) in row.instruction for row in bench.rows)
    assert set(bench.kinds) == {"content", "place"} and bench.instructions[3] == bench.rows[3].instruction
    assert bench.card["queries"] == 5 * IMAGES and bench.card["pictures"] == {"kept": IMAGES} and bench.card["seed"] == 0
    assert bench.card["shared_with_training"] == {"images": 0, "captions": 0, "instructions": 0}
    assert pq.read_table(tmp_path / "out" / "ctrlbench.parquet").column_names == [
        "image_id", "image", "region_id", "x", "y", "width", "height", "kind", "instruction", "caption",
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_benchmark_in_any_order_of_pictures(world, tmp_path):
    images, asked = world
    built = {name: build(i, asked, tmp_path / name, seed) for name, i, seed in (("a", images, 1), ("b", images[::-1], 1), ("c", images, 2))}
    assert load(built["a"]).rows == load(built["b"]).rows != load(built["c"]).rows
    assert (tmp_path / "a" / "card.json").read_bytes() == (tmp_path / "b" / "card.json").read_bytes()


def test_a_caption_of_an_earlier_picture_is_not_drawn_again(world, tmp_path):
    images, asked = world
    same = renamed(images, lambda r: "the  same\u00a0caption" if r.region_id % 100 == 10 and r.region_id > 200 else r.caption)
    bench = load(build(same, asked, tmp_path / "out", seed=0))
    compared = [normalise(c) for c in bench.captions]
    assert len(set(compared)) == len(compared) == 5 * IMAGES and compared.count("the same caption") <= 1
    twice = renamed(images, lambda r: "same" if r.region_id % 100 >= 14 else r.caption)  # two small regions of each picture
    bench = load(build(twice, asked, tmp_path / "twice", seed=3))
    assert bench.captions.count("same") == 1
    assert bench.card["pictures"] == {"kept": 1, "too few regions that can be asked for": IMAGES - 1}


def test_no_two_regions_of_a_picture_are_asked_for_alike(world, tmp_path):
    images, asked = world
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    for row in rows:
        row["instructions"] = ["What is it?", f"What is {row['region_id']}?"]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [(row.image_id, row.instruction) for row in load(build(images, asked, tmp_path / "out", seed=0)).rows]
    assert len(set(texts)) == len(texts) == 5 * IMAGES and any(text == "What is it?" for _, text in texts)


def test_nothing_of_training_is_in_the_benchmark(world, tmp_path):
    images, asked = world
    copy = tmp_path / "copy of 3.jpg"
    copy.write_bytes(images[2].image.read_bytes())
    texts = [f" content   {w} of {r.region_id}?" for w in range(2) for i in images for r in i.regions]
    seen = {"training_images": iter([copy]), "training_captions": ["object1x0  on a card"], "training_instructions": texts}
    bench = load(build(images, asked, tmp_path / "out", seed=0, **seen))
    assert 3 not in bench.groups and bench.card["pictures"] == {"kept": IMAGES - 1, "seen in training": 1}
    assert "object1x0 on a card" not in bench.captions and set(bench.kinds) == {"place"}
    everything = leakage(bench.rows, [i.image for i in images], bench.captions[:4], [bench.instructions[0].replace(" ", "  ")])
    assert everything == {"images": IMAGES - 1, "captions": 4, "instructions": 1}


def test_a_benchmark_that_shares_data_with_training_is_never_written(world, tmp_path, monkeypatch):
    images, asked = world
    real = ctrlbench._draw
    monkeypatch.setattr(ctrlbench, "_draw", lambda image, table, taken, *rest: real(image, table, set(), *rest))
    with pytest.raises(ValueError, match=r"shares data with training: .*'captions': 5"):
        build(images, asked, tmp_path / "out", seed=0, training_captions=[f"object1x{k} on a card" for k in range(SMALL)])
    assert not (tmp_path / "out").exists()


def test_without_any_usable_picture_or_with_two_folders_nothing_is_built(world, tmp_path):
    images, asked = world
    with pytest.raises(ValueError, match=r"no picture can be used .*'too few regions that can be asked for': 8"):
        build(images, asked, tmp_path / "out", seed=0, per_image=7)
    other = GenomeImage(images[0].image, tmp_path, 99, 8, 8, None, [])
    with pytest.raises(ValueError, match="of one folder, not of 2"):
        build([*images, other], asked, tmp_path / "out", seed=0)


def test_files_that_do_not_belong_together_are_refused(world, tmp_path):
    images, asked = world
    out = build(images, asked, tmp_path / "out", seed=0)
    build(images, asked, tmp_path / "other", seed=1)
    (out / "ctrlbench.parquet").write_bytes((tmp_path / "other" / "ctrlbench.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"ctrlbench\.parquet is not what .*card\.json describes"):
        load(out)
    (out / "ctrlbench.parquet").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"ctrlbench\.parquet is not a Parquet file"):
        load(out)
    (out / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing; notebook 06"):
        load(out)


def test_pictures_that_moved_are_found_again_by_their_folder(world, tmp_path):
    images, asked = world
    out = build(images, asked, tmp_path / "out", seed=0)
    images[0].folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"no folder .*vg.*make reproduce"):
        load(out)
    assert load(out, tmp_path / "moved").rows[0].image.is_file()


def test_bm25_scores_shared_words_and_nothing_else(world):
    scores = bm25(["Where is the owl?", "what is it", "a turquoise owl"], ["an owl on a card", "a cat on a card", "a turquoise owl"])
    assert scores.shape == (3, 3) and scores.dtype == np.float32
    assert scores[0, 0] > 0 and scores[0, 1] == 0 and (scores[1] == 0).all() and scores[2].argmax() == 2
    assert (bm25(["the owl"], ["the is", "of a"]) == 0).all()
    assert ranks(scores, np.array([1, 1, 1])).tolist() == [2, 2, 2]  # no shared word: ties count against it


def test_chance_is_uniform_over_the_candidates():
    rank = chance(20_000, 50, seed=0)
    assert rank.min() == 0 and rank.max() == 49
    assert all(abs(recall(rank, k) - 2 * k) < 1 for k in (1, 5, 10)) and (rank == chance(20_000, 50, seed=0)).all()


def test_the_oracle_scores_100_per_cent_unless_two_captions_have_one_meaning(world, tmp_path):
    images, asked = world
    bench = load(build(images, asked, tmp_path / "out", seed=0))
    truth = images[0].folder / "truth.jsonl"
    assert recall(ranks(oracle(bench.rows, truth), bench.gold), 1) == 100
    first, second = (str(bench.rows[i].region_id) for i in (0, 1))
    truth.write_text(truth.read_text().replace(f'"red", "{first}"', f'"red", "{second}"'))
    assert ranks(oracle(bench.rows, truth), bench.gold).tolist() == [1, 1] + [0] * (5 * IMAGES - 2)
    truth.write_text(truth.read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"truth\.jsonl has no meaning for region 2\d\d of image 2 \(row 5"):
        oracle(bench.rows, truth)


def test_a_shuffled_instruction_is_always_one_of_another_picture(world, tmp_path):
    images, asked = world
    rows = load(build(images, asked, tmp_path / "out", seed=0)).rows
    home = {row.instruction: row.image_id for row in rows}
    for seed in range(5):
        shuffled = shuffled_instructions(rows, seed)
        assert all(home[text] != row.image_id for text, row in zip(shuffled, rows, strict=True))
        assert sorted(shuffled) == sorted(home)  # each once
    assert shuffled_instructions(rows, 0) == shuffled_instructions(rows, 0) != shuffled_instructions(rows, 1)
    assert len(shuffled_instructions(rows[:8], 0)) == 8  # five rows of one picture, three of the other
    with pytest.raises(ValueError, match="5 rows of 1 picture"):
        shuffled_instructions(rows[:5], 0)


def test_figures_by_kind_add_up():
    parts = per_kind(np.array([0, 4, 9, 0, 30]), ["place", "place", "content", "content", "content"])
    assert [p["kind"] for p in parts] == ["content", "place"] and [p["n"] for p in parts] == [3, 2]
    assert [parts[1][k] for k in ("r1", "r5", "r10")] == [50, 100, 100] and round(parts[0]["r10"], 2) == 66.67
    with pytest.raises(ValueError, match="2 ranks for 1 kinds"):
        per_kind(np.arange(2), ["place"])


def test_examples_run_from_a_well_answered_picture_to_a_badly_answered_one(world, tmp_path):
    images, asked = world
    bench = load(build(images, asked, tmp_path / "out", seed=0))
    c_emb = np.eye(len(bench.rows), dtype=np.float32)
    steered = np.roll(c_emb, 1, axis=1) * (bench.groups > 4)[:, None] + c_emb * (bench.groups <= 4)[:, None]  # right for four of eight
    found = ranks(steered @ c_emb.T, bench.gold)
    page = examples(bench, steered, c_emb, c_emb, found, quantiles=(1, 0), top=2)
    assert len(page) == 4 and all(len(entry["with"]) == len(entry["without"]) == 2 for entry in page)
    assert [entry["with"][0][2] for entry in page] == [True, True, False, False]
    assert all(entry["without"][0][2] for entry in page)
    assert page[0]["instruction"] != page[1]["instruction"]
