"""Save the English notebook, carry its code and outputs over to the Chinese one, and renew what the READMEs show.

After a run, diagrams that look different are drawn anew.

    python tools/save.py                        run the notebook from nothing if a code cell has changed, then save
    python tools/save.py --run                  run it in any case
    python tools/save.py --fresh                run it, and keep no plot and no measurement of an earlier run
    python tools/save.py --translated ID [ID …] note that these Chinese cells say what the English ones say now

The Chinese notebook is the record of the last run: it has the code and the outputs that were saved then. Each of its
Markdown cells keeps a hash of the English text that it translates.
"""
import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from cells import CHINESE, ENGLISH, ROOT, code_cells, execute, look_alike, may_vary, plots, printed, read, text_cells
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
# what the READMEs take from the notebook: the plot of a cell, which shows no other, and the code of one
PLOT = re.compile(r'"images/plot_([\w-]+)\.png"')
QUOTATION = re.compile(r"(<!-- code of the cell ([\w-]+) -->\n```python\n).*?(^```$)", re.M | re.S)


def write_notebook(notebook, path):
    """Write `notebook` to `path` the way Jupyter does: sources as lists of lines, indented by one space."""
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def run_from_nothing(notebook):
    """Execute `notebook` in place, with a blank checkpoint of its own, on the CPU; exits if a cell fails."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            execute(notebook, LLAMA3_CHECKPOINT=Path(scratch) / "blank-2layers", LLAMA3_DEVICE="cpu", TQDM_DISABLE=1)
        except CellExecutionError as error:
            failed = [cell.id for cell in code_cells(notebook) if "error" in [out.output_type for out in cell.outputs]]
            raise SystemExit(f"The cell {failed[0]} fails; nothing was written.\n\n{error}") from None


def keep_outputs(notebook, last):
    """Give the cells of `notebook` those outputs of the run `last` from which they can only differ by noise.

    A cell that measures keeps what it showed as long as its code is the same. Any other keeps its plots if it prints
    the same as before, and they look alike or all cells so far have the code and the printed outputs that they had.
    """
    before = {cell.id: cell for cell in code_cells(last)}
    all_same = list(before) == [cell.id for cell in code_cells(notebook)]
    for cell in code_cells(notebook):
        old = before.get(cell.id, new_code_cell())
        same_code = cell.source == old.source
        if may_vary(cell):
            all_same, keep = all_same and same_code, same_code
        else:
            all_same = all_same and same_code and printed(cell) == printed(old)
            keep = all_same or shows_the_same(cell, old)
        if keep:
            cell.outputs = old.outputs
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count


def print_differences(notebook, last):
    """Say which cells of `notebook` print something else than in the run `last`, and which show another plot."""
    before = {cell.id: cell for cell in code_cells(last)}
    pairs = [(cell, before.get(cell.id, new_code_cell())) for cell in code_cells(notebook)]
    for what, shown in (("print something else", printed), ("show another plot", plots)):
        cells = [cell.id for cell, old in pairs if shown(cell) != shown(old)]
        print(f"Look at the cells that {what} than before:", ", ".join(cells) or "none")


def shows_the_same(cell, other):
    """Whether two run code cells print the same and show pictures that look alike."""
    now, before = plots(cell), plots(other)
    return printed(cell) == printed(other) and len(now) == len(before) and all(map(look_alike, now, before))


def carry_over(english, chinese):
    """A Chinese notebook with the cells of `english` in their order: its code and outputs, the Markdown of `chinese`.

    A Markdown cell that `chinese` does not have yet comes in English, with no hash.
    """
    translated = {cell.id: cell for cell in text_cells(chinese)}
    dropped = ", ".join(translated.keys() - {cell.id for cell in english.cells})
    if dropped:
        print(f"Chinese texts dropped, since no English cell has their id any more (git has them): {dropped}")
    cells = [translated.get(cell.id, cell) if cell.cell_type == "markdown" else cell for cell in english.cells]
    return nbformat.from_dict(dict(english, cells=cells))


def hash_of(text):
    """Eight hexadecimal digits that change with `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def outdated(english, chinese):
    """Ids of the Markdown cells of `chinese` that do not translate the present text of `english`."""
    now = {cell.id: hash_of(cell.source) for cell in text_cells(english)}
    return [cell.id for cell in text_cells(chinese) if cell.metadata.get("english") != now.get(cell.id)]


def mark_translated(english, chinese, ids):
    """Note in the Markdown cells of `chinese` named by `ids` that they translate the present text of `english`.

    Exits with a sentence when there is no such cell.
    """
    originals, translations = ({cell.id: cell for cell in text_cells(book)} for book in (english, chinese))
    for name in ids:
        if name not in originals or name not in translations:
            raise SystemExit(f"{name!r} is no Markdown cell of both notebooks.")
        translations[name].metadata["english"] = hash_of(originals[name].source)


def for_readmes(notebook):
    """The READMEs, with the code that they quote from `notebook`, and the plots that they show: the bytes by path.

    Exits with a sentence if a cell that they name is gone, or one whose plot they show has none, or several.
    """
    cells, found = {cell.id: cell for cell in code_cells(notebook)}, {}
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        shown, quoted = PLOT.findall(text), [name for _, name, _ in QUOTATION.findall(text)]
        if gone := [name for name in shown + quoted if name not in cells]:
            raise SystemExit(f"{path.name} names cells that are gone, {', '.join(gone)}; nothing was written.")
        for name in shown:
            pictures = plots(cells[name])
            if len(pictures) != 1:
                raise SystemExit(f"{path.name} shows the plot of the cell {name}, which has {len(pictures)} of them, "
                                 "not one; nothing was written.")
            found[ROOT / "images" / f"plot_{name}.png"] = pictures[0]
        found[path] = QUOTATION.sub(lambda part: f"{part[1]}{cells[part[2]].source}\n{part[3]}", text).encode()
    return found


def size_of(notebook):
    """One line that says how long `notebook` is: cells, lines of code that aren't empty, words of text."""
    lines = sum(bool(line.strip()) for cell in code_cells(notebook) for line in cell.source.splitlines())
    words = sum(len(cell.source.split()) for cell in text_cells(notebook))
    return f"{len(notebook.cells)} cells, {lines:,} lines of code, {words:,} words"


def main():
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the notebook even if no code has changed")
    parser.add_argument("--fresh", action="store_true", help="run it, and keep no plot and no measurement")
    parser.add_argument("--translated", nargs="+", metavar="ID", default=[], help="Chinese cells that are up to date")
    options = parser.parse_args()
    english, last = read(ENGLISH), read(CHINESE)
    mark_translated(english, last, options.translated)
    again = options.run or options.fresh or code_cells(english) != code_cells(last)
    if again:
        before = code_cells(last)
        changed = [cell.id for cell in code_cells(english) if cell not in before]
        print("The notebook is run. Cells not as the last run left them:", ", ".join(changed) or "none")
        run_from_nothing(english)
        if not options.fresh:
            keep_outputs(english, last)
        print_differences(english, last)
    readmes = for_readmes(english)
    english.metadata.kernelspec.display_name = "Python 3"
    english.metadata.language_info = {"name": "python"}
    chinese = carry_over(english, last)
    write_notebook(english, ENGLISH)
    write_notebook(chinese, CHINESE)
    for path, content in readmes.items():
        path.write_bytes(content)
    print(size_of(english))
    stale = [cell for cell in english.cells if cell.id in outdated(english, chinese)]
    print("Chinese cells whose English has changed:", "" if stale else "none")
    for cell in stale:
        told_as = next(other.source for other in chinese.cells if other.id == cell.id)
        print(f"  {cell.id}: {cell.source[:60]!r}, in Chinese {told_as[:30]!r}")
    if again and subprocess.run([sys.executable, ROOT / "images" / "draw.py"]).returncode:
        raise SystemExit("The notebooks are saved, but a diagram failed; mend it, then run python images/draw.py.")


if __name__ == "__main__":
    main()
