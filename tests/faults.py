"""Faults in the page: those that readers make, those that a syntax tree suggests, and part one run with one of them.

`mutants` changes one piece of a cell's text in place, and nothing else, since `edit` works on the text of `forward`.
"""
import ast
import io
import linecache
import os
import re
import signal
from contextlib import redirect_stdout
from itertools import accumulate

from notebook import first_part, read, source

# what readers do: what it is, the cell, its right text, the wrong one
CHOSEN = [
    ("special tokens start one too late", "special", "len(ranks) + special", "len(ranks) + 1 + special"),
    ("the highest rank is merged first", "bpe", "unions.index(min(unions))", "unions.index(max(unions))"),
    ("two begin tokens", "tokens", "return [begin] +", "return [begin, begin] +"),
    ("the width is not rounded up", "ffn-width", "math.ceil(width", "math.floor(width"),
    ("digits from the lowest to the highest", "barcode", "DIGITS - 1, -1, -1", "DIGITS"),
    ("digits are 1 and 0", "barcode", "2.0 * ones - 1", "1.0 * ones"),
    ("the row of another token", "embedding", "[tokens]", "[tokens + 1]"),
    ("the norm adds over tokens", "rms-norm", "mean(-1, keepdim=True)", "mean(0, keepdim=True)"),
    ("the norm forgets the root", "rms-norm", "torch.rsqrt(", "torch.reciprocal("),
    ("no ballast in the norm's weight", "write-norms", "16 / 128", "16"),
    ("RoPE pairs halves", "rotate", "unflatten(-1, (-1, 2))", "unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()"),
    ("RoPE's speeds of another model", "freqs", 'config["rope_theta"]', "10000.0"),
    ("queries turned forward", "write-queries", "rope(config, -head - 1, -head)", "rope(config, head + 1, head + 2)"),
    ("scores are not divided", "stripes", " / math.sqrt(head_dim)", ""),
    ("the mask hides oneself", "mask", ".triu(1)", ".triu(0)"),
    ("the mask is zero", "mask", "-torch.inf", "0.0"),
    ("softmax over the wrong axis", "weights", "softmax(dim=-1)", "softmax(dim=0)"),
    ("values of another register", "write-values", "WHO] = torch", "NEXT] = torch"),
    ("the heads in another order", "residual", "for _, output in heads]", "for _, output in heads[::-1]]"),
    ("the first residual from the norm", "residual", "h = token_embeddings + attention_out", "h = x + attention_out"),
    ("a fact with a wrong key", "write-fact", "before=374", "before=375"),
    ("no residual around the feed-forward", "down", "out = h + neurons", "out = neurons"),
    ("the copying head reads another KV head", "copying", "blocks[1][copier // group]", "blocks[1][copier]"),
    ("another KV head in forward", "forward", "(n_kv_heads, -1)).unbind(1)", "(-1, n_kv_heads)).unbind(0)"),
    ("the logits of the first token", "next-token", "final_embedding[-1]", "final_embedding[0]"),
    ("a greedy choice of the worst", "next-token", "logits.argmax()", "logits.argmin()"),
]

SYMBOLS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.MatMult: ("@", "*"),
           ast.Pow: ("**", "*"), ast.FloorDiv: ("//", "%"), ast.Mod: ("%", "//"), ast.BitOr: ("|", "&"),
           ast.BitAnd: ("&", "|"), ast.And: ("and", "or"), ast.Or: ("or", "and"), ast.Lt: ("<", "<="),
           ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
           ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")}
# no number stands exactly at the edge of a comparison with a fraction: there the other side is taken
TURNED = {"<": ">", ">": "<"}
NAMES = {"mean": "sum", "sum": "mean", "max": "min", "min": "max", "argmax": "argmin", "amax": "amin", "cos": "sin",
         "sin": "cos", "triu": "tril", "rsqrt": "sqrt", "ones_like": "zeros_like", "ceil": "floor", "silu": "relu",
         "softmax": "log_softmax", "cat": "stack", "inf": "pi"}
IN_STRINGS = {"wq": "wk", "wk": "wv", "wv": "wk", "wo": "wq", "w1": "w3", "w2": "w1", "w3": "w1", "0": "1",
              "n_heads": "n_kv_heads", "n_kv_heads": "n_heads", "attention_norm": "ffn_norm",
              "ffn_norm": "attention_norm", "tok_embeddings": "output", "output": "tok_embeddings"}
# the cell of imports and the one that only draws; lines that draw, or that say what is wrong with a file
LEFT_OUT = {"setup", "plane"}
DRAWS = re.compile(r"\b(plt|ax|axes|all_axes|figure|title|labels?|heatmaps|stripes|marks|bars|need)\b")
# what these give is what they got, on the CPU and for a contiguous tensor; without those nothing could run
NO_CHANGE, NEEDED = {"cpu", "detach", "contiguous"}, {"print", "range", "zip", "enumerate"}
MODULES = {"torch", "math", "F", "os", "json", "regex", "tiktoken", "base64", "inspect"}
WHOLE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
# seconds of computing after which a faulty page is taken to hang; part one needs about six
LIMIT = 60


def mutants(cell):
    """The faults of a code `cell`: a dictionary from a name, which quotes the faulty line, to the cell's source."""
    faults = Faults(cell)
    folded = cell.metadata.get("jupyter") or "nbval-ignore-output" in cell.metadata.get("tags", [])
    if not folded and cell.id not in LEFT_OUT and not re.search(r"^\s*[%!]", cell.source, re.M):
        faults.visit(ast.parse(cell.source))
    return faults.found


class Faults:
    """`visit` puts into `found` what `mutants` gives back."""

    def __init__(self, cell):
        """Nothing is found yet; syntax trees count in lines and in bytes."""
        self.id, self.data, self.found = cell.id, cell.source.encode(), {}
        self.starts = [0, *accumulate(len(line) for line in self.data.splitlines(True))]

    def span(self, node):
        """Where the text of `node` begins and ends."""
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        """The text of `node`."""
        start, end = self.span(node)
        return self.data[start:end].decode()

    def add(self, start, end, new, name=None):
        """Put `new` in place of the bytes from `start` to `end`."""
        source = (self.data[:start] + new.encode() + self.data[end:]).decode()
        line = name or source.splitlines()[self.data[:start].count(b"\n")]
        name = line = f"{self.id}: {line.split('  # ')[0].strip()}"
        while self.found.get(name, source) != source:
            name += "'"
        self.found[name] = source

    def exchange(self, left, operator, right):
        """Put another operator between the nodes `left` and `right`."""
        old, new = SYMBOLS.get(type(operator), ("", ""))
        if any(isinstance(getattr(part, "value", None), float) for part in ast.walk(right)):
            new = TURNED.get(old, new)
        at = self.data.find(old.encode(), self.span(left)[1], self.span(right)[0])
        if old and at >= 0:
            self.add(at, at + len(old), new)

    def visit(self, node):
        """Look at `node` and into it; not at lines that draw, nor into f-strings, misplaced before Python 3.12."""
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", [])
            head = self.data[self.span(node)[0]:self.span(body[0])[0]].decode() if body else self.text(node)
            if DRAWS.search(head):
                for statement in body if isinstance(node, ast.For) else []:
                    self.visit(statement)
                return
        look = getattr(self, f"visit_{type(node).__name__}", None)
        if look:
            look(node, *self.span(node))
        if not isinstance(node, ast.JoinedStr):
            for child in ast.iter_child_nodes(node):
                self.visit(child)

    def visit_Assign(self, node, start, end):
        """Leave out the statement."""
        self.add(start, end, "pass", f"without {self.text(node).splitlines()[0]}")

    def visit_AugAssign(self, node, start, end):
        """Leave out the statement, or exchange its operator."""
        self.visit_Assign(node, start, end)
        self.exchange(node.target, node.op, node.value)

    def visit_BinOp(self, node, start, end):
        """Exchange the operator."""
        self.exchange(node.left, node.op, node.right)

    def visit_BoolOp(self, node, start, end):
        """Exchange the operator."""
        self.exchange(node.values[0], node.op, node.values[1])

    def visit_Compare(self, node, start, end):
        """Shift the comparison."""
        self.exchange(node.left, node.ops[0], node.comparators[0])

    def visit_Constant(self, node, start, end):
        """A number by one, up and down; another name in a string."""
        if type(node.value) is int:
            self.add(start, end, str(node.value + 1))
            self.add(start, end, str(node.value - 1))
        if isinstance(node.value, str):
            for match in re.finditer(r"\b\w+\b", self.text(node), re.ASCII):
                if match[0] in IN_STRINGS:
                    at = start + len(self.text(node)[:match.start()].encode())
                    self.add(at, at + len(match[0]), IN_STRINGS[match[0]])

    def visit_Name(self, node, start, end):
        """The least for the greatest."""
        if node.id in ("min", "max"):
            self.add(start, end, NAMES[node.id])

    def visit_Attribute(self, node, start, end):
        """Not transposed; another function."""
        if node.attr == "T":
            self.add(start, end, self.text(node.value))
        if node.attr in NAMES:
            self.add(end - len(node.attr), end, NAMES[node.attr])

    def visit_Call(self, node, start, end):
        """What the function or the method was called with, in place of what it gives."""
        method = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") not in MODULES
        kept = node.func.value if method else node.args[0] if node.args else None
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        nothing = called in NO_CHANGE | NEEDED or self.text(node).endswith(".to(device)")
        if kept and not nothing and not isinstance(kept, (ast.Starred, ast.GeneratorExp, ast.Constant)):
            self.add(start, end, self.text(kept) if isinstance(kept, WHOLE) else f"({self.text(kept)})")


def show(text, name, space):
    """What the cell `text` prints in the namespace `space`, with the value of its last line as Jupyter shows it."""
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    tree, out = ast.parse(text), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(out):
        exec(compile(tree, name, "exec"), space)
        value = last and eval(compile(ast.Expression(last.value), name, "eval"), space)
    return out.getvalue() + repr(value)


def part_one():
    """The code cells of part one, as pairs of id and plain Python."""
    return [(cell.id, source(cell)) for cell in first_part(read()).cells if cell.cell_type == "code"]


def differs(cells, shown, space):
    """Whether running `cells` in `space` fails, or shows anything else than `shown`.

    What computes for a minute is taken to hang, and is ended; the clock counts this process's own work, since on a busy
    machine a fault that nothing shows would be ended as well, and pass for one that is seen.
    """
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        return any(show(text, f"<{name}>", space) != shown[name] for name, text in cells)
    except Exception:
        return True


def survivors(faults):
    """The places of those `faults`, pairs of a cell's id and its faulty source, that no output of part one shows.

    The right page is run twice, in the present folder: once for what it shows, once to fork before each faulty cell.
    """
    cells, shown, space, alive = part_one(), {}, {"__name__": "page"}, []
    for name, text in cells:
        shown[name] = show(text, f"<{name}>", space)
    space = {"__name__": "page"}
    for i, (name, text) in enumerate(cells):
        for place in [place for place, (cell, _) in enumerate(faults) if cell == name]:
            child = os.fork()
            if child == 0:
                seen = differs([(name, faults[place][1]), *cells[i + 1:]], shown, space)
                os._exit(0 if seen else 1)
            if os.waitpid(child, 0)[1] == 256:
                alive.append(place)
        show(text, f"<{name}>", space)
    return alive
