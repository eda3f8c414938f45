"""The Llama to play with: what its JavaScript computes, what it answers, and how the page behaves in a browser."""
import json
import random
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from notebook import ROOT, functions
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

sys.path.insert(0, str(ROOT / "site"))
from play import build  # noqa: E402

CHROMIUM, DRIVER, NODE = (shutil.which(program) for program in ("chromium", "chromedriver", "node"))
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--force-prefers-reduced-motion"]
FORWARD = """const data = JSON.parse(require("fs").readFileSync(0)), llama = load_llama(data.llama);
console.log(JSON.stringify(data.texts.map(tokens => forward(llama, tokens).map(row => [...row]))));"""
SEGMENTS = """const [language, texts] = JSON.parse(require("fs").readFileSync(0));
const segmenter = new Intl.Segmenter(language, {granularity: "word"});
console.log(JSON.stringify(texts.map(text => [...segmenter.segment(text)].map(piece => piece.segment.trim()))));"""
LANGUAGES = list(build.TEXTS)
needs_node = pytest.mark.skipif(not NODE, reason="needs Node.js")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")


def run_node(script, data):
    """What the JavaScript `script` prints as JSON when it is given `data` on its standard input."""
    done = subprocess.run([NODE, "-e", script], input=json.dumps(data).encode(), capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def small():
    """The tutorial's functions with barcodes of 6 digits; the tutorial keeps its 17."""
    assert len(functions().barcode(5)) == 17 and len(build.small(functions()).barcode(5)) == 6
    return build.small(functions())


def with_facts(small, *facts, words=build.vocabulary("en")):
    """The small Llama with `facts`, "answer is 42", of three of the `words` each, by the tutorial's own function."""
    llama = build.written(small)
    for neuron, fact in enumerate((fact.split() for fact in facts), 42):
        small.write_fact(llama.weights, neuron, *[words.index(word) for word in fact])
        llama.weights["layers.0.feed_forward.w1.weight"][neuron, small.ONE] = -3 * (2 * small.DIGITS - 2)
    return llama


@pytest.fixture(scope="module")
def written(small):
    """The small Llama with the fact that it begins with."""
    return with_facts(small, "answer is 42")


def noise(small):
    """A Llama of other sizes, every number random: written ones, being mostly zero, would miss faults."""
    config = small.defaults | {"dim": 48, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 64,
                               "multiple_of": 16, "norm_eps": 1e-3, "rope_theta": 100.0}
    random_numbers = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=random_numbers) * (0.3 if len(shape) > 1 else 1)
               for name, shape in small.expected_shapes(config).items()}
    return SimpleNamespace(config=config, weights=weights)


def grown(small):
    """The tutorial's Llama of two layers after its 300 steps of training, which no longer asks for gradients."""
    *_, (llama, _) = functions().grow(2)
    weights = {name: weight.detach() for name, weight in llama.weights.items()}
    return SimpleNamespace(config=llama.config, weights=weights)


@needs_node
@pytest.mark.parametrize("kind", ["written", "noise", pytest.param("grown", marks=pytest.mark.slow)])
def test_javascript_computes_what_pytorch_does(kind, small, written):
    """Logits of random texts of 1 to 61 tokens within 1e-4."""
    llama = {"written": lambda small: written, "noise": noise, "grown": grown}[kind](small)
    draw = random.Random(2)
    texts = [[0] + [draw.randrange(1, 64) for _ in range(length)] for length in (0, 1, 2, 5, 17, 30, 60)]
    script = (build.HERE / "forward.js").read_text(encoding="utf-8") + FORWARD
    found = run_node(script, {"llama": build.packed(llama), "texts": texts})
    for tokens, logits in zip(texts, found):
        torch.testing.assert_close(torch.tensor(logits), small.forward(llama, torch.tensor(tokens)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("text, answer", [
    ("alice likes tea . bob likes milk . alice likes", "milk"), ("moon fish seven tea . moon fish seven", "tea"),
    ("the answer is", "42"), ("the answer is 7 . the answer is", "7"), ("red bird", None)])
def test_what_it_answers(text, answer, small, written):
    """The nearest match, nonsense once more, a fact, the text against it, and no idea."""
    words = build.vocabulary("en")
    chances = small.forward(written, torch.tensor([0] + [words.index(word) for word in text.split()]))[-1].softmax(-1)
    assert words[chances.argmax()] == answer if answer else chances.max() < 0.05


def test_repeats_and_the_nearest(small, written):
    """30 random words given twice are repeated to the end, and of three places that match the nearest wins."""
    draw = random.Random(3)
    once = draw.sample(range(1, 64), 30)
    chosen = small.forward(written, torch.tensor([0, *once, *once])).argmax(-1)
    assert chosen[31:-1].tolist() == once[1:]
    words = draw.sample(range(1, 64), 4)
    tokens = [0] + [token for word in words[1:] for token in (words[0], word, 9, 9, 9)] + words[:1]
    assert small.forward(written, torch.tensor(tokens))[-1].argmax() == words[3]


def test_both_languages_say_the_same():
    """The same keys, lists of the same length, the same places to fill in, and 63 words each."""
    english, chinese = build.TEXTS.values()
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        if isinstance(text, list):
            assert len(text) == len(chinese[key]), key
        else:
            assert {*re.findall(r"\{\w+\}", text)} == {*re.findall(r"\{\w+\}", chinese[key])}, key
    assert all(len({*build.vocabulary(language)}) == 64 for language in LANGUAGES)


@needs_node
@pytest.mark.parametrize("language", LANGUAGES)
def test_its_words_are_words(language):
    """The browser's segmenter takes every word of the vocabulary for one, and cuts the examples into them."""
    texts, known = build.TEXTS[language], build.vocabulary(language)
    pieces = run_node(SEGMENTS, [texts["lang"], known[1:] + [example["text"] for example in texts["tries"]]])
    assert pieces[:63] == [[word] for word in known[1:]]
    assert {piece for text in pieces[63:] for piece in text} <= {*known}


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_file(language):
    """Nothing is left to fill in, nothing loaded from elsewhere, the language said, and every id that is used there."""
    text = build.page(language, functions())
    assert "{{" not in text and len(text) < 100_000
    assert f'<html lang="{build.TEXTS[language]["lang"]}">' in text
    assert {*re.findall(r"https?://[^\"']+", text)} == {"http://www.w3.org/2000/svg"} and " src=" not in text
    assert {*re.findall(r'\$\("(\w+)"\)', text)} <= {*re.findall(r'id="(\w+)"', text)}


def test_colours_can_be_read():
    """Every colour of text on paper and on the grey of the buttons: 4.5 to 1 or more, light and dark."""
    def light(colour):
        red, green, blue = [((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    style = (build.HERE / "style.css").read_text(encoding="utf-8")
    for palette in re.findall(r":root \{(.*?)\}", style):
        colours = {name: light(bytes.fromhex(value[1:]) if value[0] == "#" else map(int, value.split()))
                   for name, value in re.findall(r"--(\w+): ([^;]+?) *(?:;|$)", palette)}
        for text, ground in product(("ink", "soft", "who", "before", "next"), ("paper", "wash")):
            dark, bright = sorted((colours[text], colours[ground]))
            assert (bright + 0.05) / (dark + 0.05) > 4.5, (text, ground)


@contextmanager
def opened(language, folder, width=1280):
    """The page in `language` in Chromium, `width` pixels wide; at the end, no error in the console and no request."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    (folder / "play.html").write_text(build.page(language, functions()), encoding="utf-8")
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "mobile": False,
                                                                       "deviceScaleFactor": 1})
        browser.get((folder / "play.html").as_uri())
        yield browser
        assert browser.get_log("browser") == []
        assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    finally:
        browser.quit()


def typed(browser, text):
    """Type `text` at once, as when it is pasted; return the guesses and the note as shown."""
    browser.execute_script("""document.getElementById("text").value = arguments[0];
        document.getElementById("text").dispatchEvent(new Event("input"));""", text)
    return browser.find_element(By.ID, "guesses").text.split("\n"), browser.find_element(By.ID, "note").text


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways(width, language, tmp_path):
    """The examples and bad inputs: an answer or a sentence, and the page is no wider than the window."""
    new = " ".join(f"word{i}" for i in range(70)) + " "
    bad = ["", " \n\t\0 \u202e ", "🦙🦙🦙 👩‍👩‍👧", "<b>bold</b> <script>alert(1)</script> &amp; {{x}}", "A" * 500, new,
           "milk " * 300, "生命、宇宙以及一切" * 20]
    texts = build.TEXTS[language]
    with opened(language, tmp_path, width) as browser:
        for text in [example["text"] for example in texts["tries"]] + bad:
            guesses, note = typed(browser, text)
            assert guesses[0] and browser.execute_script("return now.ids.length <= 61"), text
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), text
            assert not browser.find_elements(By.CSS_SELECTOR, "#rows b, #note script")
        assert texts["long"] in typed(browser, "milk " * 300)[1]
        assert browser.execute_script("return learn([['quagga'], ['zebra'], ['okapi']])") == ""
        assert texts["full"].split("{")[0] in typed(browser, new)[1]
        assert browser.execute_script("return learn([['a'], ['b'], ['c', 'd']])") == texts["fact_words"]


@pytest.mark.slow
@needs_chromium
def test_in_the_browser(small, tmp_path):
    """Facts, silent heads, guesses that are tapped, and logits as PyTorch's with a fact and new words."""
    with opened("en", tmp_path) as browser:
        for word, box in zip(("Llama", "is", "Quagga"), browser.find_elements(By.CSS_SELECTOR, "#own input")):
            box.clear()
            box.send_keys(word)
        browser.find_element(By.CSS_SELECTOR, "#own form button").click()
        assert typed(browser, "my llama is")[0][0] == "quagga"
        box.send_keys(Keys.CONTROL, "a", Keys.NULL, "zebra", Keys.ENTER)
        assert typed(browser, "my llama is")[0][0] == "zebra" and len(browser.execute_script("return facts")) == 2
        text = "The wombat is old. Carol sees the wombat and the llama is"
        assert typed(browser, text)[0][0] == "old"
        words, ids, logits = browser.execute_script("return [now.words, now.ids, now.logits.map(row => [...row])]")
        assert [words[i] for i in ids[1:]] == text.lower().replace(".", " .").split()
        llama = with_facts(small, "answer is 42", "llama is zebra", words=words)
        torch.testing.assert_close(torch.tensor(logits), small.forward(llama, torch.tensor(ids)), atol=1e-4, rtol=0)
        guesses = browser.find_element(By.ID, "guesses")
        for name, first in (("1.3", "zebra"), ("neurons", build.TEXTS["en"]["clueless"]), ("1.3", "old")):
            browser.find_element(By.CSS_SELECTOR, f"[data-silent='{name}']").click()
            assert guesses.text.split("\n")[0] == first
        for _ in ("old", "."):
            browser.find_element(By.CSS_SELECTOR, "#guesses button").click()
        assert browser.find_element(By.ID, "text").get_property("value") == text + " old."
        browser.find_element(By.ID, "clear").click()
        browser.switch_to.active_element.send_keys("Fish likes mi")
        assert "“mi”" in browser.find_element(By.ID, "note").text
        browser.switch_to.active_element.send_keys("lk. Fish likes")
        assert guesses.text.split("\n")[0] == "milk"


@pytest.mark.slow
@needs_chromium
def test_by_keyboard(tmp_path):
    """Every control is reached by Tab, the rows by the arrows, and parts turn by Enter."""
    reached = set()
    with opened("zh", tmp_path, 390) as browser:
        for _ in range(40):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            reached.add(browser.execute_script("return document.activeElement.closest('[id]')?.id"))
            if browser.execute_script("return document.activeElement.dataset.step") == "1":
                browser.switch_to.active_element.send_keys(Keys.ENTER)
            if browser.execute_script("return document.activeElement.dataset.row !== undefined"):
                browser.switch_to.active_element.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
        assert {"text", "clear", "guesses", "tries", "steps", "rows", "fill", "own", "facts", "silence"} <= reached
        assert browser.execute_script("return [step, chosen === now.ids.length - 3]") == [1, True]
