"""The executed notebooks of a profile as a small website, to be read without Jupyter: `make html`.

Steps of `build`: (1) `page` has nbconvert turn an executed copy into HTML, with its pictures as files; (2) `redirected` links lead to other
pages, or, where a notebook was not executed, to the index, which names the command that does it; (3) `index` has a title, a question and
small pictures of each notebook, and the scoreboard as a table.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from abc_core.reproduce import profiles
from abc_core.reproduce import run as notebooks
from abc_core.runs import paths

SITE = paths.ROOT / "site"
THUMBNAIL = (340, 230)  # pixels, at most
WIDGET = "application/vnd.jupyter.widget-view+json"  # bars of progress, which need a kernel
STYLE = """
body { max-width: 62rem; margin: 0 auto; padding: 1rem; font: 16px/1.55 system-ui, sans-serif; color: #222; }
a { color: #0a5a8f; } nav { display: flex; gap: 1.5rem; flex-wrap: wrap; border-bottom: 1px solid #ddd; padding-bottom: .5rem; }
h1, h2, h3 { line-height: 1.25; } .anchor-link { display: none; } img { max-width: 100%; height: auto; }
pre, code { font: 13px/1.45 ui-monospace, monospace; } pre { margin: 0; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { display: none; } .input { margin: .8rem 0 .4rem; padding: .6rem .8rem; background: #f6f7f8; border-left: 3px solid #9db7cc; }
.output_subarea { margin: .5rem 0; overflow-x: auto; } .output_stderr { background: #fdf1ec; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; }
.pictures { display: flex; flex-wrap: wrap; gap: .7rem; align-items: center; } .pictures img { border: 1px solid #ddd; }
.missing { color: #6e6e6e; } .wide { overflow-x: auto; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><link rel="stylesheet" href="style.css"></head><body>
{% if links %}<nav>{% for name, href in links %}<a href="{{ href }}">{{ name }}</a>{% endfor %}</nav>{% endif %}
<main>{{ body }}</main>
</body></html>
"""
INDEX = """<h1>{{ title }}</h1>
<p>The notebooks as they were executed, profile <b>{{ profile }}</b>: each asks a question of the paper, answers it with figures, and says
what these do not show. Start with 00, and follow “Next”.</p>
{% for n in notes %}<section id="{{ n.stem }}">
<h2>{% if n.page %}<a href="{{ n.page }}">{{ n.title }}</a>{% else %}{{ n.title }}{% endif %}</h2>
<p>{{ n.question }}</p>
{% if not n.page %}<p class="missing">Not executed in this profile. From the repository's folder, with what it needs:
<code>{{ n.command }}</code></p>{% endif %}
<div class="pictures">{% for picture in n.pictures %}{% if n.page %}<a href="{{ n.page }}">{% endif %}
<img src="{{ picture }}" alt="{{ picture.stem }}" loading="lazy">{% if n.page %}</a>{% endif %}{% endfor %}</div>
</section>
{% endfor %}
{% if scoreboard %}<h2 id="scoreboard">Scoreboard</h2><div class="wide">{{ scoreboard }}</div>{% endif %}
"""


class Note(NamedTuple):
    """A notebook on the index."""

    stem: str
    title: str
    question: str
    page: str | None  # its page; None: it was not executed
    command: str
    pictures: list[Path]  # small ones, relative to the site


def build(profile: str = "default", out: Path | None = None) -> Path:
    """Write the site of a profile into the folder `out`, in place of what was there; returns its index.html.

    Raises:
        ValueError: an unknown profile.
    """
    out = paths.inside(SITE, profile) if out is None else Path(out)
    found = profiles.find()
    pages = {path.stem: f"{path.stem}.html" for path in found if notebooks.executed(path, profile).exists()}
    for path in found:
        profiles.parameters(path, profile)  # raises for a profile that is none
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "pictures").mkdir(parents=True)
    (partial / "style.css").write_text(STYLE + HtmlFormatter().get_style_defs(".highlight"))
    notes = [_note(path, profile, pages.get(path.stem), partial) for path in found]
    for path, note in zip(found, notes):
        if note.page:
            content = redirected(page(notebooks.executed(path, profile), partial), pages, out)
            (partial / note.page).write_text(_filled(PAGE, title=note.title, links=_around(note.stem, pages), body=content))
    (partial / "index.html").write_text(_filled(PAGE, title="abc_core", links=[], body=index(notes, profile)))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out / "index.html"


def page(executed: Path, out: Path) -> str:
    """The body of an executed notebook in HTML; its pictures go into the folder `out`."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            cell.metadata["alt"] = f"figure of cell {k}"
    exporter = HTMLExporter(config=Config({"ExtractOutputPreprocessor": {"enabled": True}}), template_name="basic")
    body, resources = exporter.from_notebook_node(notebook, {"unique_key": executed.stem, "output_files_dir": "pictures"})
    for name, content in resources["outputs"].items():
        paths.inside(out, name).write_bytes(content)
    return body


def redirected(body: str, pages: dict[str, str], out: Path) -> str:
    """A page whose links to notebooks lead to pages of the site, or to the index, and all other relative ones into the repository."""

    def lead(match: re.Match) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        notebook = re.fullmatch(r"(\d\d_\w+)\.ipynb", target)
        if notebook:
            target, anchor = (pages[notebook[1]], anchor) if notebook[1] in pages else ("index.html", f"#{notebook[1]}")
        elif target and not re.match(r"[a-z]+:|/", target):
            target = os.path.relpath(paths.ROOT / "notebooks" / target, out)
        return f'href="{target}{anchor}"'

    return re.sub(r'href="(?P<target>[^"#]*)(?P<anchor>#[^"]*)?"', lead, body)


def index(notes: Iterable[Note], profile: str) -> str:
    """The body of the first page."""
    board = paths.figures(profile) / "10_scoreboard.csv"
    table = pd.read_csv(board).to_html(index=False, border=0, na_rep="", float_format="{:.3g}".format) if board.exists() else ""
    title = "ABC, in miniature: better control of multimodal embeddings"
    return _filled(INDEX, title=title, profile=profile, notes=list(notes), scoreboard=jinja2.utils.markupsafe.Markup(table))


def _note(path: Path, profile: str, page: str | None, out: Path) -> Note:
    """What the index says of a notebook, from its first cell; its figures are made small."""
    text = nbformat.read(path, as_version=4).cells[0].source
    title, asks = re.search(r"^# (.+)", text), re.search(r"\*\*Question:\*\* (.+)", text)
    question = asks[1][0].upper() + asks[1][1:] if asks else ""
    pictures = []
    for figure in sorted(paths.figures(profile).glob(f"{path.stem[:2]}_*.png")):
        with Image.open(figure) as picture:
            picture.thumbnail(THUMBNAIL)
            picture.convert("RGB").quantize(128).save(out / "pictures" / f"small_{figure.name}", optimize=True)
        pictures.append(Path("pictures") / f"small_{figure.name}")
    command = f"ABC_PROFILE={profile} .venv/bin/python -m doit notebook:{path.stem}"
    return Note(path.stem, title[1] if title else path.stem, question, page, command, pictures)


def _around(stem: str, pages: dict[str, str]) -> list[tuple[str, str]]:
    """Links to the index, and to the pages before and after."""
    order = [None, *pages, None]
    at = order.index(stem)
    before, after = order[at - 1], order[at + 1]
    near = ([(f"← {before}", pages[before])] if before else []) + ([(f"{after} →", pages[after])] if after else [])
    return [("all notebooks", "index.html"), *near]


def _filled(template: str, **values) -> str:
    """A template with its values, escaped but for `body`."""
    if "body" in values:
        values["body"] = jinja2.utils.markupsafe.Markup(values["body"])
    return jinja2.Environment(autoescape=True).from_string(template).render(**values)


if __name__ == "__main__":
    made = build(*sys.argv[1:2])
    sizes = [path.stat().st_size for path in made.parent.rglob("*") if path.is_file()]
    print(f"{made}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
