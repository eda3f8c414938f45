"""Run the English notebook from nothing, save its outputs, and carry code and outputs over to the Chinese one.

    python tests/save_notebooks.py               run, save both, list the Chinese cells that are out of date
    python tests/save_notebooks.py --measure     the same, and measure the `nbval-ignore-output` cells anew
    python tests/save_notebooks.py --translated  note that every Chinese cell now says what the English one says

A second run changes no byte. Every Chinese Markdown cell keeps, in its metadata, the first digits of the SHA-256 of
the English text that it translates.
"""
import argparse
import hashlib
import tempfile
from pathlib import Path

import nbformat
from cells import CHINESE, ENGLISH, read, run

IGNORED = "nbval-ignore-output"


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
    """Give cells tagged `nbval-ignore-output` in `notebook` the outputs that `saved` has for the same id and source."""
    known = {(cell.id, cell.source): cell.outputs for cell in saved.cells if cell.get("outputs")}
    for cell in notebook.cells:
        if IGNORED in cell.metadata.get("tags", []):
            cell.outputs = known.get((cell.id, cell.source), cell.outputs)
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


def main():
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the cells tagged nbval-ignore-output anew")
    parser.add_argument("--translated", action="store_true", help="only note that the Chinese text is up to date")
    options = parser.parse_args()
    english = read(ENGLISH)
    if not options.translated:
        saved = read(ENGLISH)
        run_from_nothing(english)
        if not options.measure:
            keep_measurements(english, saved)
        write(english, ENGLISH)
    chinese = carry_over(english, read(CHINESE) if CHINESE.exists() else english)
    if options.translated:
        mark_translated(english, chinese)
    write(chinese, CHINESE)
    for name in outdated(english, chinese):
        print(f"{CHINESE.name}: the English text of cell {name!r} has changed since it was translated")


if __name__ == "__main__":
    main()
