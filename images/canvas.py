"""What the diagrams are made of: text, boxes, arrows, the residual stream, tokens, barcodes, tables and clocks.

All lengths are display pixels, x to the right and y down; a PNG has two pixels for each of them. The font is Noto Sans
SC, which is free (SIL Open Font License) and has Latin and Chinese letters; justmytype-intl-cjk brings it.
"""
import sys
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont
from matplotlib import path as outline
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle, Wedge
from matplotlib.textpath import TextPath

# where cells.py is, for draw.py and animate.py, too
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from cells import load_tutorial  # noqa: E402

BLUE, GREEN, VERMILION, GREY = (getattr(load_tutorial(), name) for name in ("blue", "green", "vermilion", "grey"))
WEIGHT, ACTIVATION, FRAME, TEXT, FADED, PAPER = "#F2C75C", "#BFD7EA", "#F5F5F3", "#222222", "#888888", "#FFFFFF"
SMALL, NORMAL, LARGE, BIG = 16, 18, 20, 24
SCRATCH = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@cache
def font(bold):
    """The font at one weight, with the letters of the files that draw, since Matplotlib opens no variable fonts."""
    whole = TTFont(files("justmytype_intl_cjk") / "fonts" / "ofl" / "notosanssc" / "NotoSansSC[wght].ttf")
    letters = Subsetter()
    drawing = Path(__file__).parent.glob("*.py")
    letters.populate(text="".join(path.read_text(encoding="utf-8") for path in drawing))
    letters.subset(whole)
    path = Path(SCRATCH.name) / f"{bold}.ttf"
    instantiateVariableFont(whole, {"wght": 700 if bold else 430}).save(path)
    return FontProperties(fname=path)


@cache
def width_of(text, size=NORMAL, bold=False):
    """How wide the text is."""
    return TextPath((0, 0), text, size=size, prop=font(bold)).get_extents().width


def pale(color, amount):
    """The colour, mixed with that much white."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return tuple(rgb + (1 - rgb) * amount)


def ink(fill):
    """White or dark text, whichever can be read on the fill."""
    return PAPER if np.dot((0.299, 0.587, 0.114), matplotlib.colors.to_rgb(fill)) < 0.55 else TEXT


class Canvas:
    """A white picture of width x height display pixels, and all that can be drawn on it."""

    def __init__(self, width, height):
        self.figure = Figure(figsize=(width / 96, height / 96), dpi=192, facecolor=PAPER)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(height, 0))
        self.ax.axis("off")

    def write(self, x, y, text, size=NORMAL, color=TEXT, align="center", bold=False, turn=0):
        """Text at (x, y), its middle by default; turn is in degrees."""
        self.ax.text(x, y, text, color=color, ha=align, va="center_baseline", rotation=turn, rotation_mode="anchor",
                     fontproperties=font(bold), fontsize=0.75 * size, parse_math=False, zorder=8)

    def named(self, x, y, name, *lines, color=TEXT, align="center", size=NORMAL):
        """A name in bold with more lines, such as its shape, under it; the whole is centred on y."""
        for i, text in enumerate((name, *lines)):
            middle = y + 1.3 * size * (i - len(lines) / 2)
            self.write(x, middle, text, size - (i > 0), color, align, bold=i == 0)

    def box(self, x, y, width, height, fill, *lines, edge="none", line=1.5, size=NORMAL, color=None, round=0, zorder=3):
        """A tensor or a part of the model as a box with its left top corner at (x, y), and what it is called."""
        style = f"round,pad=0,rounding_size={round}"
        shape = (FancyBboxPatch((x, y), width, height, boxstyle=style) if round else Rectangle((x, y), width, height))
        shape.set(facecolor=fill, edgecolor=edge, linewidth=0.75 * line, zorder=zorder)
        self.ax.add_patch(shape)
        if lines:
            self.named(x + width / 2, y + height / 2, *lines, color=color or ink(fill), size=size)

    def tensor(self, x, y, width, name, shape):
        """A tensor as a flat box whose middle line is y, with its name and shape above."""
        self.box(x, y - 10, width, 20, ACTIVATION)
        self.named(x + width / 2, y - 44, name, shape)

    def arrow(self, *points, color=TEXT, line=2, zorder=4):
        """An arrow along the points."""
        self.ax.add_patch(FancyArrowPatch(path=outline.Path(points), arrowstyle="-|>", mutation_scale=6 + 2.4 * line,
                                          color=color, linewidth=0.75 * line, joinstyle="miter", capstyle="butt",
                                          zorder=zorder))

    def arrows(self, *paths):
        """A plain arrow along each of the paths."""
        for path in paths:
            self.arrow(*path)

    def link(self, *points, color=TEXT, line=2):
        """A line along the points, without a tip."""
        self.ax.plot(*zip(*points), color=color, linewidth=0.75 * line, zorder=2, solid_capstyle="butt",
                     solid_joinstyle="miter")

    def sign(self, x, y, text, color=TEXT, radius=13):
        """A sum or a product in a circle around (x, y), or the number of a step on a disc."""
        step = text.isdigit()
        self.ax.add_patch(Circle((x, y), radius, facecolor=color if step else PAPER, edgecolor=PAPER if step else color,
                                 linewidth=1.5, zorder=6))
        self.write(x, y, text, 1.3 * radius if step else 1.8 * radius, PAPER if step else color, bold=True)

    def stream(self, x0, x1, y, text="", thick=26, color=BLUE):
        """The residual stream: one straight band from x0 to x1 at height y."""
        self.box(x0, y - thick / 2, x1 - x0, thick, color, zorder=2)
        self.write(x0 + 12, y, text, color=PAPER, align="left", bold=True)

    def dots(self, x, y, step):
        """Three dots below each other around (x, y), `step` apart: and so on."""
        for i in (-1, 0, 1):
            self.ax.add_patch(Circle((x, y + i * step), 2, color=TEXT, zorder=4))

    def token(self, x, y, text, fill=ACTIVATION, width=None, height=30, size=NORMAL):
        """A token in a rounded box with its left middle at (x, y). Returns the width of the box."""
        width = width or max(36, width_of(text, size) + 18)
        self.box(x, y - height / 2, width, height, fill, round=6)
        self.write(x + width / 2, y, text, size, ink(fill))
        return width

    def barcode(self, x, y, width, height, digits, color, word="", strength=1.0):
        """Stripes for digits, a light tint for -1 and the full colour for 1, the word below; strength fades them.

        Without digits, an empty box with the word in it.
        """
        if digits is None:
            self.box(x, y, width, height, PAPER, word, edge=GREY, size=17)
            return
        self.box(x, y, width, height, pale(color, 1 - 0.22 * strength))
        step = width / len(digits)
        for i, digit in enumerate(digits):
            if digit > 0:
                self.ax.add_patch(Rectangle((x + i * step, y), step, height, facecolor=pale(color, 1 - strength),
                                            edgecolor="none", antialiased=False, zorder=4))
        self.write(x + width / 2, y + height + 12, word, SMALL)

    def table(self, x, y, values, width, height, form="", color=None):
        """A table from values [rows, columns] in 0..1, grey where nan, with numbers or words from `form` in it."""
        for (i, j), value in np.ndenumerate(values):
            heat = matplotlib.colormaps["Blues"](0.05 + 0.85 * np.clip(value, 0, 1))
            fill = color or (GREY if np.isnan(value) else matplotlib.colors.to_hex(heat))
            self.box(x + j * width, y + i * height, width - 1.5, height - 1.5, fill)
            if len(form):
                self.write(x + (j + 0.5) * width - 1, y + (i + 0.5) * height - 1, form[i][j], color=ink(fill))

    def rows(self, x, y, width, count, fill, height=6, special=()):
        """A tensor as `count` thin rows under each other; those whose numbers are in `special` are vermilion."""
        for i in range(count):
            self.box(x, y + height * i, width, height - 1, VERMILION if i in special else fill)

    def clock(self, x, y, radius, *hands, wedge=None, apart=0):
        """A clock with hands, (angle in radians, colour, line width) each, `apart` from one another to the side.

        Angles go round as in mathematics; `wedge`, an angle, shows how far a hand has been turned from 0.
        """
        self.ax.add_patch(Circle((x, y), radius, facecolor=PAPER, edgecolor=FADED, linewidth=1, zorder=3))
        if wedge:
            end = -np.degrees(min(wedge, 2 * np.pi))
            self.ax.add_patch(Wedge((x, y), radius, end, 0, facecolor=ACTIVATION, zorder=3))
        for i, (angle, color, line) in enumerate(hands):
            side = apart * (i - (len(hands) - 1) / 2)
            start = x - side * np.sin(angle), y - side * np.cos(angle)
            tip = start[0] + 0.9 * radius * np.cos(angle), start[1] - 0.9 * radius * np.sin(angle)
            self.arrow(start, tip, color=color, line=line, zorder=5)
