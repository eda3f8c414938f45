"""The pictures: each is there, in use, told in words, and what images/draw.py and images/animate.py draw."""
import io
import re

import animate
import draw
import pytest
from cells import ROOT, look_alike, new_tutorial
from documents import DOCUMENTS, images_of, text_of
from matplotlib import font_manager
from matplotlib.image import imread

FILES = [path for path in sorted((ROOT / "images").rglob("*")) if path.suffix in (".png", ".gif")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_told_and_sized(path):
    """Each picture of a document is a file in images/, has words enough, and a width that its pixels fill.

    A Chinese document shows it in Chinese wherever there is a Chinese one.
    """
    chinese = path.stem.endswith("_zh")
    least = 20 if chinese else 40
    for picture, alt, width in images_of(text_of(path)):
        assert re.fullmatch(r"images/(zh/)?[\w-]+\.(png|gif)", picture) and (ROOT / picture).is_file(), picture
        assert len(alt) >= least, f"{picture} is told in {len(alt)} letters, fewer than {least}"
        assert width and width.isdigit(), f"{picture} has no width"
        if picture.endswith(".png"):
            assert int(width) <= imread(ROOT / picture).shape[1], f"{picture} is shown larger than it is"
        translated = ROOT / picture.replace("images/", "images/zh/")
        assert not (chinese and translated.exists()), f"{picture} is there in Chinese"


def test_each_is_shown():
    """No file in images/ is left that no document shows."""
    shown = {picture for path in DOCUMENTS for picture, _, _ in images_of(text_of(path))}
    assert [path.name for path in FILES if path.relative_to(ROOT).as_posix() not in shown] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "zh/stream"])
def test_moving_pictures_end_as_drawn(name):
    """The committed one begins with what is drawn last now; for images/birth.gif, that would need a training."""
    anew = io.BytesIO()
    animate.PICTURES[name]()[-1].save(anew, format="png")
    committed = (ROOT / "images" / f"{name}.gif").read_bytes()
    assert look_alike(committed, anew.getvalue()), f"run python images/animate.py {name}"


@pytest.mark.slow
@pytest.mark.parametrize("language", draw.FOLDERS)
@pytest.mark.parametrize("name", draw.DIAGRAMS)
def test_as_drawn(name, language):
    """The committed picture shows what is drawn anew."""
    anew = io.BytesIO()
    draw.figure(name, language).savefig(anew, format="png")
    committed = (draw.FOLDERS[language] / f"{name}.png").read_bytes()
    assert look_alike(committed, anew.getvalue()), f"old: run `python images/draw.py {name}`"


def test_space_can_be_drawn_whatever_fonts_there_are(monkeypatch):
    """A light DejaVu Sans without the sign ␣, as some systems have, doesn't replace every label by its place."""
    light = font_manager.FontEntry(font_manager.findfont("cmr10"), name="DejaVu Sans", weight=200)
    assert 0x2423 not in font_manager.get_font(light.fname).get_charmap()
    monkeypatch.setattr(font_manager.fontManager, "ttflist", font_manager.fontManager.ttflist + [light])
    assert new_tutorial().drawn(["␣is"]) == ["␣is"]
