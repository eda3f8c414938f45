"""The English notebook as the tests see it: its cells, its functions, and runs of it under other conditions."""
import ast
import base64
import linecache
import os
import re
import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "llama3_from_scratch.ipynb", ROOT / "llama3_from_scratch_zh.ipynb"
CONSTANTS = {"blue", "grey", "device", "llama3_8b", "defaults", "again", "pattern",
             "reserved", "special", "packaged", "prose", "small"}


def read(path=ENGLISH):
    """The notebook at `path`, in nbformat 4."""
    return nbformat.read(str(path), as_version=4)


def source(cell):
    """The text of a code `cell` as plain Python: IPython's `%` lines become calls."""
    return TransformerManager().transform_cell(cell.source)


@cache
def functions():
    """A namespace with every function of the notebook, its imports and its constants, and none of its arithmetic.

    The functions find one another, and `inspect.getsource` finds them, as in the running notebook.
    """
    os.environ.setdefault("LLAMA3_DEVICE", "cpu")
    names = {"__name__": "notebook_functions"}
    for cell in read().cells:
        if cell.cell_type != "code":
            continue
        text, name = source(cell), f"<cell {cell.id}>"
        tree = ast.parse(text)
        tree.body = [node for node in tree.body
                     if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)) or _constant(node)]
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(tree, name, "exec"), names)
    return SimpleNamespace(**names)


def tokenizer_model():
    """The path of Meta's tokenizer.model in the package `llama-models`."""
    return functions().files("llama_models") / "llama3" / "tokenizer.model"


def smollm2(folder=ROOT / "SmolLM2-135M"):
    """`folder` with SmolLM2-135M in Meta's layout, written by the notebook's own function if it is not there."""
    if not folder.exists():
        functions().write_smollm2(folder)
    return folder


def _constant(node):
    """Whether the statement `node` sets one of CONSTANTS at the top of a cell."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return any(name.id in CONSTANTS for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def first_part(notebook):
    """`notebook` up to the cell tagged `part-two`, which is left out with all after it."""
    cells = []
    for cell in notebook.cells:
        if "part-two" in cell.metadata.get("tags", []):
            break
        cells.append(cell)
    notebook.cells = cells
    return notebook


def compared(notebook):
    """`notebook` without the cells tagged `nbval-ignore-output`, which measure, and take most of the time."""
    notebook.cells = [cell for cell in notebook.cells if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    return notebook


def with_prompt(notebook, prompt):
    """`notebook` with `prompt` in the prompt's cell."""
    (cell,) = [cell for cell in notebook.cells if cell.id == "prompt"]
    cell.source = f"prompt = {prompt!r}"
    return notebook


@contextmanager
def environment(**changes):
    """The process environment with `changes` for a while; None removes a variable."""
    before = {key: os.environ.get(key) for key in changes}
    try:
        for key, value in changes.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: str(value)})
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


@contextmanager
def room(size):
    """No file of this process and its children can grow beyond `size` bytes for a while, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def anonymous_memory():
    """Bytes of this process that no file backs; skips the test where the system does not count them (Linux does)."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8") if status.exists() else "")
    return 1024 * int(found[1]) if found else pytest.skip("this system does not say how much memory no file backs")


def link(place, folder):
    """Make `place` a link to `folder`, or a copy where this system has no links or keeps them from its users."""
    try:
        place.symlink_to(folder, target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(folder, place)


def run(notebook, folder=ROOT, **changes):
    """Execute `notebook` in a kernel of its own in `folder`, with `changes` to the environment; return it.

    Raises nbclient.exceptions.CellExecutionError when a cell fails.
    """
    with environment(**changes):
        NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True,
                       resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def stderr(notebook):
    """All that the cells of a run `notebook` wrote to stderr."""
    return "".join(output.text for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
                   if output.get("name") == "stderr")


def printed(cell):
    """What a run code `cell` shows as text: streams and plain results."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def pictures(cell):
    """The PNG files, as bytes, of the plots that a run code `cell` shows, in their order."""
    data = [output.get("data", {}) for output in cell.outputs]
    return [base64.b64decode(found["image/png"]) for found in data if "image/png" in found]
