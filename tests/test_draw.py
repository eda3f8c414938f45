"""The diagrams are what images/draw.py draws, in both languages, small, and fit to be shown on white or black."""
import io
import itertools
import re
import sys
from functools import cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text
from notebook import ROOT, functions

sys.path.insert(0, str(ROOT / "images"))
pytest.importorskip("justmytype_intl_cjk", reason="no font for the diagrams: pip install justmytype-intl-cjk==0.1.0")
import draw  # noqa: E402
import shapes  # noqa: E402

pytestmark = pytest.mark.slow
diagrams = pytest.mark.parametrize("name, language", [*itertools.product(draw.PICTURES, draw.LANGUAGES)])


@cache
def drawn(name, language):
    """The figure of a diagram in a language, drawn once."""
    return draw.figure(name, language)


@diagrams
def test_as_drawn(name, language):
    """Nowhere do 8 by 8 committed pixels differ by a tenth from those drawn anew; single ones may, at an edge."""
    path, anew = draw.LANGUAGES[language] / f"{name}.png", io.BytesIO()
    assert path.exists(), f"{path} is missing: run `python images/draw.py {name}`"
    drawn(name, language).savefig(anew, format="png")
    new, old = imread(io.BytesIO(anew.getvalue())), imread(path)
    assert new.shape[:2] == old.shape[:2], f"old: run `python images/draw.py {name}`"
    apart = np.abs(new[..., :3] - old[..., :3]).mean(-1)
    blocks = apart[:len(apart) // 8 * 8].reshape(-1, 8, apart.shape[1] // 8, 8).mean((1, 3))
    assert blocks.max() < 0.1, f"old: run `python images/draw.py {name}`"


@diagrams
def test_small_and_white(name, language):
    """At most 150 KB and 1,440 pixels wide, opaque, with a white margin."""
    path = draw.LANGUAGES[language] / f"{name}.png"
    pixels = imread(path)
    assert path.stat().st_size <= 150_000 and pixels.shape[1] <= 1440
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all(), "it is not opaque"
    for border in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (border == 1).all(), "it has no margin"


@diagrams
def test_readable(name, language):
    """Nothing is written smaller than 15 display pixels, so a phone can show it; nothing is cut off or overwritten."""
    figure = drawn(name, language)
    canvas = FigureCanvasAgg(figure)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for i, (text, box) in enumerate(zip(texts, boxes)):
        label = text.get_text()
        assert text.get_size() >= 0.75 * 15, f"{label!r} is small"
        assert box.x0 > 8 and box.y0 > 8 and box.x1 < figure.bbox.x1 - 8 and box.y1 < figure.bbox.y1 - 8, label
        for other, there in zip(texts[:i], boxes):
            apart = (box.x0 > there.x1 - 2 or there.x0 > box.x1 - 2 or box.y0 > there.y1 - 8 or there.y0 > box.y1 - 8)
            assert apart, f"{label!r} lies on {other.get_text()!r}"


@pytest.mark.parametrize("name", draw.PICTURES)
def test_same_numbers(name):
    """Both languages say the same numbers, in the same order."""
    texts = [" ".join(text.get_text() for text in drawn(name, language).findobj(Text)) for language in ("en", "zh")]
    assert re.findall(r"\d+", texts[0]) == re.findall(r"\d+", texts[1])


def test_colours():
    """The registers have the colours that they have in the page's plots."""
    for name in ("BLUE", "GREEN", "VERMILION", "GREY"):
        assert getattr(shapes, name) == getattr(functions(), name.lower())
