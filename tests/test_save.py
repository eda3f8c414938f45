"""The saving command: what it keeps from the last run, what it carries over, and which Chinese cells it marks."""
import base64

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from save import carry_over, fingerprint, keep_outputs, mark_translated, outdated


def code(name, source, text, picture, tags=()):
    """A run code cell `name` that has printed `text` and shown `picture`."""
    data = {"image/png": base64.b64encode(picture).decode(), "text/plain": "<Figure>"}
    outputs = [new_output("stream", name="stdout", text=text), new_output("display_data", data=data)]
    return new_code_cell(source, id=name, outputs=outputs, execution_count=1, metadata={"tags": list(tags)})


def shown(notebook):
    """The pictures that the cells of `notebook` show, as text."""
    return [base64.b64decode(cell.outputs[1].data["image/png"]).decode() for cell in notebook.cells]


def run(texts="123", sources="abc", mark=b"new", tags=()):
    """A notebook of three cells, as one run shows it; the second has `tags`."""
    cells = [code(f"cell-{i}", sources[i], texts[i], mark, tags if i == 1 else ()) for i in range(3)]
    return new_notebook(cells=cells)


@pytest.mark.parametrize("new, pictures", [
    (run(), ["old", "old", "old"]), (run("1x3"), ["old", "new", "new"]), (run(sources="abx"), ["old", "old", "new"])])
def test_only_noise_is_taken_back(new, pictures):
    """A picture stays as long as code and printed outputs are what they were, from the first cell to its own."""
    keep_outputs(new, run(mark=b"old"), measure=False)
    assert shown(new) == pictures


@pytest.mark.parametrize("sources, measure, second", [("abc", False, "2"), ("abc", True, "x"), ("ayc", False, "x")])
def test_measurements_stay(sources, measure, second):
    """A measurement stays until its code changes or it is asked for, and changes nothing behind it."""
    tags = ["nbval-ignore-output"]
    new, old = run("1x3", sources, tags=tags), run(mark=b"old", tags=tags)
    keep_outputs(new, old, measure)
    assert new.cells[1].outputs[0].text == second
    assert shown(new)[2] == ("old" if sources == "abc" else "new")


def test_single_cells_are_marked():
    """A text that has changed is out of date in Chinese until that cell is named; a new one comes in English."""
    english = new_notebook(cells=[new_markdown_cell(name, id=name) for name in ("one", "two", "three")])
    chinese = new_notebook(cells=[new_markdown_cell("一", id="one", metadata={"english": fingerprint("one")}),
                                  new_markdown_cell("二", id="two", metadata={"english": fingerprint("before")})])
    both = carry_over(english, chinese)
    assert [cell.source for cell in both.cells] == ["一", "二", "three"]
    assert outdated(english, both) == ["two", "three"]
    mark_translated(english, both, ["two"])
    assert outdated(english, both) == ["three"]
    with pytest.raises(SystemExit, match="'four' is no Markdown cell"):
        mark_translated(english, both, ["four"])
