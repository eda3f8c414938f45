"""The front pages and CONTRIBUTING.md: versions, what they show and say of the notebook; the links of all documents."""
import re

import pytest
from cells import CHINESE, ENGLISH, ROOT, code_cells, printed, read
from documents import DOCUMENTS, anchors, images_of, links, text_of, without_code
from save import READMES, for_readmes

NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?!\w)", re.A)


@pytest.fixture(params=[*READMES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def text(request):
    """The text of each front page, and of CONTRIBUTING.md."""
    return text_of(request.param)


def numbers(text):
    """The numbers that stand in digits in `text`, without commas between thousands."""
    return {number.replace(",", "") for number in NUMBER.findall(text)}


def section(notebook, anchor):
    """The cells of `notebook` from the heading that `anchor` names up to the next one of the second level."""
    starts = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
              and re.search(r"(?m)^## ", without_code(cell.source))] + [len(notebook.cells)]
    for start, end in zip(starts, starts[1:]):
        if any(anchor in anchors(cell.source)["notebook"] for cell in notebook.cells[start:end]
               if cell.cell_type == "markdown"):
            return notebook.cells[start:end]
    raise ValueError(f"no heading of a section is {anchor}")


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links(path):
    """Each links to a file that is there, and to a heading that is in it."""
    for link in links(text_of(path)):
        file, _, anchor = link.partition("#")
        there = ROOT / file if file else path
        assert there.exists(), link
        if anchor:
            assert anchor in anchors(text_of(there))["notebook" if there.suffix == ".ipynb" else "github"], link


def test_versions(text):
    """A version of a package that a page or the notebook's first cell names stands in a requirements file or a cell."""
    first, *others = [cell.source for cell in code_cells(read())]
    files = [ROOT / folder / "requirements.txt" for folder in (".", "tests", "site")]
    known = "\n".join([path.read_text(encoding="utf-8") for path in files] + others)
    for package in re.findall(r"[\w-]+==[\w.]*\w", text + first, re.A):
        # in the weekly run on the newest releases, the name alone
        assert package in known or f"\n{package.split('==')[0]}\n" in known, package


def test_quotations_and_plots():
    """What the READMEs take from the notebook, code and plots, is what its cells have, to the byte."""
    taken = for_readmes(read()).items()
    assert [path.name for path, content in taken if path.read_bytes() != content] == [], "run python tools/save.py"


@pytest.mark.parametrize("path, notebook", [*zip(READMES, [ENGLISH, CHINESE])], ids=["en", "zh"])
def test_numbers_are_the_notebooks(path, notebook):
    """Where a README tells of a section and then links to it, every number that it gives stands in the section.

    Numbers of alternative texts are read off the pictures.
    """
    cells, compared = read(notebook), 0
    for passage in re.split(r"(?m)^#+ (?:\d+\. )?", text_of(path)):
        linked = [*re.finditer(r"\.ipynb#([^)\s]+)\)", passage)]
        if not linked:
            continue
        near = [cell for link in linked for cell in section(cells, link[1])]
        in_section = set().union(*(numbers(cell.source) | numbers(printed(cell) if "outputs" in cell else "")
                                   for cell in near))
        said = without_code(passage[:linked[-1].end()])
        said = re.sub(r"<[^>]*>|\[[^]]*\]\([^)]*\)", "", said)
        assert numbers(said) - in_section == set(), passage
        compared += 1
    assert compared >= 7


def test_same_front_pages():
    """Both languages show the same pictures, quotations, headings and rows of tables, in the same order."""
    english, chinese = map(text_of, READMES)
    shown = [[path.replace("images/zh/", "images/") for path, _, _ in images_of(text)] for text in (english, chinese)]
    assert shown[0] == shown[1]
    for pattern in (r"(?m)^#+ ", r"(?m)^\|", r"(?m)^<!--.*-->$"):
        assert re.findall(pattern, english) == re.findall(pattern, chinese), pattern
    assert f"]({READMES[1].name})" in english and f"]({READMES[0].name})" in chinese
