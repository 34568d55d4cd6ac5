"""CtrlBench on a made-up folder: what is in it, what may not be in it, its files."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from genome_folder import make
from PIL import Image

from abc_core.config import InstructConfig
from abc_core.ctrlbench import benchmark
from abc_core.ctrlbench import construction as ctrlbench
from abc_core.ctrlbench.baselines import random_ranks
from abc_core.ctrlbench.benchmark import load
from abc_core.ctrlbench.construction import build, compare_with_training, held_out, per_kind, task
from abc_core.data.karpathy import GenomeImage, Region, read_genome
from abc_core.data.pictures import open_image
from abc_core.data.texts import normalise
from abc_core.evaluation.metrics import ranks, recall
from abc_core.instructions.held_out import comparable, exclude, leakage, split_images
from abc_core.instructions.regions import instruct, read_instructions, select_regions
from abc_core.jobs.stages import InstructJob
from abc_core.runs import paths

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
    assert bench.card["shared_with_training"] is None  # there was none
    table = pq.read_table(tmp_path / "out" / "ctrlbench.parquet")
    assert table.column_names == [
        "image_id", "image", "region_id", "x", "y", "width", "height", "kind", "instruction", "wordings", "caption", "gold",
    ]  # fmt: skip
    assert table["gold"].to_pylist() == list(range(5 * IMAGES))
    assert bench.card["regions"] == {"kept": 5 * IMAGES, "one of the largest": 5 * IMAGES, "not needed": IMAGES}


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
    assert bench.card["shared_with_training"] == {"images": 0, "captions": 0, "instructions": 0} and bench.card["training_pictures"] == 1
    assert bench.card["regions"].get("caption seen in training", 0) + bench.card["regions"]["not needed"] == IMAGES - 1
    assert "object1x0 on a card" not in bench.captions and set(bench.kinds) == {"place"}
    everything = leakage(bench.rows, [i.image for i in images], bench.captions[:4], [bench.instructions[0].replace(" ", "  ")])
    assert everything == {"images": IMAGES - 1, "captions": 4, "instructions": 1}


def test_a_benchmark_that_shares_data_with_training_is_never_written(world, tmp_path, monkeypatch):
    images, asked = world
    real = ctrlbench._Draw
    monkeypatch.setattr(ctrlbench, "_Draw", lambda table, seen, captions, *rest: real(table, seen, set(), *rest))
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


def test_the_wordings_of_a_row_are_those_of_its_question_that_are_new_and_ask_for_nothing_else(world, tmp_path):
    images, asked = world
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    for row in rows:
        row["instructions"] = [f"{row['kind']} of {row['region_id']}?", "What is it?", "seen?", f"{row['kind']} {row['region_id']}", " "]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = load(build(images, asked, tmp_path / "out", seed=0, training_instructions=["SEEN?"]))
    unclear = 0
    for row, said in zip(bench.rows, bench.wordings, strict=True):
        own = [f"{row.kind} of {row.region_id}?", f"{row.kind} {row.region_id}"]
        assert row.instruction in said and [text for text in said if text != "What is it?"] == own
        unclear += "What is it?" in said
        assert ("What is it?" in said) == (row.instruction == "What is it?")
    assert unclear > 0 and bench.card["wordings"] == sum(map(len, bench.wordings)) == 2 * len(bench.rows) + unclear


def test_a_picture_that_cannot_be_decoded_is_left_out_and_pictures_beyond_the_wanted_number_are_not_needed(world, tmp_path):
    images, asked = world
    images[4].image.write_bytes(images[4].image.read_bytes()[:40])
    bench = load(build(images, asked, tmp_path / "out", seed=0))
    assert 5 not in bench.groups and bench.card["pictures"] == {"kept": IMAGES - 1, "cannot be decoded": 1}
    few = [load(build(images, asked, tmp_path / f"few{seed}", seed, pictures=3)) for seed in (0, 1, 2)]
    assert all(len(b.rows) == 15 and sum(b.card["pictures"].values()) == IMAGES for b in few)
    assert len({tuple(b.groups) for b in few}) > 1 and any(b.groups.tolist() != sorted(b.groups) for b in few)  # drawn, not the first


def test_captions_are_one_in_any_spelling_and_near_duplicates_are_counted_and_kept(world, tmp_path):
    images, asked = world
    new = {110: "A  Red\u00a0ball", 210: "a \uff52ed ball", 310: "the ball, red.", 410: "RED BALL"}
    spelt = renamed(images, lambda r: new.get(r.region_id, r.caption))
    bench = load(build(spelt, asked, tmp_path / "out", seed=3, training_captions=["Ball: red"]))
    alike = sorted(comparable(c) for c in bench.captions if "ball" in comparable(c))
    assert set(alike) <= {"a red ball", "the ball, red.", "red ball"} and len(alike) == len(set(alike)) > 1
    near = bench.card["near_duplicates"]
    assert near["within"] == near["with_training"] == len(alike) and any("Ball: red" in pair for pair in near["examples"])


def test_the_card_says_in_words_what_is_in_card_json(world, tmp_path):
    images, asked = world
    licence = 'CC BY 4.0: "theirs"'
    out = build(images, asked, tmp_path / "out", seed=0, source="a made-up | folder", licence=licence)
    head, text = (out / "README.md").read_text().removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(head)["license_name"] == licence and yaml.safe_load(head)["size_categories"] == ["n<1K"]
    card = load(out).card
    for said in (card["fingerprint"], licence, "40 instructions about 8 pictures", "| one of the largest | 40 |", "not compared with any"):
        assert said in text
    rows = [row._replace(image=images[0].folder / "VG_100K" / "1.jpg") for row in load(out).rows[:1]]
    with pytest.raises(ValueError, match=r"shares data with training: \{'images': 1, 'captions': 1, 'instructions': 1\}"):
        compare_with_training(out, rows)
    before = (out / "ctrlbench.parquet").read_bytes()
    other = tmp_path / "other.png"
    Image.new("RGB", (9, 9)).save(other)
    compare_with_training(out, [rows[0]._replace(image=other, caption="Object1x0 on the card", instruction="new?")])
    assert "Compared with the texts of 1 training pictures" in (out / "README.md").read_text()
    assert load(out).card["shared_with_training"]["images"] == 0 and (out / "ctrlbench.parquet").read_bytes() == before


def test_as_an_evaluation_set_each_picture_stands_once(world, tmp_path):
    images, asked = world
    bench = load(build(images, asked, tmp_path / "out", seed=0, pictures=6))
    made = task(bench)
    assert len(made.pictures) == 6 and made.of_texts and [made.pictures[p] for p in made.shown] == [row.image for row in bench.rows]
    assert list(made.texts) == bench.instructions and list(made.candidates) == bench.captions
    assert [r.tolist() for r in made.right] == [[i] for i in range(30)]


# --- from Visual Genome's files to a score ----------------------------------------------------------------------------------------


def template_instructions(path, selected):
    """Write instructions for selected regions by two templates that name the region, so that a reader of raw files can answer them."""
    with path.open("w") as lines:
        for regions in selected.values():
            for r in regions:
                texts = [f"What is region {r.region_id}?", f"Say what is in region {r.region_id}."]
                lines.write(json.dumps({"image_id": r.image_id, "region_id": r.region_id, "kind": "made", "instructions": texts}) + "\n")
    return path


def test_one_folder_gives_a_benchmark_and_training_rows_that_share_nothing_and_every_number_adds_up(tmp_path):
    made = make(tmp_path / "vg", pictures=220, of_each=3)
    images, skipped = read_genome(made.folder)
    assert skipped.counts == made.left_out and skipped.odd == made.odd
    assert {i.image_id for i in images} == set(made.readable) and sum(len(i.regions) for i in images) == made.regions
    records = ("missing picture", "picture described twice", "picture without width and height in image_data.json")
    assert made.described == len(images) + sum(skipped.counts[reason] for reason in records)
    broken = {i.image_id for i in images if not ctrlbench._opens(i.image)}
    assert broken == set(made.of["truncated"]) and open_image(made.folder / images[0].image).mode == "RGB"

    # the benchmark: pictures are set aside, then regions drawn, instructions made, and rows built
    aside, _ = split_images(images, 60, seed=1)
    chosen, counts = select_regions(aside, 5, 5, seed=1, once=True)
    assert counts["images"] == 60 == counts["kept"] + counts["too_few_regions"] + counts["too_few_other_captions"]
    asked = template_instructions(tmp_path / "asked.jsonl", chosen)
    out = build(aside, asked, tmp_path / "bench", 1, pictures=30, source="made up", licence="none")
    bench = load(out)
    assert len(bench.rows) == 150 and len({comparable(c) for c in bench.captions}) == 150
    card = bench.card
    assert sum(card["pictures"].values()) == 60 and card["pictures"]["kept"] == 30
    assert sum(card["regions"].values()) == sum(len(i.regions) for i in aside) and card["regions"]["kept"] == 150
    assert not broken & set(bench.groups.tolist())

    # training: what is held out goes, in the order COCO's test pictures, CtrlBench's, copies of these
    held = held_out(out, made.karpathy)
    kept, apart = exclude(images, held)
    tested, benched = set(made.coco_test), set(bench.groups.tolist())
    originals = dict(zip(made.of["copy"], made.of["plain"]))
    twins = {a for pair in originals.items() for a, b in (pair, pair[::-1]) if b in benched}
    assert apart == {
        "images": len(images), "kept": len(kept), "coco_test": len(tested), "in_ctrlbench": len(benched - tested),
        "copy_of_ctrlbench": len(twins - benched - tested),
    }  # fmt: skip
    assert sum(n for name, n in apart.items() if name != "images") == len(images) and apart["coco_test"] > 5
    assert not {i.image_id for i in kept} & (tested | benched | twins)
    selected, counts = select_regions(kept, 5, 4, 0, held.captions)
    assert counts["images"] == len(kept) == counts["kept"] + counts["too_few_regions"] + counts["too_few_other_captions"]
    assert counts["too_few_regions"] == sum(len(i.regions) < 9 for i in kept) > 0
    template_instructions(made.folder / "instructions.jsonl", dict(list(selected.items())[3:]))
    rows, given = instruct(selected, read_instructions(made.folder / "instructions.jsonl")[0], 0, without=held.instructions)
    assert given == {"images": len(selected), "kept": len(selected) - 3, "without_instruction": 3, "made": len(rows)}
    job = InstructJob(config=InstructConfig(), stage1="", regions=str(made.folder), ctrlbench=str(out), karpathy=str(made.karpathy))
    accounts = []
    assert [row for group in job.groups(accounts.append) for row in group] == rows and accounts[1:] == [apart, counts, given]
    assert compare_with_training(out, rows)["shared_with_training"] == {"images": 0, "captions": 0, "instructions": 0}

    # scores: an oracle that reads the raw files, and chance
    numbers = [int(re.search(r"\d+", text)[0]) for text in task(bench).texts]
    truth = np.array([[made.phrases[n] == caption for caption in bench.captions] for n in numbers], dtype=np.float32)
    assert recall(ranks(truth, bench.gold), 1) == 100
    assert recall(random_ranks(150, 150, 0), 1) < 5 < recall(random_ranks(150, 150, 0), 10) < 15


def test_a_training_run_has_another_name_if_something_else_is_held_out_and_the_same_once_the_card_is_complete(world, tmp_path, monkeypatch):
    images, asked = world
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    for name, content in (("region_descriptions", []), ("image_data", []), ("stage1", {}), ("karpathy", {})):
        (images[0].folder / f"{name}.json").write_text(json.dumps(content))
    out = str(build(images, asked, tmp_path / "out", seed=0))
    files = {"stage1": str(images[0].folder / "stage1.json"), "regions": str(images[0].folder)}
    name = lambda **held: InstructJob(config=InstructConfig(), **files, **held).open(lock=False).folder.name  # noqa: E731
    before = name(ctrlbench=out)
    assert len({name(), before, name(karpathy=str(images[0].folder / "karpathy.json"))}) == 3
    compare_with_training(Path(out), [])
    assert name(ctrlbench=out) == before
    build(images, asked, Path(out), seed=1)
    assert name(ctrlbench=out) != before


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
    for other, message in ((["wordings"], r"has the columns .*, not image_id, .*build it again"), ([], "its own right answer")):
        table = pq.read_table(tmp_path / "other" / "ctrlbench.parquet").drop_columns(other)
        if not other:
            table = table.set_column(table.column_names.index("gold"), "gold", [table["gold"].to_pylist()[::-1]])
            card = json.loads((out / "card.json").read_text()) | {"fingerprint": benchmark._fingerprint(table.to_pylist())}
            (out / "card.json").write_text(json.dumps(card))
        pq.write_table(table, out / "ctrlbench.parquet")
        with pytest.raises(ValueError, match=message):
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


def test_figures_by_kind_add_up():
    parts = per_kind(np.array([0, 4, 9, 0, 30]), ["place", "place", "content", "content", "content"])
    assert [p["kind"] for p in parts] == ["content", "place"] and [p["n"] for p in parts] == [3, 2]
    assert [parts[1][k] for k in ("r1", "r5", "r10")] == [50, 100, 100] and round(parts[0]["r10"], 2) == 66.67
    with pytest.raises(ValueError, match="2 ranks for 1 kinds"):
        per_kind(np.arange(2), ["place"])
