"""Runs a notebook in one process, and in forks of it with a fault each.

From the first cell to the last that has a fault the notebook runs as it is. At each cell that a fault stands in the
process forks: the child goes on with the faulty cell, until what a cell shows is not what is saved. nbval collects the
cells and compares; only its kernel is replaced, by a shell inside the process that forks, so that what lies before a
fault is run once for all.
"""
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

AT_ONCE = 2
# seconds of a child's processor time, not of the clock: a busy machine would catch what nothing shows
LIMIT = 300


class Forks:
    """A pytest plugin: instead of running the cells that nbval collected, run them as told at the top of this file.

    Prints a line of JSON for each fault: its name, the id of the cell that caught it or null, how, and the seconds of
    processor time that it took.
    """

    def __init__(self, faults):
        """`faults` are names, cells' ids and these cells' faulty sources."""
        self.faults, self.running = faults, {}

    def pytest_runtestloop(self, session):
        """Run the cells up to the last fault, and fork at each; the unchanged cells must show what is saved."""
        self.shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        last = max(i for i, item in enumerate(session.items) if item.cell.id in {cell for _, cell, _ in self.faults})
        for i, item in enumerate(session.items[:last + 1]):
            for name, cell, source in self.faults:
                if cell != item.cell.id:
                    continue
                if len(self.running) == AT_ONCE:
                    self.wait()
                pid = os.fork()
                if pid == 0:
                    self.child(session.items[i:], name, source)
                self.running[pid] = name
            assert not self.difference(item, item.cell.source), item.cell.id
        while self.running:
            self.wait()
        return True

    def wait(self):
        """Wait for a child to end; one that a signal ended, as LIMIT does, has printed nothing, and is caught too."""
        pid, status = os.wait()
        name = self.running.pop(pid)
        if status:
            os.write(1, f"{json.dumps([name, None, f'status {status}', LIMIT])}\n".encode())

    def child(self, items, name, source):
        """Run the first of `items` with `source`, the others as they are; print what comes of it; end the process."""
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        if not Path("stand-in-2layers").exists():
            self.move()
        caught = how = None
        for item in items:
            how = self.difference(item, source if item is items[0] else item.cell.source)
            if how:
                caught = item.cell.id
                break
        os.write(1, f"{json.dumps([name, caught, how, round(time.process_time(), 1)])}\n".encode())
        os._exit(0)

    def move(self):
        """Go to a folder of the child's own, where it can write a stand-in that no other process reads."""
        os.chdir(tempfile.mkdtemp(dir="."))
        if Path("../SmolLM2-135M").exists():
            Path("SmolLM2-135M").symlink_to("../SmolLM2-135M")

    def difference(self, item, source):
        """Run `source` in place of nbval's `item`: None if nbval finds the saved output, else "output" or "error".

        Cells tagged `nbval-ignore-output` are left out: nothing rests on them.
        """
        if not item.options["check"]:
            return None
        with self.shell.display_trap, capture_output() as got:
            result = self.shell.run_cell(source)
        if not result.success:
            return "error"
        outputs = [{"output_type": "stream", "name": name, "text": text}
                   for name, text in (("stdout", got.stdout), ("stderr", got.stderr)) if text]
        outputs += [{"output_type": "display_data", "data": output.data, "metadata": {}} for output in got.outputs]
        same = item.compare_outputs([nbformat.from_dict(output) for output in outputs], item.cell.outputs)
        return None if same else "output"
