"""The Llama to play with: what its JavaScript computes, what it answers, and how the page behaves in a browser."""
import random
from types import SimpleNamespace

import pytest
import torch
from browser import needs_chromium, open_page
from cells import load_tutorial
from play import play
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

LANGUAGES = list(play.TEXTS)
# the neuron, and the numbers of the words: after answer is, 42
FACT = [42, *[play.vocabulary("en").index(word) for word in ("answer", "is", "42")]]


def knowing_the_answer(tutorial):
    """The playable Llama with one FACT, written by the function of the `tutorial` with six digits."""
    llama = play.playable_llama(tutorial)
    tutorial.write_fact(llama.weights, *FACT)
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
    tutorial = play.tutorial_with_six_digits()
    llama = grown() if kind == "grown" else knowing_the_answer(tutorial)
    draw = random.Random(2)
    texts = [[0] + [draw.randrange(1, 64) for _ in range(length)] for length in (0, 1, 2, 5, 17, 30, 60)]
    script = (play.HERE / "forward.js").read_text(encoding="utf-8") + """
        const [packed, texts] = arguments, llama = load_llama(packed)
        return texts.map(tokens => forward(llama, tokens).map(row => [...row]))"""
    for tokens, logits in zip(texts, browser.execute_script(script, play.packed(llama), texts)):
        wanted = tutorial.forward(llama, torch.tensor(tokens))
        torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)


def test_both_languages_say_the_same():
    """The same keys, lists of the same length, and 63 words each."""
    english, chinese = play.TEXTS.values()
    lists = [{key: isinstance(text, list) and len(text) for key, text in texts.items()}
             for texts in (english, chinese)]
    assert lists[0] == lists[1]
    assert all(len({*play.vocabulary(language)}) == 64 for language in LANGUAGES)


def typed(browser, text):
    """Type `text` at once, as when it is pasted; return the guesses and the note as shown."""
    browser.execute_script("""document.getElementById("text").value = arguments[0];
        document.getElementById("text").dispatchEvent(new Event("input"));""", text)
    return browser.find_element(By.ID, "guesses").text.split("\n"), browser.find_element(By.ID, "note").text


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("language", LANGUAGES)
def test_any_text(language, site_folder, browser):
    """The examples, and bad inputs, on a phone: an answer or a sentence, no wider than the window, and no error."""
    texts = play.TEXTS[language]
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
    open_page(browser, site_folder / play.TEXTS["en"]["file"])
    clueless = play.TEXTS["en"]["clueless"]
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
