"""Draw the diagrams of the tutorial: `python images/draw.py` writes every PNG beside this file.

All lengths are display pixels, x to the right and y down; the PNG has two pixels for each of them.
Sizes are not typed here: they come from the cells `llama3-8b`, `ffn-width` and `expected-shapes` of the notebook.
"""

import json
import math
from functools import partial
from pathlib import Path as File

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle, Wedge
from matplotlib.path import Path

matplotlib.rcdefaults()

HERE = File(__file__).resolve().parent
NOTEBOOK = HERE.parent / "llama3_from_scratch.ipynb"
WIDTH = 720
LETTER = 9 / 0.75 * 0.602    # the width of a letter of DejaVu Sans Mono at 9 points, in display pixels

WEIGHT, ACTIVATION, STREAM, ACCENT = "#E69F00", "#8CC8F0", "#0B5394", "#D55E00"
MASKED, TEXT, PAPER = "#D9D9D9", "#222222", "#FFFFFF"
REGISTERS = {"who": ACTIVATION, "one": MASKED, "before": "#009E73", "next": ACCENT}
BLUES = matplotlib.colormaps["Blues"]

PIECES = ["<|begin_of_text|>", "the", " answer", " to", " the", " ultimate", " question", " of", " life", ",",
          " the", " universe", ",", " and", " everything", " is", " "]
TOKENS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374, 220]
ANSWER, ANSWER_ID = "42", 2983

PICTURES, KEY_LABELS = {}, {}


def notebook_sizes():
    """Run the notebook's two cells that hold the sizes: (params.json of the 8B, {weight name: shape})."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = {cell.get("id"): "".join(cell["source"]) for cell in cells}
    names = {"math": math}
    exec(sources["llama3-8b"], names)
    exec(sources["ffn-width"], names)
    exec(sources["expected-shapes"], names)
    return names["llama3_8b"], names["expected_shapes"](names["llama3_8b"])


config, weight_shapes = notebook_sizes()
seq = len(TOKENS)
n_layers, n_heads, n_kv_heads = config["n_layers"], config["n_heads"], config["n_kv_heads"]
vocab_size, dim = weight_shapes["tok_embeddings.weight"]
ffn_dim = weight_shapes["layers.0.feed_forward.w1.weight"][0]
head_dim = dim // n_heads
group = n_heads // n_kv_heads
freqs = config["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)


def shape(*sizes):
    """The shape as PyTorch prints it: shape(17, 4096) is '[17, 4096]'."""
    return str(list(sizes))


def shape_of(name):
    """The shape of a weight of layer 0, or of the whole model, by its name without '.weight'."""
    full = name + ".weight"
    return shape(*weight_shapes.get(full) or weight_shapes["layers.0." + full])


def picture(name, height, *key_labels, width=WIDTH):
    """Register draw(ax) under its file name, with its size and the labels that its alternative text must contain."""
    def register(draw):
        def figure():
            ax = canvas(width, height)
            draw(ax)
            return ax.figure
        PICTURES[name], KEY_LABELS[name] = figure, key_labels
        return draw
    return register


def canvas(width, height):
    """White axes of width x height display pixels, y down; both are multiples of 3, to be whole pixels."""
    figure = Figure(figsize=(width / 96, height / 96), dpi=192, facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return ax


def pale(color, amount=0.6):
    """The colour, mixed with that much white."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return tuple(rgb + (1 - rgb) * amount)


def ink(fill):
    """White or dark text, whichever can be read on the fill."""
    red, green, blue = matplotlib.colors.to_rgb(fill)
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else TEXT


def write(ax, x, y, text, size=9.5, color=TEXT, align="center", bold=False, mono=False, turn=0):
    """Text at (x, y), its middle by default; size in points at display size, turn in degrees."""
    ax.text(x, y, text, size=size, color=color, ha=align, va="center_baseline" if mono else "center",
            rotation=turn, rotation_mode="anchor" if turn else "default", weight="bold" if bold else "normal",
            family="DejaVu Sans Mono" if mono else "DejaVu Sans", zorder=5)


def named(ax, x, y, name, *lines, color=TEXT, align="center", size=9.5):
    """A tensor's name in bold with its shape (and more lines) under it, 16 pixels a line, centred on y."""
    for i, text in enumerate((name, *lines)):
        write(ax, x, y + 16 * (i - len(lines) / 2), text, color=color, align=align, bold=i == 0, size=size)


def box(ax, x, y, width, height, fill, *lines, edge=None, line=1.0, zorder=3):
    """A tensor or a part as a box, left top corner (x, y), with its name and shape inside, if given."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge or pale(TEXT, 0.35),
                           linewidth=0.75 * line, zorder=zorder))
    if lines:
        named(ax, x + width / 2, y + height / 2, *lines, color=ink(fill))


def arrow(ax, *points, color=TEXT, line=1.6, head=11):
    """An arrow along the points; its tip lies on the last one."""
    ax.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=0.75 * head, color=color,
                                 linewidth=0.75 * line, joinstyle="miter", capstyle="butt", fill=True, zorder=4))


def link(ax, *points, color=TEXT, line=1.6, zorder=2, style="-"):
    """A line along the points, without a tip."""
    ax.plot(*zip(*points), color=color, linewidth=0.75 * line, linestyle=style, zorder=zorder,
            solid_capstyle="butt", solid_joinstyle="miter")


def operator(ax, x, y, sign, color=TEXT, radius=11):
    """A sum or a product: the sign in a white circle around (x, y)."""
    ax.add_patch(Circle((x, y), radius, facecolor=PAPER, edgecolor=color, linewidth=1.5, zorder=5))
    arms = [(-0.5, 0, 0.5, 0), (0, -0.5, 0, 0.5)] if sign == "+" else [(-0.4, -0.4, 0.4, 0.4), (-0.4, 0.4, 0.4, -0.4)]
    for x0, y0, x1, y1 in arms:
        link(ax, (x + x0 * radius, y + y0 * radius), (x + x1 * radius, y + y1 * radius), color=color, line=2, zorder=6)


def stream(ax, x0, x1, y, thick=20, text=True, color=STREAM):
    """The residual stream: one straight band from x0 to x1 at height y."""
    ax.add_patch(Rectangle((x0, y - thick / 2), x1 - x0, thick, facecolor=color, edgecolor="none", zorder=2))
    if text:
        write(ax, x0 + 12, y, "stream " + shape(seq, dim), color=PAPER, align="left", bold=True)


def cells(ax, x, y, values, width, height, form=None, fills=None, edge=PAPER):
    """A grid of cells from values [rows, columns] in 0..1, or fills, with form's texts [rows, columns] in them."""
    values = np.atleast_2d(values)
    for (i, j), value in np.ndenumerate(values):
        fill = (fills[i][j] if fills else None) or matplotlib.colors.to_hex(BLUES(0.08 + 0.8 * value))
        box(ax, x + j * width, y + i * height, width, height, fill, edge=edge)
        if form:
            write(ax, x + (j + 0.5) * width, y + (i + 0.5) * height, form[i][j], size=9, color=ink(fill))


def rows(ax, x, y, width, count, fills, height=5):
    """A tensor as thin rows under each other; fills is a colour, or {row: colour} with None for the others."""
    for i in range(count):
        fill = fills.get(i, fills.get(None)) if isinstance(fills, dict) else fills
        box(ax, x, y + height * i, width, height, fill, edge=PAPER, line=0.5)


def dots(ax, x, y, step_x, step_y, radius=1.6):
    """Three dots around (x, y): and so on."""
    for i in (-1, 0, 1):
        ax.add_patch(Circle((x + i * step_x, y + i * step_y), radius, color=TEXT, zorder=4))


def piece_width(text):
    """The width of a token's box."""
    return max(34, LETTER * len(text) + 12)


def token(ax, x, y, text, color=TEXT, upright=False):
    """A token's text with its middle at (x, y), read upwards if upright; a space is a low bracket."""
    left = -LETTER * len(text) / 2
    if text.strip():
        write(ax, *((x, y - left) if upright else (x + left, y)), text, size=9, align="left", mono=True, color=color,
              turn=90 if upright else 0)
    if text.startswith(" "):
        corners = [(left + 1, 2), (left + 1, 6), (left + LETTER - 1, 6), (left + LETTER - 1, 2)]
        link(ax, *((x + b, y - a) if upright else (x + a, y + b) for a, b in corners), color=color, line=1.2, zorder=5)


def piece(ax, x, y, text, fill=ACTIVATION, width=None, height=22):
    """A token's text in a rounded box with its left middle at (x, y). Returns the box's width."""
    width = width or piece_width(text)
    ax.add_patch(FancyBboxPatch((x + 4, y - height / 2 + 4), width - 8, height - 8, boxstyle="round,pad=4",
                                facecolor=fill, edgecolor=pale(TEXT, 0.35), linewidth=0.6, zorder=3))
    token(ax, x + width / 2, y, text, color=ink(fill))
    return width


def arc(ax, start, bend, end, color):
    """A curved arrow from start to end, drawn towards bend on its way."""
    path = Path([start, bend, end], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    ax.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=7, color=color, linewidth=1.5, zorder=6))


def look(ax, x0, x1, y, color, rise=26):
    """A head at work: what stands in the column x0 is read (a dot), and added to the column x1."""
    ax.add_patch(Circle((x0, y), 4, facecolor=color, edgecolor="none", zorder=4))
    arc(ax, (x0, y), ((x0 + x1) / 2, y - 2 * rise), (x1 - 5, y - 6), color)
    operator(ax, x1, y, "+", color=color, radius=7)


def note(ax, x, y, register, text):
    """A note on the stream around (x, y): a register's name, and the token that it holds."""
    fill = REGISTERS[register]
    box(ax, x - 28, y - 19, 56, 38, fill)
    write(ax, x, y - 9, register, size=9, bold=True, color=ink(fill))
    token(ax, x, y + 8, text, color=ink(fill))


def draw_map(ax, here=None):
    """The whole model around one straight stream; `here` is the part to show in the accent colour, the rest pale."""
    full = here is None
    y, y_norm, y_block, tall = (268, 196, 106, 44) if full else (188, 140, 86, 26)
    thick, top, y_text = (22, 42, 40) if full else (10, 46, 58)
    middle = (y + y_text) / 2

    def shade(color, *parts):
        return color if full else ACCENT if here in parts else pale(color)

    def part(x, y, width, name, *more, color=WEIGHT, part=None):
        parts = (part, "norm") if "norm" in name else (part,)
        fill = shade(color, *parts)
        box(ax, x, y - tall / 2, width, tall, fill, edge=None if full or here in parts else pale(TEXT, 0.6))
        named(ax, x + width / 2, y, name, *(more if full else ()), size=9,
              color=ink(fill) if full or here in parts else pale(TEXT, 0.25))

    line = TEXT if full else pale(TEXT, 0.45)
    link_color = ACCENT if here == "embedding" else line
    part(12, y_text, 124, "text", "'the answer ... is '", color=MASKED, part="embedding")
    part(12, middle, 124, "tokens", shape(seq), color=ACTIVATION, part="embedding")
    part(12, y, 124, "tok_embeddings", shape_of("tok_embeddings"), part="embedding")
    arrow(ax, (74, y_text + tall / 2), (74, middle - tall / 2), color=link_color)
    arrow(ax, (74, middle + tall / 2), (74, y - tall / 2), color=link_color)

    edge = shade(MASKED if full else TEXT, "loop")
    box(ax, 162, top, 396, y + tall / 2 + 12 - top, pale(edge, 0.85) if here == "loop" else "#F7F7F7",
        edge=edge, line=2.5 if here == "loop" else 1, zorder=1)
    write(ax, 172, top + 16, f"{n_layers} x", size=11, bold=True, align="left",
          color=ACCENT if here == "loop" else line)
    if full:
        write(ax, 548, top + 16, f"layers.0 ... layers.{n_layers - 1}", align="right")

    stream(ax, 136, 584, y, thick, text=False, color=STREAM if full else pale(STREAM, 0.35))
    for x, norm, block, names in ((236, "attention_norm", "attention", "wq  wk  wv  wo"),
                                  (430, "ffn_norm", "feed_forward", "w1  w2  w3")):
        color = ACCENT if block == here else line
        part(x - 58, y_norm, 116, norm, shape_of("attention_norm"), part=block)
        part(x - 58, y_block, 164, block, names, part=block)
        arrow(ax, (x, y - thick / 2), (x, y_norm + tall / 2), color=color)
        arrow(ax, (x, y_norm - tall / 2), (x, y_block + tall / 2), color=color)
        arrow(ax, (x + 84, y_block + tall / 2), (x + 84, y - (12 if full else 10)), color=color)
        operator(ax, x + 84, y, "+", color=ACCENT if block == here else shade(STREAM, None), radius=12 if full else 10)
    part(584, y, 124, "norm", shape_of("norm"), part="output")
    part(584, middle, 124, "output", shape_of("output"), part="output")
    part(584, y_text, 124, "next token", f"'{ANSWER}'", color=ACTIVATION, part="output")
    link_color = ACCENT if here == "output" else line
    arrow(ax, (646, y - tall / 2), (646, middle + tall / 2), color=link_color)
    arrow(ax, (646, middle - tall / 2), (646, y_text + tall / 2), color=link_color)
    if full:
        for x in (192, 376):
            write(ax, x, y, shape(seq, dim), color=PAPER, bold=True, size=9)
        for x, fill, text in ((162, WEIGHT, "weights"), (282, ACTIVATION, "activations"),
                              (422, STREAM, "residual stream")):
            box(ax, x, 324, 22, 14, fill)
            write(ax, x + 30, 331, text, align="left")
    else:
        x = {"embedding": 74, "norm": 357, "attention": 260, "feed_forward": 454, "loop": 360, "output": 646}[here]
        tip = {"embedding": y_text - tall / 2, "output": y_text - tall / 2, "loop": top}.get(here, y_block - tall / 2)
        write(ax, x, 12, "you are here", color=ACCENT, bold=True, size=10)
        if here == "norm":
            for side in (294, 372):
                arrow(ax, (x, 20), (x, y_norm), (side, y_norm), color=ACCENT, line=2)
        else:
            arrow(ax, (x, 20), (x, tip - (2 if here == "loop" else 1)), color=ACCENT, line=2)


picture("map", 360, "tok_embeddings", "attention", "feed_forward", "output", str(n_layers))(draw_map)
for _part, _labels in {"embedding": ("tokens", "tok_embeddings"), "norm": ("attention_norm", "ffn_norm"),
                       "attention": ("attention_norm", "attention"),
                       "feed_forward": ("ffn_norm", "feed_forward"), "loop": (str(n_layers),),
                       "output": ("norm", "output")}.items():
    picture("map_" + _part, 228, *_labels)(partial(draw_map, here=_part))


@picture("thread", 480, "layer 0", "head 0", "layer 1", "before", "next", ANSWER)
def thread(ax):
    """The written model's two ways to know the next word: told (two heads) and remembered (a head and a fact)."""
    y_text, y_back, y_fact, y_copy = 456, 388, 288, 182
    for y, tall, *lines in ((y_back, 58, "layer 0, head 0", "looks one token back", "and notes it"),
                            (y_fact, 50, "layer 0, feed_forward", "knows a fact"),
                            (y_copy, 68, "layer 1, a head", "copies what followed", "this token last time")):
        for x0, x1 in ((12, 472), (484, 708)):
            box(ax, x0, y - tall / 2, x1 - x0, tall, pale(WEIGHT, 0.72), edge=pale(WEIGHT, 0.4), zorder=1)
        named(ax, 24, y, *lines, align="left", size=9)
    named(ax, 24, y_text, "the text so far", "     is a space", align="left", size=9)
    token(ax, 30, y_text + 5, " ")
    named(ax, 24, 44, "the next word,", "known in two ways", align="left", size=10)
    for columns, texts, title, says in (
            ((208, 250, 304, 404, 446), (" is", " ", "7", " is", " "), "it was told", "7"),
            ((562, 628, 668), (" everything", " is", " "), "it remembers", ANSWER)):
        end = columns[-1]
        write(ax, end - 34, 44, title, size=13, bold=True, align="right")
        write(ax, end, 44, says, size=26, bold=True, color=ACCENT)
        arrow(ax, (end, 118), (end, 62), color=ACCENT, line=3.5)
        for x, text in zip(columns, texts):
            top = 118 if x == end else y_copy + 20 if text == "7" else y_back
            link(ax, (x, y_text), (x, 140), color=pale(STREAM, 0.7), line=3.5)
            link(ax, (x, y_text), (x, top), color=STREAM, line=3.5)
            piece(ax, x - piece_width(text) / 2, y_text, text)
    for x in (166, 354, 496):
        dots(ax, x, y_text, 8, 0)
    color = REGISTERS["before"]
    for x0, x1, used in ((208, 250, False), (250, 304, True), (404, 446, True), (562, 628, False), (628, 668, True)):
        look(ax, x0, x1, y_back + 14, color if used else pale(color, 0.55), rise=18)
    note(ax, 304, 336, "before", " ")
    note(ax, 446, 336, "before", " is")
    note(ax, 668, 336, "before", " is")
    for x, y, text in ((354, y_fact - 8, "says 42 too,"), (354, y_fact + 8, "but is outvoted"),
                       (523, y_copy - 8, "nothing"), (523, y_copy + 8, "to copy")):
        write(ax, x, y, text, size=9)
    box(ax, 496, y_fact - 18, 140, 36, WEIGHT)
    for x, register, text in ((502, "before", " is"), (540, "who", " "), (596, "next", ANSWER)):
        piece(ax, x, y_fact, text, fill=REGISTERS[register])
    arrow(ax, (576, y_fact), (594, y_fact), head=8)
    arrow(ax, (666, y_fact + 10), (636, y_fact + 10), head=8)
    arrow(ax, (636, y_fact - 8), (661, y_fact - 8), color=ACCENT, head=8)
    operator(ax, 668, y_fact - 8, "+", color=ACCENT, radius=7)
    note(ax, 668, 238, "next", ANSWER)
    look(ax, 304, 446, y_copy + 20, ACCENT)
    write(ax, 309, y_copy - 22, "after", size=9, align="left")
    piece(ax, 343, y_copy - 22, " ", width=20, height=18)
    write(ax, 367, y_copy - 22, "came", size=9, align="left")
    note(ax, 446, 120, "next", "7")


@picture("registers", 306, "who", "one", "before", "next", shape(dim), "tok_embeddings", "layers.1.attention")
def registers(ax):
    """The last token's row of the stream, column by column, and which part of the model writes which register."""
    left, width, count = 186, 42, 8
    write(ax, 94, 54, "written by", bold=True)
    write(ax, left + width * count / 2, 26, "the last token's row of the stream " + shape(dim), bold=True)
    write(ax, 640, 54, "what it says", bold=True)
    for column in range(count):
        write(ax, left + width * (column + 0.5), 54, str(column), size=9)
    known = set()
    for step, (part, writes, text, more) in enumerate((
            ("tok_embeddings", ("who", "one"), " ", ""), ("layers.0.attention", ("before",), " is", ""),
            ("layers.0.feed_forward", ("next",), ANSWER, ""), ("layers.1.attention", ("next",), "7", "if told"))):
        y = 90 + 58 * step
        box(ax, 14, y - 15, 160 - 14, 30, WEIGHT)
        write(ax, 87, y, part, size=9)
        arrow(ax, (160, y), (left, y))
        known |= {*writes}
        for column, register in zip(range(count), [*REGISTERS] * count):
            known_here = register in known and (register != "before" or column < 4)
            fill = REGISTERS[register] if register in writes else pale(REGISTERS[register], 0.65)
            box(ax, left + width * column, y - 15, width, 30, fill if known_here else PAPER, edge=MASKED)
            if known_here:
                write(ax, left + width * (column + 0.5), y, register, size=9, color=ink(fill))
        write(ax, left + width * count + 16, y, "...")
        write(ax, 612, y, writes[0], align="right")
        piece(ax, 622, y, text, fill=REGISTERS[writes[0]])
        write(ax, 664, y, more, align="left")


@picture("last", 372, "SmolLM2-135M", "layer 16, head 0", "layer 18, head 6")
def last(ax):
    """Three models, the same two patterns of attention in each, on one stream."""
    count, size, y = 11, 9, 290
    half, side = count // 2, count * size
    back = np.eye(count, k=-1)
    copies = np.array([[i > half and j == i - half + 1 for j in range(count)] for i in range(count)], float)
    write(ax, WIDTH / 2, 346, "one mechanism, three times (a sketch)", size=12, bold=True)
    for x, title, text, *names in (
            (16, "written", "2 layers, by hand", "layer 0, head 0", "layer 1"),
            (247, "found", "30 layers: SmolLM2-135M", "layer 16, head 0", "layer 18, head 6"),
            (478, "grown", "2 layers, from noise", "layer 0", "layer 1")):
        box(ax, x, 10, 226, 308, "#F7F7F7", edge=MASKED, zorder=1)
        stream(ax, x + 10, x + 216, y, thick=14, text=False)
        write(ax, x + 113, 30, title, size=15, bold=True)
        write(ax, x + 113, 56, text)
        for column, looks, name, verb, register in ((x + 57, back, names[0], "one token back", "before"),
                                                    (x + 170, copies, names[1], "what followed", "next")):
            named(ax, column, 98, verb, name, size=9)
            for (i, j), weight in np.ndenumerate(looks):
                box(ax, column - side / 2 + j * size, 126 + i * size, size, size,
                    MASKED if j > i else BLUES(0.06 + 0.85 * weight), edge=PAPER, line=0.6)
            arrow(ax, (column - 30, y - 7), (column - 30, 126 + side + 4))
            arrow(ax, (column + 30, 126 + side + 4), (column + 30, y - 9), color=REGISTERS[register], line=2)
            operator(ax, column + 30, y, "+", color=REGISTERS[register], radius=9)


@picture("tokens", 204, str(TOKENS[0]), str(TOKENS[-1]), shape(seq))
def tokens(ax):
    """The prompt as a string, and the pieces it is cut into, each over its id."""
    write(ax, WIDTH / 2, 28, "'" + "".join(PIECES[1:]) + "'", size=9, mono=True)
    arrow(ax, (WIDTH / 2, 40), (WIDTH / 2, 62))
    for y, line in ((82, slice(0, 9)), (150, slice(9, seq))):
        x = 30
        for text, number in zip(PIECES[line], TOKENS[line]):
            width = piece(ax, x, y, text)
            write(ax, x + width / 2, y + 24, str(number), size=9)
            x += width + 7
    named(ax, x + 96, 162, "tokens", shape(seq), size=11)


@picture("embedding", 348, "tok_embeddings", shape_of("tok_embeddings"), "token_embeddings", shape(seq, dim))
def embedding(ax):
    """Ids on the left, the table in the middle, the rows that the ids pick on the right."""
    named(ax, 96, 26, "tokens", shape(seq))
    named(ax, 345, 26, "tok_embeddings", shape_of("tok_embeddings"))
    named(ax, 605, 70, "token_embeddings", shape(seq, dim))
    box(ax, 260, 50, 170, 282, pale(WEIGHT, 0.25))
    for i, y, y_row in ((0, 74, 310), (1, 118, 122), (2, 162, 176), (seq - 1, 300, 74)):
        color = ACCENT if i == 1 else pale(TEXT, 0.5)
        width = piece(ax, 150 - piece_width(PIECES[i]), y, PIECES[i])
        write(ax, 150 - width / 2, y + 20, str(TOKENS[i]), size=9, color=ACCENT if i == 1 else TEXT, bold=i == 1)
        box(ax, 260, y_row - 4, 170, 8, ACCENT if i == 1 else WEIGHT)
        arrow(ax, (150, y), (260, y_row), color=color, line=2 if i == 1 else 1.2)
        arrow(ax, (430, y_row), (520, 100 + (i + 0.5) * 11), color=color, line=2 if i == 1 else 1.2, head=9)
    dots(ax, 133, 232, 0, 10)
    dots(ax, 345, 240, 0, 10)
    rows(ax, 520, 100, 170, seq, {1: ACCENT, None: ACTIVATION}, height=11)


@picture("rmsnorm", 282, "attention_norm.weight", shape(dim), "norm_eps", "rsqrt")
def rmsnorm(ax):
    """A row of 4 numbers, so that all can be checked: times rsqrt(mean of its squares + eps), times the weight."""
    row, weight = np.array([0.7, -0.1, 0.5, -0.5]), np.array([0.5, 1.0, 2.0, 1.5])
    mean = (row ** 2).mean()
    scale = 1 / np.sqrt(mean + config["norm_eps"])

    def strip(x, y, values, fill, name, below=False):
        cells(ax, x, y, values[None], 40, 30, [[f"{value:.2f}" for value in values]], [[fill] * len(values)])
        write(ax, x + 20 * len(values), y + (44 if below else -14), name, bold=True)

    write(ax, 20, 26, f"here a row of {len(row)} numbers; in the model each row is {shape(dim)}", align="left")
    strip(20, 136, row, ACTIVATION, "one row")
    strip(20, 216, row ** 2, ACTIVATION, "row * row", below=True)
    strip(540, 136, row * scale * weight, ACTIVATION, "x")
    strip(406, 60, weight, WEIGHT, "attention_norm.weight")
    strip(260, 216, mean[None], ACTIVATION, "")
    strip(392, 216, scale[None], ACTIVATION, "scale", below=True)
    arrow(ax, (100, 166), (100, 216))
    write(ax, 109, 190, "square", align="left")
    arrow(ax, (180, 231), (260, 231))
    write(ax, 219, 218, "mean")
    arrow(ax, (300, 231), (392, 231))
    write(ax, 345, 202, "+ norm_eps")
    write(ax, 345, 218, "rsqrt")
    arrow(ax, (180, 151), (401, 151))
    arrow(ax, (412, 216), (412, 162))
    arrow(ax, (423, 151), (475, 151))
    arrow(ax, (486, 90), (486, 140))
    arrow(ax, (497, 151), (540, 151))
    operator(ax, 412, 151, "*")
    operator(ax, 486, 151, "*")


@picture("unwrap", 360, "wq", shape_of("attention.wq"), shape(n_heads, head_dim, dim), "wq_heads[0]",
         shape(head_dim, dim))
def unwrap(ax):
    """The square weight, the same rows as heads, and the rows of head 0."""
    side = 190
    band = side / n_heads
    named(ax, 24 + side / 2, 74, "wq", shape_of("attention.wq"))
    named(ax, 268 + side / 2, 26, "wq_heads", shape(n_heads, head_dim, dim))
    named(ax, 512 + side / 2, 166, "wq_heads[0]", shape(head_dim, dim))
    for i in range(n_heads):
        fill = ACCENT if i == 0 else WEIGHT if i % 2 else pale(WEIGHT, 0.3)
        box(ax, 24, 100 + i * band, side, band, fill, edge=fill, line=0.1)
        box(ax, 268, 52 + i * 9, side, band, fill, edge=pale(TEXT, 0.35), line=0.7)
    box(ax, 24, 100, side, side, "none")
    box(ax, 512, 192, side, band, ACCENT)
    for i in (0, n_heads - 1):
        write(ax, 262, 55 + i * 9, str(i), size=9, align="right")
    arrow(ax, (24 + side, 195), (268, 195))
    arrow(ax, (268 + side, 55), (485, 55), (485, 195), (512, 195), color=ACCENT, line=2)


@picture("rope", 420, "pairs", shape(head_dim), "freqs")
def rope(ax):
    """One row of q as pairs, and how far its position turns some of them: small clocks, one row a pair."""
    def clock(x, y, angle):
        ax.add_patch(Circle((x, y), 14, facecolor=PAPER, edgecolor=pale(TEXT, 0.5), linewidth=0.8, zorder=3))
        ax.add_patch(Wedge((x, y), 14, -np.degrees(angle) % 360, 360, facecolor=ACTIVATION, zorder=3,
                           visible=angle > 0))
        arrow(ax, (x, y), (x + 14 * np.cos(angle), y - 14 * np.sin(angle)), line=1.8, head=7)

    named(ax, 70, 34, "one row of q", shape(head_dim))
    named(ax, 660, 34, f"{head_dim // 2} pairs", "of neighbours")
    for i in range(28):
        box(ax, 150 + 13 * i + 4 * (i // 2), 24, 13, 20, ACTIVATION if i // 2 % 2 else pale(ACTIVATION, 0.45))
    write(ax, 582, 32, "...")
    write(ax, 14, 84, "angle = position * freqs[pair]", align="left", bold=True)
    clock(262, 84, 1.0)
    write(ax, 286, 84, "The blue wedge is the angle: how far the pair has been turned.", align="left")
    write(ax, 14, 130, "position", align="left", bold=True)
    for position in range(seq):
        x = 164 + 33 * position
        write(ax, x, 130, str(position), size=9)
        for row, pair in enumerate((0, 4, 8, 16, head_dim // 2 - 1)):
            y = 164 + row * 54
            clock(x, y, position * freqs[pair])
            if position == 0:
                named(ax, 14, y, f"pair {pair}", f"freqs[{pair}] = {freqs[pair]:.2g}", align="left", size=9)


QUERY, KEY = "q_rotated", "k_rotated"


@picture("scores", 420, QUERY, shape(seq, head_dim), KEY, "scores", shape(seq, seq))
def scores(ax):
    """Queries down the side, keys along the top; each cell is one query times one key, highest one token back."""
    shown, gap, (i, j) = [0, 1, 2, 3, seq - 2, seq - 1], 4, (2, 1)
    left, top, size = 256, 190, 34
    values = np.array([[np.cos((query - 1 - key) * freqs[:12]).mean() for key in shown] for query in shown])
    values = (values - values.min()) / np.ptp(values)
    named(ax, 166, 152, QUERY, shape(seq, head_dim))
    named(ax, 200, 40, KEY + ".T", shape(head_dim, seq))
    for row, number in enumerate(shown):
        at = row * size + (14 if row >= gap else 0)
        for hit, x, y, width, height in ((row == i, 90, top + at + 4, 152, size - 8),
                                         (row == j, left + at + 4, 24, size - 8, 152)):
            fill = ACCENT if hit else ACTIVATION
            box(ax, x, y, width, height, fill)
            token(ax, x + width / 2, y + height / 2, PIECES[number], color=ink(fill), upright=height > width)
        for column in range(len(shown)):
            x = left + column * size + (14 if column >= gap else 0)
            box(ax, x, top + at, size, size, BLUES(values[row, column]), edge=MASKED)
    box(ax, left + j * size, top + i * size, size, size, "none", edge=ACCENT, line=3.5, zorder=4)
    dots(ax, 166, top + gap * size + 7, 0, 4, radius=1.2)
    dots(ax, left + gap * size + 7, 100, 4, 0, radius=1.2)
    named(ax, 496, top + 16, "scores", shape(seq, seq), align="left")
    named(ax, 496, top + (i + 0.5) * size, f"scores[{i}, {j}] =", f"{QUERY}[{i}] . {KEY}[{j}]", f"/ sqrt({head_dim})",
          color=ACCENT, align="left")


def softmax(values):
    """Each row of values [rows, columns] as weights that add up to 1."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


EXAMPLE_SCORES = np.array([[1.2, 0.3, -0.8, 0.5], [0.4, 1.6, 0.9, -0.2], [0.7, 1.1, 0.5, 1.4], [-0.6, 0.8, 1.9, 0.2]])
EXAMPLE_HIDDEN = np.triu(np.ones(EXAMPLE_SCORES.shape, bool), 1)
EXAMPLE_WEIGHTS = softmax(np.where(EXAMPLE_HIDDEN, -np.inf, EXAMPLE_SCORES))


@picture("mask", 222, "scores", "mask", "-inf", "softmax", "weights")
def mask(ax):
    """Four tokens: scores, the same with -inf above the diagonal, and the weights that softmax makes of them."""
    count, width, height, top = 4, 34, 32, 66
    tint = (EXAMPLE_SCORES - EXAMPLE_SCORES.min()) / np.ptp(EXAMPLE_SCORES)
    greys = [[MASKED if cell else None for cell in row] for row in EXAMPLE_HIDDEN]
    scored = [[f"{value:.1f}" for value in row] for row in EXAMPLE_SCORES]
    masked = [["-inf" if cell else text for cell, text in zip(*rows)] for rows in zip(EXAMPLE_HIDDEN, scored)]
    shares = [["0" if cell else f"{value:.2f}" for cell, value in zip(*rows)]
              for rows in zip(EXAMPLE_HIDDEN, EXAMPLE_WEIGHTS)]
    lefts = (148, 332, 530)
    for i in range(count):
        piece(ax, 12, top + (i + 0.5) * height, PIECES[i], width=130)
        write(ax, 686, top + (i + 0.5) * height, f"{EXAMPLE_WEIGHTS[i].sum():.2f}", size=9)
    write(ax, 686, 46, "sum", bold=True)
    for x, name, shades, form, fills in ((lefts[0], "scores", tint, scored, None),
                                         (lefts[1], "scores + mask", tint, masked, greys),
                                         (lefts[2], "weights", EXAMPLE_WEIGHTS, shares, greys)):
        write(ax, x + count * width / 2, 46, name, bold=True)
        cells(ax, x, top, shades, width, height, form, fills)
    y = top + count * height / 2
    for start, end, text in ((lefts[0], lefts[1], "mask"), (lefts[1], lefts[2], "softmax")):
        arrow(ax, (start + count * width, y), (end, y))
        write(ax, (start + count * width + end) / 2, y - 14, text)


@picture("values", 360, "weights", "v", shape(seq, head_dim))
def values(ax):
    """The last row of the example's weights times the rows of v, added up to one row of the head's output."""
    v = np.random.default_rng(5).random((4, 8))
    weights = EXAMPLE_WEIGHTS[-1]
    named(ax, 184, 28, "weights[3]", shape(seq))
    named(ax, 334, 28, "v", shape(seq, head_dim))
    write(ax, 600, 36, "weights[3, j] * v[j]", bold=True)
    for j in range(4):
        y = 76 + 42 * j
        piece(ax, 24, y, PIECES[j], width=130)
        cells(ax, 162, y - 14, [[weights[j]]], 44, 28, [[f"{weights[j]:.2f}"]])
        operator(ax, 228, y, "*")
        cells(ax, 254, y - 11, v[j], 20, 22)
        arrow(ax, (414, y), (520, y))
        cells(ax, 520, y - 11, v[j] * weights[j], 20, 22)
    dots(ax, 89, 244, 0, 7)
    cells(ax, 162, 230, [[0]], 44, 28, [["0"]], [[MASKED]])
    write(ax, 218, 244, f"the other {seq - 4} tokens come later: their weights are 0", align="left")
    operator(ax, 600, 270, "+")
    link(ax, (600, 213), (600, 260))
    arrow(ax, (600, 281), (600, 308))
    cells(ax, 520, 308, weights @ v, 20, 22)
    box(ax, 520, 308, 160, 22, "none", edge=ACCENT, line=2.5)
    named(ax, 400, 319, "row 3 of the head's output", shape(head_dim))


@picture("gqa", 258, str(n_heads), str(n_kv_heads), shape(seq, head_dim), f"i // {group}")
def gqa(ax):
    """The query heads in a row, each group of them above the one KV head that it shares."""
    named(ax, WIDTH / 2, 32, f"{n_heads} query heads", f"each q {shape(seq, head_dim)}")
    for kv in range(n_kv_heads):
        left = 32 + 83 * kv
        fill = ACCENT if kv == 1 else ACTIVATION
        for i in range(group):
            x = left + 19 * i
            box(ax, x, 60, 19, 24, fill)
            write(ax, x + 9.5, 72, str(kv * group + i), size=9, color=ink(fill))
            link(ax, (x + 9.5, 84), (left + 38, 152), color=fill if kv == 1 else pale(TEXT, 0.4))
        for x, name in ((left, "k"), (left + 38, "v")):
            box(ax, x, 152, 38, 36, fill)
            write(ax, x + 19, 170, f"{name} {kv}", size=9, color=ink(fill))
    named(ax, 157, 226, f"{n_kv_heads} KV heads", f"each k {shape(seq, head_dim)} and v {shape(seq, head_dim)}")
    write(ax, 530, 226, f"query head i uses KV head i // {group}", bold=True, color=ACCENT)


@picture("wo", 330, "wo", shape_of("attention.wo"), shape(seq, head_dim), "attention @ wo.T", shape(seq, dim))
def wo(ax):
    """The heads pushed together, times wo, added back to the stream."""
    side, y = 160, 288
    named(ax, 134, 32, f"{n_heads} heads, each", shape(seq, head_dim))
    for i in range(n_heads):
        color = ACTIVATION if i % 2 else pale(ACTIVATION, 0.4)
        box(ax, 24 + 7 * i, 58, side / n_heads, 12, color, line=0.6)
        box(ax, 54 + side / n_heads * i, 136, side / n_heads, 12, color, edge=color, line=0.1)
    box(ax, 54, 136, side, 12, "none")
    arrow(ax, (134, 74), (134, 136))
    write(ax, 143, 104, "side by side", align="left")
    named(ax, 134, 174, "attention", shape(seq, dim))
    box(ax, 290, 62, side, side, WEIGHT, "wo", shape_of("attention.wo"))
    arrow(ax, (214, 142), (290, 142))
    arrow(ax, (450, 142), (506, 142))
    box(ax, 506, 136, side, 12, ACTIVATION)
    named(ax, 586, 110, "attention @ wo.T", shape(seq, dim))
    stream(ax, 24, 700, y)
    write(ax, 608, y, "h " + shape(seq, dim), color=PAPER, bold=True, align="left")
    arrow(ax, (586, 148), (586, y - 12))
    operator(ax, 586, y, "+", color=STREAM, radius=12)


@picture("swiglu", 414, "w1", "w3", "w2", "silu", shape(seq, ffn_dim))
def swiglu(ax):
    """From the stream through ffn_norm, w1 with silu and w3 side by side, their product, w2, and back."""
    y, unit = 374, 40 / dim
    long = ffn_dim * unit
    box(ax, 22, 282, 100, 40, WEIGHT, "ffn_norm", shape_of("ffn_norm"))
    arrow(ax, (72, y - 10), (72, 322))
    arrow(ax, (72, 282), (72, 189))
    box(ax, 52, 177, 40, 12, ACTIVATION)
    named(ax, 64, 152, "x", shape(seq, dim))
    for name, middle, result, x in (("w1", 100, "gate = silu(x @ w1.T)", 322), ("w3", 266, "up = x @ w3.T", 322)):
        box(ax, 164, middle - long / 2, 40, long, WEIGHT)
        write(ax, 184, middle, f"{name}  {shape(ffn_dim, dim)}", turn=90)
        arrow(ax, (92, 183), (128, 183), (128, middle), (164, middle))
        arrow(ax, (204, middle), (x, middle))
        box(ax, x, middle - 6, long, 12, ACTIVATION)
        named(ax, x + long / 2, middle - 32, result, shape(seq, ffn_dim))
        arrow(ax, (x + long, middle), (500, middle), (500, 183 + (11 if middle > 183 else -11)))
    arrow(ax, (204, 100), (236, 100))
    box(ax, 236, 86, 54, 28, PAPER, "silu", zorder=4)
    operator(ax, 500, 183, "*")
    arrow(ax, (511, 183), (550, 183))
    box(ax, 550, 177, long, 12, ACTIVATION)
    named(ax, 620, 152, "gate * up", shape(seq, ffn_dim))
    arrow(ax, (620, 189), (620, 226))
    box(ax, 550, 226, long, 40, WEIGHT, "w2", shape_of("feed_forward.w2"))
    arrow(ax, (620, 266), (620, 300))
    box(ax, 600, 300, 40, 12, ACTIVATION)
    named(ax, 588, 306, "(gate * up) @ w2.T", shape(seq, dim), align="right")
    stream(ax, 22, 706, y)
    write(ax, 638, y, "out", color=PAPER, bold=True, align="left")
    arrow(ax, (620, 312), (620, y - 12))
    operator(ax, 620, y, "+", color=STREAM, radius=12)


@picture("layers", 306, "layers.0", f"layers.{n_layers - 1}", "attention_norm", "ffn_norm", "token_embeddings", "norm")
def layers(ax):
    """The first layer and the last, one after the other on one straight stream."""
    y = 220
    write(ax, WIDTH / 2, 28, "for layer in range(n_layers):", bold=True, mono=True)
    stream(ax, 20, 700, y, thick=14, text=False)
    for x, layer in ((40, 0), (390, n_layers - 1)):
        box(ax, x, 52, 290, 190, "#F7F7F7", edge=MASKED, zorder=1)
        write(ax, x + 12, 70, f"layers.{layer}", align="left", bold=True)
        for left, norm, block in ((x + 10, "attention_norm", "attention"), (x + 150, "ffn_norm", "feed_forward")):
            box(ax, left, 94, 130, 30, WEIGHT)
            write(ax, left + 65, 109, block, size=9)
            box(ax, left, 154, 98, 28, WEIGHT)
            write(ax, left + 49, 168, norm, size=9)
            arrow(ax, (left + 49, y - 7), (left + 49, 182))
            arrow(ax, (left + 49, 154), (left + 49, 124))
            arrow(ax, (left + 114, 124), (left + 114, y - 9))
            operator(ax, left + 114, y, "+", color=STREAM, radius=9)
    write(ax, 360, 109, "...", size=12, bold=True)
    named(ax, 20, 272, "token_embeddings", shape(seq, dim), align="left")
    named(ax, 700, 272, "to norm and output", shape(seq, dim), align="right")


@picture("logits", 348, "final_embedding", "output", shape_of("output"), shape(vocab_size), "next_token")
def logits(ax):
    """The last row times the output weight: a logit for each id, a probability for each, the highest one's id."""
    top, tall = 66, 256
    rng = np.random.default_rng(11)
    hit = 18
    named(ax, 86, 148, "final_embedding", shape(seq, dim))
    rows(ax, 46, 172, 80, seq, {seq - 1: ACCENT, None: ACTIVATION})
    named(ax, 250, 36, "output", shape_of("output"))
    box(ax, 210, top, 80, tall, WEIGHT)
    arrow(ax, (126, 254.5), (210, 254.5), color=ACCENT, line=2)
    named(ax, 392, 36, "logits", shape(vocab_size))
    values = rng.random(64) * 0.6
    values[hit] = 1
    cells(ax, 380, top, values[:, None], 24, tall / 64)
    arrow(ax, (290, top + tall / 2), (380, top + tall / 2))
    named(ax, 530, 36, "probabilities", shape(vocab_size))
    arrow(ax, (404, top + tall / 2), (486, top + tall / 2))
    write(ax, 445, top + tall / 2 - 14, "softmax")
    link(ax, (486, top), (486, top + tall), line=1.2)
    lengths = 84 * softmax(values[None] * 16)[0] + 1
    for i, length in enumerate(lengths):
        box(ax, 486, top + (i + 0.1) * tall / 64, length, tall / 64 * 0.8, ACCENT if i == hit else ACTIVATION,
            edge="none")
    y = top + (hit + 0.5) * tall / 64
    arrow(ax, (486 + lengths[hit], y), (630, y), color=ACCENT, line=2)
    piece(ax, 630, y, ANSWER, fill=ACCENT, width=44, height=28)
    named(ax, 652, y + 42, "next_token", str(ANSWER_ID))


@picture("kv_cache", 384, "q", shape(n_heads, 1, head_dim), shape(n_kv_heads, seq + 1, head_dim), "k", "v")
def kv_cache(ax):
    """Three calls: the prompt, then one token at a time; what is computed in the call is in the accent colour."""
    for step in range(3):
        x, new, kept = 40 + 232 * step, 1 if step else seq, seq + step - 1 if step else 0
        write(ax, x + 88, 26, f"call {step + 1}: tokens {shape(new)}", bold=True, size=10.5)
        named(ax, x + 88, 64, "q", shape(n_heads, new, head_dim))
        for left, name in ((x + 44, "k"), (x + 132, "v")):
            named(ax, left, 212, name, shape(n_kv_heads, kept + new, head_dim))
        for left, top, width, old in ((x, 86, 176, MASKED), (x + 22, 234, 44, ACTIVATION),
                                      (x + 110, 234, 44, ACTIVATION)):
            rows(ax, left, top, width, kept, old)
            rows(ax, left, top + 5 * kept, width, new, ACCENT)
    for x, fill, text in ((40, ACCENT, "computed now"), (272, ACTIVATION, "read from the cache"),
                          (504, MASKED, "not needed any more")):
        box(ax, x, 348, 22, 14, fill)
        write(ax, x + 30, 355, text, align="left")


@picture("readme", 408, "[17]", shape(seq, dim), str(n_layers), shape(vocab_size), ANSWER, width=912)
def readme(ax):
    """The prompt's tokens, each on its line through the layers, of which the first two are opened; the last says 42."""
    rng = np.random.default_rng(2)
    ys = [52 + 18 * i for i in range(seq)]
    y_last, y_hit = ys[-1], 178
    back, fact, copy = 248, 346, 410

    def slab(x0, x1, color):
        ax.add_patch(Rectangle((x0, 40), x1 - x0, 312, facecolor=color, edgecolor="none"))

    for x0, x1 in ((236, 288), (326, 366), (398, 450)):
        slab(x0, x1, pale(WEIGHT, 0.6))
    for i in range(2, n_layers):
        slab(466 + 4.8 * (i - 2), 469 + 4.8 * (i - 2), WEIGHT)
    for i, y in enumerate(ys):
        last = i == seq - 1
        piece(ax, 150 - piece_width(PIECES[i]), y, PIECES[i], height=16)
        link(ax, (150, y), (176, y), color=pale(TEXT, 0.5), line=1.2)
        box(ax, 176, y - 6, 46, 12, ACTIVATION, edge=PAPER)
        link(ax, (222, y), (632, y), color=STREAM, line=2, zorder=4)
        box(ax, 632, y - 6, 46, 12, ACCENT if last else ACTIVATION, edge=PAPER)
        for x in (back,) if last else (back, fact, copy):
            ax.add_patch(Circle((x, y), 2.6, facecolor=PAPER, edgecolor=STREAM, linewidth=0.9, zorder=5))
    link(ax, (fact, y_last), (632, y_last), color=ACCENT, line=3.5, zorder=5)
    ax.add_patch(Circle((fact, y_last), 7, facecolor=ACCENT, edgecolor=PAPER, linewidth=1, zorder=7))
    hops = [(back, i, i + 1, 26, REGISTERS["before"]) for i in range(seq - 1)]
    for x, i, j, bulge, color in (*hops, (copy, 5, 10, 60, ACCENT), (copy, 10, 12, 28, ACCENT)):
        arc(ax, (x + 3, ys[i]), (x + bulge, (ys[i] + ys[j]) / 2), (x + 4, ys[j] - 3), color)
    for x, text, color in ((262, "looks back", REGISTERS["before"]), (346, "remembers", ACCENT),
                           (424, "was told", ACCENT)):
        write(ax, x, 29, text, bold=True, color=color, size=9)
    for x, text in ((301, "layer 0"), (424, "layer 1"), (539, f"layers 2 to {n_layers - 1}")):
        write(ax, x, 14, text, size=9)
    link(ax, (678, y_last), (716, y_last), color=ACCENT, line=3.5)
    box(ax, 716, 44, 18, 304, WEIGHT)
    write(ax, 725, 196, f"output  {shape_of('output')}", size=9, turn=90)
    for k in range(38):
        y = 48 + 8 * k
        hit = abs(y - y_hit) < 4
        box(ax, 742, y - 2.5, 58 if hit else 30 * rng.random() ** 2 + 3, 5, ACCENT if hit else ACTIVATION, edge="none")
    write(ax, 852, y_hit - 2, ANSWER, size=42, bold=True, color=ACCENT)
    for x, name, text in ((92, "tokens", shape(seq)), (199, "token_embeddings", shape(seq, dim)),
                          (424, f"{n_layers} layers", shape(seq, dim)), (655, "final_embedding", shape(seq, dim)),
                          (762, "logits", shape(vocab_size)), (852, "next_token", str(ANSWER_ID))):
        named(ax, x, 380, name, text)


def main():
    """Write every picture beside this file, without the date or version, so that the bytes stay the same."""
    for name, draw in PICTURES.items():
        draw().savefig(HERE / f"{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
