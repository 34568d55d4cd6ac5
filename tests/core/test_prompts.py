"""Prompts: the authors' strings for Qwen2-VL, each backbone's own template, and users' words that stay words."""

import pytest
import tiny

from abc_core.prompts import CHAT_TEMPLATE, SPECIAL_TOKENS, Prompts

families = pytest.mark.parametrize("family", tiny.FAMILIES)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # the authors' strings, written out
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"


def prompts(family: str) -> Prompts:
    return Prompts(tiny.build(family)[1])


def test_qwen2_vl_prompts_are_the_authors_strings():
    made = prompts("qwen2_vl")
    expected = {
        SYSTEM + USER + "two blue cups" + ASSISTANT: made.text("two blue cups"),
        SYSTEM + USER + PICTURE + ASSISTANT: made.image("<|image_pad|>" * 4),
        SYSTEM + USER + PICTURE + "Instruction: what is red?" + ASSISTANT: made.image("<|image_pad|>" * 4, "what is red?"),
    }
    for string, ids in expected.items():
        assert made.tokenizer.decode(ids) == string
        assert ids == made.tokenizer(string, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("text", ["an owl", "(two) cups, 3 cards?!", "ein Käuzchen 🦉", "an  owl\n\n on a card"])
def test_a_prompt_has_the_tokens_that_the_backbones_own_chat_gives(family, text):
    processor = tiny.build(family)[1]
    made = Prompts(processor)

    def chat(*content):
        rendered = processor.apply_chat_template([{"role": "user", "content": list(content)}], add_generation_prompt=True)
        return processor.tokenizer(rendered)["input_ids"]

    assert made.text(text) == chat({"type": "text", "text": text})
    assert made.image(processor.image_token, text) == chat({"type": "image"}, {"type": "text", "text": f"Instruction: {text}"})


@families
def test_special_tokens_that_a_user_types_stay_text(family):
    made = prompts(family)
    special = set(made.tokenizer.get_added_vocab()) - {"<unk>"}
    assert made.tokenizer.convert_ids_to_tokens(made.image_token) in special
    before = made.text("an owl")
    for token in special:
        typed = f"an {token}owl {token}"
        ids = made.text(typed)
        assert all(ids.count(i) == before.count(i) for i in made.tokenizer.added_tokens_decoder), token
        assert typed in made.tokenizer.decode(ids)
        assert made.image("", typed).count(made.image_token) == 0
        assert made.text("an owl") == before  # nothing sticks


@families
def test_a_picture_has_one_image_token_per_visual_token(family):
    made = tiny.embedder(family)
    visual = made.see(tiny.pictures())
    for placeholder, tokens in zip(visual.placeholders, visual.outputs.pooler_output, strict=True):
        assert made.prompts.image(placeholder, "what").count(made.prompts.image_token) == len(tokens)


@families
def test_the_word_instruction_comes_only_with_a_picture_that_is_asked_about(family):
    made = prompts(family)
    assert "Instruction: what is red" in made.tokenizer.decode(made.image("", "what is red"))
    assert "Instruction" not in made.tokenizer.decode(made.image("")) + made.tokenizer.decode(made.text("what is red"))


@families
def test_a_prompt_begins_as_the_tokenizer_begins_a_text_and_only_once(family):
    processor = tiny.build(family)[1]
    begin = [processor.tokenizer.bos_token_id] if family == "llava_next" else []
    for template in (processor.chat_template, "<s>" * len(begin) + processor.chat_template):
        processor.chat_template = template
        for ids in (Prompts(processor).text("an owl"), Prompts(processor).image("")):
            assert ids[: len(begin)] == begin and ids.count(processor.tokenizer.bos_token_id) == len(begin)


def test_the_shipped_chat_template_renders_system_user_and_answer():
    processor = tiny.build("qwen2_vl")[1]
    assert processor.chat_template == CHAT_TEMPLATE and set(SPECIAL_TOKENS) <= set(processor.tokenizer.get_added_vocab())
    asked = [{"type": "image"}, {"type": "text", "text": "what?"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "an owl"}]
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert processor.apply_chat_template(turns) == f"{SYSTEM}{USER}{shown}what?<|im_end|>\n<|im_start|>assistant\nan owl<|im_end|>\n"
