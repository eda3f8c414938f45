"""The pictures of the pages: each is there, in use, small, and told in words for those who do not see it.

That the diagrams are what images/draw.py draws is the concern of test_diagrams.py.
"""
import re

import pytest
from cells import ROOT
from matplotlib.image import imread
from pages import PAGES, pictures_of, text_of

FILES = [path for path in sorted((ROOT / "images").rglob("*")) if path.suffix in (".png", ".gif")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_told_and_sized(page):
    """Each picture of a page is a file in images/, has words enough, and a width that its pixels fill.

    A Chinese page shows it in Chinese wherever there is a Chinese one.
    """
    chinese = page.stem.endswith("_zh")
    least = 20 if chinese else 40
    for path, alt, width in pictures_of(text_of(page)):
        assert re.fullmatch(r"images/(zh/)?\w+\.(png|gif)", path) and (ROOT / path).is_file(), path
        assert len(alt) >= least, f"{path} is told in {len(alt)} letters, fewer than {least}"
        assert width and width.isdigit(), f"{path} has no width"
        if path.endswith(".png"):
            assert int(width) <= imread(ROOT / path).shape[1], f"{path} is shown larger than it is"
        translated = ROOT / path.replace("images/", "images/zh/")
        assert not (chinese and translated.exists()), f"{path} is there in Chinese"


def test_each_is_shown():
    """No file in images/ is left that no page shows, but for the last frame of a moving picture that one does."""
    shown = {path for page in PAGES for path, _, _ in pictures_of(text_of(page))}
    shown |= {path.replace(".gif", ".png") for path in shown}
    assert [path.name for path in FILES if path.relative_to(ROOT).as_posix() not in shown] == []


def test_small():
    """A picture has at most 150 KB, a moving one 1.5 MB, and all together 4 MB."""
    sizes = {path: path.stat().st_size for path in FILES}
    most = {".png": 150_000, ".gif": 1_500_000}
    assert {path: size for path, size in sizes.items() if size > most[path.suffix]} == {}
    assert sum(sizes.values()) <= 4_000_000
