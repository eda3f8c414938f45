"""The pictures are what images/draw.py and images/animate.py draw, in both languages, and diagrams can be read."""
import io
import itertools
from functools import cache

import animate
import draw
import pytest
from cells import look_alike
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

drawn = cache(draw.figure)
every_diagram = pytest.mark.parametrize("name, language", [*itertools.product(draw.DIAGRAMS, draw.FOLDERS)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "zh/stream"])
def test_moving_pictures_end_as_drawn(name):
    """The committed one begins with what is drawn last now; for images/birth.gif, that would need a training."""
    anew = io.BytesIO()
    animate.PICTURES[name]()[-1].save(anew, format="png")
    assert look_alike(animate.path_of(name).read_bytes(), anew.getvalue()), f"run python images/animate.py {name}"


@pytest.mark.slow
@every_diagram
def test_as_drawn(name, language):
    """The committed picture shows what is drawn anew."""
    anew = io.BytesIO()
    drawn(name, language).savefig(anew, format="png")
    committed = (draw.FOLDERS[language] / f"{name}.png").read_bytes()
    assert look_alike(committed, anew.getvalue()), f"old: run `python images/draw.py {name}`"


@pytest.mark.slow
@every_diagram
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
