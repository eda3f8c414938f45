"""The pictures of the pages: each is there, in use, small, and told in words for those who do not see it.

That the diagrams are what images/draw.py draws is the concern of test_draw.py.
"""
import re

import pytest
from matplotlib.image import imread
from notebook import CHINESE, ENGLISH, ROOT
from pages import pictures_of, text_of

PAGES = [ENGLISH, CHINESE, ROOT / "README.md", ROOT / "README_zh.md"]
FILES = [path for path in sorted((ROOT / "images").rglob("*")) if path.suffix in (".png", ".gif")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_told_and_sized(page):
    """Each picture of a page is a file in images/, has words enough, and a width that its pixels fill."""
    least = 20 if page.stem.endswith("_zh") else 40
    for path, alt, width in pictures_of(text_of(page)):
        assert re.fullmatch(r"images/(zh/)?\w+\.(png|gif)", path) and (ROOT / path).is_file(), path
        assert len(alt) >= least, f"{path} is told in {len(alt)} letters, fewer than {least}"
        assert width and width.isdigit(), f"{path} has no width"
        if path.endswith(".png"):
            assert int(width) <= imread(ROOT / path).shape[1], f"{path} is shown larger than it is"


def test_each_is_shown():
    """No file in images/ is left that no page shows, but for the last frame of a moving picture that one does."""
    shown = {path for page in PAGES for path, _, _ in pictures_of(text_of(page))}
    shown |= {path.replace(".gif", ".png") for path in shown}
    assert [path.name for path in FILES if path.relative_to(ROOT).as_posix() not in shown] == []


def test_small():
    """A picture has at most 150 KB, a moving one 1.5 MB, and all together 4 MB."""
    sizes = {path.name: path.stat().st_size for path in FILES}
    most = {".png": 150_000, ".gif": 1_500_000}
    assert {name: size for name, size in sizes.items() if size > most[name[-4:]]} == {}
    assert sum(sizes.values()) <= 4_000_000


def test_one_language():
    """The Chinese pages show a picture in Chinese wherever there is one."""
    for page in (CHINESE, ROOT / "README_zh.md"):
        english = [path for path, _, _ in pictures_of(text_of(page)) if not path.startswith("images/zh/")]
        assert [path for path in english if (ROOT / path.replace("images/", "images/zh/")).exists()] == []
