"""The tests on other systems: this one plays Windows with an accelerator, and no text is left to a system's habits."""
import ast
import os
import subprocess
import sys

import pytest
from cells import ROOT

# psutil needs `resource` on Linux; to all others goes what Windows lacks, its newlines, and to our files its encoding
ELSEWHERE = r"""
import _pyio, io, os, signal, sys, warnings
import psutil, pytest, torch
sys.modules.update({"fcntl": None, "resource": None})
del os.fork, os.symlink, os.wait, signal.alarm, signal.SIGALRM
os.linesep, io.open = "\r\n", _pyio.open
warnings.filterwarnings("error", category=EncodingWarning, module="cells|conftest|save_|test_|truncate_|convert_")
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
sys.exit(pytest.main(sys.argv[1:]))
"""
CHECKED = "canonical or generate_on_a_device or room or disk_full or refusals or spoiled or variable"
TEXT = {"read_text": {"encoding"}, "write_text": {"encoding", "newline"}, "open": {"encoding"}}


def test_elsewhere(tmp_path):
    """Every file is collected; what needs links, a full disk or newlines passes or is skipped; paths have spaces."""
    run = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ELSEWHERE, "-q", "-rs", "--color=no", "-k", CHECKED,
         "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'a place'}", "tests"], cwd=ROOT, encoding="utf-8",
        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert run.returncode == 0, run.stdout[-5000:]
    assert "cannot limit the size of files" in run.stdout, run.stdout[-5000:]


def habits(text):
    """The lines of the Python `text` that open, read or write text, or run a command, in the system's encoding."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            given = {key.arg: ast.unparse(key.value) for key in node.keywords}
            binary = any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in node.args[:2])
            needed = TEXT.get(ast.unparse(node.func).split(".")[-1], set())
            if needed - given.keys() and not binary or "text" in given and "subprocess" in ast.unparse(node.func):
                yield node.lineno


@pytest.mark.parametrize("path", [ROOT / "conftest.py", *sorted(ROOT.glob("tests/*.py")), ROOT / "images" / "draw.py"],
                         ids=lambda path: path.name)
def test_text_has_an_encoding(path):
    """Each read and write of text says its encoding, each write its newline."""
    assert list(habits(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("text, found", [
    ("path.read_text()", True), ("open(path)", True), ("open(path, 'wb')", False), ("path.open('rb')", False),
    ("path.write_text(x, encoding='utf-8')", True), ("path.write_text(x, encoding='utf-8', newline='')", False),
    ("subprocess.run(x, text=True)", True), ("path.read_text(encoding='utf-8')", False)])
def test_habits_are_found(text, found):
    """The check itself."""
    assert any(habits(text)) == found
