"""The diagrams are what images/draw.py draws, say what the 8B's sizes are, and are told in words where they stand.

The other pictures, plots of the notebook, are the concern of test_readme.py, but for their words and sizes on a page.
"""

import html
import importlib.util
import io
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text
from save_notebooks import MOMENTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("llama3_from_scratch.ipynb", "llama3_from_scratch_zh.ipynb", "README.md",
                                  "README_zh.md")]
PAGES = [page for page in PAGES if page.exists()]

spec = importlib.util.spec_from_file_location("draw", ROOT / "images" / "draw.py")
draw = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw)

# Numbers in labels that are no size: positions, token ids, indices and the example's 0, beside the sizes themselves.
POSITIONS, IDS, LAST_LAYER = range(draw.seq), {*draw.TOKENS}, draw.n_layers - 1
EXAMPLES = {
    "map": {0, LAST_LAYER, 42}, "tokens": IDS, "embedding": IDS, "rope": {*POSITIONS, draw.head_dim // 2 - 1},
    "unwrap": {0, draw.n_heads - 1}, "scores": {1, 2}, "mask": {0}, "values": {0, 3, draw.seq - 4},
    "gqa": {*range(draw.n_heads)}, "layers": {0, LAST_LAYER}, "logits": {42, 2983},
    "readme": {0, 1, LAST_LAYER, 42, 2983}, "rmsnorm": {4}, "wo": set(),
    "kv_cache": {1, 2, 3, draw.seq + 1, draw.seq + 2}, "swiglu": set(),
    "thread": {0, 1, 7, 42}, "registers": {*range(8), 42}, "last": {0, 1, 6, 16, 18, 30, 64, 135},
}


@cache
def texts(name):
    """Every text artist of a picture that shows something, and the canvas that it was drawn on."""
    canvas = FigureCanvasAgg(draw.PICTURES[name]())
    canvas.draw()
    return [text for text in canvas.figure.findobj(Text) if text.get_text().strip()], canvas


def references(page):
    """The images that a page shows: (path, alternative text, width in display pixels or None) of each."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                           if cell["cell_type"] == "markdown")
    for tag in re.findall(r"<img\b[^>]*>", text):
        found = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        yield found.get("src", ""), html.unescape(found.get("alt", "")), found.get("width")
    for alt, path in re.findall(r"!\[((?:\[[^\]]*\]|[^\]])*)\]\(([^)\s]+)\)", text):
        yield path, alt, None


def diagrams(page):
    """Those of a page's images that are files of this repository; badges and the like live elsewhere."""
    return [reference for reference in references(page) if not re.match(r"https?:|attachment:|data:", reference[0])]


@pytest.mark.parametrize("name", draw.PICTURES)
def test_picture_is_what_the_script_draws(name):
    """The committed pixels are those drawn anew, but for a rounding of the last bits."""
    drawn = io.BytesIO()
    draw.PICTURES[name]().savefig(drawn, format="png", metadata={"Software": None})
    drawn.seek(0)
    path = ROOT / "images" / f"{name}.png"
    assert path.exists(), f"{path.name} is missing: run `python images/draw.py`"
    new, old = imread(drawn), imread(path)
    assert new.shape == old.shape and np.abs(new - old).max() < 0.05, f"{path.name} is old: run `python images/draw.py`"


@pytest.mark.parametrize("name", draw.PICTURES)
def test_numbers_are_the_models(name):
    """Each integer in a label is a size of the 8B, or one of the picture's listed examples."""
    sizes = {value for value in draw.config.values() if isinstance(value, int)}
    sizes |= {size for shape in draw.weight_shapes.values() for size in shape}
    head_dim = draw.config["dim"] // draw.config["n_heads"]
    sizes |= {len(draw.TOKENS), head_dim, head_dim // 2, 2, draw.config["n_heads"] // draw.config["n_kv_heads"]}
    for text in texts(name)[0]:
        whole = re.sub(r"\d+\.\d+(e-?\d+)?", "", text.get_text())
        wrong = {int(number) for number in re.findall(r"(?<!\w)\d+", whole)} - sizes - EXAMPLES.get(name, {0})
        assert not wrong, f"{name}: {text.get_text()!r} has {wrong}, which params.json does not give"


@pytest.mark.parametrize("name", draw.PICTURES)
def test_labels_can_be_read(name):
    """ASCII, 9 points or more at display size, nothing cut off, no label on another, and every key label is there."""
    found, canvas = texts(name)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in found]
    width, height = canvas.get_width_height(physical=True)
    for i, (text, box) in enumerate(zip(found, boxes)):
        label = text.get_text()
        assert label.isascii() and text.get_size() >= 9, label
        assert box.x0 > 8 and box.y0 > 8 and box.x1 < width - 8 and box.y1 < height - 8, f"{label!r} is cut off"
        for other, there in zip(found[:i], boxes):
            apart = (box.x0 > there.x1 - 1 or there.x0 > box.x1 - 1 or box.y0 > there.y1 - 3 or there.y0 > box.y1 - 3)
            assert apart, f"{label!r} lies on {other.get_text()!r}"
    shown = " ".join(text.get_text() for text in found)
    assert [label for label in draw.KEY_LABELS[name] if label not in shown] == []


@pytest.mark.parametrize("name", draw.PICTURES)
def test_size_and_margin(name):
    """At most 150 KB, an even width, opaque, white at the border."""
    path = ROOT / "images" / f"{name}.png"
    pixels = imread(path)
    assert path.stat().st_size <= 150_000, f"{path.name} has {path.stat().st_size} bytes"
    assert pixels.shape[1] % 2 == 0
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all(), f"{path.name} is not opaque"
    for border in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (border == 1).all(), f"{path.name} has no margin"


def test_all_pictures_are_small_and_in_use():
    """2 MB in all; each PNG is a diagram or a plot, and is shown on a page; both languages show the same ones."""
    files = sorted((ROOT / "images").glob("*.png"))
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert {path.stem for path in files} == {*draw.PICTURES, *MOMENTS}
    shown = {page.name: [path for path, _, _ in diagrams(page)] for page in PAGES}
    assert shown.get("llama3_from_scratch_zh.ipynb") in (None, shown["llama3_from_scratch.ipynb"])
    shown = {path for paths in shown.values() for path in paths}
    assert [path.name for path in files if f"images/{path.name}" not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_alternative_text_says_what_the_picture_says(page):
    """Each image of a page exists and is told with its key labels in enough words.

    A diagram is shown at half its pixels, a plot at no more than its own.
    """
    for path, alt, width in diagrams(page):
        assert re.fullmatch(r"images/\w+\.png", path) and (ROOT / path).exists(), f"{page.name}: no {path!r}"
        least = 20 if page.stem.endswith("_zh") else 40
        assert len(alt) >= least, f"{page.name}: {path} is told in {len(alt)} letters, fewer than {least}"
        name, pixels = Path(path).stem, imread(ROOT / path).shape[1]
        missing = [label for label in draw.KEY_LABELS.get(name, []) if label not in alt]
        assert not missing, f"{page.name}: the alternative text of {path} lacks {missing}"
        fits = width is None or (int(width) <= pixels if name in MOMENTS else 2 * int(width) == pixels)
        assert fits, f"{page.name}: width of {path}"
