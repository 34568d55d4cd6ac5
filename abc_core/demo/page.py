"""The page of the retrieval demo, of ipywidgets: for JupyterLab and for Voilà (`make demo`).

(1) controls: which picture, which instructions, how many visual tokens; (2) a column each for the picture alone, under the first and under
the second instruction: captions, which are buttons, and what the vector resembles; (3) pictures for a caption.

Every action goes through `DemoPage._try`: what goes wrong appears as a sentence, and the page shows what it showed before.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape

import ipywidgets as widgets

from abc_core.demo.asking import Answer, Demo
from abc_core.demo.examples import Example
from abc_core.demo.parts import STYLE, Column, Found, img, ms, row, sentence, styled
from abc_core.demo.regions import heat_map

TOKENS = [("own", 0), *((str(n), n) for n in (4, 9, 16, 25, 36, 64, 100, 144))]  # visual tokens that can be asked for; own: the model's
PROMPT = "a suggested one …"


class DemoPage(widgets.VBox):
    """The page around a `Demo`.

    Args:
        examples: by name; the first one is shown at the start.
        draw: () -> Example, a new picture at each call; None: no such button.
        top: how many captions and pictures are listed.
    """

    def __init__(self, demo: Demo, examples: Mapping[str, Example], draw: Callable | None = None, top: int = 5):
        self.demo, self.examples, self.draw, self.top = demo, dict(examples), draw, top
        self.right: dict[str, str] = {}  # instruction -> right caption of the picture that is shown, where it is known
        self._quiet = False  # controls are being set by the page itself
        self._make_controls()
        self.columns = [Column(top, lambda caption: self._try(self.search, caption)) for _ in range(3)]
        self.found = [Found() for _ in range(top)]
        self.found_title = widgets.HTML()
        controls = [
            row(self.choice, self.upload, *([self.new] if draw else [])),
            row(self.first, self.first_choice),
            row(self.second, self.second_choice),
            row(self.tokens, self.times),
        ]
        rows = [
            styled(widgets.Box([self.shown, widgets.VBox(controls)]), "abc-top"),
            self.message,
            styled(widgets.Box(self.columns), "abc-grid"),
            row(self.caption),
            self.found_title,
            styled(widgets.Box(self.found), "abc-few"),
        ]
        super().__init__([widgets.HTML(STYLE), *rows])
        self.add_class("abc-demo")
        self._try(self.show_example, next(iter(self.examples)))

    def _make_controls(self) -> None:
        wide = {"style": {"description_width": "110px"}, "layout": {"width": "auto"}}
        self.choice = widgets.Dropdown(options=list(self.examples), description="Picture", tooltip="Choose a picture", **wide)
        self.upload = widgets.FileUpload(accept="image/*", description="Upload a picture", tooltip="Ask about a picture of yours")
        self.new = widgets.Button(description="Draw a new scene", icon="refresh", tooltip="A scene of drawn cards that nobody has seen")
        asked = {"continuous_update": False, "placeholder": "Type an instruction, then Enter", **wide}
        chosen = {"options": [PROMPT], **wide}
        self.first = widgets.Text(description="Instruction", tooltip="The first instruction", **asked)
        self.second = widgets.Text(description="Compare with", tooltip="The second instruction, which may be left out", **asked)
        self.first_choice = widgets.Dropdown(description="or choose", tooltip="Choose the first instruction", **chosen)
        self.second_choice = widgets.Dropdown(description="or compare", tooltip="Choose the second instruction", **chosen)
        self.tokens = widgets.SelectionSlider(
            options=TOKENS, description="Visual tokens", continuous_update=False, tooltip="How many tokens the picture becomes", **wide
        )
        self.caption = widgets.Text(
            description="Caption", tooltip="Find pictures for a caption", **asked | {"placeholder": "Type a caption, or choose one above"}
        )
        self.message, self.times, self.shown = widgets.HTML(), widgets.HTML(), styled(widgets.HTML(), "abc-shown")
        self.choice.observe(lambda change: self._told(self.show_example, change["new"]), "value")
        self.upload.observe(lambda change: self._told(self.show_upload, change["new"]), "value")
        self.new.on_click(lambda _: self._try(self.show_new))
        for text, choice in ((self.first, self.first_choice), (self.second, self.second_choice)):
            text.observe(lambda change: self._told(self.ask), "value")
            choice.observe(lambda change, text=text: self._told(self._chosen, text, change["new"]), "value")
        self.tokens.observe(lambda change: self._told(self.use_visual_tokens, change["new"] or None), "value")
        self.caption.observe(lambda change: self._told(self.search, change["new"]), "value")

    # --- what a visitor does ------------------------------------------------------------------------------------------------------

    def show_example(self, name: str) -> None:
        """Look at one of the examples."""
        self._show(self.examples[name], name)

    def show_upload(self, files) -> None:
        """Look at an uploaded file, of those that `FileUpload` holds."""
        for file in files:
            self._set(self.upload, ())  # so that the same file can be sent again
            self._show(Example(bytes(file["content"])), file["name"])

    def show_new(self) -> None:
        """Look at a newly drawn scene."""
        self._show(self.draw(), "the new scene")

    def _show(self, example: Example, name: str) -> None:
        """Look at a picture; with its own instructions, or with those that were asked before."""
        self.demo.show(example.picture, name, example.boxes)
        self.right = asked = example.asked
        picture = self.demo.image.copy()
        picture.thumbnail((480, 480))
        self.shown.value = img(picture, f"The picture that is asked about: {name}")
        self._set(self.choice, name if name in self.examples else None)
        if asked:
            self._set(self.first, next(iter(asked)))
            self._set(self.second, [*asked, ""][1])
        for choice in (self.first_choice, self.second_choice):
            self._set(choice, [PROMPT, *asked], "options")
        self._hide(0)
        self._again()

    def _chosen(self, text: widgets.Text, instruction: str) -> None:
        if instruction != PROMPT:
            self._set(text, instruction)
            self.ask()

    def ask(self) -> None:
        """Show what the picture retrieves alone, and under the one or two instructions; then which regions it resembles."""
        start = time.perf_counter()
        answers = self._alone()
        try:
            answers += self.demo.ask(self.first.value, *filter(str.strip, [self.second.value]), k=self.top)[1:]
            for column, answer in zip(self.columns[1:], answers[1:]):
                column.show(f"“{answer.instruction}”", answer, self.right.get(answer.instruction))
            self._hide(len(answers) - 1)
            took = self.demo.seconds | {"answer": time.perf_counter() - start}
            self.times.value = (
                f'<p role="status">{self.demo.visual_tokens} visual tokens in {ms(took["see"])}; {len(answers)} answers in '
                f"{ms(took['answer'])}, {ms(took['search'])} of it the search among {len(self.demo.captions):,} captions</p>"
            )
        finally:
            self._colour(answers)

    def _again(self) -> None:
        """Ask what stands in the controls, or show the picture alone if there is nothing."""
        if self.first.value.strip():
            self.ask()
        else:
            self._colour(self._alone())

    def _alone(self) -> list[Answer]:
        """Show what the picture retrieves alone."""
        answers = self.demo.ask(k=self.top)
        self.columns[0].show("Picture alone", answers[0])
        return answers

    def _colour(self, answers: Sequence[Answer]) -> None:
        """Colour the picture alone by its similarities, the others by how these differ from it."""
        image, boxes, heats = self.demo.image, self.demo.boxes, [self.demo.heat(answer) for answer in answers]
        self.columns[0].colour(heat_map(image, boxes, heats[0]), "similarity to each region")
        for column, heat in zip(self.columns[1:], heats[1:]):
            column.colour(heat_map(image, boxes, heat - heats[0], signed=True), "how the instruction moved it, by region")

    def _hide(self, answered: int) -> None:
        """Hide the columns of instructions behind the first `answered` ones."""
        for k, column in enumerate(self.columns[1:]):
            column.layout.display = None if k < answered else "none"

    def use_visual_tokens(self, count: int | None) -> None:
        """Look at the picture with another number of visual tokens."""
        self.demo.use_visual_tokens(count)
        self._again()

    def search(self, caption: str) -> None:
        """Show pictures for a caption."""
        found = self.demo.pictures_for(caption, self.top)
        self._set(self.caption, caption)
        took = ms(self.demo.seconds["pictures"])
        self.found_title.value = f"<h4>Pictures for “{escape(caption)}”</h4><p>of {len(self.demo.pictures):,}, each alone, in {took}</p>"
        for k, place in enumerate(self.found):
            place.show(*found[k] if k < len(found) else (None,))

    # --- what keeps the page going ------------------------------------------------------------------------------------------------

    def _try(self, action: Callable, *args) -> None:
        """Do what a visitor asked for; whatever goes wrong becomes a sentence."""
        self.message.value = ""
        self.add_class("abc-busy")
        try:
            action(*args)
        except Exception as error:  # of any kind: a page must not end
            self.message.value = f'<p class="abc-error" role="alert">{escape(sentence(error))}</p>'
        finally:
            self.remove_class("abc-busy")

    def _told(self, action: Callable, *args) -> None:
        """`_try`, unless the page itself changed the control."""
        if not self._quiet:
            self._try(action, *args)

    def _set(self, control: widgets.Widget, value, name: str = "value") -> None:
        """Change a control without an action."""
        self._quiet = True
        try:
            setattr(control, name, value)
        finally:
            self._quiet = False
