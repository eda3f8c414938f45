"""The form of the saved notebooks: ids, prose before code, outputs of one run, lines that ruff accepts.

That both notebooks have the same outputs is the concern of test_translation.py, that all plots are there of
test_site.py.
"""
import re
import subprocess
import sys

import nbformat
import pytest
from cells import CHINESE, ENGLISH, ROOT, code_cells, read
from save import write_notebook

# an id in words, as `write-keys-why`, not the eight random digits that Jupyter gives a new cell
READABLE = re.compile(r"(?![0-9a-f]{8}$)[a-z]+\d*(-[a-z]+\d*)*")


@pytest.fixture(params=[ENGLISH, CHINESE], ids=["en", "zh"])
def path(request):
    """Each of the two notebooks."""
    return request.param


def test_as_the_saving_command_writes_it(path, tmp_path):
    """Reading and writing the file changes no byte; it is valid, its ids are readable, and it has at most 2 MB."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert [cell.id for cell in notebook.cells if not READABLE.fullmatch(cell.id)] == [], "ids say what a cell is about"
    write_notebook(notebook, tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == path.read_bytes(), "run python tools/save.py"
    assert path.stat().st_size <= 2_000_000


def test_one_run():
    """Counts are those of a fresh kernel that ran every cell once, in order, without an error or a warning."""
    code = code_cells(read())
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run python tools/save.py --run"
    assert [cell.id for cell in code for output in cell.outputs
            if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_ruff():
    """Notebooks and all programs are clean; no text is read or written in a system's own encoding."""
    done = subprocess.run([sys.executable, "-m", "ruff", "check", ROOT], encoding="utf-8", capture_output=True)
    assert done.returncode == 0, done.stdout
