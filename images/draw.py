"""Draw the diagrams of the tutorial: `python images/draw.py [NAME]` writes images/NAME.png and images/zh/NAME.png.

Without a NAME, a diagram that looks as it did stays as it was; so tools/save.py draws them all after a run.

Words stand here in both languages, t("English", "中文"). Numbers don't, but for the heads of `cut` and `moved`: sizes,
token ids, barcodes, angles, scores and chances are those of the English notebook, whose functions compute them.
"""
# canvas, which puts tools/ on the path, comes before cells
# ruff: noqa: I001
import argparse
import io
import re
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
from canvas import ACTIVATION, BIG, BLUE, FADED, FRAME, GREEN, GREY, LARGE, PAPER, SMALL
from canvas import TEXT, VERMILION, WEIGHT, Canvas, pale, width_of
from cells import ROOT, load_tutorial, look_alike, read
from PIL import Image

FOLDERS = {"en": ROOT / "images", "zh": ROOT / "images" / "zh"}
DIAGRAMS = {}


def diagram(height, width=720, name=None):
    """Register draw(p, t, m), by its own name or another, with its size.

    p is the canvas, t("English", "中文") the words in the language that is drawn, m what from_notebook() knows.
    """
    def register(draw):
        DIAGRAMS[name or draw.__name__] = draw, width, height
        return draw
    return register


def figure(name, language):
    """The diagram in one of the languages, as a figure of Matplotlib."""
    draw, width, height = DIAGRAMS[name]
    canvas = Canvas(width, height)
    draw(canvas, lambda english, chinese: chinese if language == "zh" else english, from_notebook())
    return canvas.figure


@cache
def from_notebook():
    """What the diagrams take from the notebook, as attributes.

    The sizes in the 8B's config, under their names there (dim, n_heads, …), and head_dim and ffn_dim.
    Of the prompt: tokens, words (the tokens as text), seq (how many), row (the shape [seq, dim] as text).
    freqs: by which angle each pair turns from one position to the next.
    shape_of(name): a weight's shape as text, of layer 0 where no layer is named. code(word): the digits of its barcode.
    tutorial and tokenizer, for all else.
    """
    tutorial = load_tutorial()
    config = tutorial.defaults | tutorial.llama3_8b
    shapes = {name.removesuffix(".weight"): list(shape) for name, shape in tutorial.expected_shapes(config).items()}
    tokenizer = tutorial.load_tokenizer(tutorial.packaged)
    tokens = tutorial.torch.tensor(tutorial.encode(tokenizer, tutorial.prompt))
    return SimpleNamespace(
        **config, tutorial=tutorial, tokenizer=tokenizer, tokens=tokens, words=tutorial.show_tokens(tokenizer, tokens),
        seq=len(tokens), head_dim=config["dim"] // config["n_heads"], ffn_dim=tutorial.ffn_width(config),
        freqs=tutorial.rope(config, 1, 2).angle()[0].tolist(), row=str([len(tokens), config["dim"]]),
        shape_of=lambda name: str(shapes.get(name) or shapes["layers.0." + name]),
        code=lambda word: tutorial.barcode(tokenizer.encode_single_token(word.replace("␣", " "))).tolist())


def section_of(cell_id):
    """The number of the notebook's section in which the cell of that id stands."""
    cells = read().cells
    before = cells[:[cell.id for cell in cells].index(cell_id)]
    return re.findall(r"^## (\d+)\.", "\n".join(cell.source for cell in before), re.M)[-1]


@cache
def on_the_prompt():
    """The Llama that the notebook writes, a sixteenth as wide and with heads of 128 as in the 8B, on the prompt.

    A namespace of head 0's scores and weights in layer 0, [seq, seq], and all tokens' logits and chances, [vocab_size].
    """
    m, tutorial = from_notebook(), from_notebook().tutorial
    llama = tutorial.in_memory(tutorial.narrow, tutorial.write_by_hand(tutorial.narrow), m.tokenizer)
    logits, streams, looks = tutorial.watch(llama, m.tokens)
    x = tutorial.rms_norm(streams[0], llama.weights["layers.0.attention_norm.weight"], m.norm_eps).float()
    q, k = [tutorial.rotate(x @ llama.weights[f"layers.0.attention.{name}.weight"][:m.head_dim].float().T,
                            tutorial.rope(llama.config, 0, m.seq)) for name in ("wq", "wk")]
    return SimpleNamespace(scores=(q @ k.T / m.head_dim ** 0.5).numpy(), weights=looks[0, 0].float().numpy(),
                           logits=logits[-1].numpy(), chances=logits[-1].softmax(dim=-1).numpy())


def minus(number):
    """The number as text with a true minus."""
    return str(number).replace("-", "−")


MAP_BOXES = {
    "text": (10, 0, 150), "tokens": (10, 1, 150), "tok_embeddings": (10, 2, 150), "attention": (182, 0, 166),
    "attention_norm": (182, 1, 140), "feed_forward": (370, 0, 166), "ffn_norm": (370, 1, 140),
    "norm": (560, 2, 150), "output": (560, 1, 150), "next": (560, 0, 150)}
HIGHLIGHTS = {
    "embedding": (85, {"text", "tokens", "tok_embeddings"}), "norm": (360, {"attention_norm", "ffn_norm", "norm"}),
    "attention": (264, {"attention_norm", "attention"}), "feed_forward": (452, {"ffn_norm", "feed_forward"}),
    "loop": (360, {"layers"}), "output": (635, {"norm", "output", "next"})}


def draw_map(p, t, m, top, step, tall, here=(), details=None):
    """The whole model around one straight stream: three rows of boxes, `step` apart and `tall`, and what leads where.

    `here` are the parts to show in vermilion, the others pale; `details` is {part: a second line}.
    """
    y_stream = top + 2 * step + tall / 2
    words = {"text": t("text", "文本"), "tokens": t("tokens", "词元"), "next": t("next token", "下一个词元")}

    def tint(name, plain, other=FADED):
        return VERMILION if name in here else other if here else plain

    frame = (pale(VERMILION, 0.85), VERMILION) if "layers" in here else (FRAME, "none")
    p.box(172, top - 32, 376, y_stream - top + 68, frame[0], edge=frame[1], round=10, zorder=1)
    p.write(184, top - 16, t(f"{m.n_layers} layers", f"{m.n_layers}层"), align="left", bold=True,
            color=tint("layers", TEXT))
    p.stream(80, 640, y_stream, color=pale(BLUE, 0.4) if here else BLUE, thick=tall / 2)
    for name, (x, row, width) in MAP_BOXES.items():
        fill = GREY if name == "text" else ACTIVATION if name in words else WEIGHT
        lines = [words.get(name, name)]
        if details:
            lines.append(details[name])
        p.box(x, top + row * step, width, tall, tint(name, fill, pale(fill, 0.5)), *lines, size=17,
              color=PAPER if name in here else TEXT)
    for name, x, row, way in (("tokens", 85, 0, 1), ("tok_embeddings", 85, 1, 1), ("output", 635, 2, -1),
                              ("next", 635, 1, -1)):
        y = top + row * step + (tall if way > 0 else 0)
        p.arrow((x, y), (x, y + way * (step - tall)), color=tint(name, TEXT))
    for block, norm, x in (("attention", "attention_norm", 252), ("feed_forward", "ffn_norm", 440)):
        p.arrow((x, y_stream - tall / 4), (x, top + step + tall), color=tint(norm, TEXT))
        p.arrow((x, top + step), (x, top + tall), color=tint(block, TEXT))
        p.arrow((x + 84, top + tall), (x + 84, y_stream - 12), color=tint(block, TEXT))
        p.sign(x + 84, y_stream, "+", tint(block, BLUE), 12)


@diagram(350, name="map")
def whole_map(p, t, m):
    """The whole model, with shapes and what the colours mean."""
    more = {"text": f"'… {m.words[-2][1:]} '", "tokens": f"[{m.seq}]", "attention": "wq wk wv wo",
            "feed_forward": "w1 w2 w3", "next": "'42'"}
    more |= {name: m.shape_of(name) for name in MAP_BOXES if name not in more}
    draw_map(p, t, m, 46, 88, 54, details=more)
    p.write(536, 30, f"layers.0 … layers.{m.n_layers - 1}", SMALL, align="right")
    p.write(360, 272, t("residual stream ", "残差流") + m.row, 17, BLUE, bold=True)
    for x, fill, word in ((150, WEIGHT, t("weights, from the file", "权重，文件里的表")),
                          (390, ACTIVATION, t("made from the text", "由文本算出"))):
        p.box(x, 314, 26, 20, fill)
        p.write(x + 34, 324, word, align="left")


def small_map(p, t, m, place):
    """The whole model, and where in it the reader is: `place` is one of HIGHLIGHTS."""
    x, here = HIGHLIGHTS[place]
    draw_map(p, t, m, 76, 50, 32, here)
    p.box(x - 62, 8, 124, 26, VERMILION, t("you are here", "讲到这里"), size=17, round=13, zorder=6)
    p.arrow((x, 33), (x, 44 if 172 < x < 548 else 76), color=VERMILION, zorder=5)


for place in HIGHLIGHTS:
    diagram(240, name="map_" + place)(partial(small_map, place=place))


@diagram(266)
def tokens(p, t, m):
    """The prompt as a string, and the pieces it is cut into, each over its id."""
    p.write(360, 26, repr(m.tutorial.prompt), 17)
    p.arrow((360, 40), (360, 62))
    x, y = 20, 86
    for word, number in zip(m.words, m.tokens.tolist()):
        if x + width_of(word) > 580:
            x, y = 20, y + 66
        width = p.token(x, y, word)
        p.write(x + width / 2, y + 28, str(number), SMALL)
        x += max(width, width_of(str(number), SMALL)) + 9
    p.named(x + 24, y + 14, "tokens", f"[{m.seq}]", align="left", size=LARGE)


@diagram(404)
def checkpoint(p, t, m):
    """The three files on the left; on the right the tensors of the blank one, names on empty tables, and sections."""
    p.write(102, 26, "blank-2layers", bold=True)
    for y, name, says in ((48, "params.json", t("the sizes", "尺寸")),
                          (120, "tokenizer.model", t("the pieces of text", "词表")),
                          (192, "consolidated.00.pth", t("the weights", "权重"))):
        p.box(14, y, 176, 54, FRAME, name, says, size=17, round=6)
    p.arrow((190, 219), (222, 219))
    p.box(226, 12, 480, 326, FRAME, round=10, zorder=1)
    # each row's middle, and its tensors with the cell that writes them
    rows = {44: {"tok_embeddings": "write-embedding"},
            96: {"attention_norm": "write-norms", "wq": "write-queries", "wk": "write-keys", "wv": "write-values",
                 "wo": "write-home"},
            146: {"ffn_norm": "write-norms"} | dict.fromkeys(("w1", "w2", "w3"), "write-facts"),
            202: {"attention_norm": "write-norms"} | dict.fromkeys(("wq", "wk", "wv", "wo"), "write-copier"),
            252: {"ffn_norm": "write-norms"} | dict.fromkeys(("w1", "w2", "w3")),
            306: {"norm": "write-norms", "output": "write-output"}}
    for y, row in rows.items():
        left = 316 if len(row) > 2 else 240
        right = 446 if len(row) > 1 else 692
        step = 246 / max(1, len(row) - 1)
        for name, cell in row.items():
            p.box(left, y - 22, right - left, 44, PAPER, edge=WEIGHT, line=2)
            p.write((left + right) / 2, y - 11, name, SMALL)
            where = t(f"§ {section_of(cell)}", f"第{section_of(cell)}节") if cell else t("blank", "空着")
            p.write((left + right) / 2, y + 11, where, 15, VERMILION)
            left, right = right + 6, right + step
    p.write(240, 121, "layers.0", SMALL, align="left", bold=True)
    p.write(240, 227, "layers.1", SMALL, align="left", bold=True)
    count = len(m.tutorial.expected_shapes(m.tutorial.defaults | m.tutorial.two_layers))
    p.write(466, 356, t(f"{count} tensors, every number is 0", f"{count}个张量，每个数都是0"))
    p.write(466, 384, t("§: the section in which you write it", "橙色：在第几节写"), 17, VERMILION)


@diagram(352)
def embedding(p, t, m):
    """Ids on the left, the table in the middle, the rows that the ids pick on the right."""
    p.named(104, 32, "tokens", f"[{m.seq}]")
    p.named(372, 32, "tok_embeddings", m.shape_of("tok_embeddings"))
    p.named(615, 32, "token_embeddings", m.row)
    p.box(290, 62, 164, 274, pale(WEIGHT, 0.55))
    for i, y, y_row in ((0, 84, 318), (1, 134, 144), (2, 184, 196), (m.seq - 1, 306, 90)):
        color, line = (VERMILION, 2.5) if i == 1 else (FADED, 1.5)
        p.token(14, y, m.words[i], width=152, size=17)
        p.write(200, y, str(m.tokens[i].item()), 17, color if i == 1 else TEXT, bold=i == 1)
        p.box(290, y_row - 6, 164, 12, VERMILION if i == 1 else WEIGHT)
        p.arrow((234, y), (288, y_row), color=color, line=line)
        p.arrow((454, y_row), (528, 69 + 15.5 * i), color=color, line=line)
    p.dots(90, 246, 11)
    p.dots(372, 256, 11)
    p.rows(530, 62, 170, m.seq, ACTIVATION, 15.5, {1})


@diagram(212, 560)
def barcode(p, t, m):
    """A token's number as a sum of powers of two, its digits, the stripes, and the word under them."""
    word, digits = m.words[-2], m.code(m.words[-2])
    ones = [value for value, digit in zip(m.tutorial.places.tolist(), digits) if digit > 0]
    p.write(280, 28, f"{sum(ones)} = " + " + ".join(str(value) for value in ones), 22, bold=True)
    p.barcode(30, 52, 500, 76, digits, BLUE)
    for i, digit in enumerate(digits):
        p.write(30 + (i + 0.5) * 500 / len(digits), 146, str(int(digit > 0)), color=BLUE if digit > 0 else FADED,
                bold=digit > 0)
    p.write(280, 184, word, 28, bold=True)


@diagram(330)
def registers(p, t, m):
    """One row of the stream, the last token's, with the parts that write into it above and below."""
    tutorial, y = m.tutorial, 122
    p.box(20, 16, 680, 40, WEIGHT, "tok_embeddings")
    for x, name, columns, color, word in ((20, "who", tutorial.WHO, BLUE, m.words[-1]),
                                          (184, "before", tutorial.BEFORE, GREEN, m.words[-2]),
                                          (348, "next", tutorial.NEXT, VERMILION, "42")):
        p.write(x + 76, 106, name, LARGE, color, bold=True)
        p.barcode(x, y, 153, 62, m.code(word), color)
        p.write(x + 76, 200, f"{columns.start}–{columns.stop - 1}", 17)
    p.box(514, y, 16, 62, "#555555")
    p.box(558, y, 16, 62, FRAME)
    p.box(594, y, 106, 62, FRAME)
    for spike in range(7):
        p.box(602 + 14 * spike, y, 3, 62, "#555555")
    for x, name, column in ((522, "one", tutorial.ONE), (566, "first", tutorial.FIRST),
                            (647, t("ballast", "压舱石"), f"… {range(tutorial.ONE, m.dim, tutorial.USED)[-1]}")):
        p.write(x, 106, name, 17, bold=x < 600)
        p.write(x, 200, str(column), 17)
    p.arrows(*[[(x, 56), (x, 92)] for x in (96, 522, 566, 647)])
    for x, name, layer, color, *end in ((184, "attention", 0, GREEN, (260, 214)),
                                        (348, "feed_forward", 0, VERMILION, (424, 214)),
                                        (512, "attention", 1, VERMILION, (588, 236), (464, 236), (464, 214))):
        p.box(x, 258, 153, 56, WEIGHT, name, t(f"layer {layer}", f"第{layer}层"), size=17)
        p.arrow((x + 76, 258), *end, color=color, line=2.5)


@diagram(300)
def rmsnorm(p, t, m):
    """A row of 4 numbers, so that all can be checked: times rsqrt(mean of its squares + eps), times the weight."""
    row, weight = np.array([0.7, -0.1, 0.5, -0.5]), np.array([1.5, 1.0, 2.0, 0.5])
    mean = (row ** 2).mean(keepdims=True)
    scale = 1 / np.sqrt(mean + m.norm_eps)
    for x, y, numbers, fill, name, to_name in (
            (16, 134, row, ACTIVATION, t("one row", "一行"), -16),
            (16, 214, row ** 2, ACTIVATION, t("squared", "平方"), 54),
            (290, 214, mean, ACTIVATION, t("mean", "均方"), 54), (400, 214, scale, ACTIVATION, t("scale", "倍数"), 54),
            (364, 42, weight, WEIGHT, "attention_norm.weight", -16),
            (508, 134, row * scale * weight, ACTIVATION, "x", -16)):
        p.table(x, y, numbers[None], 49, 36, [[minus(f"{number:.2g}") for number in numbers]], fill)
        p.write(x + 24.5 * len(numbers), y + to_name, name, bold=True)
    p.arrows([(114, 170), (114, 212)], [(212, 232), (288, 232)], [(340, 232), (398, 232)], [(212, 152), (411, 152)],
             [(424, 214), (424, 165)], [(437, 152), (458, 152)], [(471, 78), (471, 139)], [(484, 152), (506, 152)])
    p.write(369, 202, "rsqrt", 17)
    p.sign(424, 152, "×")
    p.sign(471, 152, "×")


@diagram(306)
def score(p, t, m):
    """A query and a key, each made of a row of 4 numbers by a table of 3 rows, and their score, easy to check."""
    asks, wq = np.array([[1, 0, 2, 1]]), np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, -1]])
    looked_at, wk = np.array([[0, 1, 1, 2]]), np.array([[1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 0, 0]])
    query, key = asks @ wq.T, looked_at @ wk.T
    for y, name, row, row_name, weight, result, result_name in (
            (86, "wq", asks, t("the token that asks", "提问的词元"), wq, query, t("query", "查询")),
            (236, "wk", looked_at, t("the token looked at", "被看的词元"), wk, key, t("key", "键"))):
        for x, numbers, fill in ((20, row, ACTIVATION), (206, weight, WEIGHT), (390, result, ACTIVATION)):
            p.table(x, y - 17 * len(numbers), numbers, 36, 34, np.vectorize(minus)(numbers), fill)
        p.write(92, y - 34, row_name)
        p.write(278, y - 66, name, bold=True)
        p.write(444, y - 34, result_name, bold=True)
        p.arrows([(166, y), (202, y)], [(352, y), (386, y)], [(500, y), (530, y), (530, 144 if y < 161 else 178)])
    total, root = (query * key).sum(), len(wq) ** 0.5
    p.sign(530, 161, "·", radius=15)
    p.write(558, 130, " + ".join(f"{a}×{b}" for a, b in zip(query[0], key[0])), align="left")
    p.write(558, 162, f"= {total}", align="left")
    p.write(558, 194, f"{total} / {root:.2f} = {total / root:.1f}", align="left")
    p.write(612, 218, t(f"root of {len(wq)}", f"{len(wq)}的平方根"), SMALL, FADED)
    p.write(628, 250, t("score", "得分"), LARGE, bold=True)


@diagram(420)
def rope(p, t, m):
    """One row of k as pairs, and how far its position turns three of them: small clocks, one row a pair."""
    pairs = m.head_dim // 2
    p.named(16, 40, t("one row of k", "k的一行"), f"[{m.head_dim}]", align="left")
    for i in range(20):
        p.box(166 + 18 * i + 4 * (i // 2), 24, 17, 30, BLUE if i < 2 else ACTIVATION)
    p.write(590, 36, "…", BIG)
    p.write(704, 40, t(f"{pairs} pairs", f"{pairs}对数"), align="right", bold=True)
    p.write(16, 96, t("position", "位置"), align="left")
    for row, pair in enumerate((0, 8, pairs - 1)):
        y, speed = 152 + 96 * row, (t("fastest", "最快"), t("slower", "慢一些"), t("slowest", "最慢"))[row]
        p.named(16, y, t(f"pair {pair}, ", f"第{pair}对，") + speed, minus(f"freqs[{pair}] = {m.freqs[pair]:.2g}"),
                align="left", size=17)
        for position in range(8):
            x, angle = 234 + 63 * position, position * m.freqs[pair]
            p.clock(x, y, 27, (angle, BLUE, 3), wedge=angle)
            if row == 0:
                p.write(x, 96, str(position))
    p.write(16, 402, t("angle = position × freqs[pair]", "角度 = 位置 × freqs[第几对]"), align="left", bold=True)


@diagram(440)
def distance(p, t, m):
    """A key and a query, started one step behind, at two distances and at two places of a text."""
    places = {1: 152, 3: 292}
    for x, color, word in ((150, BLUE, t("key at m", "位置m的键")),
                           (340, VERMILION, t("query, started one step behind", "查询，起点往回拨一步"))):
        p.link((x, 22), (x + 34, 22), color=color, line=5)
        p.write(x + 44, 22, word, align="left")
    verdicts = ((t("same direction", "方向相同"), t("high score", "得分高")),
                (t("one step apart", "差一步"), t("lower score", "得分低些")))
    for ahead, verdict in enumerate(verdicts, 1):
        x = 20 + 270 * ahead
        p.write(x, 66, t(f"query at m + {ahead}", f"查询在m + {ahead}"), LARGE, bold=True)
        for place, y in places.items():
            angles = m.freqs[0] * place, m.freqs[0] * (place + ahead - 1)
            p.clock(x, y, 62, (angles[0], BLUE, 5), (angles[1], VERMILION, 5), apart=15 if ahead == 1 else 0)
        p.named(x, 398, *verdict, size=LARGE)
    for place, y in places.items():
        p.write(96, y, f"m = {place}", LARGE, bold=True)
    p.write(96, 398, t("at every m", "不管m是几"), LARGE, bold=True)


@diagram(268)
def mask(p, t, m):
    """The first four tokens: head 0's scores, the same with −inf above the diagonal, and the weights made of them."""
    count, width, height, top = 4, 43, 40, 62
    hidden = np.triu(np.ones((count, count), bool), 1)
    score, weight = on_the_prompt().scores[:count, :count], on_the_prompt().weights[:count, :count]
    numbers = np.array([[minus(round(value)) for value in row] for row in score.tolist()], object)
    shares = np.array([[f"{value:.2f}" for value in row] for row in weight], object)
    for x, name, shades, form in ((14, "scores", score / score.max(), numbers),
                                  (274, "+ mask", np.where(hidden, np.nan, score / score.max()),
                                   np.where(hidden, "−inf", numbers)),
                                  (534, "weights", np.where(hidden, np.nan, weight), np.where(hidden, "0", shares))):
        p.write(x + count * width / 2, 36, name, LARGE, bold=True)
        p.table(x, top, shades, width, height, form)
    p.arrows([(190, 142), (268, 142)], [(450, 142), (528, 142)])
    p.write(489, 124, "softmax", 17)
    p.write(360, 244, t("grey: the future", "灰色：被掩住"))
    p.write(620, 244, t("shares, row by row", "每一行的份额"))


@diagram(354)
def values(p, t, m):
    """The fourth token's weights times the values, which are barcodes, added up to its row of the head's output."""
    here, wide = 3, 9 * m.tutorial.DIGITS
    p.named(226, 32, f"weights[{here}]", f"[{m.seq}]")
    p.named(382, 32, "v", f"[{m.seq}, {m.head_dim}]")
    p.named(608, 32, t("weight × value", "权重 × 值"))
    for j, weight in enumerate(on_the_prompt().weights[here, :here + 1]):
        y, code = 84 + 46 * j, m.tutorial.barcode(m.tokens[j]).tolist() if j else None
        p.token(14, y, m.words[j], width=166, size=17)
        p.table(200, y - 16, np.array([[weight]]), 54, 34, [[f"{weight:.2f}"]])
        p.sign(278, y, "×")
        p.arrow((468, y), (522, y))
        p.box(532, y - 15, wide, 30, "none", edge=GREY, line=1)
        p.barcode(306, y - 15, wide, 30, code, BLUE, "" if j else t("nothing", "空"))
        if j:
            p.barcode(532, y - 15, wide, 30, code, BLUE, strength=float(weight))
    p.arrow((608, 242), (608, 294))
    p.sign(608, 266, "+")
    p.barcode(532, 298, wide, 30, m.tutorial.barcode(m.tokens[here - 1]).tolist(), BLUE, m.words[here - 1])
    word = m.words[here]
    p.write(514, 313, t(f"the head's output for {word}", f"这个头给{word}的输出"), align="right", bold=True)


@diagram(328)
def rest(p, t, m):
    """Votes in layer 1's copying head: a query, and below it the keys of a match, of the first token and of another.

    All are tokens of the tutorial's `hint`, the query is its last space's; a key has a place to rest and a barcode.
    """
    most, asks = m.tutorial.DIGITS - 1, "␣"
    for x, title in ((296, "REST"), (482, t("the last 17", "最后17个数")), (664, t("votes", "票数"))):
        p.write(x, 22, title, 17)
    p.write(228, 62, t(f"query of the last {asks}", f"末尾{asks}的查询"), 17, align="right", bold=True)
    p.box(266, 44, 60, 36, ACTIVATION, str(most), size=17)
    p.barcode(356, 44, 252, 36, m.code(asks), BLUE, asks)
    for y, word, first, before in ((118, "7", 0, asks), (192, m.words[0], 1, None), (254, ".", 0, "7")):
        code = m.code(before) if before else None
        votes = first * most + (int(np.dot(m.code(asks), code)) if before else 0)
        p.write(228, y + 18, t(f"key of {word}", f"{'句号' if word == '.' else word}的键"), 17, align="right")
        p.box(266, y, 60, 36, ACTIVATION if first else FRAME, str(first), size=17)
        p.barcode(356, y, 252, 36, code, GREEN, before or t("nothing", "空"))
        p.write(664, y + 18, minus(votes), LARGE, VERMILION if before == asks else TEXT, bold=True)


@diagram(352)
def gqa(p, t, m):
    """One column for each KV head: the query heads that share it stand above it, head 0's column in orange."""
    left, step, group = 128, 73, m.n_heads // m.n_kv_heads
    for kv in range(m.n_kv_heads):
        x, fill = left + step * kv, ACTIVATION if kv else VERMILION
        for row in range(group):
            p.box(x, 34 + 42 * row, 62, 36, fill, str(kv * group + row))
        p.arrow((x + 31, 200), (x + 31, 226), color=TEXT if kv else VERMILION)
        p.box(x, 228, 62, 44, fill, f"k{kv}  v{kv}")
    p.named(16, 112, t(f"{m.n_heads} query", f"{m.n_heads}个"), t("heads", "查询头"), align="left")
    p.named(16, 250, t(f"{m.n_kv_heads} KV", f"{m.n_kv_heads}个"), t("heads", "KV头"), align="left")
    p.write(16, 314, f"q, k, v: [{m.seq}, {m.head_dim}]", align="left")
    p.write(704, 314, t(f"query head i uses KV head i // {group}", f"查询头i用KV头i // {group}"), LARGE, VERMILION,
            "right", bold=True)


@diagram(320)
def wo(p, t, m):
    """The heads pushed together, times wo, added back to the stream."""
    p.named(124, 32, t(f"{m.n_heads} heads, each", f"{m.n_heads}个头，每个"), f"[{m.seq}, {m.head_dim}]")
    for i in range(m.n_heads):
        p.box(12 + 7.2 * i, 62, 5, 22, ACTIVATION)
        p.box(44 + 160 / m.n_heads * i, 132, 160 / m.n_heads, 22, ACTIVATION if i % 2 else pale(BLUE, 0.6))
    p.arrows([(124, 90), (124, 128)], [(208, 143), (282, 143)], [(428, 143), (516, 143)], [(598, 156), (598, 270)])
    p.write(136, 108, t("side by side", "并排"), align="left")
    p.named(124, 188, "attention", m.row)
    p.box(284, 71, 144, 144, WEIGHT, "wo", m.shape_of("attention.wo"))
    p.tensor(518, 143, 160, "attention @ wo.T", m.row)
    p.stream(12, 708, 284, t("residual stream ", "残差流") + m.row)
    p.write(622, 284, "h", color=PAPER, align="left", bold=True)
    p.sign(598, 284, "+", BLUE, 14)


@diagram(452)
def swiglu(p, t, m):
    """From the stream through ffn_norm, w1 with silu and w3 side by side, their product, w2, and back."""
    wide = f"[{m.seq}, {m.ffn_dim}]"
    p.box(12, 318, 116, 54, WEIGHT, "ffn_norm", m.shape_of("ffn_norm"))
    p.tensor(44, 208, 52, "x", m.row)
    for name, y, result in (("w1", 104, "gate"), ("w3", 312, "up")):
        p.box(164, y - 80, 44, 160, WEIGHT)
        p.write(186, y, f"{name} {m.shape_of('feed_forward.' + name)}", 17, turn=90)
        p.tensor(328, y, 150, result, wide)
        p.arrows([(98, 208), (134, 208), (134, y), (162, y)], [(208, y), (326, y)],
                 [(478, y), (512, y), (512, 222 if y > 208 else 194)])
    p.box(234, 86, 58, 36, PAPER, "silu", edge=TEXT, round=6, zorder=5)
    p.sign(512, 208, "×")
    p.tensor(556, 208, 150, "gate × up", wide)
    p.box(556, 252, 150, 52, WEIGHT, "w2", m.shape_of("feed_forward.w2"))
    p.box(605, 334, 52, 20, ACTIVATION)
    p.write(594, 344, m.row, align="right")
    p.stream(12, 708, 416, t("residual stream ", "残差流") + m.row)
    p.write(654, 416, "out", color=PAPER, align="left", bold=True)
    p.arrows([(70, 403), (70, 374)], [(70, 318), (70, 222)], [(526, 208), (554, 208)], [(631, 220), (631, 250)],
             [(631, 304), (631, 332)], [(631, 356), (631, 402)])
    p.sign(631, 416, "+", BLUE, 14)


@diagram(360)
def logits(p, t, m):
    """The last row compared with each row of output: a logit and a probability for each id, and the best one."""
    logits, chances = on_the_prompt().logits, on_the_prompt().chances
    best = int(chances.argmax())
    ids = 0, 1, None, best - 1, best, best + 1, None, m.vocab_size - 1
    p.named(92, 116, "final_embedding", m.row, size=17)
    p.rows(20, 150, 144, m.seq, ACTIVATION, 8, {m.seq - 1})
    p.named(304, 32, "output", m.shape_of("output"))
    p.named(442, 32, "logits", f"[{m.vocab_size}]")
    p.named(572, 32, t("probabilities", "概率"), f"[{m.vocab_size}]")
    for i, token in enumerate(ids):
        y, hit = 82 + 33 * i, token == best
        if token is None:
            p.dots(304, y, 7)
            p.dots(442, y, 7)
            continue
        p.box(232, y - 12, 144, 24, VERMILION if hit else WEIGHT, str(token))
        p.link((164, 281), (230, y), color=VERMILION if hit else FADED, line=3 if hit else 1.2)
        p.write(442, y, minus(round(float(logits[token]))), color=VERMILION if hit else TEXT, bold=hit)
        p.box(506, y - 10, 2 + 90 * float(chances[token]), 20, VERMILION if hit else FADED)
        if hit:
            p.write(552, y, f"{chances[best]:.0%}", color=PAPER, bold=True)
            p.arrow((600, y), (634, y), color=VERMILION, line=3)
            p.token(638, y, "42", VERMILION, 62, 40, BIG)
            p.named(664, y + 48, "next_token", str(best), size=17)


@diagram(300)
def cut(p, t, m):
    """The path that section 13 cuts: what one head writes is kept from the keys of later heads alone."""
    p.stream(12, 708, 196, t("residual stream", "残差流"))
    p.box(150, 90, 150, 50, WEIGHT, "(16, 0)", t("looks one back", "前词元头"), size=17)
    p.arrow((225, 140), (225, 182), color=GREEN, line=3)
    p.write(238, 160, t("writes", "写下"), 17, GREEN, "left")
    p.box(396, 20, 300, 50, WEIGHT, t("heads of layers 17 and 18", "第17、18层的头"), size=17)
    for x, name in ((446, "q"), (546, "k"), (646, "v")):
        p.arrow((x, 182), (x, 71), color=VERMILION if name == "k" else TEXT)
        p.write(x + 12, 92, name, LARGE, VERMILION if name == "k" else TEXT, "left", bold=True)
    p.sign(546, 140, "−", VERMILION)
    p.link((300, 115), (360, 115), (360, 140), (438, 140), color=GREEN)
    p.link((454, 140), (533, 140), color=GREEN)
    p.write(360, 250, t("for the keys alone: what (16, 0) wrote goes, its mean comes",
                        "只对键：减去(16, 0)的笔记，补上笔记的平均"), LARGE, VERMILION, bold=True)


@diagram(320)
def moved(p, t, m):
    """Section 13's forged notes: tokens, under each the note of who stands before it, and where a later token looks."""
    words, first, step = "ABCD", 226, 80
    notes = ["", *words[:-1]]
    for y, title, late in ((60, t("(16, 0)'s notes", "(16, 0)写下的笔记"), 0),
                           (212, t("notes one place late", "笔记后移一位"), 1)):
        p.write(16, y, t("token", "词元"), SMALL, align="left")
        p.write(16, y + 44, title, SMALL, align="left", bold=True)
        for i, (word, note) in enumerate(zip(words, ["…", *notes[:-1]] if late else notes)):
            p.token(first + step * i, y, word, width=60)
            p.box(first + step * i, y + 30, 60, 30, pale(GREEN, 0.6) if note == "A" else FRAME, note)
        x, found = first + step * 5, first + step * (late + 1) + 30
        p.write(x - 36, y, "…", LARGE)
        p.token(x, y, "A", VERMILION, width=60)
        p.arrow((x + 30, y + 16), (x + 30, y + 84), (found, y + 84), (found, y + 62), color=VERMILION, line=2.5)


@diagram(660)
def circuit(p, t, m):
    """The two ways to know, over the stream as the notebook draws it: rows are tokens, columns the three registers."""
    space, word, wide = m.words[-1], m.words[-2], 153
    left = {"who": 96, "before": 302, "next": 508}
    colors = {"who": BLUE, "before": GREEN, "next": VERMILION}
    who, before, after = [x + wide / 2 for x in left.values()]
    told, known = (92, 172, 292), (440, 522)
    for y, title, text in ((28, t("Told", "上文说过"), f"it was 7. it is {space}"),
                           (398, t("Remembered", "权重记得"), f"… is {space}")):
        p.write(16, y, title, BIG, align="left", bold=True)
        p.write(30 + width_of(title, BIG, True), y, text, align="left")
    for register, x in left.items():
        p.write(x + wide / 2, 68, register, LARGE, colors[register], bold=True)
    for y, token, notes in ((told[0], space, {}), (told[1], "7", {"before": space}), (told[2], space, {"next": "7"}),
                            (known[0], word, {}), (known[1], space, {"before": word, "next": "42"})):
        p.write(56, y + 17, token, 22, bold=True)
        for register, says in ({"who": token} | notes).items():
            p.barcode(left[register], y, wide, 34, m.code(says), colors[register], says)
    p.dots(56, 252, 9)
    p.link((16, 366), (704, 366), color=GREY)
    for y, below in ((told[0], told[1]), known):
        p.arrow((249, y + 17), (275, y + 17), (275, below + 17), (300, below + 17), color=GREEN, line=3)
        p.sign(275, y + 50, "1", GREEN, 12)
    p.arrow((249, told[2] + 17), (before, told[2] + 17), (before, told[1] + 60), color=BLUE, line=3)
    p.link((who, told[1] + 60), (who, 254), (before - 8, 254), color=VERMILION, line=3)
    p.arrow((before + 8, 254), (after, 254), (after, told[2] - 2), color=VERMILION, line=3)
    p.sign(before, told[2] + 17, "2", BLUE, 12)
    p.sign(after - 60, 254, "3", VERMILION, 12)
    for x, y, color, text in ((302, 109, GREEN, t("1: layer 0 copies who to the next row's before",
                                                  "①第0层：把who抄进下一行的before")),
                              (466, 187, BLUE, t("2: layer 1 finds me in before", "②第1层：在before里找自己")),
                              (466, 214, VERMILION, t("3: it copies that who to next", "③把那里的who抄进next"))):
        p.write(x, y, text, SMALL, color, "left", bold=True)
    y, votes = known[1] + 99, len(m.code(space) + m.code(word))
    p.box(214, y - 21, 330, 42, WEIGHT, round=6)
    p.write(379, y, t(f"layer 0, neuron 42: all {votes} stripes fit", f"第0层42号神经元：{votes}位全都对上"), 17,
            bold=True)
    p.arrow((who, known[1] + 58), (who, y), (212, y), color=BLUE, line=3)
    p.arrow((before, known[1] + 58), (before, y - 23), color=GREEN, line=3)
    p.arrow((544, y), (after, y), (after, known[1] + 60), color=VERMILION, line=3)


@diagram(424)
def kv_cache(p, t, m):
    """Three calls: the prompt, then one token at a time; what is computed in the call is vermilion."""
    for step in range(3):
        x, new, total = 18 + 236 * step, 1 if step else m.seq, m.seq + step
        p.write(x + 106, 24, t(f"call {step + 1}", f"第{step + 1}次调用"), LARGE, bold=True)
        p.write(x + 106, 50, f"tokens [{new}]")
        p.named(x + 106, 90, "q", f"[{m.n_heads}, {new}, {m.head_dim}]", size=17)
        p.rows(x + 10, 118, 192, total, GREY, 5.6, range(total - new, total))
        for left, name in ((x + 16, "k"), (x + 128, "v")):
            p.named(left + 34, 252, name, f"[{m.n_kv_heads}, {total}, {m.head_dim}]", size=SMALL)
            p.rows(left, 278, 68, total, ACTIVATION, 5.6, range(total - new, total))
    for x, fill, text in ((18, VERMILION, t("computed now", "这次计算")),
                          (230, ACTIVATION, t("from the cache", "取自缓存")),
                          (452, GREY, t("not needed any more", "不再需要"))):
        p.box(x, 396, 24, 16, fill)
        p.write(x + 32, 404, text, align="left")


def save_diagram(name, language, always):
    """Write a diagram if it looks different, or `always`, in at most 128 colours, which makes it a third as large."""
    path, pixels = FOLDERS[language] / f"{name}.png", io.BytesIO()
    figure(name, language).savefig(pixels, format="png")
    if always or not path.exists() or not look_alike(path.read_bytes(), pixels.getvalue()):
        image = Image.open(pixels).convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        image.save(path, optimize=True)
        cells = [cell.id for cell in read().cells if f"images/{name}.png" in cell.source]
        readmes = [path.name for path in ROOT.glob("README*.md") if f"/{name}.png" in path.read_text(encoding="utf-8")]
        print(f"{path.relative_to(ROOT)} is drawn anew; it is told in words in", *cells, *readmes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=DIAGRAMS)
    chosen = parser.parse_args().name
    for name in [chosen] if chosen else DIAGRAMS:
        for language in FOLDERS:
            save_diagram(name, language, always=chosen is not None)
