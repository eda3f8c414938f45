"""The saved outputs, where nbval does not look: they are of one run, with every plot and without a complaint.

That both notebooks have the same is the concern of test_translation.py.
"""
import ast

import pytest
from cells import CHINESE, ENGLISH, code_cells, pictures, printed, read, source


@pytest.fixture(params=[ENGLISH, CHINESE], ids=["english", "chinese"])
def code(request):
    """The code cells of each notebook."""
    return code_cells(read(request.param))


def plots(tree, names):
    """Whether the syntax `tree`, outside its definitions of functions, calls `plt.show` or one of `names`."""
    outside = [node for node in getattr(tree, "body", []) if not isinstance(node, ast.FunctionDef)]
    calls = [ast.unparse(node.func) for part in outside for node in ast.walk(part) if isinstance(node, ast.Call)]
    return bool({"plt.show", *names} & {*calls})


def test_one_run(code):
    """Counts are those of a fresh kernel that ran every cell once, in order."""
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run python tools/save.py --run"
    for cell in code:
        assert {output.execution_count for output in cell.outputs if "execution_count" in output} <= {
            cell.execution_count}


def test_every_plot_is_there(code):
    """A PNG for each figure, and at least one under each cell that plots."""
    plotting = set()
    for cell in code:
        tree = ast.parse(source(cell))
        plotting |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and plots(node, plotting)}
        shown = pictures(cell)
        assert all(picture.startswith(b"\x89PNG\r\n") for picture in shown), cell.id
        assert len(shown) == printed(cell).count("<Figure "), cell.id
        assert shown or not plots(tree, plotting), cell.id


def test_no_complaints(code):
    """No error and nothing on stderr."""
    assert [cell.id for cell in code for output in cell.outputs
            if output.output_type == "error" or output.get("name") == "stderr"] == []
