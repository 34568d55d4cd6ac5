"""The generative training of the tiny backbone: rows equal their conversations, a killed run ends the same, an export scores the same."""

import copy
import json
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from backbone_words import ANSWERS, WORDS
from transformers import AutoModelForImageTextToText, AutoProcessor

from abc_core import checkpoint, prompts
from abc_core.backbone import autocast_attention, load_backbone
from abc_core.data.pictures import open_image
from abc_core.miniature import parts
from abc_core.miniature.backbone import __main__, answer_loss
from abc_core.miniature.backbone import export as export_backbone
from abc_core.miniature.backbone import pretrain as pretrain_backbone
from abc_core.miniature.backbone.answers import answer, exact_match
from abc_core.miniature.backbone.build import build, tokenizer_texts
from abc_core.miniature.backbone.lessons import DESCRIBE_ALL, IGNORED, Lessons, Stage, prefix_positions
from abc_core.miniature.backbone.pointing import pointing_loss
from abc_core.miniature.backbone.pretrain import BackboneConfig, optimizers, train
from abc_core.miniature.parts import draw_part
from abc_core.miniature.world import World
from abc_core.runs import paths
from abc_core.runs import run as runlog

SMALL = World(glyphs=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_part(tmp_path_factory.mktemp("data"), "backbone", 60, SMALL)


@pytest.fixture(scope="module")
def test_data(data, tmp_path_factory):
    """The first and the last four turns about six pictures with one card."""
    folder, rows = tmp_path_factory.mktemp("test"), [json.loads(line) for line in (data / "conversations.jsonl").open()]
    (folder / "images").symlink_to(data / "images")
    with (folder / "conversations.jsonl").open("w") as out:
        for row in [row for row in rows if row["kinds"].count("look") == 1][:6]:
            kept = {k: row[k][:1] + row[k][-4:] for k in ("kinds", "about")}
            kept["conversations"] = row["conversations"][:2] + row["conversations"][-8:]
            out.write(json.dumps(row | kept) + "\n")
    return folder


@pytest.fixture(scope="module")
def built(data):
    """(random model, processor); tests change copies of the model alone."""
    return build(tokenizer_texts(data))


@pytest.fixture
def model(built):
    return copy.deepcopy(built[0]).eval()


@pytest.fixture(scope="module")
def lessons(data, built):
    return Lessons(data, built[1])


@pytest.fixture(scope="module")
def trained(built, lessons, tmp_path_factory):
    """(model, run folder) after a few steps on answers: it says short things, mostly the same."""
    model, out = copy.deepcopy(built[0]), tmp_path_factory.mktemp("run") / "backbone"
    config = BackboneConfig(steps=8, tokens=1, warmup=2, save_every=4, keep=(0.25,), bf16=False)
    train(model, lessons, config, out, (Stage(99, {"single": 1.0}, {"count": 1}, questions=2),), report=[].append)
    return model.eval(), out


def picture_of(lessons, kind):
    """The first record with a question of this kind, and the numbers of its first four turns of different kinds."""
    record = next(r for r in lessons.records if kind in r["kinds"])
    return record, [record["kinds"].index(k) for k in dict.fromkeys([kind, *record["kinds"]])][:4]


def conversation(processor, folder, record, question, said):
    """A single-turn conversation through chat template and processor, the ordinary way."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}, {"role": "assistant", "content": said}]
    return processor(text=[processor.apply_chat_template(turns)], images=[open_image(folder / record["image"])], return_tensors="pt")


# --- tokenizer and template -----------------------------------------------------------------------------------------------------


def test_the_tokenizer_gives_every_text_back(built, lessons):
    tokenizer = built[1].tokenizer
    texts = {text for record in lessons.records for _, *said, _ in record["turns"] for text in said} | {"Größe: 5 µm,  two  spaces\n☕"}
    assert all(tokenizer.decode(tokenizer(t)["input_ids"]) == t for t in texts)
    assert tokenizer.vocab_size <= 1600 and len(tokenizer) == built[0].get_input_embeddings().num_embeddings


def test_special_tokens_are_single_tokens_unless_a_user_types_them(built):
    tokenizer = built[1].tokenizer
    ids = [tokenizer(t)["input_ids"] for t in prompts.SPECIAL_TOKENS]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == len(ids)
    assert all(len(tokenizer(t, split_special_tokens=True)["input_ids"]) > 1 for t in prompts.SPECIAL_TOKENS)
    config = built[0].config
    assert [[config.image_token_id], [config.video_token_id]] == [tokenizer(t)["input_ids"] for t in (prompts.IMAGE_PAD, prompts.VIDEO_PAD)]
    assert built[0].generation_config.eos_token_id == tokenizer.eos_token_id == ids[prompts.SPECIAL_TOKENS.index(prompts.IM_END)][0]


def test_the_chat_template_says_what_the_pieces_of_prompts_say(built):
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the red disc?"}]}]
    asked = built[1].apply_chat_template(question, add_generation_prompt=True)
    pieces = [prompts.BEFORE_IMAGE, prompts.IMAGE_PAD, prompts.AFTER_IMAGE, "What is on the red disc?", prompts.BEFORE_ANSWER]
    assert asked == "".join(pieces)
    answered = built[1].apply_chat_template([*question, {"role": "assistant", "content": "owl"}])
    assert answered == asked + "owl" + prompts.IM_END + "\n"
    said, tokenizer = "owl" + prompts.IM_END, built[1].tokenizer
    assert [i for piece in [*pieces, said] for i in tokenizer(piece)["input_ids"]] == tokenizer(asked + said)["input_ids"]


def test_the_same_texts_make_the_same_model_and_tokenizer(built, data):
    model, processor = build(tokenizer_texts(data))
    assert processor.tokenizer.get_vocab() == built[1].tokenizer.get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), built[0].parameters()))
    assert not torch.equal(build(["a", "b"], seed=1)[0].model.visual.patch_embed.proj.weight, model.model.visual.patch_embed.proj.weight)


# --- rows -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(2, 2), (6, 6), (4, 6), (6, 4), (2, 8)])
def test_prefix_positions_are_the_models_own(built, grid):
    model, processor = built
    ids = processor.tokenizer.convert_tokens_to_ids
    before, after = [5] * 9, [ids(prompts.VISION_END), 7, 8, 9]
    row = torch.tensor([before + [ids(prompts.IMAGE_PAD)] * (grid[0] * grid[1]) + after])
    patches = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    own, _ = model.model.get_rope_index(row, (row == ids(prompts.IMAGE_PAD)).int(), image_grid_thw=patches)
    assert torch.equal(own[:, 0], prefix_positions(row.shape[1], len(before), grid))


@pytest.mark.parametrize("kind", ["content", "size"])
def test_each_question_of_a_row_has_the_tokens_positions_and_logits_of_its_own_conversation(model, built, lessons, kind):
    record, turns = picture_of(lessons, kind)
    batch = lessons.collate([record, record], [turns, turns[:1]], [False, True])
    mask = {"full_attention": batch["mask"]}
    pixels = {k: batch[k] for k in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"], **pixels).logits
        shared = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], **pixels).logits  # each sees those before it
        prefix, at = len(lessons.ids(prompts.BEFORE_IMAGE, True)), []
        prefix += int((batch["input_ids"][0] == model.config.image_token_id).sum()) + 1
        for row, chosen in ((0, turns), (1, turns[:1])):
            start = prefix
            for turn in chosen:
                _, question, said, _ = lessons.turns(record)[turn]
                inputs = conversation(built[1], lessons.folder, record, prompts.INSTRUCTION * row + question, said)
                length = len(lessons.block(record, turn, bool(row))[0])
                own = torch.arange(prefix, prefix + length)
                there = own - prefix + start
                assert torch.equal(batch["input_ids"][row, there], inputs["input_ids"][0, own])
                positions, _ = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
                assert torch.equal(batch["position_ids"][:, row, there], positions[:, 0, own])
                logits = model(**inputs).logits[0, own]
                assert (packed[row, there] - logits).abs().max() < 1e-4
                at.append((shared[row, there] - logits).abs().max())
                start += length
    assert at[0] < 1e-4 and min(at[1:-1]) > 1e-3, "without the block mask, later questions should have seen earlier ones"


def test_labels_are_the_answers_and_their_end_alone(built, lessons):
    record, turns = picture_of(lessons, "content")
    labels = lessons.collate([record], [turns], [True])["labels"][0]
    text = built[1].tokenizer.decode(labels[labels != IGNORED])
    assert text == "".join(lessons.turns(record)[t][2] + prompts.IM_END for t in turns)


def test_a_step_always_draws_the_same_batch_and_another_step_another(data, built, lessons):
    one, again = lessons.batch(3, ANSWERS, 1), Lessons(data, built[1]).batch(3, ANSWERS, 1)
    assert all(torch.equal(one[k], again[k]) if isinstance(one[k], torch.Tensor) else one[k] == again[k] for k in one)
    assert not torch.equal(one["pixel_values"], lessons.batch(4, ANSWERS, 1)["pixel_values"])
    assert len(one["input_ids"]) == 8 and len(lessons.batch(3, WORDS, 10_000)["image_grid_thw"]) == 256


def test_regions_have_their_visual_tokens_and_their_words(built, lessons):
    record = next(r for r in lessons.records if (r["width"], r["height"]) == (168, 168) and len(r["regions"]) > 5)
    batch = lessons.collate([record, record], [[0], [0]], [False, False])
    assert batch["picture"].tolist() == [0] * len(record["regions"]) + [1] * len(record["regions"])
    assert torch.allclose(batch["shares"].sum(1), torch.ones(len(batch["shares"])))
    for (x, y, _, _, *words), shares, said in zip(record["regions"], batch["shares"], batch["words"]):
        rows, columns = shares.reshape(6, 6).nonzero().T
        assert {*rows.tolist()} == {y // 56 * 2, y // 56 * 2 + 1} and {*columns.tolist()} == {x // 56 * 2, x // 56 * 2 + 1}
        assert said == {i for word in words for text in (word, " " + word) for i in lessons.ids(text)}


def test_a_dense_caption_says_everything_of_every_region(data, built):
    for record in Lessons(data, built[1], dense=True).records[:30]:
        kind, question, caption, region = record["turns"][-1]
        parts = caption.split("; ")
        assert (kind, question, region, record["kinds"][-1]) == ("dense", DESCRIBE_ALL, -1, "dense")
        assert len(parts) == len(record["regions"])
        for *_, thing, colour, shape, place in record["regions"]:
            facts = (thing, f"on the {colour} {shape}", f"in the {place}" if place else "")
            assert any(part.count(":") == 1 and all(fact in part for fact in facts) for part in parts)


def test_the_word_loss_is_lowest_for_a_tower_that_says_the_words_of_each_region(model, lessons, monkeypatch):
    record = next(r for r in lessons.records if len(r["regions"]) > 5)
    batch, head = lessons.collate([record], [[0]], [False]), model.lm_head.weight
    tokens = torch.zeros(batch["shares"].shape[1], head.shape[1])
    before = answer_loss.word_loss(model, batch)[0].item()
    for shares, said in zip(batch["shares"], batch["words"]):
        tokens[shares > 0] = 6 * head[list(said)].mean(0)
    seen = type("Seen", (), {"pooler_output": (tokens,)})
    monkeypatch.setattr(model.model, "get_image_features", lambda *a, **k: seen)
    loss, out = answer_loss.word_loss(model, batch)
    assert loss.item() < 0.6 * before and out["accuracy"] > 0.95


def test_the_reading_loss_is_lowest_where_every_word_of_a_question_says_itself(model, lessons):
    record, turns = picture_of(lessons, "content")
    batch, head = lessons.collate([record, record], [turns, turns[:1]], [False, True]), model.lm_head.weight
    hidden = torch.zeros(*batch["input_ids"].shape, head.shape[1])
    chance = answer_loss.reading_loss(model, batch, hidden).item()
    assert chance == pytest.approx(np.log(len(head)), rel=1e-4)
    with torch.no_grad():
        hidden[batch["read"]] = 100 * head[batch["input_ids"][batch["read"]]]
    assert answer_loss.reading_loss(model, batch, hidden).item() < 0.1
    for row, asked in ((0, turns), (1, turns[:1])):
        said = lessons.processor.tokenizer.decode(batch["input_ids"][row][batch["read"][row]])
        assert said == "".join(prompts.INSTRUCTION * row + record["turns"][t][1] for t in asked)


def test_every_answer_is_read_off_the_region_that_it_is_about(lessons):
    looked_at = set()
    for record in lessons.records:
        for kind, _, truth, region in record["turns"]:
            if kind == "count":
                assert region == -1
                continue
            *_, thing, colour, shape, place = record["regions"][region]
            look = f"{colour} {shape}"
            said = {"look": look, "property": look, "where": place}.get(kind, thing)
            assert truth == said or (kind.endswith("_described") and thing in truth and truth.endswith(look))
            looked_at.add(kind)
    assert looked_at >= {"content", "place", "look", "property", "where", "neighbour", "size", "neighbour_described"}


def test_what_is_asked_is_where_an_answer_begins_and_looks_first_at_what_the_question_names(lessons):
    record, turns = picture_of(lessons, "count")
    other, others = picture_of(lessons, "neighbour")
    batch = lessons.collate([record, record, other], [turns, turns[:2], others], [False, True, False])
    want = [(row, r, t) for row, (r, ts) in enumerate([(record, turns), (record, turns[:2]), (other, others)]) for t in ts]
    want = [(row, r, t) for row, r, t in want if r["kinds"][t] != "count"]
    assert len(batch["asked"]) == len(want)
    stepped = {(row, at): region for row, at, region in batch["stepped"].tolist()}
    assert len(stepped) == len(batch["stepped"]) and stepped
    for (row, at, region), (wanted, r, t) in zip(batch["asked"].tolist(), want):
        kind, question, answer, number = r["turns"][t]
        first = batch["picture"].tolist().index(row)
        assert (row == wanted == batch["picture"][region].item()) and batch["labels"][row, at].item() == IGNORED
        ids = lessons.ids(answer)
        assert batch["labels"][row, at + 1 : at + 1 + len(ids)].tolist() == ids
        if kind.startswith("neighbour"):
            assert f"the {r['regions'][region - first][4]}" in question
            assert stepped.pop((row, at)) == first + number != region
        else:
            assert region == first + number
    assert not stepped


def test_what_is_named_is_where_a_name_ends(lessons):
    record, turns = picture_of(lessons, "neighbour")
    batch, text = lessons.collate([record, record], [turns, turns], [False, True]), lessons.processor.tokenizer
    named = {0: [], 1: []}
    for row, at, region in batch["named"].tolist():
        thing = record["regions"][region - batch["picture"].tolist().index(row)][4]
        assert text.decode(batch["input_ids"][row, : at + 1]).endswith(" " + thing)
        named[row].append(thing)
    assert named[0] and named[0] == named[1]
    assert set(named[0]) == {thing for t in turns for *_, thing, _, _, _ in record["regions"] if thing in record["turns"][t][1]}


def test_the_pointing_loss_is_lowest_for_heads_that_look_at_the_region(lessons):
    record, turns = picture_of(lessons, "neighbour")
    batch = lessons.collate([record], [turns], [False])
    rows, length = batch["asked"], batch["input_ids"].shape[1]
    query, key = torch.zeros(1, 8, length, 32), torch.zeros(1, 4, length, 32)
    blind = pointing_loss(batch, batch["asked"], query, key)[0].item()
    see = batch["mask"][0, 0, rows[:, 1]].sum(1)
    inside = [(s > s.max() / 2).sum() for s in batch["shares"][rows[:, 2]]]
    chance = [np.log(n.item() / i.item()) for n, i in zip(see, inside)]  # equal attention on all it sees
    assert blind == pytest.approx(float(np.mean(chance)), rel=1e-5)
    for axis, (_, at, region) in enumerate(rows.tolist()):
        query[0, :, at, axis] = 100.0
        key[0, :, batch["first_visual"] + (batch["shares"][region] > batch["shares"][region].max() / 2).nonzero()[:, 0], axis] = 100.0
    loss, hits = pointing_loss(batch, batch["asked"], query, key)
    assert loss.item() < 1e-3 and hits == 1.0


def test_pictures_are_relit_by_step_in_training_alone(data, built, lessons):
    lit = Lessons(data, built[1], relight=0.3)
    one, again, plain = (x.batch(3, ANSWERS, 1)["pixel_values"] for x in (lit, Lessons(data, built[1], relight=0.3), lessons))
    assert torch.equal(one, again) and one.shape == plain.shape and not torch.allclose(one, plain, atol=0.01)
    record, turns = picture_of(lessons, "content")
    asked = [x.collate([record], [turns], [False])["pixel_values"] for x in (lit, lessons)]
    assert torch.equal(*asked)


# --- training -------------------------------------------------------------------------------------------------------------------


def test_a_stage_without_matching_pictures_or_questions_is_refused(model, lessons, tmp_path):
    config = BackboneConfig(steps=1, tokens=1)
    with pytest.raises(ValueError, match=r"step 0 asks for pictures of \{'huge': 1.0\}; .*backbone-.* has no such picture, only \{'full'"):
        train(model, lessons, config, tmp_path, (Stage(9, {"huge": 1.0}, {"content": 1}),))
    with pytest.raises(ValueError, match=r"picture images/.*jpg has no question of \{'smell': 1\}"):
        train(model, lessons, config, tmp_path, (Stage(9, {"single": 1.0}, {"smell": 1}),))
    with pytest.raises(ValueError, match="the curriculum ends at step 2, before the 3 steps of this run"):
        train(model, lessons, BackboneConfig(steps=3), tmp_path, (WORDS,))
    assert not (tmp_path / "last.safetensors").exists()


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(built, lessons, tmp_path):
    config = BackboneConfig(steps=4, tokens=1, warmup=2, save_every=1, keep=())
    whole = copy.deepcopy(built[0])
    train(whole, lessons, replace(config, save_every=9), tmp_path / "whole", (WORDS, ANSWERS), report=[].append)
    out, reports = tmp_path / "killed", []

    def dies(line):
        reports.append(line)
        if len(reports) in (1, 3):  # while the vision tower trains alone, and after
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(copy.deepcopy(built[0]), lessons, config, out, (WORDS, ANSWERS), dies)
        with (out / "metrics.jsonl").open("a") as log:
            log.write('{"loss": 9.9, "step": 99}\n{"loss": 0.1')
        (out / "last.partial").write_bytes(b"half a checkpoint")
    last = copy.deepcopy(built[0])
    train(last, lessons, config, out, (WORDS, ANSWERS), dies)
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), whole.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(last.model.visual.blocks.parameters(), built[0].model.visual.blocks.parameters()))
    assert (out / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in runlog.Run(folder).rows()] for folder in (out, tmp_path / "whole")]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [0, 1, 2, 3]
    assert reports[-1].startswith("step 4/4 · loss ")


def test_a_finished_run_only_loads_its_weights(built, trained, lessons):
    model, out = copy.deepcopy(built[0]), trained[1]
    before = (out / "metrics.jsonl").read_bytes()
    train(model, lessons, BackboneConfig(steps=8, tokens=1, keep=()), out, (ANSWERS,))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained[0].parameters()))
    assert (out / "metrics.jsonl").read_bytes() == before


def test_optimizers_start_from_the_zeros_that_torch_starts_from(built, lessons):
    words, answers, ends = lessons.batch(0, WORDS, 1), lessons.batch(0, ANSWERS, 1), []
    for own_start in (True, False):
        model = copy.deepcopy(built[0])
        opts = optimizers(autocast_attention(model), BackboneConfig())
        for optimizer in opts.values() if own_start else ():
            optimizer.state.clear()
        for task, batch in ((answer_loss.word_loss, words), (answer_loss.answer_loss, answers)):
            task(model, batch)[0].backward()
            for optimizer in opts.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        ends.append(model)
    assert all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters()))


def test_early_and_middle_weights_are_kept(trained):
    tensors, numbers = checkpoint.load(trained[1] / "step-000002.safetensors")
    assert numbers["step"] == 2 and set(tensors) == {name for name, _ in trained[0].named_parameters()}
    assert not torch.equal(tensors["model.language_model.norm.weight"], trained[0].model.language_model.norm.weight)


def test_a_run_killed_between_two_checkpoints_still_keeps_its_early_weights(built, lessons, tmp_path, monkeypatch):
    config, saved = BackboneConfig(steps=2, tokens=1, warmup=2, save_every=1, keep=(0.5,)), []

    def dies(path, *args):
        saved.append(path.name)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(path, *args)

    save = pretrain_backbone._save
    monkeypatch.setattr(pretrain_backbone, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(built[0]), lessons, config, tmp_path, (WORDS, ANSWERS), report=[].append)
    train(copy.deepcopy(built[0]), lessons, config, tmp_path, (WORDS, ANSWERS), report=[].append)
    assert len(saved) > 2 and checkpoint.load(tmp_path / "step-000001.safetensors")[1]["step"] == 1


def test_a_checkpoint_of_other_data_or_another_shape_is_refused(model, lessons, data, trained, tmp_path):
    with pytest.raises(ValueError, match=r"last.safetensors was trained on backbone-\w+, .* those of other; name another folder"):
        pretrain_backbone.restore(model, trained[1] / "last.safetensors", "other")
    checkpoint.save(tmp_path / "a.safetensors", {"model.language_model.norm.weight": torch.zeros(7)}, step=1)
    with pytest.raises(ValueError, match=r"a.safetensors holds nothing for .*; this model needs \(\d+"):
        pretrain_backbone.restore(model, tmp_path / "a.safetensors", data.name)
    shapes = dict(model.named_parameters()) | {"model.language_model.norm.weight": torch.zeros(7)}
    checkpoint.save(tmp_path / "b.safetensors", shapes, step=1)
    with pytest.raises(ValueError, match=r"b.safetensors holds \(7,\) for model.language_model.norm.weight; this model needs \(256,\)"):
        pretrain_backbone.restore(model, tmp_path / "b.safetensors", data.name)
    with pytest.raises(FileNotFoundError, match="no training of the backbone has saved anything"):
        pretrain_backbone.restore(model, tmp_path / "none.safetensors", data.name)


def test_the_learning_rate_warms_up_stays_and_cools_down():
    config = BackboneConfig(steps=100, warmup=10, cooldown=0.3, learning_rate=1.0)
    rates = [pretrain_backbone.learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:71] == [1.0] * 62 and rates[85] == pytest.approx(0.5) and rates[100] == 0


PICTURE = '"conversations": [], "about": [], "width": 1, "height": 1'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"conversations.jsonl row 1 is not JSON"),
        (f'{{"kinds": ["a"], {PICTURE}, "image": "a", "regions": []}}', r"row 1: 1 kinds need .* there are 0 turns"),
        (f'{{"kinds": [], {PICTURE}, "image": "a"}}', r"row 1: 'regions' is missing or of a wrong type"),
        ('{"kinds": [], "conversations": [], "about": [3], "width": 1, "height": 1, "image": "a", "regions": []}', "'about' has 1"),
        (f'{{"kinds": [], {PICTURE}, "image": "a", "regions": [{{}}]}}', r"row 1: 'box' is missing"),
        (f'{{"kinds": [], {PICTURE}, "image": 3, "regions": []}}', r"row 1: 'image' is missing or of a wrong type: 3"),
    ],
)
def test_a_broken_conversation_is_named(tmp_path, line, message):
    good = '{"kinds": [], "conversations": [], "about": [], "image": "a.jpg", "width": 1, "height": 1, "regions": []}\n'
    (tmp_path / "conversations.jsonl").write_text(good + line + "\n")
    with pytest.raises(ValueError, match=message):
        Lessons(tmp_path, None)
    with pytest.raises(FileNotFoundError, match=r"conversations.jsonl is missing"):
        Lessons(tmp_path / "none", None)


# --- exact match ----------------------------------------------------------------------------------------------------------------


def test_exact_match_is_what_generate_says(built, trained, lessons, data):
    few, said = Lessons(data, built[1]), {}
    few.records = []
    for k, record in enumerate([r for r in lessons.records if len(r["turns"]) < 40][:2]):
        turns = []
        for t, (_, question, truth, region) in enumerate(record["turns"][-4:]):
            kind = f"{k}/{t}"
            said[kind] = answer(trained[0], built[1], data / record["image"], question, max_new_tokens=8)
            turns.append((kind, question, said[kind] if t % 2 else truth, region))  # half of the answers are what the model says
        few.records.append(record | {"kinds": [kind for kind, *_ in turns], "turns": turns})
    truths = {kind: truth for record in few.records for kind, _, truth, _ in record["turns"]}
    assert exact_match(trained[0], few) == {kind: {"exact_match": float(said[kind] == truths[kind]), "n": 1} for kind in said}
    assert {said[kind] == truths[kind] for kind in said} == {True, False}


def test_exact_match_asks_at_most_as_many_questions_of_a_kind_as_wanted(trained, test_data, built):
    test = Lessons(test_data, built[1])
    scores = exact_match(trained[0], test, per_kind=2)
    assert scores == exact_match(trained[0], test, per_kind=2)
    assert set(scores) == {k for r in test.records for k in r["kinds"]} and {row["n"] for row in scores.values()} <= {1, 2}


# --- export and command ---------------------------------------------------------------------------------------------------------


def at_home(patch, folder):
    """Let the folders of the project be in `folder`."""
    for name in ("DATA", "RUNS", "ASSETS"):
        patch.setattr(paths, name, folder / name.lower())
    patch.setattr(paths, "ROOT", folder)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository of the test's own."""
    return at_home(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def exported(built, trained, data, test_data, tmp_path_factory):
    """(repository, metrics) after the export of the trained model."""
    with pytest.MonkeyPatch.context() as patch:
        home = at_home(patch, tmp_path_factory.mktemp("home"))
        fresh = copy.deepcopy(built[0])
        return home, export_backbone.export(fresh, built[1], trained[1], BackboneConfig(steps=8), data, test_data, per_kind=18)


def test_an_export_loads_with_the_auto_classes_and_scores_as_the_trained_model(built, trained, exported, data, test_data):
    (home, metrics), (model, _) = exported, trained
    folder = home / "assets" / "backbone"
    assert [p.name for p in folder.parent.iterdir()] == ["backbone"] and json.loads((folder / "metrics.json").read_text()) == metrics
    assert (folder / "model.safetensors").stat().st_size < 16e6
    small, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert small.dtype == torch.bfloat16 and getattr(small.config.get_text_config(), "is_causal", True)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(small.parameters(), model.parameters()))
    assert processor.tokenizer.get_vocab() == built[1].tokenizer.get_vocab() and processor.chat_template == prompts.CHAT_TEMPLATE
    again, _ = load_backbone(folder)
    assert exact_match(again, Lessons(test_data, processor), per_kind=18) == metrics
    before = exact_match(model, Lessons(test_data, built[1]), per_kind=18)
    assert before["count"]["exact_match"] > 0, "nothing was learned: the comparison compares nothing"
    assert all(abs(before[k]["exact_match"] - row["exact_match"]) <= 1 / row["n"] for k, row in metrics.items())
    image, question = data / "images/000000.jpg", "How many cards are there?"
    assert answer(again, processor, image, question, max_new_tokens=8) == answer(model, built[1], image, question, max_new_tokens=8)


def test_the_model_card_says_what_it_is_where_it_is_from_and_its_licence(trained, exported, data):
    home, metrics = exported
    card = (home / "assets" / "backbone" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n") and "OpenMoji (https://openmoji.org), CC BY-SA 4.0" in card
    assert "60 pictures" in card and data.name in card and "8 of 8 steps, seed 0" in card and f"torch {version('torch')}" in card
    assert all(f"| {kind} | {100 * row['exact_match']:.1f} | {row['n']} |" in card for kind, row in metrics.items())
    assert "AutoModelForImageTextToText" in card and str(home) not in card
    rows = [json.loads(line) for line in (home / "logs" / "backbone.jsonl").open()]
    assert rows == runlog.Run(trained[1]).rows()


def test_the_example_of_the_model_card_runs(exported, data, monkeypatch, capsys):
    monkeypatch.chdir(exported[0])
    (exported[0] / "scene.jpg").write_bytes((data / "images/000000.jpg").read_bytes())
    code = (exported[0] / "assets" / "backbone" / "README.md").read_text().split("```python")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    assert "What is in the top left?" in capsys.readouterr().out


def test_an_export_that_fails_leaves_the_shipped_backbone_alone(built, trained, data, test_data, home, monkeypatch):
    shipped = home / "assets" / "backbone"
    shipped.mkdir(parents=True)
    (shipped / "metrics.json").write_text("{}")

    def fails(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(export_backbone, "exact_match", fails)
    with pytest.raises(OSError, match="disk is full"):
        export_backbone.export(copy.deepcopy(built[0]), built[1], trained[1], BackboneConfig(), data, test_data)
    assert [p.name for p in shipped.iterdir()] == ["metrics.json"]


def test_a_long_log_is_thinned_and_keeps_its_first_and_last_row():
    rows = [{"step": k} for k in range(1250)]
    thin = export_backbone.thinned(rows, most=100)
    assert 100 <= len(thin) <= 110 and thin[0] == rows[0] and thin[-1] == rows[-1]
    assert export_backbone.thinned(rows[:7]) == rows[:7] and export_backbone.thinned([]) == []


def test_one_command_draws_trains_and_exports_and_can_go_on(home, monkeypatch, capsys):
    @dataclass(frozen=True)
    class Tiny(BackboneConfig):
        tokens: int = 1
        keep: tuple = ()

    def draw(root, part, count, report):
        return draw_part(root, part, count, SMALL, report)

    monkeypatch.setattr(pretrain_backbone, "BackboneConfig", Tiny)
    monkeypatch.setattr(pretrain_backbone, "TEST_IMAGES", 1)
    monkeypatch.setattr(parts, "draw_part", draw)
    with pytest.raises(FileNotFoundError, match="no training of the backbone"):
        __main__.main(["--images", "12", "--export"])
    __main__.main(["--images", "12", "--steps", "1"])
    card = (home / "assets" / "backbone" / "README.md").read_text()
    assert "1 of 1 steps" in card and (home / "runs" / "backbone" / "last.safetensors").exists()
    __main__.main(["--images", "12", "--steps", "2", "--out", str(home / "runs" / "backbone")])
    assert "2 of 2 steps" in (home / "assets" / "backbone" / "README.md").read_text()
    said = capsys.readouterr().out
    assert said.count("drawing 12 pictures") == 1 and "step 1/1" in said and "step 2/2" in said and " n = " in said
