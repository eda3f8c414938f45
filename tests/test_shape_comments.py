"""Every shape that the pages write down, behind a statement or in prose, is one of a real run."""
import ast
import io
import linecache
import re
import tokenize
from contextlib import redirect_stdout

import matplotlib.pyplot as plt
import pytest
import torch
from machine import link
from nbformat.v4 import new_code_cell
from notebook import CHINESE, ENGLISH, ROOT, environment, first_part, functions, read, smollm2, source, with_prompt
from torch.overrides import TorchFunctionMode

PAGES = [page for page in (ENGLISH, CHINESE, ROOT / "README.md", ROOT / "README_zh.md") if page.exists()]
OTHER = {"dim": 384, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 10000.0}
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
        if isinstance(result, torch.Tensor):
            self.shapes.add(str(list(result.shape)))
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
                with redirect_stdout(io.StringIO()):
                    exec(compile(self.watched(cell.id, text, walk), file, "exec"), space)

    def watched(self, cell, text, walk):
        """The syntax tree of `text`, the code of the cell with the id `cell`, with the calls in it."""
        self.cell, self.lines, self.walk, self.inside = cell, text.splitlines(), walk, False
        self.comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
                         if token.type == tokenize.COMMENT}
        tree = self.visit(ast.parse(text))
        for line, comment in self.comments.items():
            self.problems[f"{cell}, line {line}: {comment}"] = "is behind no assignment"
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
        where = f"{self.cell}, line {node.end_lineno}: {', '.join(names)}  {self.comments.pop(node.end_lineno)}"
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
    """A folder to run in, with SmolLM2 in it if it lies beside the notebook; plots are drawn and never shown.

    One thread: two wait long for one another where other tests run at the same time.
    """
    folder = tmp_path_factory.mktemp("shapes")
    link(folder / "SmolLM2-135M", smollm2())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plt, "show", lambda: plt.close("all"))
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(scratch):
    """The notebook's run at the 8B's widths: (watch, namespace, shapes it made).

    Cells that measure take long and are left out: an annotation in one of them is one that is not reached.
    The shapes are those of the first part and of two steps with a cache, and of the weights of the 8B and of SmolLM2.
    """
    watch, space, made = Watch(), {"__name__": "notebook"}, Made()
    first = first_part(read()).cells
    rest = [cell for cell in read().cells[len(first):] if cell.cell_type == "code"]
    measuring = [cell for cell in rest if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    with made:
        watch.run([*first, new_code_cell(CACHED, id="cached")], space)
    watch.run([cell for cell in rest if cell not in measuring], space, walk=False)
    for cell in measuring:
        watch.watched(cell.id, source(cell), walk=False)
    ours, smol = (space["expected_shapes"](config).values() for config in (space["llama3_8b"], space["smol"].config))
    return watch, space, made.shapes | {str(list(shape)) for shape in (*ours, *smol)}


@pytest.mark.slow
def test_annotations_hold(whole):
    """Numbers, names and rank of each are those of the tensor behind which it stands, in every pass of the run."""
    problems = whole[0].problems
    assert not problems, "\n".join(map(" ".join, problems.items()))


@pytest.mark.slow
def test_annotations_are_reached(whole):
    """None stands where the run does not come."""
    assert not whole[0].waiting, whole[0].waiting


@pytest.mark.slow
def test_names_hold_at_other_widths(scratch):
    """The first part with 5 tokens and a checkpoint whose sizes all differ from the 8B's and from one another."""
    functions().write_stand_in(scratch / "other", config=OTHER)
    watch, space = Watch(numbers=False), {"__name__": "notebook"}
    with environment(LLAMA3_CHECKPOINT=scratch / "other"):
        watch.run(first_part(with_prompt(read(), "once upon a time")).cells, space)
    assert len(space["tokens"]) == 5
    assert not watch.problems, "\n".join(map(" ".join, watch.problems.items()))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shapes_in_prose_are_real(whole, page):
    """Each shape in a page's Markdown, and in the alternative texts of its pictures, is one that the run made."""
    texts = {page.name: page.read_text(encoding="utf-8")} if page.suffix == ".md" else \
        {cell.id: cell.source for cell in read(page).cells if cell.cell_type == "markdown"}
    strange = {name: shapes for name, text in texts.items() if (shapes := unknown(text, whole[2], whole[1]))}
    assert not strange, strange


RIGHT = """
import inspect, torch
n = 3
x = torch.ones(2,
               n)                             # [2, 3] (2, n)
y, (z, text) = x + 1, (x * 2, "#")            # [2, 3]
for _ in range(2):
    "é"; x = x[:, :2]                         # [2, 2] (2, n - 1)
def f(n):
    y = torch.ones(n, 1)                      # [n, 1]
    return y.T
f(4), f(5)
assert inspect.getsource(f).count("\\n") == 3 and "__" not in inspect.getsource(f)
"""


def watched(text, **options):
    """A Watch that ran `text`, a cell in which `torch` is imported."""
    watch = Watch(**options)
    watch.run([new_code_cell(text, id="cell")], {"__name__": "notebook", "torch": torch})
    return watch


def test_right_cell_passes():
    """Several lines, a tuple, a loop, a statement behind another, a function that keeps its source."""
    watch = watched(RIGHT)
    assert not watch.problems and not watch.waiting


@pytest.mark.parametrize("text, problem", [
    ("x = torch.ones(2, 3)  # [2, 4]", "is [2, 4], the tensor [2, 3]"),
    ("x = torch.ones(2, 3)  # [2, 3, 1]", "is [2, 3, 1], the tensor [2, 3]"),
    ("x = torch.ones(2, 3)  # [2,3]", "is [2,3], the tensor [2, 3]"),
    ("n = 2\nx = torch.ones(2, 3)  # [2, 3] (n, n)", "is [2, 2], the tensor [2, 3]"),
    ("n = 2\nx = torch.ones(2, 3)  # [2, 3] (n, 6 / n)", "is [2, 3.0], the tensor [2, 3]"),
    ("x = torch.ones(2)  # [2] (m)", "cannot be evaluated: name 'm' is not defined"),
    ("x, y = torch.ones(2), torch.ones(3)  # [2]", "is [2], the tensor [3]"),
    ("def f(n):\n    x = torch.ones(2)  # [n]\nf(2)\nf(3)", "is [3], the tensor [2]"),
    ("def f(n):\n    x = torch.ones(n)  # [n] (n)\nf(2)", "is not in the grammar"),
    ("x = torch.ones(2)  # [2] (2", "is not in the grammar"),
    ("x = torch.ones(2)  # [2] (2 +)", "is not in the grammar"),
    ("x = torch.ones(2)  # two", "is not in the grammar"),
    ("x = 2  # [2]", "is behind no tensor"),
    ("# [2]\nx = torch.tensor(2)", "is behind no assignment"),
    ("x = torch.tensor(  # [2]\n    2)", "is behind no assignment"),
    ("torch.ones(2)  # [2]", "is behind no assignment"),
    ("for _ in [1]:\n    _, x = 1, torch.ones(2)", "has no annotation, and is a tensor [2]"),
])
def test_wrong_cell_is_told(text, problem):
    """One thing is wrong, and it is the one that is said."""
    assert list(watched(text).problems.values()) == [problem]


def test_unreached_annotation_is_told():
    """A function that nobody calls."""
    assert watched("def f(n):\n    x = torch.ones(n)  # [n]").waiting == {"cell, line 2: x  # [n]"}


def test_only_names_hold_elsewhere():
    """Where the numbers do not apply, the names still must."""
    text = "n = 2\nx = torch.ones(n)  # [17] (n{})"
    assert not watched(text.format(""), numbers=False).problems
    assert watched(text.format(" + 1"), numbers=False).problems


def test_unknown_shapes_are_told():
    """Numbers and names in prose and in an alternative text; not a link, a citation's year, or a block of code."""
    text = '`[2, 3]` [2] <img alt="[3, 2]"> `[n, 3]` [2](there) [a, b] (2024)\n```python\nx = [9]\n```\n'
    wrong = ["[2, 4]", "[2,3]", "[2，3]", "[n, 4]", "[m, 3]"]
    known = {"[2, 3]", "[2]", "[3, 2]"}
    assert unknown(text, known, {"n": 2}) == []
    assert sorted(unknown(text + " ".join(f"`{shape}`" for shape in wrong), known, {"n": 2})) == sorted(wrong)
