"""What nbval does not see in the saved notebooks: counts, pictures, sizes, limits and form."""
import base64
import re
import subprocess
import sys
from collections import Counter
from statistics import median

import nbformat
import pytest
from cells import CHINESE, ENGLISH, ROOT, printed, read
from save_notebooks import IGNORED, fingerprint, write

NOTEBOOKS = [path for path in (ENGLISH, CHINESE) if path.exists()]
PACKAGES = re.findall(r"^[\w-]+==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
NOT_COMPARABLE = {
    "absolute path": r"(?<![\w.:/])/(?:home|root|tmp|usr|var|work|content|Users|opt|mnt|private)/|\b[A-Z]:\\",
    "version of a package": "|".join(rf"(?<![\d.]){re.escape(version)}(?![\d.])" for version in PACKAGES),
    "timing": r"\d ?(?:ns|µs|us|ms|s|sec|seconds|minutes|it/s|s/it)\b|\d:\d\d\b",
    "memory address": r"\b0x[0-9a-f]{6,}",
    "process id": r"(?i)\bpid\b|ipykernel_\d",
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    """Each of the two notebooks."""
    return request.param


@pytest.fixture
def code(path):
    """The code cells of the notebook at `path`."""
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    """The tags of `cell`."""
    return cell.metadata.get("tags", [])


def folded(cell):
    """How many of the two ways of folding a cell, Jupyter's and Colab's, `cell` uses."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False) + (cell.metadata.get("cellView") == "form")


def height(cell):
    """The number of lines of `cell` that are not blank."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def test_counts(code):
    """Saved in order, from a fresh kernel."""
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert {output.execution_count for output in cell.outputs if "execution_count" in output} <= {
            cell.execution_count}


def test_pictures(code):
    """A PNG for every plot that a cell shows, and no file that is none."""
    for cell in code:
        calls = Counter(re.findall(r"^(plt\.show|heatmaps|bars|stripes)\(", cell.source, re.M))
        pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == calls.total(), cell.id
        assert all(base64.b64decode(picture).startswith(b"\x89PNG\r\n") for picture in pictures), cell.id


def test_no_complaints(code):
    """No error and nothing on stderr."""
    assert [cell.id for cell in code for output in cell.outputs
            if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_outputs_can_be_compared(code):
    """Nothing that differs from machine to machine stands in an output that nbval compares."""
    for cell in code:
        if IGNORED not in tags(cell):
            for what, pattern in NOT_COMPARABLE.items():
                assert not re.search(pattern, printed(cell)), (cell.id, what)


def test_few_exceptions_and_small(path, code):
    """At most five cells are not compared, what they show was measured with their code; the file has at most 2 MB."""
    measured = [cell for cell in code if IGNORED in tags(cell)]
    assert len(measured) <= 5 and all(cell.metadata.get("measured") == fingerprint(cell.source) for cell in measured)
    assert path.stat().st_size <= 2e6


def test_canonical(path, tmp_path):
    """Reading the file and writing it with the saving command changes no byte; it is valid, its ids are unique."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    write(notebook, tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == path.read_bytes()


def words(cells):
    """How many words and numbers the Markdown `cells` have, links and the code of answers too, but no pictures."""
    texts = [re.sub(r"<[^>]+>", " ", cell.source) for cell in cells if cell.cell_type == "markdown"]
    return sum(len(re.findall(r"[\w']+", text)) for text in texts)


def up_to(cells, name):
    """The `cells` before the one with the id `name`."""
    return cells[:[cell.id for cell in cells].index(name)]


def lines(cells, folds=(0, 2)):
    """How many lines of code the `cells` have, blank ones left out, in cells that are open (0) and folded (2)."""
    return sum(height(cell) for cell in cells if cell.cell_type == "code" and folded(cell) in folds)


def test_page_keeps_its_limits():
    """What a reader can take: cells, lines, words, short cells; a lesson that starts at once, and comes to its end."""
    cells = read().cells
    assert len(cells) <= 210 and lines(cells) <= 760 and lines(cells, [2]) <= 150 and words(cells) <= 7200
    assert lines(up_to(cells, "tokenizer-lines")) <= 20
    assert lines(up_to(cells, "bpe")) <= 45 and lines(up_to(cells, "tokens")) <= 75
    assert median(height(cell) for cell in cells if cell.cell_type == "code") <= 4
    walk = up_to(cells, "top5")
    assert lines(walk, [0]) <= 400 and words(walk) <= 3600


def test_cells_are_small(code):
    """Three folded cells of 70, 45 and 45 lines, in both ways of folding; `forward` 25 to 45; others 13 or fewer."""
    assert {cell.id for cell in code if folded(cell) == 1} == set()
    hidden = {cell.id: height(cell) for cell in code if folded(cell)}
    assert hidden.keys() == {"stand-in", "open", "smollm2"}
    assert hidden["stand-in"] <= 70 and hidden["open"] <= 45 and hidden["smollm2"] <= 45
    (forward,) = [cell for cell in code if cell.id == "forward"]
    assert 25 <= height(forward) <= 45 and height(code[0]) <= 20
    assert {cell.id: height(cell) for cell in code[1:]
            if not folded(cell) and cell is not forward and height(cell) > 13} == {}


def test_prose_first(path):
    """Every code cell has Markdown before it, and there is one title, at the top."""
    cells = read(path).cells
    for before, cell in zip([None, *cells], cells):
        assert cell.cell_type == "markdown" or before is not None and before.cell_type == "markdown", cell.id
    titles = [cell.id for cell in cells if cell.cell_type == "markdown"
              for _ in re.findall(r"^# ", re.sub(r"```.*?```", "", cell.source, flags=re.S), re.M)]
    assert titles == [cells[0].id]


def test_ruff():
    """Notebooks, tests and drawings are clean."""
    run = subprocess.run([sys.executable, "-m", "ruff", "check", ROOT], encoding="utf-8", capture_output=True)
    assert run.returncode == 0, run.stdout
