"""The web edition: where its links lead, and what its pages show in a browser."""
import html
import re
from urllib.parse import unquote, urlsplit

import build
import pytest
from browser import needs_chromium, open_page
from cells import CHINESE, ENGLISH, ROOT, code_cells, plots, read, text_cells
from documents import without_code
from selenium.webdriver.common.by import By

TUTORIALS = {"index.html": ENGLISH, "zh.html": CHINESE}
LANGUAGES = {"index.html": "en", "zh.html": "zh-CN", "play.html": "en", "play_zh.html": "zh-CN"}
# the pictures that have no alternative text, or don't load as one reads on
MISSING = """(async images => {
  for (const image of images) {
    image.scrollIntoView()
    if (!image.complete) await new Promise(done => image.onload = image.onerror = done)
  }
  return images.filter(image => !image.naturalWidth || !image.alt).map(image => image.src)
})([...document.images]).then(arguments[0])"""


def test_every_plot_is_told():
    """What is in alt_texts.json: a text for every plot of the notebook, in both languages, and none besides."""
    counts = {cell.id: len(plots(cell)) for cell in code_cells(read(ENGLISH))}
    told = {name: {file: len(texts) for file, texts in files.items()} for name, files in build.ALT_TEXTS.items()}
    assert told == {name: dict.fromkeys(TUTORIALS, n) for name, n in counts.items() if n}


@pytest.mark.slow
def test_links(site_folder):
    """Each leads to a file that is there, an anchor that is there, or the repository; nothing is loaded from afar."""
    texts = {name: html.unescape((site_folder / name).read_text(encoding="utf-8")) for name in LANGUAGES}
    ids = {name: re.findall(r' id="([^"]+)"', text) for name, text in texts.items()}
    for name, text in texts.items():
        assert len({*ids[name]}) == len(ids[name])
        for tag, address in re.findall(r'<(a|link|img|script)\b[^>]*? (?:href|src)="([^"]+)"', text):
            target = urlsplit(address)
            file, anchor = unquote(target.path) or name, unquote(target.fragment)
            if target.scheme:
                assert tag == "a" or target.scheme == "data", (name, address)
                assert target.netloc != "host" or (ROOT / target.path.removeprefix("/main/")).exists(), (name, address)
            else:
                assert file[0] != "/" and (site_folder / file).is_file(), (name, address)
                assert not anchor or anchor in ids[file], (name, address)
    assert 'href="zh.html"' in texts["index.html"] and 'href="play_zh.html"' in texts["zh.html"]


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", LANGUAGES)
def test_opens(name, width, site_folder, browser):
    """No sideways scrolling on a phone or a desk, no error, every picture there and told, folded ones, too."""
    open_page(browser, site_folder / name, width)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return document.documentElement.lang") == LANGUAGES[name]
    browser.execute_script("for (const box of document.querySelectorAll('details')) box.open = true")
    assert browser.execute_async_script(MISSING) == []
    assert browser.get_log("browser") == []


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("name", TUTORIALS)
def test_shows_what_the_notebook_has(name, site_folder, browser):
    """Every section in the list of contents, every line of code and output, every plot, every formula drawn."""
    notebook = read(TUTORIALS[name])
    open_page(browser, site_folder / name)
    titles, listed = [[found.get_property("textContent") for found in browser.find_elements(By.CSS_SELECTOR, part)]
                      for part in ("main h2", ".beside > ol > li > a")]
    assert titles == listed != []
    cells = browser.execute_script("""return [...document.querySelectorAll('.cell')].map(cell => ({
        code: cell.querySelector('.highlight').textContent.trimEnd(),
        shown: [...cell.querySelectorAll(':scope > .output')].map(output => output.textContent),
        plots: cell.querySelectorAll(':scope > .picture').length}))""")
    assert cells == [{
        "code": cell.source,
        "shown": [output.get("text") or output.data["text/plain"] for output in cell.outputs
                  if "image/png" not in output.get("data", {})],
        "plots": len(plots(cell))} for cell in code_cells(notebook)]
    texts = [re.sub("`[^`]*`", "", without_code(cell.source)) for cell in text_cells(notebook)]
    formulas = browser.execute_script("""return [...document.querySelectorAll('math')]
        .map(formula => formula.getBoundingClientRect()).map(box => box.width * box.height > 20)""")
    assert formulas == [True] * sum(len(re.findall(r"(\$+)[^$]+\1", text)) for text in texts) != []
