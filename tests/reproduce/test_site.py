"""The site has a page for each executed notebook, names those that are missing, and no link of it leads nowhere."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from abc_core.reproduce import run as notebooks
from abc_core.reproduce import site
from abc_core.runs import paths

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # a PNG of one pixel


@pytest.fixture
def root(tmp_path, runs, monkeypatch):
    """A repository with three notebooks, of which the first two were executed; figures of two, and a scoreboard."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(site, "SITE", tmp_path / "site")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text("read me")
    for name, title in (("00_first", "First & <foremost>"), ("01_second", "Second"), ("02_third", "Third")):
        text = f"# {name[:2]} · {title}\n\n**Question:** is 1 < 2?\n\n[one](01_second.ipynb) [two](02_third.ipynb#end) [more](../README.md)"
        made = new_notebook(cells=[new_markdown_cell(text), new_code_cell('profile = "default"', metadata={"tags": ["parameters"]})])
        nbformat.write(made, tmp_path / "notebooks" / f"{name}.ipynb")
        if name != "02_third":
            outputs = [
                new_output("stream", text="<b>not bold</b> & so on\n"),
                new_output("display_data", {"image/png": DOT, "text/plain": "Figure"}),
                new_output("display_data", {site.WIDGET: {"model_id": "x"}, "text/plain": "Loading: 0%"}),
            ]
            made.cells.append(new_code_cell("print('<b>')", outputs=outputs))
            copy = notebooks.executed(tmp_path / "notebooks" / f"{name}.ipynb", "default")
            copy.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(made, copy)
    for name in ("00_owl", "02_cup"):
        Image.new("RGB", (900, 600), "red").save(paths.figures("default") / f"{name}.png")
    (paths.figures("default") / "10_scoreboard.csv").write_text("claim,rule,value\n1,R@1 > 20 <i>,53.4\n")
    return tmp_path


def test_every_link_and_every_picture_is_there(root):
    folder = site.build().parent
    assert {p.name for p in folder.glob("*.html")} == {"index.html", "00_first.html", "01_second.html"}
    for page in folder.glob("*.html"):
        text = page.read_text()
        for target, anchor in re.findall(r'(?:href|src)="([^"#]*)#?([^"]*)"', text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            if target == "index.html" and anchor:
                assert f'id="{anchor}"' in (folder / target).read_text()
    first = (folder / "00_first.html").read_text()
    assert 'href="01_second.html"' in first and 'href="index.html#02_third"' in first and 'href="../../README.md"' in first
    assert 'alt="figure of cell 2" src="pictures/00_first_2_1.png"' in first and "Loading" not in first


def test_the_index_has_figures_questions_the_scoreboard_and_how_to_make_what_is_missing(root):
    text = site.build().read_text()
    assert text.count("Is 1 &lt; 2?") == 3 and "ABC_PROFILE=default .venv/bin/python -m doit notebook:02_third" in text
    assert text.count("Not executed") == 1
    with Image.open(root / "site/default/pictures/small_02_cup.png") as small:
        assert max(small.size) <= max(site.THUMBNAIL)
    assert 'alt="small_00_owl"' in text and 'alt="small_02_cup"' in text
    assert "<td>R@1 &gt; 20 &lt;i&gt;</td>" in text and "<td>53.4</td>" in text


def test_text_stays_text(root):
    folder = site.build().parent
    assert "First &amp; &lt;foremost&gt;" in (folder / "index.html").read_text()
    page = (folder / "00_first.html").read_text()
    assert "&lt;b&gt;not bold&lt;/b&gt; &amp; so on" in page and "<b>" not in page and "<script" not in page
    assert "<title>00 · First &amp; &lt;foremost&gt;</title>" in page


def test_a_second_build_leaves_nothing_of_the_first(root):
    site.build()
    notebooks.executed(root / "notebooks/01_second.ipynb", "default").unlink()
    folder = site.build().parent
    assert {p.name for p in folder.glob("*.html")} == {"index.html", "00_first.html"}
    assert [p.name for p in root.glob("site/*")] == ["default"]


def test_a_profile_that_is_none_is_refused(root):
    with pytest.raises(ValueError, match="unknown profile 'another'; known are default"):
        site.build("another")
