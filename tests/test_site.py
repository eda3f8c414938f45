"""The web edition: where its links lead, and how its pages look and work in a browser."""
import html
import re
from urllib.parse import unquote, urlsplit

import build
import pytest
from browser import SOURCE, complaints, needs_chromium, open_page
from cells import CHINESE, ENGLISH, ROOT, code_cells, plots, read, text_cells
from documents import without_code
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

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
# the texts that stand out from what lies behind them by less than 4.5 to 1
FAINT = """
const parts = colour => colour.match(/[\\d.]+/g).map(Number)
const light = colour => colour.slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0.05)
const behind = element => {
  const colour = parts(getComputedStyle(element).backgroundColor), covers = colour[3] ?? 1
  if (covers === 1) return colour
  return behind(element.parentElement).map((below, i) => covers * colour[i] + (1 - covers) * below)
}
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = []
while (texts.nextNode()) {
  const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement
  if (!text || !element.checkVisibility()) continue
  const [dark, bright] = [light(parts(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b)
  if (bright / dark < 4.5) faint.push(text)
}
return faint"""


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
                assert not address.startswith(SOURCE) or (ROOT / address[len(SOURCE) + 1:]).exists(), (name, address)
            else:
                assert file[0] != "/" and (site_folder / file).is_file(), (name, address)
                assert not anchor or anchor in ids[file], (name, address)
    assert 'href="zh.html"' in texts["index.html"] and 'href="play_zh.html"' in texts["zh.html"]


@pytest.mark.slow
@needs_chromium
class TestInBrowser:
    """Each page as a reader sees it."""

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", LANGUAGES)
    def test_opens(self, name, width, site_folder, browser):
        """No sideways scrolling, no error, no request to elsewhere, every picture there and told, folded ones, too."""
        open_page(browser, site_folder / name, width)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return document.documentElement.lang") == LANGUAGES[name]
        browser.execute_script("for (const box of document.querySelectorAll('details')) box.open = true")
        assert browser.execute_async_script(MISSING) == []
        assert complaints(browser) == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("name", LANGUAGES)
    def test_colours_can_be_read(self, name, scheme, site_folder, browser):
        """Wherever there is text, also in what unfolds."""
        open_page(browser, site_folder / name, scheme=scheme)
        browser.execute_script("for (const box of document.querySelectorAll('details')) box.open = true")
        assert browser.execute_script(FAINT) == []

    @pytest.mark.parametrize("name", TUTORIALS)
    def test_shows_what_the_notebook_has(self, name, site_folder, browser):
        """Every line of code and output, every plot, every formula drawn."""
        notebook = read(TUTORIALS[name])
        open_page(browser, site_folder / name)
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

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", TUTORIALS)
    def test_contents(self, name, width, site_folder, browser):
        """Lists the sections in their order; a click leads there, and the list follows."""
        open_page(browser, site_folder / name, width)
        titles = [title.text for title in browser.find_elements(By.CSS_SELECTOR, "main h2")]
        menu = browser.find_element(By.CSS_SELECTOR, ".above summary")
        part = ".above" if width == 390 else ".beside > ol > li >"
        links = browser.find_elements(By.CSS_SELECTOR, f"{part} a")
        assert [link.get_property("textContent") for link in links] == titles
        for link, title in list(zip(links, titles))[3::6]:
            if width == 390:
                menu.click()
            link.click()
            here = f"return document.querySelector('{part} [aria-current]')?.textContent"
            WebDriverWait(browser, 20).until(lambda _: browser.execute_script(here) == title, title)
            target = browser.find_element(By.CSS_SELECTOR, ":target")
            assert 0 <= browser.execute_script("return arguments[0].getBoundingClientRect().top", target) < 150

    def test_by_keyboard(self, site_folder, browser):
        """The first stop leads past the lists; every box that scrolls is a stop."""
        open_page(browser, site_folder / "index.html", 390)
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        first = browser.switch_to.active_element
        assert first.get_dom_attribute("href") == "#text" and first.rect["x"] >= 0
        assert browser.execute_script("""return [...document.querySelectorAll('pre, .table, .picture')]
            .filter(box => box.scrollWidth > box.clientWidth && box.tabIndex < 0).length""") == 0
