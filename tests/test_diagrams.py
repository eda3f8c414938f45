"""The diagrams are what images/draw.py draws, in both languages, and can be read."""
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


@pytest.mark.parametrize("name", animate.PICTURES)
def test_moving_pictures_are_new(name):
    """They bear the hash of the code that draws them: of images/animate.py and of what they use of the notebook."""
    assert not animate.is_old(name), "run python images/animate.py"


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
