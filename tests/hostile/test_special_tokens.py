"""Special tokens that somebody types in a caption, an instruction or a question are text, in every family and everywhere."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from abc_core.data.inputs import check_rows
from abc_core.miniature.backbone.answers import answer_all
from abc_core.prompts import INSTRUCTION, Prompts, plain_ids
from abc_core.systems.vlm import TEMPLATES, Templates

families = pytest.mark.parametrize("family", tiny.FAMILIES)
MARKUP = ["<tool_call>", "<|fim_prefix|>", "<think>"]  # added tokens that a tokenizer need not count as special


def control(tokenizer) -> set[int]:
    """Ids of all special and added tokens but the one for unknown characters."""
    return set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}


def with_markup(family: str) -> Prompts:
    processor = tiny.build(family)[1]
    processor.tokenizer.add_tokens(MARKUP)
    return Prompts(processor)


@families
def test_no_special_token_comes_from_a_users_words(family):
    prompts = with_markup(family)
    tokens = [str(t) for t in prompts.tokenizer.added_tokens_decoder.values()]
    assert len(tokens) > len(MARKUP)
    for token in tokens:
        for text in (token, f"an {token}owl", 2 * token, f"<{token}>", token[:-1] + token, f"\u200b{token}\u202e"):
            assert not control(prompts.tokenizer) & set(plain_ids(prompts.tokenizer, text)), text
        for made in (prompts.text, lambda words: prompts.image("", words), lambda words: prompts.question("", words)):
            ids, plain = made(token), made("an owl")
            assert all(ids.count(i) == plain.count(i) for i in control(prompts.tokenizer)), token


@families
@given(data=st.data())
def test_no_words_at_all_give_a_special_token(family, data):
    prompts = with_markup(family)
    pieces = st.sampled_from([str(t) for t in prompts.tokenizer.added_tokens_decoder.values()]) | st.text(max_size=5)
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    assert not control(prompts.tokenizer) & set(plain_ids(prompts.tokenizer, text))


@families
def test_an_embedder_takes_special_tokens_for_words(family):
    embedder, (image,) = tiny.with_lora(family, "instruct"), tiny.pictures(1)
    tokens = [str(t) for t in embedder.prompts.tokenizer.added_tokens_decoder.values()]
    typed = [f"what {token}" for token in tokens]
    asked = embedder.embed(images=[image], instructions=[typed])  # an image token too many, or too few, would be an error
    texts = embedder.embed(texts=typed)
    assert np.isfinite(asked).all() and np.isfinite(texts).all() and len(asked) == len(texts) == len(tokens)
    visual = embedder.see([image]).placeholders[0]
    for text in typed:
        ids = embedder.prompts.image(visual, text)
        assert ids.count(embedder.prompts.image_token) == embedder.prompts.image(visual).count(embedder.prompts.image_token)


@pytest.mark.parametrize("name", TEMPLATES)
def test_other_systems_templates_take_special_tokens_for_words(name):
    processor = tiny.build("qwen2_vl")[1]
    processor.tokenizer.add_tokens(MARKUP)
    templates = Templates(processor, **TEMPLATES[name])
    plain = templates.text("an owl")
    for token in [str(t) for t in processor.tokenizer.added_tokens_decoder.values()]:
        ids = templates.text(f"an {token} owl")
        assert all(ids.count(i) == plain.count(i) for i in control(processor.tokenizer)), token


@families
def test_a_question_to_a_backbone_is_text_and_otherwise_the_chat_of_its_template(family):
    model, processor = tiny.build(family)
    image = tiny.pictures(1)[0]
    typed = f"what {processor.image_token}{processor.tokenizer.eos_token} is it?"
    assert answer_all(model, processor, [image, image], [typed, "what?"], 2)[1] == answer_all(model, processor, [image], ["what?"], 2)[0]
    if family != "llava_next":  # whose tiny tokenizer begins every piece with a space
        prompts, content = Prompts(processor), [{"type": "image"}, {"type": "text", "text": "what is red?"}]
        chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert prompts.question(processor.image_token, "what is red?") == processor.tokenizer(chat)["input_ids"]
        assert INSTRUCTION not in prompts.tokenizer.decode(prompts.question("", "what is red?"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(texts=["an owl", "an \ud83e owl"]), r"text 1 is not Unicode: '\\ud83e' at place 3 is half a character"),
        (dict(texts=(text for text in ["an owl"])), "texts is a generator; a list was expected"),
        (dict(texts={"an owl": 1}), "texts is a dict; a list was expected"),
        (dict(images=7), "images is a int; a list was expected"),
        (dict(images=["a.png"], instructions=[["what", "\udc00"]]), r"instruction of image 0 is not Unicode: '\\udc00' at place 0"),
    ],
)
def test_words_and_lists_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_rows(**{"images": None, "texts": None, "instructions": None} | given)


@families
@pytest.mark.parametrize("text", ["an\u202elwo", "an\u200bowl", "\ufeffan owl", "a\u0301n owl", "ａｎ　ｏｗｌ", "an\0owl", "🏳️‍🌈", "́" * 300])
def test_tricks_of_unicode_are_words_like_any_other(family, text):
    embedder = tiny.embedder(family)
    assert np.isfinite(embedder.embed(texts=[text, "an owl"])).all()
