"""The saving command: what it keeps from the last run, what it carries over, and which Chinese cells it marks."""
import base64
import io

import pytest
import save
from cells import plots
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image


def square(brightness):
    """The bytes of a PNG of 16 by 16 pixels, all of one `brightness` of 255."""
    file = io.BytesIO()
    Image.new("L", (16, 16), brightness).save(file, format="png")
    return file.getvalue()


OLD, NOISY, NEW = square(0), square(9), square(200)


def code(name, source, text, picture, tags=()):
    """A run code cell `name` that has printed `text` and shown `picture`."""
    data = {"image/png": base64.b64encode(picture).decode(), "text/plain": "<Figure>"}
    outputs = [new_output("stream", name="stdout", text=text), new_output("display_data", data=data)]
    return new_code_cell(source, id=name, outputs=outputs, execution_count=1, metadata={"tags": list(tags)})


def run(texts="123", sources="abc", picture=NEW, tags=()):
    """A notebook of three cells, as one run shows it; the second has `tags`."""
    cells = [code(f"cell-{i}", sources[i], texts[i], picture, tags if i == 1 else ()) for i in range(3)]
    return new_notebook(cells=cells)


@pytest.mark.parametrize("texts, sources, picture, tags, stay", [
    ("123", "abc", NEW, [], [True, True, True]),
    ("1x3", "abc", NEW, [], [True, False, False]),
    ("123", "xbc", NOISY, [], [True, True, True]),
    ("1x3", "abc", NOISY, [], [True, False, True]),
    ("1x3", "abc", NEW, ["nbval-ignore-output"], [True, True, True]),
    ("123", "axc", NEW, ["nbval-ignore-output"], [True, False, False])])
def test_only_noise_is_taken_back(texts, sources, picture, tags, stay):
    """A picture stays if it looks the same, or all so far is what it was; a measurement while its code does."""
    new = run(texts, sources, picture, tags)
    save.keep_outputs(new, run(picture=OLD, tags=tags))
    assert [plots(cell) == [OLD] for cell in new.cells] == stay


def test_single_cells_are_marked():
    """A text that has changed is out of date in Chinese until that cell is named; a new one comes in English."""
    english = new_notebook(cells=[new_markdown_cell(name, id=name) for name in ("one", "two", "three")])
    chinese = new_notebook(cells=[new_markdown_cell("一", id="one", metadata={"english": save.hash_of("one")}),
                                  new_markdown_cell("二", id="two", metadata={"english": save.hash_of("before")})])
    both = save.carry_over(english, chinese)
    assert [cell.source for cell in both.cells] == ["一", "二", "three"]
    assert save.outdated(english, both) == ["two", "three"]
    save.mark_translated(english, both, ["two"])
    assert save.outdated(english, both) == ["three"]
