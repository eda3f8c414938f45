"""The two notebooks as Python sees them: their cells, the functions of the English one, and runs of it."""
import ast
import base64
import io
import linecache
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "llama3_from_scratch.ipynb", ROOT / "llama3_from_scratch_zh.ipynb"
# the constants, beside those in capitals, that are needed outside the running notebook
CONSTANTS = {"device", "packaged", "reserved", "special", "pattern", "prompt", "llama3_8b", "two_layers", "defaults",
             "places", "registers", "blue", "green", "vermilion", "grey", "narrow", "prose", "small", "hint"}


def read(path=ENGLISH):
    """The notebook at `path`, in nbformat 4."""
    return nbformat.read(str(path), as_version=4)


def code_cells(notebook):
    """The code cells of `notebook`."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_cells(notebook):
    """The Markdown cells of `notebook`."""
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def may_vary(cell):
    """Whether what the code `cell` shows is measured or drawn at random, which no test compares."""
    return "nbval-ignore-output" in cell.metadata.get("tags", [])


def as_python(cell):
    """The text of a code `cell` as plain Python: IPython's `%` lines become calls."""
    return TransformerManager().transform_cell(cell.source)


def register_source(name, text):
    """Let `inspect.getsource` find the functions of `text`, which is compiled under the file name `name`."""
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)


@cache
def load_tutorial():
    """The module that `new_tutorial` makes, the same one for all who ask."""
    return new_tutorial()


def new_tutorial():
    """A module with every function of the English notebook, its imports and its CONSTANTS, and none of its arithmetic.

    The functions find one another, what is set in the module, and `inspect.getsource` finds them, as in the notebook.
    """
    os.environ.setdefault("LLAMA3_DEVICE", "cpu")
    tutorial = ModuleType("notebook_functions")
    for cell in code_cells(read()):
        text, name = as_python(cell), f"<cell {cell.id}>"
        register_source(name, text)
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)) or is_constant(node):
                exec(compile(ast.Module([node], []), name, "exec"), vars(tutorial))
    assert vars(tutorial).keys() >= CONSTANTS, f"no cell sets {CONSTANTS - vars(tutorial).keys()}"
    return tutorial


def is_constant(node):
    """Whether the statement `node` sets names in capitals, or some of the CONSTANTS."""
    if not isinstance(node, ast.Assign):
        return False
    names = [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return all(name in CONSTANTS or name.isupper() for name in names)


def smollm2_folder():
    """The folder of SmolLM2-135M beside the notebooks, which a function of the notebook writes if it is not there."""
    folder = ROOT / "SmolLM2-135M"
    if not folder.exists():
        load_tutorial().write_smollm2(folder)
    return folder


def first_part(notebook):
    """A copy of `notebook` up to the cell tagged `part-two`, which is left out with all after it."""
    starts = [i for i, cell in enumerate(notebook.cells) if "part-two" in cell.metadata.get("tags", [])]
    return nbformat.from_dict(notebook | {"cells": notebook.cells[:starts[0]]})


def execute(notebook, folder=ROOT, **changes):
    """Execute `notebook` in a kernel of its own in `folder`, with `changes` to the environment; return it.

    None removes a variable. Raises nbclient.exceptions.CellExecutionError when a cell fails.
    """
    variables = os.environ | changes
    client = NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    client.execute(env={name: str(value) for name, value in variables.items() if value is not None})
    return notebook


def printed(cell):
    """What a run code `cell` shows as text: streams and plain results."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def plots(cell):
    """The PNG files, as bytes, of the plots that a run code `cell` shows, in their order."""
    data = [output.get("data", {}) for output in cell.outputs]
    return [base64.b64decode(found["image/png"]) for found in data if "image/png" in found]


def look_alike(first, second):
    """Whether two PNG files, as bytes, show the same: nowhere do 8 by 8 pixels differ by a tenth of full brightness.

    Single pixels may, at an edge, since another version of a library draws it a little differently.
    """
    one, other = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) / 255 for file in (first, second)]
    if one.shape != other.shape:
        return False
    apart = np.abs(one - other).mean(-1)
    rows, columns = [size // 8 * 8 for size in apart.shape]
    return apart[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8).mean((1, 3)).max() < 0.1
