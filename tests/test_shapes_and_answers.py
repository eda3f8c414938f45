"""One run of the whole notebook in this process: its shapes are those that are written down, its answers run, too."""
import ast
import io
import re
import shutil
import tokenize
from contextlib import redirect_stdout

import pytest
import torch
from cells import (
    ENGLISH,
    as_python,
    code_cells,
    first_part,
    load_tutorial,
    may_vary,
    read,
    register_source,
    smollm2_folder,
)
from documents import DOCUMENTS, answers, text_of, without_code
from nbformat.v4 import new_code_cell
from torch.overrides import TorchFunctionMode

UNEQUAL_SIZES = {
    "dim": 384, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
    "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 10000.0}
# What section 14 tells of the cache, at the 8B's widths: all tokens, then one more, then another.
CACHED = "later = {}\nfor new in (tokens, tokens[:1], tokens[:1]):\n    forward(llama, new, later)"


class ShapesMade(TorchFunctionMode):
    """While active, collects in `shapes`, as PyTorch prints them, the shapes of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.shapes.add(str(list(result.shape)))
        return result


class ShapeChecker(ast.NodeTransformer):
    """Runs cells with a call behind each assignment that a comment follows, which compares it with the tensors.

    A comment is `# [2, 3]`, `# [n, dim]` or `# [2, 3] (n, dim)`, or, as `# 1`, the number of a step, which is left out;
    numbers are compared only where `numbers` is true.
    `problems` says what is wrong with a comment; `waiting` has those that were not compared yet.
    """

    def __init__(self, numbers=True):
        self.numbers, self.problems, self.waiting = numbers, {}, set()

    def run(self, cells, names):
        """Execute code `cells` in the namespace `names`, but for those that measure, which take long.

        `inspect.getsource` finds the functions as the cells have them.
        """
        names["__compare__"] = self.compare
        for cell in cells:
            text, file = as_python(cell), f"<run of {cell.id}>"
            register_source(file, text)
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            self.comments = {token.start[0]: (cell.id, *token.start, token.string) for token in tokens
                             if token.type == tokenize.COMMENT and not token.string[2:].isdigit()}
            self.waiting |= {*self.comments.values()}
            tree = self.visit(ast.parse(text))
            if not may_vary(cell):
                with redirect_stdout(io.StringIO()):
                    exec(compile(tree, file, "exec"), names)

    def visit_Assign(self, node):
        """An assignment, with a call behind it if a comment follows on its last line."""
        comment = self.comments.get(node.end_lineno)
        match = comment and re.fullmatch(r"# (\[.+?\])(?: \((.+)\))?", comment[-1])
        if not match:
            return node
        names = [name.id for target in node.targets for name in ast.walk(target)
                 if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
        claimed = [match[1]] if self.numbers or not re.fullmatch(r"[\[\], \d]+", match[1]) else []
        claimed += [f"[{match[2]}]"] if match[2] else []
        call = f"__compare__({comment}, [{', '.join(names)}], lambda: [{', '.join(claimed)}])"
        return [node, *ast.parse(call).body]

    def compare(self, comment, values, claimed):
        """Compare the shapes of the tensors among `values` with those that `claimed` returns."""
        self.waiting.discard(comment)
        shapes = [list(value.shape) for value in values if isinstance(value, torch.Tensor)]
        wrong = [f"claimed {axes}, the tensor has {shape}" for shape in shapes for axes in claimed() if axes != shape]
        for problem in wrong if shapes else ["is behind no tensor"]:
            self.problems.setdefault(comment, problem)


@pytest.fixture(scope="module")
def scratch(quiet_folder):
    """A folder to run in, with a copy of SmolLM2 in it, 260 MB."""
    shutil.copytree(smollm2_folder(), quiet_folder / "SmolLM2-135M")
    return quiet_folder


@pytest.fixture(scope="module")
def whole(scratch):
    """The notebook's run at the 8B's widths: (checker, namespace, shapes it made).

    The shapes are those of the first part and of two steps with a cache, and of the weights of the 8B and of SmolLM2.
    """
    checker, names, made = ShapeChecker(), {"__name__": "notebook"}, ShapesMade()
    first = code_cells(first_part(read()))
    with made:
        checker.run([*first, new_code_cell(CACHED, id="cached")], names)
    checker.run(code_cells(read())[len(first):], names)
    ours, smol = (names["expected_shapes"](config).values() for config in (names["llama3_8b"], names["smol"].config))
    return checker, names, made.shapes | {str(list(shape)) for shape in (*ours, *smol)}


@pytest.mark.slow
def test_comments_hold(whole):
    """Numbers, names and rank of each are those of the tensor behind which it stands, and the run comes to each."""
    assert (whole[0].problems, whole[0].waiting) == ({}, set())


@pytest.mark.slow
def test_names_hold_at_other_widths(scratch, monkeypatch):
    """The first part with 5 tokens and a checkpoint whose sizes all differ from the 8B's and from one another."""
    load_tutorial().write_stand_in(scratch / "other", config=UNEQUAL_SIZES)
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(scratch / "other"))
    checker, names, cells = ShapeChecker(numbers=False), {"__name__": "notebook"}, code_cells(first_part(read()))
    (asks,) = [cell for cell in cells if cell.id == "prompt"]
    asks.source = 'prompt = "once upon a time"'
    checker.run(cells, names)
    assert len(names["tokens"]) == 5
    assert checker.problems == {}


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_shapes_in_prose_are_real(whole, path):
    """Each shape in a document's Markdown, in numbers or names, is one that the run made."""
    text, (_, names, made) = without_code(text_of(path)), whole
    shapes = {shape: shape for shape in re.findall(r"\[\s*\d[\d\s,，、]*\](?!\()", text)}
    for shape in re.findall(r"`(\[[^`]*[^\W\d][^`]*\])`", text):
        shapes[shape] = str(eval(shape, dict(names)))
    assert [shape for shape, value in shapes.items() if value not in made] == []


@pytest.mark.slow
def test_answers(whole):
    """The code of the folded answers, run behind the notebook in their order, shows what they say."""
    found = []
    for code, _ in answers(text_of(ENGLISH)):
        with redirect_stdout(io.StringIO()) as out:
            exec(code, whole[1])
        found.append(out.getvalue().strip())
    assert found == [shown for _, shown in answers(text_of(ENGLISH))] != []
