"""What the tests read in Markdown: links, headings as anchors, pictures, and the text without its code."""
import html
import re
from urllib.parse import unquote

from cells import CHINESE, ENGLISH, ROOT, read

DOCUMENTS = [ENGLISH, CHINESE, ROOT / "README.md", ROOT / "README_zh.md"]


def text_of(path):
    """The Markdown of the document at `path`, a notebook or a text file."""
    if path.suffix == ".ipynb":
        return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def without_code(text):
    """The Markdown `text` without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def markdown_text(text):
    """The Markdown `text` without code, formulas, tags and the addresses of links: what a person reads aloud."""
    text = without_code(text)
    for pattern in (r"<[^>]+>", r"`[^`]*`", r"\$+[^$]+\$+", r"\]\([^)]*\)"):
        text = re.sub(pattern, "\N{OBJECT REPLACEMENT CHARACTER}", text)
    return text


def links(text):
    """The addresses inside this repository that the Markdown `text` links to, `FILE#ANCHOR` or a part of it."""
    text = re.sub(r"`[^`\n]*`", "", without_code(text))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"]+)"', text)
    return [unquote(link) for link in found if not re.match(r"\w+:", link)]


def anchors(text):
    """What a link to a heading of the Markdown `text` has after its `#`: in a notebook, and on GitHub."""
    titles = re.findall(r"(?m)^#+ (.+?)\s*$", without_code(text))
    return {"notebook": {title.replace(" ", "-") for title in titles},
            "github": {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}}


def images_of(text):
    """The pictures of this repository in the Markdown `text`: (path, alternative text, width or None) of each."""
    found = []
    for tag in re.findall(r"<img\b[^>]*>", text):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        found.append((attributes.get("src", ""), html.unescape(attributes.get("alt", "")), attributes.get("width")))
    return [picture for picture in found if not re.match(r"\w+:", picture[0])]


def answers(text):
    """The folded answers with code in the Markdown `text`, as pairs: the code, what the page says that it shows."""
    return re.findall(r"```python\n(.*?)\n```\s*```text\n(.*?)\n```", text, re.S)
