"""The GitHub workflows: linted by zizmor, and they run the very commands that the README gives."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from cells import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


def test_lint():
    """zizmor finds nothing: valid workflows, actions pinned by commit, least permissions, no credentials kept."""
    zizmor = shutil.which("zizmor", path=Path(sys.executable).parent)
    found = subprocess.run([zizmor, "--offline", "--strict-collection", "--persona=auditor", WORKFLOWS],
                           capture_output=True, encoding="utf-8")
    assert found.returncode == 0, found.stdout + found.stderr


def test_readme_commands():
    """Linux and macOS run the block as it stands, Windows the one for PowerShell, the newest releases no versions."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    bash, powershell = (next(text for name, text in blocks if name == shell and "pytest --nbval" in text)
                        for shell in ("bash", "powershell"))
    jobs = yaml.safe_load((WORKFLOWS / "tests.yml").read_text(encoding="utf-8"))["jobs"].values()
    ran = [step for job in jobs for step in job["steps"] if "pytest --nbval" in step.get("run", "")]
    assert [(step.get("shell", "bash"), step["run"]) for step in ran] == [
        ("bash", bash), ("powershell", powershell), ("bash", bash), ("bash", bash.replace("requirements", "newest"))]
