"""What nbval does not see in the saved notebooks: counts, pictures, sizes, form, and the answers to the exercises."""
import ast
import base64
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from cells import CHINESE, ENGLISH, ROOT, functions, printed, read, source
from save_notebooks import IGNORED, write

NOTEBOOKS = [path for path in (ENGLISH, CHINESE) if path.exists()]
PACKAGES = re.findall(r"^[\w-]+==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
NOT_COMPARABLE = {
    "absolute path": r"(?<![\w.:/])/(?:home|root|tmp|usr|var|work|content|Users|opt|mnt|private)/|\b[A-Z]:\\",
    "version of a package": "|".join(rf"(?<![\d.]){re.escape(version)}(?![\d.])" for version in PACKAGES),
    "timing": r"\d ?(?:ns|µs|us|ms|s|sec|seconds|minutes|it/s|s/it)\b|\d:\d\d\b",
    "memory address": r"\b0x[0-9a-f]{6,}",
    "process id": r"(?i)\bpid\b|ipykernel_\d",
}

ROTATION = """
rotations = rope(smol.config, 0, 17)
cos, sin = rotations.real, rotations.imag
all_q = torch.randn(17, 9, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
"""


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
        calls = Counter(re.findall(r"^(plt\.show|heatmap|bars)\(", cell.source, re.M))
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
    """At most five cells are not compared, and the file has at most 2 MB."""
    assert sum(IGNORED in tags(cell) for cell in code) <= 5
    assert path.stat().st_size <= 2e6


def test_canonical(path, tmp_path):
    """Reading the file and writing it with the saving command changes no byte; it is valid, its ids are unique."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    write(notebook, tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == path.read_bytes()


def test_cells_are_small(code):
    """At most three folded cells of 40 lines, in both ways of folding; `forward` 25 to 45; all others 12 or fewer."""
    assert {cell.id for cell in code if folded(cell) == 1} == set()
    assert sum(folded(cell) == 2 for cell in code) <= 3
    assert {cell.id: height(cell) for cell in code if folded(cell) and height(cell) > 40} == {}
    (forward,) = [cell for cell in code if cell.id == "forward"]
    assert 25 <= height(forward) <= 45
    assert {cell.id: height(cell) for cell in code
            if not folded(cell) and cell is not forward and height(cell) > 12} == {}


def test_prose_first(path):
    """Every code cell has Markdown before it, and there is one title, at the top."""
    cells = read(path).cells
    for before, cell in zip([None, *cells], cells):
        assert cell.cell_type == "markdown" or before is not None and before.cell_type == "markdown", cell.id
    titles = [cell.id for cell in cells if cell.cell_type == "markdown"
              for _ in re.findall(r"^# ", re.sub(r"```.*?```", "", cell.source, flags=re.S), re.M)]
    assert titles == [cells[0].id]


def answers(path):
    """The folded answers of the notebook at `path`: the id of the code cell that follows, and the answer's code."""
    cells = read(path).cells
    return {after.id: code for cell, after in zip(cells, cells[1:]) if cell.cell_type == "markdown"
            for code in re.findall(r"<details>.*?```python\n(.*?)```\s*</details>", cell.source, re.S)}


def test_five_answers():
    """Five exercises; unanswered, each check says `not yet`; both languages give the same answers."""
    found = answers(ENGLISH)
    assert len(found) == 5 and all(answers(path) == found for path in NOTEBOOKS)
    assert {cell.id: printed(cell) for cell in read().cells if cell.id in found} == dict.fromkeys(found, "not yet\n")


def answered(cell, answer):
    """The code of an exercise's `cell` with its stubs replaced by the functions of the same name in `answer`."""
    solution = ast.parse(answer)
    names = {node.name for node in solution.body if isinstance(node, ast.FunctionDef)}
    stub = ast.parse(source(cell))
    kept = [node for node in stub.body if getattr(node, "name", None) not in names]
    assert len(kept) == len(stub.body) - len(names), f"{cell.id}: the answer is no function of the stub's name"
    return ast.unparse(ast.Module(solution.body + kept, []))


def test_answers_are_right(monkeypatch, capsys):
    """Each answer in the place of its stub makes the check print `right`, after the cells that it builds on."""
    monkeypatch.chdir(ROOT)
    cells, found = {cell.id: cell for cell in read().cells}, answers(ENGLISH)
    names = functions.__wrapped__().forward.__globals__
    for name in ("smol", "edit", "loss", "loss-function"):
        exec(source(cells[name]), names)
    exec(ROTATION, names)
    capsys.readouterr()
    for name, answer in found.items():
        exec(answered(cells[name], answer), names)
        assert capsys.readouterr().out == "right\n", name


def test_ruff():
    """Notebooks, tests and drawings are clean."""
    run = subprocess.run([sys.executable, "-m", "ruff", "check", ROOT], encoding="utf-8", capture_output=True)
    assert run.returncode == 0, run.stdout
