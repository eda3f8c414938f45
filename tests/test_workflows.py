"""The GitHub workflows: linted by zizmor, and they run the very command that the README gives."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cells import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


def readme_command():
    """README.md's test command: the first fenced line with `pytest --nbval`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return next(line for block in blocks for line in block.splitlines() if "pytest --nbval" in line)


def test_lint():
    """zizmor finds nothing: valid workflows, actions pinned by commit, least permissions, no credentials kept."""
    zizmor = shutil.which("zizmor", path=Path(sys.executable).parent)
    found = subprocess.run([zizmor, "--offline", "--strict-collection", "--persona=auditor", WORKFLOWS],
                           capture_output=True, encoding="utf-8")
    assert found.returncode == 0, found.stdout + found.stderr


def test_readme_command():
    """Linux and macOS run the command as it stands, Windows by its own names, the newest releases without versions."""
    command, lines = readme_command(), (WORKFLOWS / "tests.yml").read_text(encoding="utf-8").splitlines()
    ran = [line.strip() for line in lines if "pytest --nbval" in line]
    windows = command.replace("python3", "python").replace(".venv/bin/", ".venv/Scripts/")
    assert ran == [command, windows, command.replace("requirements.txt", "newest.txt")]
