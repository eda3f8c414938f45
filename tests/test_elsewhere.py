"""The English notebook in other places: alone in an empty folder, on Colab, on other processors, on an accelerator."""
import json
import os
import platform
import sys
import venv
from importlib.metadata import distribution, distributions
from types import ModuleType, SimpleNamespace

import pytest
import torch
from machine import link
from notebook import ROOT, first_part, functions, printed, read, run, smollm2, source, stderr
from packaging.requirements import Requirement
from save import code_cells, is_measured
from torch._subclasses import FakeTensorMode

COLAB_HAS = ["torch", "numpy", "matplotlib", "ipykernel", "regex", "requests", "pyyaml", "tqdm"]
# The instructions that oneDNN may multiply with, and those that PyTorch may do all else with.
PROCESSORS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512 without bfloat16, one thread": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": 1},
    "SSE4.1, one thread": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": 1}}


def other_outputs(notebook):
    """Ids of the cells of the run `notebook` that print something else than what is saved; none measures."""
    saved = {cell.id: printed(cell) for cell in code_cells(read())}
    return [cell.id for cell in code_cells(notebook) if not is_measured(cell) and printed(cell) != saved[cell.id]]


@pytest.mark.slow
def test_first_part_alone(tmp_path):
    """In an empty folder part one shows what is saved, and leaves the blank checkpoint behind and nothing else."""
    notebook = run(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None)
    assert other_outputs(notebook) == [] and stderr(notebook) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["blank-2layers"]


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
    """Make a Python in `folder` with pip, COLAB_HAS and `google.colab`, the kernel "colab"; return its own packages.

    What Colab has are links to the packages that run this test, in a folder of their own.
    """
    venv.create(folder, with_pip=True)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    links, kernel = folder / "has", folder / "kernels" / "colab" / "kernel.json"
    links.mkdir()
    for dist in with_dependencies(COLAB_HAS).values():
        for top in {file.parts[0] for file in dist.files} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(dist.locate_file(top))
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").touch()
    (own / "colab.pth").write_bytes(f"{links}\nimport google.colab\n".encode())
    kernel.parent.mkdir(parents=True)
    argv = [str(folder / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_bytes(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}).encode())
    return own


@pytest.mark.weekly
@pytest.mark.skipif(os.name == "nt", reason="Colab is Linux")
def test_whole_page_on_colab(tmp_path):
    """It installs what its first cell pins and nothing else, and shows what is saved."""
    own = colab(tmp_path / "colab")
    before = {dist.name for dist in distributions(path=[str(own)])}
    notebook = read()
    notebook.metadata.kernelspec.name = "colab"
    (tmp_path / "content").mkdir()
    run(notebook, tmp_path / "content", JUPYTER_PATH=tmp_path / "colab", LLAMA3_CHECKPOINT=None)
    assert other_outputs(notebook) in ([], ["setup"]) and stderr(notebook) == ""  # pip has a note of its own
    installed = {f"{dist.name.lower().replace('_', '-')}=={dist.version}" for dist in distributions(path=[str(own)])
                 if dist.name not in before}
    assert installed == {word for word in read().cells[1].source.split() if "==" in word}


@pytest.mark.parametrize("on_colab", [True, False])
def test_installs_on_colab_alone(on_colab, monkeypatch):
    """The first code cell calls pip once on Colab, with the versions of requirements.txt, and never elsewhere."""
    calls, (cell, *_) = [], code_cells(read())
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell = SimpleNamespace(run_line_magic=lambda *call: calls.append(call))
    exec(source(cell), {"get_ipython": lambda: shell})
    assert [(name, "--no-deps" in line.split()) for name, line in calls] == [("pip", True)] * on_colab
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert {word for _, line in calls for word in line.split() if "==" in word} <= {*pinned}


@pytest.mark.weekly
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are instructions of x86 processors")
@pytest.mark.parametrize("name", PROCESSORS)
def test_other_processors(name, tmp_path):
    """What is saved is also what a processor with fewer instructions shows."""
    link(tmp_path / "SmolLM2-135M", smollm2())
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if not (cell.cell_type == "code" and is_measured(cell))]
    run(notebook, tmp_path, LLAMA3_CHECKPOINT=None, **PROCESSORS[name])
    assert other_outputs(notebook) == [] and stderr(notebook) == ""


def test_forward_mixes_no_devices(monkeypatch):
    """With the weights on the CPU and `device` an accelerator, no step takes tensors of both; logits are on the CPU."""
    page = functions()
    config = page.defaults | page.llama3_8b | {"dim": 256, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2}
    monkeypatch.setitem(page.forward.__globals__, "device", torch.device("cuda:0"))
    with FakeTensorMode():
        weights = {name: torch.zeros(shape).bfloat16() for name, shape in page.expected_shapes(config).items()}
        llama, cache = SimpleNamespace(weights=weights, config=config), {}
        assert page.forward(llama, torch.tensor([1, 2, 3]), cache).device.type == "cpu"
        assert page.forward(llama, torch.tensor([4]), cache).device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            page.rms_norm(weights["norm.weight"], weights["norm.weight"].to("cuda:0"), 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator here")
def test_first_part_on_an_accelerator(tmp_path):
    """It runs to its end there, and says the same word."""
    notebook = run(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE=None)
    assert "next-token" not in other_outputs(notebook)
