"""Every shape that the pages write down, behind a statement or in prose, is one of a real run."""
import ast
import io
import linecache
import os
import re
import tokenize
from contextlib import chdir, nullcontext

import matplotlib.pyplot as plt
import pytest
import torch
from cells import CHINESE, ENGLISH, ROOT, environment, first_part, functions, read, source, with_prompt
from nbformat.v4 import new_code_cell
from torch.overrides import TorchFunctionMode

PAGES = [page for page in (ENGLISH, CHINESE, ROOT / "README.md") if page.exists()]
OTHER = {"dim": 192, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
         "norm_eps": 1e-05, "rope_theta": 10000.0}
NUMBERS_AND_NAMES = re.compile(r"# (?P<numbers>\[[^\[\]]+\])(?: \((?P<names>.+)\))?")
NAMES_ALONE = re.compile(r"# \[(?P<names>.+)\]")
# What section 14 tells of the cache, at the 8B's widths: all tokens, then one more, then another.
CACHED = "later = {}\nfor new in (tokens, tokens[:1], tokens[:1]):\n    forward(llama, new, later)"


class Made(TorchFunctionMode):
    """While active, collects in `shapes`, as PyTorch prints them, the shapes of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.shapes |= {str(list(value.shape)) for value in [result] if isinstance(value, torch.Tensor)}
        return result


class Watch(ast.NodeTransformer):
    """Puts a call behind each annotated assignment of a cell, which compares the tensors with the annotation.

    `problems` says, for an annotation or a tensor without one, what is wrong with it; `waiting` has the annotations
    that the run did not reach yet. The numbers of an annotation are compared only where `numbers` is true.
    """

    def __init__(self, numbers=True):
        self.numbers, self.problems, self.waiting = numbers, {}, set()

    def run(self, cells, space, walk=True):
        """Execute the code cells among `cells` in the namespace `space`; in the `walk` each tensor needs an annotation.

        `inspect.getsource` finds the functions as the cells have them.
        """
        space |= {"__annotated__": self.annotated, "__bare__": self.bare}
        for cell in cells:
            if cell.cell_type == "code":
                text, file = source(cell), f"<run of {cell.id}>"
                linecache.cache[file] = (len(text), None, text.splitlines(True), file)
                exec(compile(self.watched(cell.id, text, walk), file, "exec"), space)

    def watched(self, cell, text, walk):
        """The syntax tree of `text`, the code of the cell with the id `cell`, with the calls in it."""
        self.cell, self.lines, self.walk, self.inside = cell, text.splitlines(), walk, False
        self.comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
                         if token.type == tokenize.COMMENT}
        tree = self.visit(ast.parse(text))
        for comment in self.comments.values():
            self.problems[f"{cell}: {comment}"] = "is behind no assignment"
        return tree

    def visit_FunctionDef(self, node):
        """A function, in which annotations are names alone and none is required."""
        outer, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = outer
        return node

    def visit_Assign(self, node):
        """An assignment, with a call behind it; an annotation is the comment that follows its last character."""
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name.id for target in targets for name in ast.walk(target)
                 if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
        values = "{" + ", ".join(f"{name!r}: {name}" for name in names) + "}"
        comment = self.lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip()
        if not comment or comment != self.comments.get(node.end_lineno):
            bare = ast.parse(f"__bare__({self.cell!r}, {values})").body
            return [node, *bare] if self.walk and not self.inside else node
        where = f"{self.cell}: {', '.join(names)}  {self.comments.pop(node.end_lineno)}"
        match = (NAMES_ALONE if self.inside else NUMBERS_AND_NAMES).fullmatch(comment)
        try:
            found = match.groupdict()
            axes = found["names"] and f"lambda: [{found['names']}]"
            call = ast.parse(f"__annotated__({where!r}, {values}, {found.get('numbers')!r}, {axes})").body
        except (AttributeError, SyntaxError):
            self.problems[where] = "is not in the grammar"
            return node
        self.waiting.add(where)
        return [node, *call]

    visit_AnnAssign = visit_AugAssign = visit_Assign

    def annotated(self, where, values, numbers, axes):
        """Compare the tensors among `values` with `numbers`, a text or None, and with what `axes` returns, if given."""
        self.waiting.discard(where)
        shapes = [str(list(value.shape)) for value in values.values() if isinstance(value, torch.Tensor)]
        told = [numbers] if numbers and self.numbers else []
        try:
            told += [str(axes())] if axes else []
        except Exception as error:
            self.problems[where] = f"cannot be evaluated: {error}"
        wrong = [f"is {text}, the tensor {shape}" for shape in shapes for text in told if text != shape]
        for problem in wrong if shapes else ["is behind no tensor"]:
            self.problems.setdefault(where, problem)

    def bare(self, cell, values):
        """Note those of `values`, assigned without an annotation, that are tensors with at least one axis."""
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                self.problems[f"{cell}: {name}"] = f"has no annotation, and is a tensor {list(value.shape)}"


def unknown(text, known, space):
    """The shapes in the Markdown `text`, outside its code blocks, that are not among the texts `known`.

    Numbers count as they are written, `[17, 4096]`; names in backticks are evaluated in the namespace `space`.
    """
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    shapes = {shape: shape for shape in re.findall(r"\[\s*\d[\d\s,，、]*\](?!\()", prose)}
    for shape in re.findall(r"`(\[[^`]*[^\W\d][^`]*\])`", prose):
        try:
            shapes[shape] = str(eval(shape, dict(space)))
        except Exception as error:
            shapes[shape] = str(error)
    return [shape for shape, value in shapes.items() if value not in known]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder to run in, with SmolLM2 in it if it lies beside the notebook; plots are drawn and never shown."""
    folder = tmp_path_factory.mktemp("shapes")
    if (ROOT / "SmolLM2-135M").exists():
        os.symlink(ROOT / "SmolLM2-135M", folder / "SmolLM2-135M")
    plt.switch_backend("agg")
    with chdir(folder), plt.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: plt.close("all"))
        yield folder


@pytest.fixture(scope="module")
def whole(scratch):
    """The notebook's run at the 8B's widths, without the cells that measure: (watch, namespace, shapes it made).

    The shapes are those of the first part and of two steps with a cache, and of the weights of the 8B and of SmolLM2.
    """
    watch, space, made = Watch(), {"__name__": "notebook"}, Made()
    cells = [cell for cell in read().cells if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    first = len([cell for cell in first_part(read()).cells])
    with made:
        watch.run([*cells[:first], new_code_cell(CACHED, id="cached")], space)
    watch.run(cells[first:], space, walk=False)
    weights = [*space["expected_shapes"](space["llama3_8b"]).values(),
               *space["expected_shapes"](space["smol"].config).values()]
    scales = [(shape[0], 1) for shape in weights]
    return watch, space, made.shapes | {str(list(shape)) for shape in weights + scales}
