"""Run the English notebook from nothing, save its outputs, and carry code and outputs over to the Chinese one.

    python tests/save_notebooks.py               run, save both, list the Chinese cells that are out of date
    python tests/save_notebooks.py --measure     the same, and measure the `nbval-ignore-output` cells anew
    python tests/save_notebooks.py --translated  note that every Chinese cell now says what the English one says
    python tests/save_notebooks.py --readme      run nothing; take what the READMEs show from the saved notebook

A second run changes no byte. Every Chinese Markdown cell keeps, in its metadata, the first digits of the SHA-256 of
the English text that it translates. The READMEs show plots, code and outputs of the notebook, and each run renews them.
"""
import argparse
import hashlib
import re
import tempfile
import textwrap
from pathlib import Path

import nbformat
from cells import CHINESE, ENGLISH, ROOT, pictures, printed, read, run

IGNORED = "nbval-ignore-output"
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
# The plots that the READMEs show: the file's name in images/, the cell's id, which of its plots.
MOMENTS = {
    "moment_flat": ("flat", 0), "moment_stripes": ("stripes", 0), "moment_neurons": ("neurons", 0),
    "moment_shares": ("logit-parts", 0), "moment_paris": ("lens", 0), "moment_written": ("found-stripes", 0),
    "moment_found": ("found-stripes", 1), "moment_losses": ("no-begin", 0), "moment_cliff": ("grown", 0)}
QUOTATION = re.compile(r"(<!-- (code|output) of the cell ([\w-]+) -->\n```\w+\n).*?(^```$)", re.M | re.S)


def write(notebook, path):
    """Write `notebook` to `path` the way Jupyter does: sources as lists of lines, indented by one space."""
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def fingerprint(source):
    """Eight hexadecimal digits that change with the English text `source`."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def run_from_nothing(notebook):
    """Execute `notebook` in place: a stand-in of its own, CPU, no timings kept.

    Raises nbclient.exceptions.CellExecutionError when a cell fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run(notebook, LLAMA3_CHECKPOINT=Path(scratch) / "stand-in-2layers", LLAMA3_DEVICE="cpu", TQDM_DISABLE=1)
    notebook.metadata.language_info = {"name": "python"}


def keep_measurements(notebook, saved):
    """Give cells tagged `nbval-ignore-output` in `notebook` the outputs that `saved` measured with the same source."""
    known = {cell.id: cell.outputs for cell in saved.cells if cell.metadata.get("measured") == fingerprint(cell.source)}
    for cell in notebook.cells:
        if IGNORED in cell.metadata.get("tags", []):
            cell.outputs = known.get(cell.id, cell.outputs)
            cell.metadata["measured"] = fingerprint(cell.source)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count


def carry_over(english, chinese):
    """A Chinese notebook with the cells of `english` in their order: its code and outputs, the Markdown of `chinese`.

    A Markdown cell that `chinese` does not have yet comes in English, with no fingerprint.
    """
    told = {cell.id: cell for cell in chinese.cells if cell.cell_type == "markdown"}
    cells = [told.get(cell.id, cell) if cell.cell_type == "markdown" else cell for cell in english.cells]
    return nbformat.from_dict(dict(english, cells=cells))


def outdated(english, chinese):
    """Ids of the Markdown cells of `chinese` whose fingerprint is not that of the same cell of `english`."""
    text = {cell.id: cell.source for cell in english.cells}
    return [cell.id for cell in chinese.cells if cell.cell_type == "markdown"
            and cell.metadata.get("english") != fingerprint(text[cell.id])]


def mark_translated(english, chinese):
    """Set every fingerprint of `chinese` to that of the same cell of `english`."""
    text = {cell.id: cell.source for cell in english.cells}
    for cell in chinese.cells:
        if cell.cell_type == "markdown":
            cell.metadata["english"] = fingerprint(text[cell.id])


def moments(notebook):
    """The plots of `notebook` that the READMEs show: the bytes of each PNG by the name of its file."""
    cells = {cell.id: cell for cell in notebook.cells}
    return {name: pictures(cells[cell])[which] for name, (cell, which) in MOMENTS.items()}


def quoted(text, notebook):
    """`text`, a README's, with every block under a comment `code of the cell …` or `output of the cell …` renewed.

    Outputs are wrapped between words, so that a page shows them whole.
    """
    cells = {cell.id: cell for cell in notebook.cells}

    def block(found):
        cell = cells[found[3]]
        lines = cell.source if found[2] == "code" else "\n".join(
            textwrap.fill(line, 84, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
            for line in printed(cell).splitlines())
        return f"{found[1]}{lines}\n{found[4]}"

    return QUOTATION.sub(block, text)


def renew_readmes(notebook):
    """Write the plots of `notebook` that the READMEs show to images/, and its code and outputs into the READMEs."""
    for name, picture in moments(notebook).items():
        (ROOT / "images" / f"{name}.png").write_bytes(picture)
    for path in READMES:
        text = quoted(path.read_text(encoding="utf-8"), notebook)
        path.write_text(text, encoding="utf-8", newline="\n")


def main():
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the cells tagged nbval-ignore-output anew")
    parser.add_argument("--translated", action="store_true", help="only note that the Chinese text is up to date")
    parser.add_argument("--readme", action="store_true", help="only renew what the READMEs show, and run nothing")
    options = parser.parse_args()
    english = read(ENGLISH)
    if options.readme:
        renew_readmes(english)
        return
    if not options.translated:
        saved = read(ENGLISH)
        run_from_nothing(english)
        keep_measurements(english, english if options.measure else saved)
        write(english, ENGLISH)
        renew_readmes(english)
    chinese = carry_over(english, read(CHINESE) if CHINESE.exists() else english)
    if options.translated:
        mark_translated(english, chinese)
    write(chinese, CHINESE)
    for name in outdated(english, chinese):
        print(f"{CHINESE.name}: the English text of cell {name!r} has changed since it was translated")


if __name__ == "__main__":
    main()
