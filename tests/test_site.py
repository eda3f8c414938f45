"""The web edition: where its links lead, what its pages show, and what its Llama to play with computes and answers."""
import html
import random
import re
import shutil
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import build
import pytest
import torch
from cells import CHINESE, ENGLISH, ROOT, code_cells, load_tutorial, plots, read, text_cells
from documents import without_code
from play import page
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

TUTORIALS = {"index.html": ENGLISH, "zh.html": CHINESE}
LANGUAGES = {"index.html": "en", "zh.html": "zh-CN", "play.html": "en", "play_zh.html": "zh-CN"}
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")
# the pictures that have no alternative text, or don't load as one reads on
MISSING = """(async images => {
  for (const image of images) {
    image.scrollIntoView()
    if (!image.complete) await new Promise(done => image.onload = image.onerror = done)
  }
  return images.filter(image => !image.naturalWidth || !image.alt).map(image => image.src)
})([...document.images]).then(arguments[0])"""


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory):
    """The folder of the web edition, built anew; its name wants quoting."""
    folder = tmp_path_factory.mktemp("site") / "a page 页#1"
    build.main(folder, "https://host/main")
    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, which notes what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def open_page(browser, path, width=1280):
    """Let `browser` show the file at `path` in a window `width` pixels wide, and forget what earlier pages logged."""
    window = {"width": width, "height": 844, "mobile": False, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return document.readyState") == "complete")


def test_every_plot_is_told():
    """What is in alt_texts.json: a text for every plot of the notebook, in both languages, and none besides."""
    counts = {cell.id: len(plots(cell)) for cell in code_cells(read(ENGLISH))}
    told = {name: {key: len(texts) for key, texts in both.items()} for name, both in build.ALT_TEXTS.items()}
    assert told == {name: {"en": n, "zh": n} for name, n in counts.items() if n}


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


def knowing_the_answer(tutorial):
    """The playable Llama with one fact, after answer is, 42, written by the function of the `tutorial`."""
    llama = page.playable_llama(tutorial)
    tutorial.write_fact(llama.weights, 42, *[page.vocabulary("en").index(word) for word in ("answer", "is", "42")])
    return llama


def grown():
    """The tutorial's Llama of two layers after its 300 steps of training, which no longer asks for gradients."""
    *_, (llama, _) = load_tutorial().grow(2)
    weights = {name: weight.detach() for name, weight in llama.weights.items()}
    return SimpleNamespace(config=llama.config, weights=weights)


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("kind", ["written", "grown"])
def test_javascript_computes_what_pytorch_does(kind, browser):
    """Logits of random texts of 1 to 61 tokens within 1e-4."""
    tutorial = page.tutorial_with_six_digits()
    llama = grown() if kind == "grown" else knowing_the_answer(tutorial)
    draw = random.Random(2)
    texts = [[0] + [draw.randrange(1, 64) for _ in range(length)] for length in (0, 1, 2, 5, 17, 30, 60)]
    script = (page.HERE / "forward.js").read_text(encoding="utf-8") + """
        const [packed, texts] = arguments, llama = load_llama(packed)
        return texts.map(tokens => forward(llama, tokens).map(row => [...row]))"""
    for tokens, logits in zip(texts, browser.execute_script(script, page.packed(llama), texts)):
        wanted = tutorial.forward(llama, torch.tensor(tokens))
        torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)


def typed(browser, text):
    """Type `text` at once, as when it is pasted; return the guesses and the note as shown."""
    browser.execute_script("""document.getElementById("text").value = arguments[0];
        document.getElementById("text").dispatchEvent(new Event("input"));""", text)
    return browser.find_element(By.ID, "guesses").text.split("\n"), browser.find_element(By.ID, "note").text


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("language", page.TEXTS)
def test_any_text(language, site_folder, browser):
    """The examples, and bad inputs, on a phone: an answer or a sentence, no wider than the window, and no error."""
    texts = page.TEXTS[language]
    open_page(browser, site_folder / texts["file"], 390)
    bad = ["", " \n\t\0 \u202e ", "🦙🦙🦙", "<b>bold</b> <script>alert(1)</script>", "A" * 500, "milk " * 300]
    for text in [example["text"] for example in texts["tries"]] + bad:
        guesses, _ = typed(browser, text)
        assert guesses[0], text
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), text
        assert not browser.find_elements(By.CSS_SELECTOR, "#rows b, #note script"), text
    assert texts["long"] in typed(browser, "milk " * 300)[1]
    assert browser.get_log("browser") == []


@pytest.mark.slow
@needs_chromium
def test_what_it_answers(site_folder, browser):
    """The nearest match, nonsense once more, no idea, a fact of one's own, and the text against it.

    The text wins while the copying head can speak; without that and the neurons, there is no idea.
    """
    open_page(browser, site_folder / page.TEXTS["en"]["file"])
    clueless = page.TEXTS["en"]["clueless"]
    assert typed(browser, "alice likes tea. bob likes milk. alice likes")[0][0] == "milk"
    assert typed(browser, "moon fish seven tea. moon fish seven")[0][0] == "tea"
    assert typed(browser, "red bird")[0][0] == clueless
    for word, box in zip(("Llama", "is", "Zebra"), browser.find_elements(By.CSS_SELECTOR, "#own input")):
        box.clear()
        box.send_keys(word)
    box.send_keys(Keys.ENTER)
    assert typed(browser, "my llama is")[0][0] == "zebra"
    assert typed(browser, "The wombat is old. Carol sees the wombat and the llama is")[0][0] == "old"
    guesses = browser.find_element(By.ID, "guesses")
    for name, first in (("1.3", "zebra"), ("neurons", clueless), ("1.3", "old")):
        browser.find_element(By.CSS_SELECTOR, f"[data-silent='{name}']").click()
        assert guesses.text.split("\n")[0] == first
    assert browser.get_log("browser") == []
