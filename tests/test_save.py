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


@pytest.mark.parametrize("texts, sources, tags, measure, pictures", [
    ("123", "abc", [], False, ["old", "old", "old"]),
    ("1x3", "abc", [], False, ["old", "new", "new"]),
    ("123", "abx", [], False, ["old", "old", "new"]),
    ("1x3", "abc", ["nbval-ignore-output"], False, ["old", "old", "old"]),
    ("1x3", "abc", ["nbval-ignore-output"], True, ["old", "new", "old"])])
def test_only_noise_is_taken_back(texts, sources, tags, measure, pictures):
    """A picture stays as long as all so far is what it was; a measurement until it is asked for."""
    new = run(texts, sources, tags=tags)
    keep_outputs(new, run(mark=b"old", tags=tags), measure)
    assert shown(new) == pictures


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
