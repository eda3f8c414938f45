"""A fault in part one changes what it shows: those that readers make, and those that a syntax tree suggests."""
import ast
import hashlib
import io
import os
import re
import signal
from contextlib import redirect_stdout

import pytest
from cells import as_python, code_cells, first_part, read, register_source
from machine import one_thread_no_plots_in

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# what readers do: what it is, the cell, its right text, the wrong one
CHOSEN = [
    ("special tokens start one too late", "setup", "len(ranks) + i", "len(ranks) + 1 + i"),
    ("the highest rank is merged first", "bpe", "unions.index(min(unions))", "unions.index(max(unions))"),
    ("two begin tokens", "tokens", "return [begin] +", "return [begin, begin] +"),
    ("the width is not rounded up", "open", "math.ceil(width", "math.floor(width"),
    ("digits from the lowest to the highest", "barcode", "DIGITS - 1, -1, -1", "DIGITS"),
    ("digits are 1 and 0", "barcode", "2.0 * ones - 1", "1.0 * ones"),
    ("the row of another token", "embedding", "[tokens]", "[tokens + 1]"),
    ("the norm adds over tokens", "rms-norm", "mean(-1, keepdim=True)", "mean(0, keepdim=True)"),
    ("the norm forgets the root", "rms-norm", "torch.rsqrt(", "torch.reciprocal("),
    ("no ballast in the norm's weight", "write-norms", "norm[ONE] = 16 / 128", "norm[ONE] = 16"),
    ("RoPE pairs halves", "rope", "unflatten(-1, (-1, 2))", "unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()"),
    ("RoPE's speeds of another model", "speeds", 'config["rope_theta"]', "10000.0"),
    ("queries turned forward", "write-queries", "rope(config, -head - 1, -head)", "rope(config, head + 1, head + 2)"),
    ("scores are not divided", "stripes", " / math.sqrt(head_dim)", ""),
    ("the mask hides oneself", "mask", ".triu(1)", ".triu(0)"),
    ("the mask is zero", "mask", "-torch.inf", "0.0"),
    ("softmax over the wrong axis", "weights", "softmax(dim=-1)", "softmax(dim=0)"),
    ("values of another register", "write-values", "WHO] = torch", "NEXT] = torch"),
    ("the heads in another order", "residual", "for _, output in heads]", "for _, output in heads[::-1]]"),
    ("the first residual from the norm", "residual", "h = token_embeddings + attention_out", "h = x + attention_out"),
    ("a fact with a wrong key", "write-facts", "before=374", "before=375"),
    ("no residual around the feed-forward", "down", "out = h + neurons", "out = neurons"),
    ("the copying head reads another KV head", "copier-tools", "config)[-1].contiguous()", "config)[0].contiguous()"),
    ("another KV head in forward", "forward", "turn @ v for", "turn @ v.flip(0) for"),
    ("the logits of the first token", "next-token", "final_embedding[-1]", "final_embedding[0]"),
    ("a greedy choice of the worst", "next-token", "logits.argmax()", "logits.argmin()"),
]

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
             ast.Pow: ast.Mult, ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And,
             ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
             ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In}
SWAPS = {"mean": "sum", "sum": "mean", "max": "min", "min": "max", "argmax": "argmin", "amax": "amin", "cos": "sin",
         "sin": "cos", "triu": "tril", "rsqrt": "sqrt", "ones_like": "zeros_like", "ceil": "floor", "silu": "relu",
         "softmax": "log_softmax", "cat": "stack", "inf": "pi"}
IN_STRINGS = {"wq": "wk", "wk": "wv", "wv": "wk", "wo": "wq", "w1": "w3", "w2": "w1", "w3": "w1",
              "layers.0": "layers.1", "n_heads": "n_kv_heads", "n_kv_heads": "n_heads",
              "attention_norm": "ffn_norm", "ffn_norm": "attention_norm", "tok_embeddings": "output",
              "output": "tok_embeddings"}
# lines that draw
DRAWS = re.compile(r"\b(plt|ax|axes|all_axes|figure|title|labels?|heatmaps)\b")
# what these give is what they got, on the CPU and for a contiguous tensor; without the last four nothing could run
NO_CHANGE = {"cpu", "detach", "contiguous", "to", "print", "range", "zip", "enumerate"}
MODULES = {"torch", "math", "F", "os", "json", "tiktoken", "base64", "inspect"}
# seconds of computing after which a faulty notebook is taken to hang; part one needs about six
LIMIT = 60


def slots(node):
    """Where a part of the syntax tree `node` is held, as pairs of a list or a dictionary and a key.

    Left out are lines that draw, and f-strings.
    """
    for field, value in ast.iter_fields(node):
        holder, keys = (value, range(len(value))) if isinstance(value, list) else (vars(node), [field])
        for key in keys:
            part = holder[key]
            draws = isinstance(part, ast.stmt) and not hasattr(part, "body") and DRAWS.search(ast.unparse(part))
            if isinstance(part, ast.AST) and not isinstance(part, ast.JoinedStr) and not draws:
                yield holder, key
                yield from slots(part)


def wrong(node):
    """What a fault has in place of `node`: a statement left out, another operator, number, name, or no call."""
    match node:
        case ast.Assign() | ast.AugAssign():
            yield ast.Pass()
        case ast.operator() | ast.boolop() | ast.cmpop() if type(node) in OPERATORS:
            yield OPERATORS[type(node)]()
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            yield ast.Constant(number + 1)
            yield ast.Constant(number - 1)
        case ast.Constant(value=str(text)):
            for name in re.findall(r"layers\.0|\w+", text):
                if name in IN_STRINGS:
                    yield ast.Constant(text.replace(name, IN_STRINGS[name]))
        case ast.Name(id="min" | "max" as name):
            yield ast.Name(SWAPS[name])
        case ast.Attribute(attr="T"):
            yield node.value
        case ast.Attribute(attr=name) if name in SWAPS:
            yield ast.Attribute(node.value, SWAPS[name])
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if getattr(value, "id", "") not in MODULES:
            if name not in NO_CHANGE:
                yield value
        case ast.Call(func=function, args=[ast.Name() | ast.BinOp() | ast.Subscript() | ast.Call() as first, *_]):
            if getattr(function, "id", "") not in NO_CHANGE:
                yield first


def mutants(n):
    """`n` faults that the syntax trees of part one's open cells suggest: the line, the cell's id, its faulty source.

    A hash of the line chooses them, so that an edit of the notebook exchanges few of them.
    """
    found = []
    for cell in code_cells(first_part(read())):
        if cell.metadata.get("jupyter"):
            continue
        tree = ast.parse(as_python(cell))
        lines = ast.unparse(tree).splitlines()
        for holder, key in slots(tree):
            right = holder[key]
            for fault in wrong(right):
                holder[key] = fault
                text = ast.unparse(tree)
                old, new = next(pair for pair in zip(lines, text.splitlines()) if pair[0] != pair[1])
                found.append((f"{cell.id}: {old.strip()} -> {new.strip()}", cell.id, text))
            holder[key] = right
    return sorted(found, key=lambda fault: hashlib.sha256(fault[0].encode()).hexdigest())[:n]


def show(name, text, names):
    """What the cell `name`, `text`, prints in the namespace `names`, with the value of its last line as in Jupyter."""
    register_source(name, text)
    tree, out = ast.parse(text), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(out):
        exec(compile(tree, name, "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), name, "eval"), names)
    return out.getvalue() + repr(value)


def differs(cells, outputs, names):
    """Whether running `cells` in `names` fails, or shows anything else than `outputs`.

    What computes for a minute is taken to hang, and is ended; the clock counts this process's own work, since on a busy
    machine a fault that nothing shows would be ended as well, and pass for one that is seen.
    """
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        return any(show(name, text, names) != outputs[name] for name, text in cells)
    except Exception:
        return True


@pytest.fixture
def find_survivors(tmp_path, monkeypatch):
    """A function that returns those of some faults, triples as `mutants` has them, that no output of part one shows.

    The right notebook is run twice, in an empty folder: once for what it shows, once to fork before each faulty cell.
    """
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(tmp_path / "blank-2layers"))
    cells = [(cell.id, as_python(cell)) for cell in code_cells(first_part(read()))]

    def survivors_of(faults):
        names, alive = {"__name__": "notebook"}, []
        outputs = {name: show(name, text, names) for name, text in cells}
        names = {"__name__": "notebook"}
        for i, (name, right) in enumerate(cells):
            for fault, _, text in [fault for fault in faults if fault[1] == name]:
                child = os.fork()
                if child == 0:
                    seen = True
                    try:
                        seen = differs([(name, text), *cells[i + 1:]], outputs, names)
                    finally:                            # a child that is interrupted must not go on as pytest
                        os._exit(0 if seen else 1)
                if os.waitpid(child, 0)[1] == 256:
                    alive.append(fault)
            show(name, right, names)
        return alive

    with one_thread_no_plots_in(tmp_path):
        yield survivors_of


def test_chosen_texts_are_there():
    """Each right text of CHOSEN is still in its cell."""
    cells = {cell.id: cell.source for cell in code_cells(first_part(read()))}
    assert [fault for fault in CHOSEN if fault[2] not in cells.get(fault[1], "")] == []


@pytest.mark.slow
@needs_fork
def test_faults_of_readers_are_seen(find_survivors):
    """Each of them, in an output of part one; another layout of a cell, which changes nothing, is not."""
    cells = {cell.id: as_python(cell) for cell in code_cells(first_part(read()))}
    faults = [(name, cell, cells[cell].replace(right, wrong)) for name, cell, right, wrong in CHOSEN]
    nothing = [("nothing", cell, ast.unparse(ast.parse(cells[cell]))) for cell in ("bpe", "forward")]
    assert find_survivors(faults + nothing) == ["nothing", "nothing"]


@pytest.mark.slow
@needs_fork
def test_a_sample_of_systematic_faults_is_seen(find_survivors):
    """At least 6 of 8; some change nothing that is computed, such as a default that no checkpoint uses."""
    alive = find_survivors(mutants(8))
    assert len(alive) <= 2, alive


@pytest.mark.weekly
@needs_fork
def test_report_of_systematic_faults(find_survivors, capsys):
    """Of 300, the share that is seen, and those that are not, for whoever reads the log."""
    alive = find_survivors(mutants(300))
    with capsys.disabled():
        print(f"\n{1 - len(alive) / 300:.0%} of 300 faults are seen; not seen:", *alive, sep="\n  ")
    assert len(alive) < 60
