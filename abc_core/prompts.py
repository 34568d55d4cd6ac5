"""The text around pictures, instructions and captions: the backbone's own chat template, cut into pieces.

For Qwen2-VL the pieces are the strings of the authors' code (a test compares): a system turn, then in the user's turn the picture,
`Instruction: …` after it (only ever with a picture), and an opened assistant turn. The paper (Sec. 3.2) puts the instruction after the
image tokens; its template was lost in print.

What users write is tokenised as plain text: a special token typed inside an instruction or a caption stays text.
"""

import re

IM_START, IM_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END, IM_START, IM_END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD)

SYSTEM = f"{IM_START}system\nYou are a helpful assistant.{IM_END}\n{IM_START}user\n"
BEFORE_IMAGE, AFTER_IMAGE = SYSTEM + VISION_START, VISION_END
BEFORE_ANSWER = f"{IM_END}\n{IM_START}assistant\n"
INSTRUCTION = "Instruction: "
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARK = "\ue000"  # a private-use character that stands for the user's words while the template is cut


class Prompts:
    """Token ids of the three kinds of prompt: a text, a picture, a picture with an instruction."""

    def __init__(self, processor):
        self.tokenizer = processor.tokenizer
        self.image_token = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        render = lambda content: processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)  # noqa: E731
        words = {"type": "text", "text": _MARK}
        before, after = render([words]).split(_MARK)
        self._before_text, self._after = self._template(before, first=True), self._template(after)
        before, after = render([{"type": "image"}, words]).split(processor.image_token)
        self._before_image, self._after_image = self._template(before, first=True), self._template(after.split(_MARK)[0])

    def text(self, text: str) -> list[int]:
        """Ids of a caption in the user's turn."""
        return self._before_text + self._words(text) + self._after

    def words_of(self, text: str) -> slice:
        """Where a caption's own words are among the ids of `text`."""
        return slice(len(self._before_text), len(self._before_text) + len(self._words(text)))

    def image(self, placeholder: str, instruction: str | None = None) -> list[int]:
        """Ids of a picture in the user's turn, with an instruction after it if there is one."""
        said = self._words(INSTRUCTION + instruction) if instruction is not None else []
        return self._before_image + self._template(placeholder) + self._after_image + said + self._after

    def question(self, placeholder: str, words: str) -> list[int]:
        """Ids of a picture and a question to a generative backbone, without "Instruction: "."""
        return self._before_image + self._template(placeholder) + self._after_image + self._words(words) + self._after

    def _template(self, text: str, first: bool = False) -> list[int]:
        """Ids of a piece of template; the first piece begins as the tokenizer begins a text (LLaVA-NeXT: with <s>), but not twice."""
        begun = text.startswith(self.tokenizer.bos_token or "\0")
        return self.tokenizer(text, add_special_tokens=first and not begun)["input_ids"]

    def _words(self, text: str) -> list[int]:
        return plain_ids(self.tokenizer, text)


def plain_ids(tokenizer, text: str) -> list[int]:
    """Ids of a user's words: none of a special token, nor of an added one of the form <…> (Qwen2.5's <tool_call> is not special)."""
    parts = [text]  # cut within the added ones, which nothing then matches
    for mark in tokenizer.get_added_vocab() if "<" in text else ():
        if mark[0] == "<" and mark[-1] == ">" and mark in text and mark not in tokenizer.all_special_tokens:
            parts = [piece for part in parts for piece in re.split(f"(?<=<)(?={re.escape(mark[1:])})", part)]
    return [i for part in parts for i in tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
