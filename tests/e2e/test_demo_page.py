"""The demo in a browser: load, choose, type, upload, see the results change, an error and the recovery; by keyboard, narrow, and dark."""

import io
import re
from contextlib import contextmanager

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=120_000)  # ms, on a busy machine
LARGE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def open_voila(page, address, dark=False):
    page.goto(address + ("?theme=dark" if dark else ""))
    coloured(page, 2).wait_for()


def open_lab(page, address):
    page.goto(address)
    page.wait_for_function("window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.wait_for_function("[...window.jupyterapp.serviceManager.kernels.running()].some(k => k.execution_state === 'idle')")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    below = "document.querySelector('.jp-WindowedPanel-outer').scrollTop = 1e6"  # what is far below the window is not in the document
    page.wait_for_function(f"() => {{ {below}; return document.querySelector('.abc-demo') }}", polling=500)
    page.evaluate("document.querySelector('.abc-demo').scrollIntoView()")
    coloured(page, 2).wait_for()


def captions(page, column: int) -> list[str]:
    return page.locator(".abc-grid > *").nth(column).get_by_role("button").all_inner_texts()


def coloured(page, column: int):
    """The coloured picture of a column: the last thing that an answer changes in it; columns change from left to right."""
    return page.locator(".abc-grid > *").nth(column).locator("img")


@contextmanager
def answered(page, column: int = 2):
    """What is done in this block changes a column; afterwards it has changed."""
    before = coloured(page, column).get_attribute("src")
    yield
    expect(coloured(page, column)).not_to_have_attribute("src", before)


def picture(colour: str, size=(200, 150), mode: str = "RGB") -> dict:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return {"name": f"{colour}.png", "mimeType": "image/png", "buffer": file.getvalue()}


def upload(page, file: dict) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(file)


def type_in(page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)
    page.get_by_label(label, exact=True).press("Enter")


def visit(page) -> None:
    """What a visitor does; asserts that the page follows."""
    # choose another picture
    first = captions(page, 0)
    with answered(page):
        page.get_by_label("Picture", exact=True).select_option(index=3)
    assert captions(page, 0) != first
    # type: the column of the instruction changes, the picture alone does not
    alone, asked = captions(page, 0), captions(page, 1)
    with answered(page, 1):
        type_in(page, "Instruction", "What is in the bottom left?")
    assert page.get_by_role("heading", name="“What is in the bottom left?”").is_visible()
    assert captions(page, 0) == alone and captions(page, 1) != asked
    with answered(page):
        type_in(page, "Compare with", "What is in the top right?")
    assert captions(page, 1) != captions(page, 2)
    # choose an instruction
    with answered(page, 1):
        page.get_by_label("or choose", exact=True).select_option(index=1)
    # fewer visual tokens
    with answered(page):
        page.locator(".noUi-handle").press("ArrowRight")
    expect(page.locator(".abc-demo [role=status]")).to_contain_text("visual tokens in")
    # upload: what is no picture is refused in a sentence, and nothing else changes
    before, alert = captions(page, 0), page.locator(".abc-demo [role=alert]")
    upload(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(alert).to_contain_text("“notes.txt” cannot be read as a picture")
    upload(page, picture("white", (8000, 5000), "1"))
    expect(alert).to_contain_text("8000 x 5000 pixels are more than the limit")
    assert captions(page, 0) == before
    # recovery
    with answered(page):
        upload(page, picture("teal"))
    expect(alert).to_have_count(0)
    assert captions(page, 0) != before
    # an empty instruction, and the next one
    type_in(page, "Instruction", "")
    expect(alert).to_contain_text("The instruction is empty")
    with answered(page, 1):
        type_in(page, "Instruction", "What is on the left?")
    expect(alert).to_have_count(0)
    # the other way
    page.locator(".abc-caption").first.click()
    expect(page.get_by_role("heading", name=re.compile("Pictures for “"))).to_be_visible()
    expect(page.locator(".abc-few img")).to_have_count(5)
    page.locator(".abc-demo:not(.abc-busy)").wait_for()
    assert "Traceback" not in page.inner_text("body")


def test_voila_loads_answers_refuses_and_recovers(page, voila, shots):
    page.set_viewport_size(LARGE)
    open_voila(page, voila)
    page.screenshot(path=shots / "voila_start.png")
    assert page.get_by_role("heading", name="Picture alone").bounding_box()["y"] < 0.7 * LARGE["height"], "answers are out of sight"
    visit(page)
    page.screenshot(path=shots / "voila_visited.png", full_page=True)


NAME_OF_FOCUS = """() => { const at = document.activeElement;
    return String(at.labels?.[0]?.innerText || at.title || at.className || ''); }"""


def test_the_tab_key_reaches_every_control_and_enter_presses_it(page, voila):
    page.set_viewport_size(LARGE)
    open_voila(page, voila)
    page.get_by_label("Picture", exact=True).focus()
    reached = []
    for _ in range(40):
        reached.append(page.evaluate(NAME_OF_FOCUS))
        page.keyboard.press("Tab")
    buttons = ("Ask about a picture of yours", "A scene of drawn cards that nobody has seen", "Find pictures for: ")
    for control in (*buttons, "Instruction", "or choose", "Compare with", "or compare", "noUi-handle", "Caption"):
        assert any(control in name for name in reached), (control, reached)
    page.get_by_role("button", name="Draw a new scene").focus()
    with answered(page):
        page.keyboard.press("Enter")
    page.locator(".abc-caption").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("Pictures for “"))).to_be_visible()


def test_jupyterlab_loads_answers_refuses_and_recovers(page, lab, shots):
    page.set_viewport_size(LARGE)
    open_lab(page, lab)
    page.screenshot(path=shots / "lab_start.png")
    visit(page)
    page.screenshot(path=shots / "lab_visited.png")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_a_phone_and_is_readable_in_both_themes(page, voila, shots, dark):
    page.set_viewport_size(PHONE)
    open_voila(page, voila, dark)
    name = "dark" if dark else "light"
    page.screenshot(path=shots / f"phone_{name}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "the page is wider than the phone"
    ratio = page.evaluate(CONTRAST)
    assert min(ratio.values()) >= 4.5, ratio  # WCAG AA
    for shape, size in (("phone", {**PHONE, "height": 2200}), ("wide", LARGE)):
        page.set_viewport_size(size)
        page.screenshot(path=shots / f"{shape}_{name}_whole.png")


CONTRAST = """() => {
    const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                           return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const behind = node => { for (; node; node = node.parentElement) {
        const colour = numbers(getComputedStyle(node).backgroundColor);
        if (colour.length < 4 || colour[3] > 0.9) return colour.slice(0, 3); }
        return [255, 255, 255]; };
    const out = {};
    for (const where of ['h4', 'p', '.abc-caption', '.widget-label', '.abc-demo select', '.abc-demo input[type=text]']) {
        const node = document.querySelector(where.startsWith('.abc-demo') ? where : '.abc-demo ' + where);
        const [a, b] = [light(numbers(getComputedStyle(node).color).slice(0, 3)), light(behind(node))].sort((x, y) => y - x);
        out[where] = (a + 0.05) / (b + 0.05);
    }
    return out;
}"""
