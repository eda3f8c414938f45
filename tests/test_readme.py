"""The front pages show what the notebook says: its plots, code, outputs, numbers and sections, in both languages."""
import ast
import re
from urllib.parse import unquote

import pytest
import yaml
from cells import CHINESE, ENGLISH, ROOT, printed, read
from save_notebooks import MOMENTS, QUOTATION, READMES, moments, quoted

NOTEBOOK = {"README.md": ENGLISH, "README_zh.md": CHINESE}
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?!\w)", re.ASCII)
# The cells that give the numbers in the sentences of a moment; those in alternative texts are its sections'.
CELLS = {1: ["tokens"], 4: ["neurons"], 5: ["forward"], 6: ["next-token", "told", "one-layer"], 7: ["smol"],
         8: ["smol", "look", "without"], 10: ["grown-heads"]}
QUOTED = [("output", "tokens"), ("output", "before"), ("code", "forward")]


@pytest.fixture(params=READMES, ids=lambda path: path.name)
def page(request):
    """The path of each front page."""
    return request.param


def told(page):
    """The moments of the front page at `page`: from each `### 1. …` to the next heading or bold beginning."""
    return re.findall(r"(?ms)^### \d+\. .*?(?=^#|^\*\*)", page.read_text(encoding="utf-8"))


def headings(text):
    """The headings of the Markdown `text`, as GitHub's links and as Jupyter's have them after the `#`."""
    titles = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?s)```.*?```", "", text))
    return ({re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles},
            {title.replace(" ", "-") for title in titles})


def section(notebook, anchor):
    """The cells of `notebook` from the heading that `anchor` links to up to the next section's."""
    starts = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
              and re.search(r"(?m)^## ", cell.source)] + [len(notebook.cells)]
    for start, end in zip(starts, starts[1:]):
        if anchor in headings(notebook.cells[start].source)[1]:
            return notebook.cells[start:end]


def numbers(text):
    """The numbers that stand in digits in `text`, without commas between thousands."""
    return {number.replace(",", "") for number in NUMBER.findall(text)}


def given(cell):
    """The numbers in the code and the printed output of `cell`, and two that follow: the loop's lines, all heads."""
    found = numbers(cell.source + "\n" + re.sub(r"<Figure .*?>", "", printed(cell)))
    if cell.id == "forward":
        found.add(str(sum(bool(line.strip()) for line in cell.source.splitlines())))
    if cell.id == "smol":
        sizes = ast.literal_eval(printed(cell))
        found.add(str(sizes["n_layers"] * sizes["n_heads"]))
    return found


def shown(page):
    """The tags of the pictures of the front page at `page`, without their alternative texts."""
    return [re.sub(r'alt="[^"]*" ?', "", tag) for tag in re.findall(r"<img\b[^>]*>", page.read_text(encoding="utf-8"))]


def test_plots_are_the_notebooks():
    """Each picture of the table is, to the byte, the one that the cell shows; no other claims to be one; 150 KB."""
    for name, picture in moments(read()).items():
        path = ROOT / "images" / f"{name}.png"
        assert path.exists() and path.read_bytes() == picture, f"{path.name} is old: save_notebooks.py --readme"
        assert len(picture) <= 150_000, f"{path.name} has {len(picture)} bytes"
    assert {path.stem for path in (ROOT / "images").glob("moment_*.png")} == {*MOMENTS}


def test_quotations_are_the_notebooks(page):
    """Each block of code or output is the cell's, and the three are there."""
    text = page.read_text(encoding="utf-8")
    assert [found[1:3] for found in QUOTATION.findall(text)] == QUOTED
    assert quoted(text, read()) == text, f"{page.name} is old: save_notebooks.py --readme"


def test_ten_moments(page):
    """Each has its number, a picture or a quotation, and at its end a link to the notebook."""
    found = told(page)
    assert [int(re.match(r"### (\d+)", text)[1]) for text in found] == [*range(1, 11)]
    for text in found:
        assert re.search(r"<img|<!-- (code|output)", text), text
        assert re.search(rf"\]\({NOTEBOOK[page.name].name}#[^)]+\)\s*$", text), text
    plots = {name for text in found for name in re.findall(r'src="images/(moment_\w+)\.png"', text)}
    assert plots == {*MOMENTS}


def test_numbers_are_the_notebooks(page):
    """Each number of a moment stands in code or outputs: of its cells, or in an alternative text, of its sections."""
    notebook = read(NOTEBOOK[page.name])
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    for i, text in enumerate(told(page), 1):
        said = re.sub(r"(?ms)^### \d+\. |^```.*?^```|\[[^]]*\]\([^)]*\)|<[^>]+>", "", text)
        wrong = numbers(said) - set().union(*(given(code[name]) for name in CELLS.get(i, [])))
        assert not wrong, f"{wrong} in {said}"
        anchors = [unquote(anchor) for anchor in re.findall(r"\.ipynb#([^)]+)\)", text)]
        near = [cell for anchor in anchors for cell in section(notebook, anchor) if cell.cell_type == "code"]
        wrong = numbers(" ".join(re.findall(r'alt="([^"]*)"', text))) - set().union(*map(given, near))
        assert not wrong, f"{wrong} in an alternative text of {text}"


def test_links_resolve(page):
    """Each links to a file that is there, a section of a notebook, a heading of the page, or another site."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text)):
        path, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        assert not path or (ROOT / path).exists(), link
        if path.endswith(".ipynb") and anchor:
            assert section(read(ROOT / path), unquote(anchor)), link
        elif anchor:
            assert unquote(anchor) in headings((ROOT / path if path else page).read_text(encoding="utf-8"))[0], link


def test_same_front_pages():
    """Both languages show the same pictures, blocks of code and rows of tables, in the same order."""
    english, chinese = READMES
    assert shown(english) == shown(chinese)
    texts = [path.read_text(encoding="utf-8").replace("scratch_zh.ipynb", "scratch.ipynb") for path in READMES]
    blocks = [re.findall(r"(?ms)^```.*?^```", text) for text in texts]
    assert blocks[0] == blocks[1]  # but for the notebook that they open
    for pattern in (r"(?m)^#+ ", r"(?m)^\|", r"\[!\[[^]]*\]\([^)]*\)", r"(?m)^<!--.*-->$"):
        found = [[re.sub(r"!\[[^]]*\]", "", part) for part in re.findall(pattern, path.read_text(encoding="utf-8"))]
                 for path in READMES]
        assert found[0] == found[1], pattern
    assert f"]({chinese.name})" in english.read_text(encoding="utf-8")
    assert f"]({english.name})" in chinese.read_text(encoding="utf-8")


def test_badges_are_true(page):
    """The licence is the one in LICENSE, the range of Pythons the one that the workflow runs."""
    text = page.read_text(encoding="utf-8")
    badges = re.findall(r"https://img\.shields\.io/badge/(\w+)-([\w.]+)-", text)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    runs = [row["python"] for row in workflow["jobs"]["readme"]["strategy"]["matrix"]["include"]]
    least, most = (pick(runs, key=lambda run: [*map(int, run.split("."))]) for pick in (min, max))
    assert badges == [("licence", "MIT"), ("Python", f"{least}_to_{most}")]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_first_command_of_the_tests():
    """What .ci/run takes from README.md, its first line with `pytest --nbval`, is the command for bash."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if "pytest --nbval" in line)
    assert lines[first - 1] == "```bash" and lines[first].startswith("python3 -m venv .venv && ")


@pytest.mark.parametrize("text, found", [
    ("16 of 23", {"16", "23"}), ("14,336 neurons", {"14336"}), ("共23个，0.5", {"23", "0.5"}), ("`2983`", {"2983"}),
    ("SmolLM2-135M, the 8B, 16GB, w1", set()), ("[17, 14336]", {"17", "14336"})])
def test_numbers_are_found(text, found):
    """The check itself: digits that belong to a name are none."""
    assert numbers(text) == found
