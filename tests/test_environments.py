"""The English notebook in other places: alone in an empty folder, on Colab, on other processors, on an accelerator."""
import platform
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cells import ROOT, as_python, code_cells, execute, first_part, functions, may_vary, printed, read, smollm2, stderr
from machine import link_or_copy
from save import shows_the_same
from torch._subclasses import FakeTensorMode

# The instructions that oneDNN may multiply with, and those that PyTorch may do all else with.
PROCESSORS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512 without bfloat16, one thread": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": 1},
    "SSE4.1, one thread": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": 1}}


def other_outputs(notebook, same):
    """Ids of the cells of the run `notebook` that do not show the `same` as what is saved; none measures."""
    saved = {cell.id: cell for cell in code_cells(read())}
    return [cell.id for cell in code_cells(notebook) if not may_vary(cell) and not same(cell, saved[cell.id])]


def prints_the_same(cell, other):
    """Whether two run code cells print the same; their plots may differ, as those of a training do."""
    return printed(cell) == printed(other)


@pytest.mark.slow
def test_first_part_alone(tmp_path):
    """In an empty folder part one shows what is saved, plots too, and leaves behind the blank checkpoint alone."""
    notebook = execute(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None)
    assert other_outputs(notebook, shows_the_same) == [] and stderr(notebook) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["blank-2layers"]


@pytest.mark.parametrize("on_colab", [True, False])
def test_installs_on_colab_alone(on_colab, monkeypatch):
    """The first code cell calls pip once on Colab, with the versions of requirements.txt, and never elsewhere."""
    calls, (cell, *_) = [], code_cells(read())
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell = SimpleNamespace(run_line_magic=lambda *call: calls.append(call))
    exec(as_python(cell), {"get_ipython": lambda: shell})
    if on_colab:
        assert [(name, "--no-deps" in line.split()) for name, line in calls] == [("pip", True)]
    else:
        assert calls == []
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    for word in [word for _, line in calls for word in line.split() if "==" in word]:
        assert word in pinned or word.split("==")[0] in pinned  # as in the weekly run on the newest releases


@pytest.mark.weekly
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are instructions of x86 processors")
@pytest.mark.parametrize("name", PROCESSORS)
def test_other_processors(name, tmp_path):
    """What is saved is also what a processor with fewer instructions prints."""
    link_or_copy(tmp_path / "SmolLM2-135M", smollm2())
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if not (cell.cell_type == "code" and may_vary(cell))]
    execute(notebook, tmp_path, LLAMA3_CHECKPOINT=None, **PROCESSORS[name])
    assert other_outputs(notebook, prints_the_same) == [] and stderr(notebook) == ""


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
    notebook = execute(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE=None)
    (cell,) = [cell for cell in code_cells(notebook) if cell.id == "next-token"]
    assert "2983 '42'" in printed(cell)
