"""The web edition: what the builder makes of Markdown, and how its pages look and work in a browser."""
import html
import json
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
from machine import chromium, needs_chromium
from notebook import CHINESE, ENGLISH, ROOT, pictures, read
from pages import without_code
from save import code_cells, text_cells
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(ROOT / "site"))
import build  # noqa: E402

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
  const colour = parts(getComputedStyle(element).backgroundColor)
  return colour[3] === 0 ? behind(element.parentElement) : colour
}
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = []
while (texts.nextNode()) {
  const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement
  if (!text || !element.checkVisibility()) continue
  const [dark, bright] = [light(parts(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b)
  if (bright / dark < 4.5) faint.push(text)
}
return faint"""


@pytest.fixture
def render(tmp_path):
    """What turns Markdown of the English notebook into HTML, its pictures into the folder `render.folder`."""
    return build.Renderer("index.html", tmp_path)


def test_anchors(render):
    """Jupyter's own, also with code and signs in the title; a title that comes twice is numbered."""
    assert 'id="7.-Mask,-w-&amp;-more"' in render.convert("## 7. Mask, `w` & more\n\n### 试试\n\n### 试试")
    below = [("试试", "试试"), ("试试-2", "试试")]
    assert build.contents(render.headings) == [("7.-Mask,-w-&-more", "7. Mask, w & more", below)]


@pytest.mark.parametrize("link, there", [
    ("llama3_from_scratch_zh.ipynb", "zh.html"), ("llama3_from_scratch.ipynb#5.-Let", "#5.-Let"), ("#5.-X", "#5.-X"),
    ("llama3_from_scratch_zh.ipynb#%E5%A4%B4", "zh.html#%E5%A4%B4"), ("https://host/1706", "https://host/1706"),
    ("tests/", None), ("README.md#start", None)])
def test_where_links_lead(link, there, render):
    """To the page of a notebook, to a heading, to another site; to a file of the repository, if it has an address."""
    text = render.convert(f"See [*this*]({link}).")
    assert re.findall('href="([^"]+)"', text) == ([there] if there else []) and "<em>this</em>" in text
    render.source = "https://host/main"
    there = there or f"https://host/main/{link}"
    assert f'href="{there}"' in render.convert(f"See [*this*]({link}).")


def test_paragraphs_and_tables(render):
    """✍ has its own edge, a table its own box, and a formula that is none stops the build."""
    assert '<p>Not ✍ this.</p>\n<p class="written">✍ Mine' in render.convert("Not ✍ this.\n\n✍ Mine.")
    assert '<div class="table"><table>' in render.convert("| a |\n|---|\n| b |")
    assert "<math" in render.convert("So $x^2$ is.") and 'class="long"' in render.convert(f"${'x + ' * 20}1$")
    assert 'display="block"' in render.convert("$$x^2$$")
    with pytest.raises(build.math_core.LatexError):
        render.convert(r"So $\nosuch{x}$ is.")


def test_pictures(render):
    """Copied, with both sizes and the alternative text, whatever signs it has."""
    text = render.convert('<img src="images/map.png" alt="From <|begin|> &quot;on&quot;" width="720">')
    picture = (ROOT / "images/map.png").read_bytes()
    width, height = build.size(picture)
    assert f'alt="From &lt;|begin|&gt; &quot;on&quot;" width="720" height="{round(720 * height / width)}"' in text
    assert (render.folder / "images/map.png").read_bytes() == picture


def test_every_plot_is_told():
    """The alternative texts in plots.json: one for every plot of the notebook, in both languages, and none besides."""
    plots = {cell.id: len(pictures(cell)) for cell in code_cells(read(ENGLISH))}
    told = {name: {page: len(texts) for page, texts in pages.items()} for name, pages in build.PLOTS.items()}
    assert told == {name: dict.fromkeys(TUTORIALS, n) for name, n in plots.items() if n}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, whose name wants quoting, with what the one command makes."""
    folder = tmp_path_factory.mktemp("site") / "a page 页#1"
    subprocess.run([sys.executable, ROOT / "site" / "build.py", folder], check=True, cwd=folder.parent)
    return folder


@pytest.mark.slow
def test_files(folder):
    """Every address is relative and there, with its anchor; nothing that is loaded lies elsewhere."""
    texts = {name: html.unescape((folder / name).read_text(encoding="utf-8")) for name in LANGUAGES}
    ids = {name: re.findall(r' id="([^"]+)"', text) for name, text in texts.items()}
    for name, text in texts.items():
        assert len({*ids[name]}) == len(ids[name])
        for tag, address in re.findall(r'<(a|link|img|script)\b[^>]*? (?:href|src)="([^"]+)"', text):
            target = urlsplit(address)
            assert not target.scheme or tag == "a" or target.scheme == "data", (name, address)
            if not target.scheme:
                file, anchor = unquote(target.path) or name, unquote(target.fragment)
                assert file[0] != "/" and (folder / file).is_file(), (name, address)
                assert not anchor or anchor in ids[file], (name, address)
    assert 'href="zh.html"' in texts["index.html"] and 'href="play_zh.html"' in texts["zh.html"]
    assert not re.search(r"url\(|@import", (folder / "style.css").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, which notes what its console says and what it asks for."""
    logs = {"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
    with chromium(tmp_path_factory.mktemp("profile"), **logs) as browser:
        yield browser


def opened(browser, path, width=1280, scheme="light"):
    """The page at `path` in `browser`, `width` pixels wide."""
    window = {"width": width, "height": 844, "mobile": False, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return document.readyState") == "complete")
    return browser


@pytest.mark.slow
@needs_chromium
class TestInBrowser:
    """Each page as a reader sees it."""

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", LANGUAGES)
    def test_opens(self, name, width, folder, browser):
        """No sideways scrolling, no error, no request to elsewhere, every picture there and told."""
        page = opened(browser, folder / name, width)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.execute_script("return document.documentElement.lang") == LANGUAGES[name]
        assert page.execute_async_script(MISSING) == []
        assert page.get_log("browser") == []
        log = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        asked = [event["params"]["request"]["url"] for event in log if event["method"] == "Network.requestWillBeSent"]
        assert asked and all(address.startswith(("file:", "data:")) for address in asked)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("name", TUTORIALS)
    def test_colours_can_be_read(self, name, scheme, folder, browser):
        """Wherever there is text, also in what unfolds; dark means dark, but for the paper of the pictures."""
        page = opened(browser, folder / name, scheme=scheme)
        page.execute_script("for (const box of document.querySelectorAll('details')) box.open = true")
        assert page.execute_script(FAINT) == []
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert max(paper) < 50 if scheme == "dark" else min(paper) > 240
        assert page.execute_script("""return [...document.querySelectorAll('.picture img')]
            .every(image => getComputedStyle(image).backgroundColor == 'rgb(255, 255, 255)')""")

    @pytest.mark.parametrize("name", TUTORIALS)
    def test_shows_what_the_notebook_has(self, name, folder, browser):
        """Every line of code and output, every formula drawn, the folded cells folded."""
        page, notebook = opened(browser, folder / name), read(TUTORIALS[name])
        cells = page.execute_script("""return [...document.querySelectorAll('.cell')].map(cell => ({
            id: cell.id, code: cell.querySelector('.highlight').textContent.trimEnd(),
            shown: [...cell.querySelectorAll(':scope > .output')].map(output => output.textContent),
            plots: cell.querySelectorAll(':scope > .picture').length,
            folded: cell.querySelector(':scope > details')?.open === false}))""")
        assert cells == [{
            "id": cell.id, "code": cell.source, "folded": cell.metadata.get("jupyter", {}).get("source_hidden", False),
            "shown": [output.get("text") or output.data["text/plain"] for output in cell.outputs
                      if "image/png" not in output.get("data", {})],
            "plots": len(pictures(cell))} for cell in code_cells(notebook)]
        texts = [re.sub("`[^`]*`", "", without_code(cell.source)) for cell in text_cells(notebook)]
        formulas = page.execute_script("""return [...document.querySelectorAll('math')]
            .map(formula => formula.getBoundingClientRect()).map(box => box.width * box.height > 20)""")
        assert formulas == [True] * sum(len(re.findall(r"(\$+)[^$]+\1", text)) for text in texts) != []
        written = page.execute_script("return document.querySelectorAll('.written').length")
        assert written == len(re.findall(r"(?m)^✍", "\n".join(texts)))

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", TUTORIALS)
    def test_contents(self, name, width, folder, browser):
        """Lists the sections in their order; a click leads there, and the list follows."""
        page = opened(browser, folder / name, width)
        titles = [title.text for title in page.find_elements(By.CSS_SELECTOR, "main h2")]
        menu = page.find_element(By.CSS_SELECTOR, ".above summary")
        assert menu.is_displayed() == (width == 390)
        links = page.find_elements(By.CSS_SELECTOR, ".above a" if width == 390 else ".beside > ol > li > a")
        assert [link.get_property("textContent") for link in links] == titles
        for link, title in list(zip(links, titles))[3::6]:
            menu.is_displayed() and menu.click()
            link.click()
            WebDriverWait(page, 20).until(lambda _: title == page.execute_script(
                "return [...document.querySelectorAll(arguments[0])].map(link => link.textContent).join()",
                (".above" if width == 390 else ".beside > ol > li >") + " [aria-current]"), title)
            target = page.find_element(By.CSS_SELECTOR, ":target")
            assert 0 <= page.execute_script("return arguments[0].getBoundingClientRect().top", target) < 150
            assert width == 1280 or title in menu.text and not link.is_displayed()

    def test_without_script_and_on_paper(self, folder, browser):
        """All is there to read without a script; on paper no list of contents, and everything unfolded."""
        text = "document.querySelector('main').innerText"
        with_script = opened(browser, folder / "index.html").execute_script(f"return {text}")
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.refresh()
        found = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": text})["result"]["value"]
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        assert found == with_script and len(found) > 40_000
        opened(browser, folder / "index.html").execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        visible = "return [...document.querySelectorAll(arguments[0])].map(element => element.checkVisibility())"
        assert not any(browser.execute_script(visible, "nav, header, .above, .skip"))
        assert all(browser.execute_script(visible, "details .highlight"))

    def test_by_keyboard(self, folder, browser):
        """The first stop leads past the lists; every box that scrolls is a stop."""
        page = opened(browser, folder / "index.html", 390)
        page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        first = page.switch_to.active_element
        assert first.get_dom_attribute("href") == "#text" and first.rect["x"] >= 0
        assert page.execute_script("""return [...document.querySelectorAll('pre, .table, .picture')]
            .filter(box => box.scrollWidth > box.clientWidth && box.tabIndex < 0).length""") == 0
