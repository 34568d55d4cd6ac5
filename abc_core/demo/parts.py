"""What the demo's page is made of: its look, a column of captions with a coloured picture, a found picture.

Controls are native elements with labels, so the Tab key reaches all of them; colours are JupyterLab's variables, which follow its theme.
"""

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from abc_core.data.pictures import open_image
from abc_core.demo.asking import Answer

STYLE = """<style>
.abc-demo { max-width: 1200px; padding: 4px; overflow: visible; color: var(--jp-ui-font-color1, #222); }
.abc-demo .abc-row { display: flex; flex-flow: row wrap; gap: 4px 12px; align-items: center; overflow: visible; }
.abc-demo .abc-row > * { flex: 1 1 250px; min-width: 0; max-width: 420px; }
.abc-demo .abc-top { display: grid; grid-template-columns: minmax(0, max-content) minmax(0, 1fr); gap: 8px 24px; }
@media (max-width: 760px) { .abc-demo .abc-top { grid-template-columns: 100%; } }
.abc-demo .abc-grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 8px 16px;
  align-items: end; }
.abc-demo.abc-busy .abc-grid { opacity: 0.5; transition: opacity 0.2s 0.4s; }
.abc-demo.abc-busy { cursor: progress; }
.abc-demo .abc-few { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px; }
.abc-demo :is(.abc-top, .abc-grid, .abc-few), .abc-demo :is(.abc-top, .abc-grid) > * { overflow: visible; min-width: 0; }
.abc-demo .jupyter-button { height: auto; min-height: 30px; line-height: 1.3; padding: 4px 8px; }
.abc-demo .abc-caption { width: 100%; margin: 1px 0; white-space: normal; overflow-wrap: anywhere; text-align: left; display: block; }
.abc-demo .jupyter-button:focus-visible, .abc-demo input:focus-visible, .abc-demo select:focus-visible {
  outline: 3px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.abc-demo .widget-dropdown > select { appearance: auto; background-image: none; }
.abc-demo .widget-label { color: var(--jp-ui-font-color1, #222); }
.abc-demo h4 { margin: 6px 0 4px; font-size: 14px; line-height: 1.3; color: var(--jp-ui-font-color0, #000); overflow-wrap: anywhere; }
.abc-demo p { margin: 2px 0; font-size: 13px; line-height: 1.4; color: var(--jp-ui-font-color1, #222); }
.abc-demo .abc-shown img { height: 150px; width: auto; object-fit: contain; }
.abc-demo img { max-width: 100%; border: 1px solid var(--jp-border-color2, #ccc); }
.abc-demo .abc-error { padding: 6px 10px; border-left: 4px solid var(--jp-error-color1, #b00020);
  background: var(--jp-layout-color2, #eee); font-weight: 600; }
.abc-demo .widget-html, .abc-demo .widget-html-content { height: auto; overflow: visible; }
</style>"""


class Column(widgets.VBox):
    """A title, captions as buttons, and the picture with its regions coloured.

    Args:
        top: how many captions. chosen: called with the caption whose button is pressed.
    """

    def __init__(self, top: int, chosen: Callable):
        self.title, self.map = widgets.HTML(), widgets.HTML()
        self.captions: list[str] = []
        self.buttons = [styled(widgets.Button(), "abc-caption") for _ in range(top)]
        for k, button in enumerate(self.buttons):
            button.on_click(lambda _, k=k: chosen(self.captions[k]))
        super().__init__([self.title, *self.buttons, self.map])

    def show(self, title: str, answer: Answer, right: str | None = None) -> None:
        """Fill in the title and the captions; `right` is the one that gets a mark."""
        self.title.value = f"<h4>{escape(title)}</h4>"
        self.captions = [caption for caption, _ in answer.found]
        for k, button in enumerate(self.buttons):
            button.layout.display = None if k < len(answer.found) else "none"
            if k < len(answer.found):
                caption, score = answer.found[k]
                button.description = f"{score:.2f}  {caption}" + ("  ✓" if caption == right else "")
                button.tooltip = f"Find pictures for: {caption}"

    def colour(self, heat: Image.Image, what: str) -> None:
        """Show the coloured picture; `what` its colours say."""
        self.map.value = f"<p>{what[0].upper() + what[1:]}:</p>{img(heat, f'The picture with its {what}')}"


class Found(widgets.HTML):
    """A picture that was found for a caption, or room for one."""

    def show(self, path: Path | None, score: float = 0.0) -> None:
        """Show the picture at a path, or nothing."""
        self.value = ""
        if path is not None:
            picture = open_image(path)
            picture.thumbnail((240, 240))
            self.value = f"{img(picture, f'Found picture {path.name}')}<p>{score:.2f} · {escape(path.name)}</p>"


def img(picture: Image.Image, words: str) -> str:
    """An HTML image with its words for those who do not see it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{code}">'


def styled(widget: widgets.Widget, name: str) -> widgets.Widget:
    """The widget, in one of the looks of `STYLE`."""
    return widget.add_class(name)


def row(*parts: widgets.Widget) -> widgets.Box:
    """Controls side by side, or one below the other where there is no room."""
    return styled(widgets.Box(parts), "abc-row")


def sentence(error: Exception) -> str:
    """What a visitor reads: the message of an error that says what cannot be done, or that something else went wrong."""
    text = str(error) or type(error).__name__
    if not isinstance(error, ValueError | OSError):
        text = f"That did not work, and the page goes on ({type(error).__name__}: {text})"
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def ms(seconds: float) -> str:
    """A short duration."""
    return f"{1000 * seconds:.0f} ms"
