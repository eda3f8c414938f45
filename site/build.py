"""The web edition: static pages made of the two saved notebooks, which need no script, no server and no other host.

    python site/build.py [FOLDER] [--source ADDRESS]

FOLDER is site/out by default. ADDRESS, as https://HOST/OWNER/NAME/blob/main, is where links to files of the repository
lead; without it they become plain text. nbconvert converts, template.html and style.css say how it looks, and
play/page.py makes the Llama to play with.
"""
import argparse
import base64
import html
import json
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import math_core

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))
# ruff: noqa: E402
from cells import read
from nbconvert.exporters import TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from play import page

LANGUAGES = {"llama3_from_scratch.ipynb": "en", "llama3_from_scratch_zh.ipynb": "zh"}
WORDS = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))          # what the frame says, by language
ALT_TEXTS = json.loads((HERE / "alt_texts.json").read_text(encoding="utf-8"))  # what plots show, by cell and language
IMG = re.compile(r'<img((?:\s+[\w-]+="[^"]*")*)\s*/?>')


def html_text(text):
    """The HTML `text` as plain text, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def size(path):
    """Width and height in pixels of the picture in the file `path`."""
    with Image.open(path) as image:
        return image.size


class Renderer(IPythonRenderer):
    """Markdown of a notebook into HTML in a `language`: notes its headings, copies its pictures into `folder`."""

    def __init__(self, language, folder, source):
        super().__init__(escape=False)
        self.language, self.folder, self.source = language, folder, source
        self.headings, self.used, self.description = [], set(), ""
        self.formulas = math_core.LatexToMathML()
        self.convert = MarkdownWithMath(self).render      # Markdown text to HTML

    def heading(self, text, level, **attributes):
        """As Jupyter does, the anchor is the title with hyphens for spaces; a second one of that name is numbered."""
        title = html_text(text)
        anchor, n = title.replace(" ", "-"), 1
        while anchor in self.used:
            n += 1
            anchor = f"{title.replace(' ', '-')}-{n}"
        self.used.add(anchor)
        self.headings.append((level, anchor, title))
        text = text.replace("Llama 3", "Llama&nbsp;3")
        return f'<h{level} id="{html.escape(anchor)}">{text}</h{level}>\n'

    def paragraph(self, text):
        """The first paragraph, to its link, describes the page."""
        self.description = self.description or html_text(text.partition(" · <a")[0])
        return f"<p>{text}</p>\n"

    def link(self, text, url, title=None):
        """Links to a notebook lead to its page, links to other files of the repository to `source` or nowhere."""
        file, hash_, anchor = url.partition("#")
        name = unquote(file).removeprefix("./")
        if name in LANGUAGES:
            words = WORDS[LANGUAGES[name]]
            target = ("" if LANGUAGES[name] == self.language else words["file"]) + hash_ + anchor
            return f'<a href="{target or words["file"]}" lang="{words["lang"]}" hreflang="{words["lang"]}">{text}</a>'
        if file and not re.match(r"\w+:", file):
            if not self.source:
                return text
            url = f"{self.source}/{quote(name)}{hash_}{anchor}"
        return super().link(text, url, title)

    def table(self, text):
        """A table scrolls in its own box."""
        return f'<div class="table"><table>\n{text}</table></div>\n'

    def block_html(self, html):
        """Raw HTML, its pictures in their boxes."""
        return super().block_html(IMG.sub(self.picture, html))

    def picture(self, match):
        """The picture of the repository that the matched `<img>` shows, copied, with its height said."""
        tag = {name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', match[1])}
        path = self.folder / tag["src"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / tag["src"], path)
        wide, high = size(path)
        return box(tag["src"], tag["alt"], int(tag.get("width", wide)), wide, high)

    def inline_math(self, body):
        """A formula in a line; on a phone a long one scrolls."""
        formula = self.formulas.convert_with_local_state(body, displaystyle=False)
        return f'<span class="long">{formula}</span>' if len(body) > 30 else formula

    def block_math(self, body):
        """A formula that stands alone and scrolls if it must."""
        return f'<span class="formula">{self.formulas.convert_with_local_state(body, displaystyle=True)}</span>'

    def plot(self, output, cell, n):
        """The n-th plot of a code cell, as a file that both languages share, with its alternative text."""
        name = f"images/plots/{cell.id}{'' if n == 0 else n + 1}.png"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(output.data["image/png"]))
        wide, high = size(path)
        return box(name, ALT_TEXTS[cell.id][self.language][n], wide, wide, high)


def box(src, alt, width, wide, high):
    """A picture of `wide` times `high` pixels, shown at most `width` wide."""
    image = (f'<img src="{html.escape(quote(src))}" alt="{html.escape(alt)}" width="{width}" '
             f'height="{round(high * width / wide)}" loading="lazy" decoding="async">')
    if width > 640 and "/plots/" in src:        # small on a phone: a tap shows it alone, to zoom in
        return f'<span class="picture"><a href="{html.escape(quote(src))}">{image}</a></span>'
    return f'<span class="picture">{image}</span>'


def contents(headings):
    """The headings of level 2, each with the list of those of level 3 below it: (anchor, title, [(anchor, title)])."""
    found = []
    for level, anchor, title in headings:
        if level == 2:
            found.append((anchor, title, []))
        elif level == 3 and found:
            found[-1][2].append((anchor, title))
    return found


def shown(cell, render):
    """What a code cell shows, as HTML: text and plots. Raises ValueError for what no page here shows."""
    parts, plots = [], 0
    for output in cell.outputs:
        data = output.get("data", {})
        text = output.text if output.output_type == "stream" else data.get("text/plain")
        if "image/png" in data:
            parts.append(render.plot(output, cell, plots))
            plots += 1
        elif text is None:
            raise ValueError(f"cell {cell.id} shows {output.output_type} {list(data)}")
        else:
            parts.append(f'<pre class="output">{html.escape(text, quote=False)}</pre>')
    return "\n".join(parts)


def write_page(file, folder, source):
    """Write the page of the notebook `file`, in the repository's root, into `folder`."""
    language = LANGUAGES[file]
    render = Renderer(language, folder, source)
    node, body = read(ROOT / file), []
    named = re.findall(r'cell\.id == "([\w-]+)"', (HERE / "template.html").read_text(encoding="utf-8"))
    assert set(named) <= {cell.id for cell in node.cells}, f"template.html names a cell that is gone: {named}"
    for cell in node.cells:
        if cell.cell_type == "markdown":
            body.append({"prose": render.convert(cell.source)})
        else:
            body.append({"code": Highlight2HTML(pygments_lexer="ipython3")(cell.source), "shown": shown(cell, render),
                         "lines": cell.source.count("\n") + 1, "id": cell.id,
                         "folded": cell.metadata.get("jupyter", {}).get("source_hidden", False)})
    exporter = TemplateExporter(extra_template_paths=[str(HERE)], template_file="template.html")
    text, _ = exporter.from_notebook_node(node, {
        "words": WORDS[language], "other": WORDS["zh" if language == "en" else "en"], "body": body,
        "title": render.headings[0][2], "description": render.description, "contents": contents(render.headings),
        "notebook": file, "source": source})
    (folder / WORDS[language]["file"]).write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / file, folder / file)


def main(folder, source):
    """Write all pages into `folder`, and what they need."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "style.css", folder / "style.css")
    for file in LANGUAGES:
        write_page(file, folder, source)
    for language, texts in page.TEXTS.items():
        (folder / texts["file"]).write_text(page.html_of(language), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the web edition.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "out")
    parser.add_argument("--source", help="where the repository's files can be read")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.source)
