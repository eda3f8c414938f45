"""A fault in part one changes what the page shows: those that readers make, and a sample of systematic ones."""
import os
import random

import matplotlib.pyplot as plt
import pytest
import torch
from faults import CHOSEN, mutants, part_one, survivors
from notebook import first_part, read

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """An empty folder, a blank checkpoint, one thread, and plots that are drawn and not shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(tmp_path / "blank-2layers"))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    plt.switch_backend("agg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def systematic(n=None):
    """Faults that the syntax trees of part one's open cells suggest, all or `n` of them: names, ids and sources."""
    found = [(name, cell.id, text) for cell in first_part(read()).cells if cell.cell_type == "code"
             for name, text in mutants(cell).items()]
    return random.Random(0).sample(found, n) if n else found


def test_faults_of_readers_are_seen():
    """Each of them, in an output of part one; a comment that changes nothing, in an early cell, is not."""
    cells = dict(part_one())
    for name, cell, right, _ in CHOSEN:
        assert cells[cell].count(right) >= 1, f"{name}: {right} is not in the cell {cell}"
    faults = [(cell, cells[cell].replace(right, wrong)) for _, cell, right, wrong in CHOSEN]
    names = [name for name, *_ in CHOSEN] + ["nothing"]
    faults.append(("bpe", "# nothing\n" + cells["bpe"]))
    assert [names[place] for place in survivors(faults)] == ["nothing"]


def test_a_sample_of_systematic_faults_is_seen():
    """At least 14 of 20; some change nothing that is computed, such as a default that no checkpoint uses."""
    found = systematic(20)
    alive = [found[place][0] for place in survivors([fault[1:] for fault in found])]
    assert len(alive) <= 6, alive


@pytest.mark.weekly
def test_report_of_systematic_faults(capsys):
    """Of 300, the share that is seen, and those that are not, for whoever reads the log."""
    found = systematic(300)
    alive = [found[place][0] for place in survivors([fault[1:] for fault in found])]
    with capsys.disabled():
        print(f"\n{1 - len(alive) / len(found):.0%} of {len(found)} faults are seen; not seen:", *alive, sep="\n  ")
    assert len(alive) < 0.2 * len(found)
