"""demo: exact search, kept and checked; answers equal the embedder's; errors are sentences and the page goes on."""

import io
from datetime import UTC, datetime

import nbformat
import numpy as np
import pytest
import tiny
from PIL import Image

from abc_core.demo import examples, figure, serve
from abc_core.demo.asking import Demo
from abc_core.demo.examples import Example, draw_scene
from abc_core.demo.index import Index, build
from abc_core.demo.page import PROMPT, DemoPage
from abc_core.demo.regions import corners, grid_boxes, heat_map
from abc_core.miniature import words
from abc_core.miniature.world import World, pools
from abc_core.runs import paths
from abc_core.runs import run as runlog

CAPTIONS = ["an owl", "a blue cup on a card", "two red owls", "x", "an owl on a red card beside two blue cups", "a cup"]
QUESTIONS = {"what is on the left?": "an owl", "two blue cups": "a cup"}


def unit(rng, *shape) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- the index ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 1e-3])  # with little spread, int8 cannot tell thousands of entries apart
def test_the_search_finds_what_a_full_sort_in_float64_finds(spread):
    rng = np.random.default_rng(0)
    emb = unit(rng, 1, 64) + spread * unit(rng, 20_000, 64)
    emb = (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)
    index = Index(range(len(emb)), emb)
    for q in (*unit(rng, 5, 64), emb[77]):
        scores = emb.astype(np.float64) @ q
        found, cosines = zip(*index.nearest(q, 10))
        np.testing.assert_allclose(cosines, np.sort(scores)[::-1][:10], atol=1e-6)
        np.testing.assert_allclose(scores[list(found)], cosines, atol=1e-6)


def test_equal_entries_come_in_their_order_and_blank_ones_never():
    emb = np.array([[-1, 0], [0, 0], [-0.6, 0.8], [-1, 0]], dtype=np.float32)
    found = Index(list("abcd"), emb).nearest(np.array([1, 0], dtype=np.float32), 4)
    assert [entry for entry, _ in found] == ["c", "a", "d"]


def test_an_index_needs_as_many_entries_as_vectors():
    with pytest.raises(ValueError, match="3 entries and 2 vectors"):
        Index(["a", "b", "c"], np.eye(2, dtype=np.float32))


def test_faiss_is_asked_for_above_a_stated_size_only_and_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    emb = np.eye(4, dtype=np.float32)
    assert len(Index("abcd", emb, approximate_above=4)) == 4
    with pytest.raises(ModuleNotFoundError, match=r"4 entries are more than 3, .* install faiss-cpu, or leave"):
        Index("abcd", emb, approximate_above=3)


def test_faiss_finds_the_nearest_where_it_is_installed():
    pytest.importorskip("faiss")
    emb = unit(np.random.default_rng(0), 5_000, 32)
    index = Index(range(5_000), emb, approximate_above=1_000)
    hits = [index.nearest(emb[i], 1)[0] for i in range(0, 5_000, 500)]
    assert [entry for entry, _ in hits] == list(range(0, 5_000, 500))
    assert all(score == pytest.approx(1) for _, score in hits)


def test_captions_are_read_a_line_each_without_repeats(tmp_path):
    (tmp_path / "captions.txt").write_text("an owl \n\n a cup\nan owl\n")
    assert examples.read_captions(tmp_path / "captions.txt") == ["an owl", "a cup"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt holds no caption"):
        examples.read_captions(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not text in UTF-8"):
        examples.read_captions(tmp_path / "latin.txt")


@pytest.fixture(scope="module")
def abc():
    return tiny.with_lora("qwen2_vl", "instruct")


def test_an_index_is_kept_and_read_again_without_embedding(abc, runs, monkeypatch):
    built = build(abc, CAPTIONS)
    np.testing.assert_array_equal(built.emb, abc.embed(texts=CAPTIONS))
    monkeypatch.setattr(type(abc), "embed", lambda *_, **__: pytest.fail("embedded again"))
    np.testing.assert_array_equal(build(abc, CAPTIONS).emb, built.emb)
    assert len(list(runs.iterdir())) == 1


def test_another_model_or_other_entries_are_another_index(abc, runs):
    build(abc, CAPTIONS)
    build(abc, CAPTIONS[::-1])
    build(tiny.with_lora("qwen2_vl", "pretrain"), CAPTIONS)
    assert len(list(runs.iterdir())) == 3


def test_vectors_that_changed_on_the_disk_are_refused(abc, runs):
    build(abc, CAPTIONS)
    (file,) = runs.glob("captions-*/vectors.npy")
    vectors = np.load(file)
    vectors[0] = vectors[1]
    np.save(file, vectors)
    with pytest.raises(ValueError, match=r"vectors\.npy has changed since it was written .* delete"):
        build(abc, CAPTIONS)


def test_a_folder_of_pictures_is_indexed_and_what_is_no_picture_is_named_and_never_found(abc, runs, tmp_path):
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for k, picture in enumerate(tiny.pictures(3)):
        picture.save(folder / "deep" / f"{k}.PNG", "PNG")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("x")
    files, said = [e.picture for e in examples.of_folder(folder).values()], []
    assert [f.name for f in files] == ["broken.jpg", "0.PNG", "1.PNG", "2.PNG"]
    index = build(abc, files, said.append)
    assert "1 of 4 items are unreadable" in said[0] and "broken.jpg" in said[0]
    assert [p.name for p, _ in index.nearest(-index.emb[1], 4)][-1] == "0.PNG" and len(index.nearest(index.emb[1], 4)) == 3
    with pytest.raises(ValueError, match="holds no picture"):
        examples.of_folder(runs)


# --- a picture that is asked ----------------------------------------------------------------------------------------------------


@pytest.fixture
def demo(abc, tmp_path):
    files = []
    for k, picture in enumerate(tiny.pictures(3)):
        files.append(tmp_path / f"{k}.png")
        picture.save(files[-1])
    return Demo(abc, Index(CAPTIONS, abc.embed(texts=CAPTIONS)), Index(files, abc.embed(images=files)))


def test_answers_are_the_embedders_own(demo, abc):
    picture = tiny.pictures(2)[1]
    demo.show(picture)
    answers = demo.ask(*QUESTIONS, k=3)
    tiny.close(answers[0].emb, abc.embed(images=[picture])[0])
    tiny.close(np.stack([a.emb for a in answers[1:]]), abc.embed(images=[picture], instructions=[list(QUESTIONS)]))
    assert [a.instruction for a in answers] == [None, *QUESTIONS] and all(len(a.found) == 3 for a in answers)
    assert demo.seconds.keys() == {"see", "ask", "search"}


def test_visual_tokens_are_computed_once_for_a_picture_and_number(demo, abc, monkeypatch):
    seen = []
    see = type(abc).see
    monkeypatch.setattr(type(abc), "see", lambda self, images: seen.append(1) or see(self, images))
    demo.show(tiny.pictures(1)[0])
    own = demo.visual_tokens
    demo.ask("where")
    demo.ask("what", "how")
    demo.use_visual_tokens(16)
    fewer = demo.ask("where")[1].emb
    assert demo.visual_tokens == 16 != own and len(seen) == 2
    demo.use_visual_tokens(None)
    assert len(seen) == 2 and demo.visual_tokens == own
    assert np.abs(fewer - demo.ask("where")[1].emb).max() > 1e-3
    tiny.close(demo.ask()[0].emb, abc.embed(images=tiny.pictures(1))[0])  # the embedder's own bounds are untouched


def test_a_caption_finds_pictures(demo, abc):
    found = demo.pictures_for("a cup", 2)
    best = np.argsort(-(demo.pictures.emb @ abc.embed(texts=["a cup"])[0]))[:2]
    assert [path for path, _ in found] == [demo.pictures.entries[i] for i in best]


def test_the_heat_map_compares_with_the_crops(demo, abc):
    picture = tiny.pictures(1)[0].resize((90, 60))
    demo.show(picture)
    answer = demo.ask("where")[1]
    crop = picture.crop((60, 20, 90, 40))  # the second row's last
    heat = demo.heat(answer)
    assert heat.shape == (9,) and heat[5] == pytest.approx(float(abc.embed(images=[crop])[0] @ answer.emb), abs=1e-5)
    demo.show(picture, boxes=[(60, 20, 30, 20)])
    assert demo.heat(answer) == pytest.approx(heat[5:6], abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (100, 3), (168, 168)])
def test_regions_of_any_picture_have_a_pixel_and_lie_inside(size):
    boxes = grid_boxes(Image.new("RGB", size))
    assert len(boxes) == 9
    for box in (*boxes, (-5, -5, 3, 3), (1e4, 1e4, 5, 5), (-9, 0, 1e5, 0.2)):
        left, upper, right, lower = corners(box, size)
        assert 0 <= left < right <= size[0] and 0 <= upper < lower <= size[1]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "“cat.png” cannot be read as a picture: it is none of JPEG, PNG"),
        (b"", "“cat.png” cannot be read as a picture"),
        (png(8000, 5000), "“cat.png” cannot be read as a picture: 8000 x 5000 pixels are more than the limit of 30,000,000"),
        (png(300, 300)[:60], "“cat.png” cannot be read as a picture"),
    ],
    ids=["text", "nothing", "40 megapixels", "half"],
)
def test_what_is_no_picture_is_refused_by_its_name_and_the_one_before_stays(demo, content, message):
    before = tiny.pictures(1)[0]
    demo.show(before)
    with pytest.raises(ValueError, match=message) as caught:
        demo.show(content, "cat.png")
    assert "BytesIO" not in str(caught.value)
    assert demo.image == before


def test_what_cannot_be_asked_is_said(demo):
    with pytest.raises(ValueError, match="there is no picture yet"):
        demo.ask()
    demo.show(tiny.pictures(1)[0])
    with pytest.raises(ValueError, match="the instruction is empty"):
        demo.ask("where", " ")
    with pytest.raises(ValueError, match="the caption is empty"):
        demo.pictures_for("")


def test_a_model_without_stage_two_answers_only_without_an_instruction(demo):
    stage1 = tiny.with_lora("qwen2_vl", "pretrain")
    one = Demo(stage1, demo.captions)
    one.show(tiny.pictures(1)[0])
    tiny.close(one.ask()[0].emb, stage1.embed(images=tiny.pictures(1))[0])
    with pytest.raises(ValueError, match=r"no stage-2 adapter, .* notebooks/03_instruction_tuning"):
        one.ask("where")


def test_a_new_scene_can_be_asked_about_what_is_known(runs):
    world = World(glyphs=40)
    known = [words.caption(m) for m in pools(world).held_out][:100]
    one, other = (draw_scene(np.random.default_rng(seed), known, world) for seed in (0, 1))
    assert one.picture.size == (168, 168) and len(one.asked) > 5 and set(one.asked.values()) <= set(known)
    assert 5 <= len(one.boxes) <= 7 and one.picture != other.picture


# --- the page -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def view(demo):
    choices = {f"picture {k}": Example(p, QUESTIONS if k != 2 else {}) for k, p in enumerate(tiny.pictures(3))}
    return DemoPage(demo, choices, lambda: Example(tiny.pictures(4)[3], {"what is new?": "x"}), top=3)


def upload(name: str, content: bytes) -> tuple:
    return ({"name": name, "type": "", "size": len(content), "content": content, "last_modified": datetime.now(UTC)},)


def titles(view) -> list[str]:
    return [c.title.value for c in view.columns if c.layout.display != "none"]


def shown(view) -> list[list[str]]:
    return [[b.description for b in c.buttons] for c in view.columns]


def test_the_page_opens_with_a_picture_asked_in_two_ways(view):
    assert titles(view) == ["<h4>Picture alone</h4>", *(f"<h4>“{q}”</h4>" for q in QUESTIONS)]
    assert view.message.value == "" and "visual tokens in" in view.times.value
    right = [b for b in view.columns[1].buttons if "✓" in b.description]
    assert [b.description[6:] for b in right] in ([], ["an owl  ✓"])


def test_typing_an_instruction_changes_its_column_alone(view):
    before = shown(view), view.columns[2].map.value
    view.first.value = "two blue cups on a card"
    after = shown(view)
    assert after[0] == before[0][0] and after[1] != before[0][1] and after[2] == before[0][2]
    view.second_choice.value = "what is on the left?"
    assert view.second.value == "what is on the left?" and view.columns[2].map.value != before[1]
    view.second.value = ""
    assert len(titles(view)) == 2


def test_an_empty_instruction_is_a_sentence_and_the_next_one_clears_it(view):
    before = shown(view)
    view.first.value = "  "
    assert "The instruction is empty: type one, or choose one." in view.message.value and 'role="alert"' in view.message.value
    assert shown(view) == before
    view.first.value = "where"
    assert view.message.value == "" and titles(view)[1] == "<h4>“where”</h4>"


def test_an_upload_is_shown_or_refused_and_the_page_goes_on(view):
    before = shown(view)
    view.upload.value = upload("<b>notes</b>.txt", b"hello")
    assert "“&lt;b&gt;notes&lt;/b&gt;.txt” cannot be read as a picture" in view.message.value
    assert shown(view) == before and view.upload.value == ()
    view.upload.value = upload("grey.png", png(90, 90))
    assert view.message.value == "" and shown(view)[0] != before[0]
    assert len(titles(view)) == 3  # asked what was asked before
    assert view.first_choice.options == (PROMPT,) and view.choice.value is None
    view.choice.value = "picture 0"
    assert view.message.value == "" and view.first_choice.options == (PROMPT, *QUESTIONS)


def test_a_new_scene_brings_its_own_instructions(view):
    view.new.click()
    assert view.first.value == "what is new?" and view.second.value == "" and len(titles(view)) == 2


def test_a_picture_without_instructions_of_its_own_keeps_the_last_ones(view):
    view.choice.value = "picture 2"
    assert view.message.value == "" and len(titles(view)) == 3


def test_a_caption_that_is_clicked_finds_pictures(view):
    view.columns[1].buttons[0].click()
    assert view.caption.value == view.columns[1].captions[0]
    assert f"Pictures for “{view.caption.value}”" in view.found_title.value
    assert sum("<img" in f.value for f in view.found) == 3
    view.caption.value = ""
    assert "The caption is empty" in view.message.value


def test_the_slider_changes_the_number_of_visual_tokens(view):
    view.tokens.value = 16
    assert "16 visual tokens" in view.times.value and view.message.value == ""


def test_what_nobody_foresaw_is_a_sentence_too(view, monkeypatch):
    monkeypatch.setattr(view.demo, "ask", lambda *_, **__: 1 / 0)
    view.first.value = "where"
    assert "That did not work, and the page goes on (ZeroDivisionError: division by zero)." in view.message.value


def test_a_page_of_a_model_without_stage_two_shows_the_picture_alone_and_says_why(demo):
    blind = Demo(tiny.with_lora("qwen2_vl", "pretrain"), demo.captions, demo.pictures)
    view = DemoPage(blind, {"one": Example(tiny.pictures(1)[0], QUESTIONS), "two": Example(tiny.pictures(2)[1])})
    assert titles(view) == ["<h4>Picture alone</h4>"] and "no stage-2 adapter" in view.message.value
    before = view.columns[0].map.value
    view.choice.value = "two"
    assert "no stage-2 adapter" in view.message.value and view.columns[0].map.value != before


def test_every_control_has_a_name_and_a_hint(view):
    for control in (view.choice, view.upload, view.new, view.first, view.second, view.first_choice, view.tokens, view.caption):
        assert control.description and control.tooltip, control
    for image in [c.map.value for c in view.columns]:
        assert 'alt="The picture with its' in image


def test_a_heat_map_marks_the_largest_region():
    white, values = Image.new("RGB", (168, 168), "white"), np.zeros(9, dtype=np.float32)
    values[6] = 0.5
    drawn = np.asarray(heat_map(white, grid_boxes(white), values, signed=True, side=300)).astype(int)
    assert drawn.shape == (300, 300, 3)
    assert drawn[250, 50, 2] < 120 < 240 < drawn[50, 150, 2]  # orange below on the left, white above in the middle


def test_the_figure_shows_every_answer_and_the_rows_say_what_was_drawn(demo):
    demo.show(tiny.pictures(1)[0])
    answers = demo.ask(*QUESTIONS, k=3)
    seconds = {"embed": [0.1, 0.2, 0.3], "find": [0.001]}
    rows = figure.rows_of(answers, QUESTIONS, seconds)
    assert len(rows) == 3 * 3 + 4 and rows[-1] == {"part": "find", "ms": 1.0}
    fig = figure.plot_demo(answers, [demo.image] * 3, QUESTIONS, seconds)
    said = " ".join(t.get_text() for axis in fig.axes for t in axis.texts)
    assert "Picture alone" in said and "“two blue cups”" in said and "200 ms" in said


@pytest.fixture
def checkpoint(tmp_path):
    """A file that stands for a model."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_the_served_notebook_has_the_code_as_far_as_the_page_and_one_text(runs, checkpoint):
    runlog.publish("smoke", "abc", checkpoint)
    path = serve.page_notebook("smoke", own_captions="mine.txt")
    cells = nbformat.read(path, as_version=4).cells
    texts, codes = (["".join(c.source) for c in cells if c.cell_type == kind] for kind in ("markdown", "code"))
    assert path.is_relative_to(paths.RUNS) and texts[0] == serve.TITLE and texts[1].startswith("**The page.**") and len(texts) == 2
    assert any('profile = "smoke"' in code and 'own_captions = "mine.txt"' in code for code in codes)
    assert "DemoPage(" in codes[-1] and not any("assert " in code for code in codes)


def test_what_cannot_be_served_is_said(runs, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: name)  # whether or not Voilà is installed here
    with pytest.raises(SystemExit, match=r"run notebooks/03_instruction_tuning\.ipynb"):
        serve.main("smoke")
    with pytest.raises(SystemExit, match="has no parameter 'own_picture'; it has profile, weights"):
        serve.main("own_picture=here")
    with pytest.raises(SystemExit, match="unknown profile 'smok'"):
        serve.main("smok")
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="Voilà is not installed; `make demo` installs it"):
        serve.main()


def test_weights_parameters_and_options_are_handed_on(runs, monkeypatch):
    called = []
    monkeypatch.setattr(serve, "find_spec", lambda name: name)
    monkeypatch.setattr(serve.os, "execv", lambda program, words: called.extend(words))
    serve.main("smoke", "weights=runs/instruct-0", "top=3", "--no-browser")
    text = "".join(cell.source for cell in nbformat.read(called[3], as_version=4).cells)
    assert called[1:3] == ["-m", "voila"] and called[-1] == "--no-browser"
    assert 'weights = "runs/instruct-0"' in text and "top = 3" in text
