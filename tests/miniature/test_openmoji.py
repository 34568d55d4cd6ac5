"""The embedded world: drawn twice it is the same, nothing crosses a split, and every question has one right answer."""

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from abc_core.data.karpathy import read_genome, read_karpathy, read_pairs
from abc_core.data.texts import normalise
from abc_core.instructions.regions import all_texts, read_instructions, small_regions
from abc_core.miniature import glyphs, scene, words, world
from abc_core.miniature import parts as parts_
from abc_core.miniature.backbone.lessons import Lessons, read_conversations
from abc_core.miniature.parts import draw_part
from abc_core.miniature.questions import questions
from abc_core.miniature.world import World, pools
from abc_core.runs import paths

SMALL = World(glyphs=60)
PICTURES = 32  # eight scenes of pairs, each with its twins
TRAINED, HELD = ("backbone", "cc", "cc_val", "vg"), ("backbone_test", "cc_ood", "vg_test", "retrieval", "low_pixel", "high_pixel", "mmeb")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Every part of a small world, by name."""
    root = tmp_path_factory.mktemp("world")
    return {part: draw_part(root, part, PICTURES, SMALL) for part in parts_.PARTS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """300 pictures of vg_test from the default world, as (read_genome's pictures, folder)."""
    folder = draw_part(tmp_path_factory.mktemp("bench"), "vg_test", 300)
    return read_genome(folder)[0], folder


def truth_of(folder):
    return [json.loads(line) for line in (folder / "truth.jsonl").open()]


def said(caption):
    """The meanings that a caption claims, read from its words."""
    patterns = [
        re.escape(c).replace(r"\{an_obj\}", "an? (?P<obj>[a-z ]+)").replace(r"\{a_card\}", "an? (?P<colour>[a-z]+) (?P<shape>[a-z]+)")
        for c in sorted(words.CAPTIONS, key=len, reverse=True)  # "sitting on" before "on"
    ]
    for opening in words.OPENINGS:
        caption = caption.removeprefix(opening)
    out = []
    for part in re.split(", | and (?=an? )", caption):
        match = next(m for p in patterns if (m := re.fullmatch(p, part)))
        out.append((match["obj"], match["colour"], match["shape"]))
    return out


def meanings_in(part, folder):
    """All meanings that a part shows or speaks of, from its files."""
    if part.startswith("backbone"):
        turns = [turn for record in read_conversations(folder) for turn in record["turns"]]
        return {m for kind, _, answer, _ in turns if kind.endswith("_described") for m in said(answer)}
    rows = truth_of(folder)
    if part.startswith("vg"):
        return {tuple(m) for row in rows for m in row["regions"].values()}
    return {tuple(m) for row in rows for m in row["shows"]}


# --- drawing --------------------------------------------------------------------------------------------------------------------


def test_a_part_is_the_same_bytes_whichever_parts_were_drawn_before(parts, tmp_path):
    for part in reversed(parts):
        again = draw_part(tmp_path, part, PICTURES, SMALL)
        files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
        assert again.name == parts[part].name
        assert files == sorted(p.relative_to(parts[part]) for p in parts[part].rglob("*") if p.is_file())
        assert all((again / f).read_bytes() == (parts[part] / f).read_bytes() for f in files), part


def test_another_seed_number_or_world_is_another_folder(tmp_path):
    a = World(glyphs=5)
    folders = [draw_part(tmp_path, "cc", n, w) for n, w in ((2, a), (3, a), (2, World(glyphs=6)), (2, World(glyphs=5, seed=1)))]
    assert len({f.name for f in folders}) == 4
    assert (folders[0] / "truth.jsonl").read_bytes() != (folders[3] / "truth.jsonl").read_bytes()


def test_an_interrupted_part_is_never_taken_for_a_finished_one(tmp_path, monkeypatch):
    def stops(path, count, world, report=None):
        (path / "junk").write_text("half a part")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(parts_.PARTS, "cc", stops)
        with pytest.raises(KeyboardInterrupt):
            draw_part(tmp_path, "cc", 3, SMALL)
    assert [p.suffix for p in (tmp_path / "openmoji").iterdir()] == [".partial"]
    folder = draw_part(tmp_path, "cc", 3, SMALL)
    assert list((tmp_path / "openmoji").iterdir()) == [folder] and not (folder / "junk").exists()
    assert len(read_pairs(folder)[0]) == 3


def test_a_finished_part_is_not_drawn_again(parts, monkeypatch):
    monkeypatch.setitem(parts_.PARTS, "cc", None)
    assert draw_part(parts["cc"].parent.parent, "cc", PICTURES, SMALL) == parts["cc"]


def test_drawn_cards_have_their_colour_where_their_box_is():
    rng, pool = np.random.default_rng(0), pools(SMALL)
    for _ in range(10):
        drawn = scene.sample_scene(rng, [pool.train[i] for i in rng.integers(len(pool.train), size=4)], (2, 2), 84)
        picture = np.asarray(scene.draw(drawn, pool.sprites)).astype(int)
        for card in drawn.cards:
            x, y, w, h = card.box
            colour = picture[y + round(0.06 * h), x + w // 2]  # between outline and glyph, whatever the shape
            nearest = min(words.COLOURS, key=lambda c: np.abs(colour - words.COLOURS[c]).sum())
            assert nearest == card.meaning[1], (card, colour)


def test_every_part_says_whose_pictures_it_shows_and_what_determines_it(parts):
    for part, folder in parts.items():
        assert "OpenMoji" in (folder / "ATTRIBUTION.txt").read_text() and "CC BY-SA 4.0" in (folder / "ATTRIBUTION.txt").read_text()
        facts = json.loads((folder / "world.json").read_text())
        assert (facts["part"], facts["count"], facts["glyphs"]) == (part, PICTURES, 60)


# --- bad input ------------------------------------------------------------------------------------------------------------------


def test_an_unknown_part_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown part 'coco' of the world; known are backbone, backbone_test, cc"):
        draw_part(tmp_path, "coco", 3)


def test_no_pictures_are_no_part(tmp_path):
    with pytest.raises(ValueError, match="0 pictures of 'vg' were asked for"):
        draw_part(tmp_path, "vg", 0)


def test_more_scenes_than_held_out_meanings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the held-out meanings \(720\) do not suffice for 200 scenes"):
        draw_part(tmp_path, "vg_test", 200, SMALL)
    assert not [p for p in (tmp_path / "openmoji").iterdir() if p.suffix != ".partial"]


# --- other sprites --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sprites(tmp_path):
    """A folder of six pictures of different sizes with names."""
    folder = tmp_path / "sprites"
    folder.mkdir()
    for k, name in enumerate(("Owl", "hot_dog", "key", "tin can", "ladder", "umbrella")):
        blocks = np.random.default_rng(k).integers(0, 256, (4, 3, 4), dtype=np.uint8) | np.array([0, 0, 0, 255], np.uint8)
        Image.fromarray(blocks).resize((90 + 20 * k, 120), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return folder


def test_a_folder_of_named_pictures_can_replace_openmoji(sprites, tmp_path):
    mine = World(glyphs=6, sprites=str(sprites))
    pairs, skipped = read_pairs(draw_part(tmp_path, "cc", 8, mine))
    assert len(pairs) == 8 and not skipped.counts
    names = {obj for pair in pairs for obj, _, _ in said(pair.caption)}
    assert names <= {"owl", "hot dog", "key", "tin can", "ladder", "umbrella"} and len(names) > 2
    assert "OpenMoji" not in (pairs[0].image.parent.parent / "ATTRIBUTION.txt").read_text()


def test_changed_sprites_are_another_part(sprites, tmp_path):
    before = draw_part(tmp_path, "cc", 2, World(glyphs=5, sprites=str(sprites)))
    Image.new("RGBA", (50, 50), "black").save(sprites / "coal.png")
    assert draw_part(tmp_path, "cc", 2, World(glyphs=5, sprites=str(sprites))) != before


def test_sprites_that_do_not_suffice_are_counted(sprites, tmp_path):
    with pytest.raises(ValueError, match=r"sprites has 6 distinct sprites; 7 were asked for"):
        draw_part(tmp_path, "cc", 2, World(glyphs=7, sprites=str(sprites)))
    (sprites / "OWL.png").write_bytes((sprites / "key.png").read_bytes())
    with pytest.raises(ValueError, match=r"both named 'owl'"):
        glyphs.load_glyphs(6, sprites)
    with pytest.raises(FileNotFoundError, match=r"no \.png pictures in .*empty"):
        glyphs.load_glyphs(6, tmp_path / "empty")


# --- splits ---------------------------------------------------------------------------------------------------------------------


def test_the_default_world_has_5400_training_and_3600_held_out_meanings():
    train, held = set(pools(World()).train), set(pools(World()).held_out)
    print(f"{len(train | held):,} distinct meanings: {len(train):,} for training, {len(held):,} held out")
    assert (len(train), len(held)) == (5400, 3600) and not train & held
    pairs = {m[:2] for m in train}, {m[:2] for m in held}
    assert not pairs[0] & pairs[1], "a glyph-colour pair is on both sides"
    assert set(Counter(obj for obj, _ in pairs[1]).values()) == {world.HELD_OUT_COLOURS}


def test_training_parts_show_training_meanings_and_test_parts_held_out_ones(parts):
    pool = pools(SMALL)
    for part, folder in parts.items():
        shown = meanings_in(part, folder)
        assert len(shown) > 20
        assert shown <= set(pool.train if part in TRAINED else pool.held_out), part
    assert {*TRAINED, *HELD} == set(parts)


def test_out_of_distribution_pictures_have_another_look(parts):
    corners = {}
    for part in ("cc_val", "cc_ood"):
        corners[part] = np.mean([np.asarray(Image.open(p.image))[0, :2].mean(0) for p in read_pairs(parts[part])[0]], axis=0)
    assert abs(corners["cc_val"] - corners["cc_ood"]).max() > 20
    assert not set(scene.LOOKS) & set(scene.OOD_LOOKS)


def test_look_alikes_are_told_apart_or_share_their_split():
    pool, held = pools(World()), defaultdict(set)
    for obj, colour, _ in pool.held_out:
        held[obj].add(colour)
    names, thumbs = list(pool.sprites), np.stack([glyphs._thumbnail(rgba) for rgba in pool.sprites.values()])
    pairs = 0
    for k in range(1, len(names)):
        distance = np.sqrt(((thumbs[:k] - thumbs[k]) ** 2).mean((1, 2, 3)))
        nearest = names[distance.argmin()]
        assert distance.min() >= 26, f"{names[k]} looks like {nearest}"
        if distance.min() < 28.5:
            pairs += 1
            assert held[names[k]] == held[nearest]
    assert pairs, "no look-alikes: the test tests nothing"


def test_held_out_wordings_are_new_sentences_of_known_words(parts):
    def vocabulary(templates):
        return set(re.findall("[a-z]+", " ".join(t for group in templates.values() for t in group).replace("{x}", "").lower()))

    assert set(words.TRAIN) == set(words.HELD_OUT)
    flat = [t for group in words.TRAIN.values() for t in group]
    assert not set(flat) & {t for group in words.HELD_OUT.values() for t in group}
    known = vocabulary(words.TRAIN)
    new = {w for w in vocabulary(words.HELD_OUT) if not any(k.startswith(w) for k in known)}  # "show" is known from "showing"
    assert not new
    trained = set(map(normalise, all_texts(parts["vg"] / "instructions.jsonl")))
    assert trained.isdisjoint(map(normalise, all_texts(parts["vg_test"] / "instructions.jsonl")))
    asked = defaultdict(set)
    for part in ("backbone", "backbone_test"):
        for record in read_conversations(parts[part]):
            for kind, question, *_ in record["turns"]:
                asked["new" if kind.endswith("_reworded") else part].add(question)
    assert asked["new"] and asked["new"].isdisjoint(asked["backbone"] | asked["backbone_test"] | trained)


def test_captions_say_what_the_truth_says_they_claim(parts):
    for part in ("cc", "cc_val", "cc_ood"):
        for pair, row in zip(read_pairs(parts[part])[0], truth_of(parts[part])):
            claims = [tuple(m) for m in row["claims"]]
            assert said(pair.caption) == claims and set(claims) <= {tuple(m) for m in row["shows"]}
    for (_, captions), row in zip(read_karpathy(parts["retrieval"] / "dataset_openmoji.json")[0], truth_of(parts["retrieval"])):
        assert [said(c) for c in captions] == [[tuple(m) for m in claims] for claims in row["claims"]]
    for part in ("vg", "vg_test"):
        for image, row in zip(read_genome(parts[part])[0], truth_of(parts[part])):
            captions = {str(r.region_id): r.caption for r in image.regions}
            assert all(said(captions[k]) == [tuple(m)] for k, m in row["regions"].items())


# --- the paper's box rule and the benchmark -------------------------------------------------------------------------------------


def test_dropping_the_five_largest_boxes_leaves_five_glyphs_in_95_percent_of_scenes(bench):
    images, folder = bench
    left = []
    for image, row in zip(images, truth_of(folder)):
        assert image.image_id == row["image_id"]
        left.append(sum(str(r.region_id) in row["regions"] for r in small_regions(image, drop_largest=5, seed=0)))
    share = np.mean(np.array(left) >= 5)
    print(f"{100 * share:.1f} % of {len(left)} scenes keep at least five glyph regions")
    assert len(left) >= 300 and share >= 0.95


def test_meanings_and_captions_of_the_benchmark_are_unique(bench):
    images, folder = bench
    meanings = [tuple(m) for row in truth_of(folder) for m in row["regions"].values()]
    assert len(meanings) == len(set(meanings)) > 1500
    captions = [normalise(r.caption) for image in images for r in small_regions(image, drop_largest=5, seed=0)]
    assert len(captions) == len(set(captions)) == len(meanings)
    assert set(meanings) <= set(pools(World()).held_out)


def test_boxes_are_inside_their_picture_and_do_not_touch(bench):
    images, folder = bench
    for image, row in zip(images, truth_of(folder)):
        with Image.open(image.image) as picture:
            assert picture.size == (image.width, image.height)
        for x, y, w, h in (r.box for r in image.regions):
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= image.width and y + h <= image.height
        cards = [r.box for r in image.regions if str(r.region_id) in row["regions"]]
        for i, (x, y, w, h) in enumerate(cards):
            assert all(x + w <= a or a + c <= x or y + h <= b or b + d <= y for a, b, c, d in cards[:i])


def test_readers_read_every_part_with_nothing_skipped(parts):
    for part in ("cc", "cc_val", "cc_ood"):
        pairs, skipped = read_pairs(parts[part])
        assert len(pairs) == PICTURES and not skipped.counts and not skipped.odd
    for part in ("vg", "vg_test"):
        images, skipped = read_genome(parts[part])
        assert len(images) == PICTURES and not skipped.counts and not skipped.odd
        options, skipped = read_instructions(parts[part] / "instructions.jsonl")
        assert not skipped.counts and {key[0] for key in options} == {image.image_id for image in images}
    for part in ("retrieval", "low_pixel", "high_pixel"):
        records, skipped = read_karpathy(parts[part] / "dataset_openmoji.json")
        assert len(records) == PICTURES and not skipped.counts and all(len(captions) == 5 for _, captions in records)
    for part in ("backbone", "backbone_test"):
        lessons = Lessons(parts[part], processor=None)
        assert len(lessons.records) == PICTURES
        for record in lessons.records:
            with Image.open(parts[part] / record["image"]) as picture:
                assert picture.size == (record["width"], record["height"])


# --- questions ------------------------------------------------------------------------------------------------------------------

# What a place is called, by the thirds or halves of the picture that a box's middle is in.
NAMES = {1: [()], 2: [("top", "upper"), ("bottom", "lower")], 3: [("top", "upper"), ("middle", "centre"), ("bottom", "lower")]}
SIDES = {1: [()], 2: [("left",), ("right",)], 3: [("left",), ("middle", "centre"), ("right",)]}


def names_of(box, size, grid):
    """Every name of the place where a box is, from pixels alone."""
    row = NAMES[grid[0]][int((box[1] + box[3] / 2) * grid[0] / size[1])]
    col = SIDES[grid[1]][int((box[0] + box[2] / 2) * grid[1] / size[0])]
    if row == col:
        return set(row)
    return {f"{r} {c}".strip() for r in row or ("",) for c in col or ("",)}


def nearest(cards, start, direction):
    """The cards next to `start` on one side: in its row or column, and none between them."""
    axis = 0 if direction in ("left", "right") else 1
    sign = 1 if direction in ("right", "below") else -1
    middle = {c: (c[1][0] + c[1][2] / 2, c[1][1] + c[1][3] / 2) for c in cards}
    reach = 1.35 * max(c[1][2] for c in cards)  # px; the next cell, not the one after it
    ahead = [c for c in cards if 0 < sign * (middle[c][axis] - middle[start][axis]) < reach]
    return [c for c in ahead if abs(middle[c][1 - axis] - middle[start][1 - axis]) < reach / 3]


def right_cards(cards, size, grid, kind, referent):
    """All cards, (meaning, box), that a question could be about."""
    if kind == "content":
        return [c for c in cards if f"{c[0][1]} {c[0][2]}" == referent]
    if kind in ("place", "look"):
        return [c for c in cards if referent in names_of(c[1], size, grid)]
    if kind == "property":
        return [c for c in cards if c[0][0] == referent]
    if kind == "where":
        return [c for c in cards if referent in (c[0][0], f"{c[0][1]} {c[0][2]}")]
    if kind == "size":
        largest = max(c[1][2] * c[1][3] for c in cards)
        return [c for c in cards if c[1][2] * c[1][3] > 0.85 * largest]
    direction, obj = re.fullmatch(r"(?:to the )?(left|right|above|below)(?: of)? the (.+)", referent).groups()
    return [n for c in cards if c[0][0] == obj for n in nearest(cards, c, direction)]


def scenes_of_all_kinds(n):
    rng = np.random.default_rng(3)
    mix = {world.SINGLE: 1, world.SMALL_GRIDS: 2, world.FULL_GRIDS: 3}
    return list(world._scenes(rng, pools(SMALL).train, n, mix)), rng


def test_every_question_about_a_scene_has_exactly_one_right_answer():
    drawn, rng = scenes_of_all_kinds(150)
    seen = Counter()
    for s in drawn:
        cards, size = [(c.meaning, c.box) for c in s.cards], (s.width, s.height)
        for q in questions(s, rng):
            seen[q.kind] += 1
            if q.kind == "count":
                assert words.NUMBERS.index(q.answer) == sum(m[2] + "s" == q.referent for m, _ in cards)
            elif s.grid != (1, 1) or q.kind in ("content", "property"):
                (card,) = right_cards(cards, size, s.grid, q.kind, q.referent)
                obj, colour, shape = card[0]
                if q.kind == "where":
                    assert q.answer in names_of(card[1], size, s.grid)
                else:
                    assert q.answer == (f"{colour} {shape}" if q.kind in ("look", "property") else obj)
                assert q.card is None or (q.card.meaning, q.card.box) == card
    assert min(seen[kind] for kind in words.TRAIN) >= 20, seen


@pytest.mark.parametrize(("part", "templates"), [("vg", words.TRAIN), ("vg_test", words.HELD_OUT)])
def test_every_written_instruction_has_exactly_one_right_region(parts, part, templates):
    images, options = read_genome(parts[part])[0], read_instructions(parts[part] / "instructions.jsonl")[0]
    truth = {row["image_id"]: row["regions"] for row in truth_of(parts[part])}
    checked = Counter()
    for image in images:
        shown = truth[image.image_id]
        ids = {(tuple(shown[str(r.region_id)]), r.box): r.region_id for r in image.regions if str(r.region_id) in shown}
        grid = {1: (3, 3), 1.5: (2, 3), 2 / 3: (3, 2)}[image.width / image.height]
        for (image_id, region_id), by_kind in options.items():
            for kind, texts in by_kind.items() if image_id == image.image_id else ():
                for text in texts:
                    found = [m for t in templates[kind] if (m := re.fullmatch(re.escape(t).replace(r"\{x\}", "(?P<x>.+)"), text))]
                    referents = {m.groupdict().get("x", "") for m in found}
                    answers = {ids[c] for x in referents for c in right_cards_or_none(list(ids), image, grid, kind, x)}
                    assert answers == {region_id}, (text, image.image)
                    checked[kind] += 1
    assert set(checked) == {"content", "place", "property", "neighbour", "size"}


def right_cards_or_none(cards, image, grid, kind, referent):
    """`right_cards`, none where a template read a referent out of an instruction that it did not make."""
    try:
        return right_cards(cards, (image.width, image.height), grid, kind, referent)
    except AttributeError:
        return []


def test_hard_scenes_are_there_on_purpose():
    drawn, _ = scenes_of_all_kinds(200)
    twice = [s for s in drawn if max(Counter(c.meaning[0] for c in s.cards).values()) > 1]
    siblings = [(a, b) for a, b in pairwise(drawn) if [c.box for c in a.cards] == [c.box for c in b.cards]]
    assert len(twice) > 10, "no glyph stands on two cards"
    assert siblings and all({c.meaning for c in a.cards} & {c.meaning for c in b.cards} for a, b in siblings), "no scenes share objects"


def test_every_fourth_pair_has_twins_that_differ_in_one_thing_that_their_captions_say(parts):
    parted = Counter()
    for part in ("cc", "cc_val", "cc_ood"):
        rows = truth_of(parts[part])
        for first, row in ((rows[i - i % 4], row) for i, row in enumerate(rows) if i % 4):
            changed = [(tuple(a), tuple(b)) for a, b in zip(first["shows"], row["shows"], strict=True) if a != b]
            assert len(changed) == 1
            was, now = changed[0]
            assert sum(a != b for a, b in zip(was, now)) == 1 and list(was) in first["claims"] and list(now) in row["claims"]
            parted[next(k for k in range(3) if was[k] != now[k])] += 1
        for start in range(0, len(rows) - 2, 4):
            shapes = [{m[2] for a, m in zip(rows[start]["shows"], row["shows"]) if a != m} for row in rows[start + 1 : start + 3]]
            assert len(shapes[0] | shapes[1]) == 2
    assert all(parted[k] for k in range(3)) and parted[2] == pytest.approx(2 * (parted[0] + parted[1]), rel=0.2)


def test_pairs_and_regions_say_equal_things_in_equal_words(parts):
    words_of = {}
    for part in ("cc", "cc_val", "cc_ood"):
        for pair, row in zip(read_pairs(parts[part])[0], truth_of(parts[part])):
            assert words_of.setdefault(json.dumps(row["claims"]), pair.caption) == pair.caption
    wordings = {}
    for part in ("vg", "vg_test"):
        for image, row in zip(read_genome(parts[part])[0], truth_of(parts[part])):
            captions = {str(r.region_id): r.caption for r in image.regions}
            for region, meaning in row["regions"].items():
                assert captions[region] == words.caption(tuple(meaning))
                wordings.setdefault(captions[region].replace(meaning[0], "").replace(meaning[1], ""), meaning)
    assert len(wordings) > len(words.CAPTIONS)


# --- words ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("wording", [0, 1])
def test_the_places_of_a_grid_have_different_names(grid, wording):
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    names = [words.place(cell, grid, wording) for cell in cells]
    assert all(names) and len(set(names)) == len(cells)


def test_places_are_called_as_people_call_them():
    assert words.place((0, 2), (3, 3)) == "top right" and words.place((0, 2), (3, 3), 1) == "upper right"
    assert words.place((1, 1), (3, 3)) == "middle" and words.place((1, 1), (3, 3), 1) == "centre"
    assert words.place((1, 0), (3, 2)) == "middle left" and words.place((0, 1), (2, 3)) == "top middle"
    assert words.place((0, 1), (1, 2)) == "right" and words.place((1, 0), (2, 1)) == "bottom"


def test_captions_use_the_right_article_and_join_as_english_does():
    assert words.caption(("owl", "red", "disc"), 0) == "an owl on a red disc"
    assert words.caption(("unicorn", "orange", "card"), 2) == "an orange card with a unicorn on it"
    assert [words.article(n) for n in ("ewe", "euro banknote", "umbrella", "ufo")] == ["a ewe", "a euro banknote", "an umbrella", "a ufo"]
    assert words.join(["a"]) == "a" and words.join(["a", "b"]) == "a and b" and words.join(["a", "b", "c"]) == "a, b and c"
    assert words.neighbour("owl", (0, -1)) == "to the left of the owl" and words.neighbour("owl", (1, 0)) == "below the owl"


def test_too_many_cards_for_a_grid_are_refused():
    with pytest.raises(ValueError, match="5 cards do not fit a grid of 2 x 2"):
        scene.sample_scene(np.random.default_rng(0), [("owl", "red", "disc")] * 5, (2, 2), 56)


def test_data_is_a_part_of_the_world_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    drawn = parts_.data_folder("cc", 2, World(glyphs=40))
    assert drawn.parent == tmp_path / "openmoji" and len(read_pairs(drawn)[0]) == 2
    assert parts_.data_folder(str(tmp_path), 2) == tmp_path and parts_.data_folder("tests", 2) == paths.ROOT / "tests"
    with pytest.raises(FileNotFoundError, match=r"'cc3m' is no folder .* and no part of the drawn world: backbone, "):
        parts_.data_folder("cc3m", 2)
