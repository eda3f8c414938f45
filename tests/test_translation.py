"""The Chinese notebook and README_zh.md say what the English ones say, in a Chinese that is written as Chinese is."""
import re

import pytest
from cells import CHINESE, ENGLISH, ROOT, read, text_cells
from documents import markdown_text, text_of, without_code
from save import outdated

HAN = r"[\u3400-\u9fff]"
TYPOGRAPHY = {
    "space between Chinese and Latin": rf"{HAN} +[A-Za-z0-9]|[A-Za-z0-9] +{HAN}",
    "half-width punctuation": rf"{HAN}[,.:;!?()]|[,;!?(]{HAN}",
    "italics, which Chinese has not": rf"(?<![*\\])\*(?![* ])[^*\n]*{HAN}[^*\n]*\*(?!\*)"}
# What a cell has as often in one language as in the other.
COUNTED = {
    "headings": r"(?m)^#+ ", "pictures": r'<img src="images/(?:zh/)?([^"]*)"', "widths": r'width="[^"]*"',
    "blocks of code": r"(?s)```.*?```", "formulas": r"\$+[^$]+\$+", "folded answers": r"</?details>",
    "links": r"\]\((?!llama3_from_scratch|#)[^)]*\)", "rows of tables": r"(?m)^\|"}


def pairs():
    """Each Markdown cell as its id, its English and its Chinese."""
    both = zip(text_cells(read(ENGLISH)), text_cells(read(CHINESE)))
    return [(english.id, english.source, chinese.source) for english, chinese in both]


def long_numbers(text):
    """The numbers of two digits or more that `text` has outside code and formulas."""
    return {*re.findall(r"(?<![\w.,])\d[\d.,]*\d", markdown_text(text), re.A)}


@pytest.fixture(params=[CHINESE, ROOT / "README_zh.md"], ids=["notebook", "README"])
def chinese(request):
    """The text of each Chinese page."""
    return text_of(request.param)


def test_same_cells():
    """Ids, kinds and order are the same, and so is the whole of every code cell."""
    english, chinese = read(ENGLISH).cells, read(CHINESE).cells
    assert [(cell.id, cell.cell_type) for cell in english] == [(cell.id, cell.cell_type) for cell in chinese]
    changed = [cell.id for cell, copy in zip(english, chinese) if cell.cell_type == "code" and copy != cell]
    assert changed == [], "run python tools/save.py"


def test_up_to_date():
    """Every Chinese text was written for the English text as it is now, and is Chinese."""
    assert outdated(read(ENGLISH), read(CHINESE)) == [], "mend them, then python tools/save.py --translated ID …"
    assert [cell.id for cell in text_cells(read(CHINESE)) if not re.search(HAN, cell.source)] == []


@pytest.mark.parametrize("part", COUNTED)
def test_same_parts(part):
    """Each cell has the same headings, pictures, answers, formulas, links and tables."""
    found = {name: [sorted(re.findall(COUNTED[part], text)) for text in texts] for name, *texts in pairs()}
    assert {name: both for name, both in found.items() if both[0] != both[1]} == {}


def code_spans(text):
    """The code and the shapes that `text` names in its sentences."""
    return {*re.findall(r"`[^`\n]+`", without_code(text))}


@pytest.mark.parametrize("details", [long_numbers, code_spans])
def test_same_details(details):
    """Every number of two digits or more, all code and all shapes of the English are in the Chinese, too."""
    found = {name: [details(text) for text in texts] for name, *texts in pairs()}
    missing = {name: english - chinese for name, (english, chinese) in found.items()}
    assert {name: details for name, details in missing.items() if details} == {}


@pytest.mark.parametrize("wrong", TYPOGRAPHY)
def test_typography(chinese, wrong):
    """Typeset as Chinese is; `(17, 3)`, which names a head, is code."""
    lines = [re.sub(r"^(#+|\d+\.|[-*>|]|\s)+|\(\d+, \d+\)", "", line) for line in markdown_text(chinese).splitlines()]
    assert [line for line in lines if re.search(TYPOGRAPHY[wrong], line)] == []


def test_renders(chinese):
    """Bold and code are closed where CommonMark closes them: `**甲（乙）**丙` is not bold."""
    for line in without_code(chinese).splitlines():
        assert line.count("`") % 2 == 0, f"a code span over two lines: {line}"
        parts = re.sub(r"`[^`]+`", "`", line).split("**")
        assert len(parts) % 2, line
        for before, bold, behind in zip(parts[::2], parts[1::2], parts[2::2]):
            assert not (re.search(r"[^\w\s]$", bold) and re.match(r"\w", behind)), f"**{bold}** is not closed"
            assert not (re.match(r"[^\w\s]", bold) and re.search(r"\w$", before)), f"**{bold}** is not opened"
