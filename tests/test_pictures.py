"""The pictures of the documents: each is there, in use, and told in words for those who do not see it.

That the diagrams are what images/draw.py draws is the concern of test_diagrams.py.
"""
import re

import pytest
from cells import CHINESE, ENGLISH, ROOT, read, text_cells
from documents import DOCUMENTS, images_of, text_of
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


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_pictures_stand_alone(path):
    """A picture has an empty line before and after it; otherwise the text beside it isn't read as Markdown."""
    for cell in text_cells(read(path)):
        lines = ["", *cell.source.splitlines(), ""]
        for before, line, after in zip(lines, lines[1:], lines[2:]):
            assert not (line.startswith("<img") and (before or after)), cell.id


def test_each_is_shown():
    """No file in images/ is left that no document shows."""
    shown = {picture for path in DOCUMENTS for picture, _, _ in images_of(text_of(path))}
    assert [path.name for path in FILES if path.relative_to(ROOT).as_posix() not in shown] == []
