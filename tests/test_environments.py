"""The English notebook in other places: alone in an empty folder, on Colab, on an accelerator."""
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cells import ROOT, as_python, code_cells, execute, first_part, load_tutorial, printed, read
from save import shows_the_same
from torch._subclasses import FakeTensorMode


@pytest.mark.slow
def test_first_part_alone(tmp_path):
    """In an empty folder part one shows what is saved, plots too, and leaves behind the blank checkpoint alone."""
    notebook, saved = execute(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None), code_cells(first_part(read()))
    assert [cell.id for cell, old in zip(code_cells(notebook), saved) if not shows_the_same(cell, old)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["blank-2layers"]


@pytest.mark.parametrize("on_colab", [True, False])
def test_installs_on_colab_alone(on_colab, monkeypatch):
    """The first code cell calls pip once on Colab, with the versions of requirements.txt, and never elsewhere."""
    calls, (cell, *_) = [], code_cells(read())
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shell = SimpleNamespace(run_line_magic=lambda name, line: calls.append([name, *line.split()]))
    exec(as_python(cell), {"get_ipython": lambda: shell})
    assert [call[:4] for call in calls] == [["pip", "install", "-q", "--no-deps"]] * on_colab
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    for package in [package for call in calls for package in call[4:]]:
        assert package in pinned or package.split("==")[0] in pinned  # as in the weekly run on the newest releases


def test_forward_mixes_no_devices(monkeypatch):
    """With the weights on the CPU and `device` an accelerator, no step takes tensors of both; logits are on the CPU."""
    tutorial = load_tutorial()
    config = tutorial.defaults | tutorial.llama3_8b | {"dim": 256, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2}
    monkeypatch.setattr(tutorial, "device", torch.device("cuda:0"))
    with FakeTensorMode():
        weights = {name: torch.zeros(shape).bfloat16() for name, shape in tutorial.expected_shapes(config).items()}
        llama, cache = SimpleNamespace(weights=weights, config=config), {}
        assert tutorial.forward(llama, torch.tensor([1, 2, 3]), cache).device.type == "cpu"
        assert tutorial.forward(llama, torch.tensor([4]), cache).device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            tutorial.rms_norm(weights["norm.weight"], weights["norm.weight"].to("cuda:0"), 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator here")
def test_first_part_on_an_accelerator(tmp_path):
    """It runs to its end there, and says the same word."""
    notebook = execute(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE=None)
    (cell,) = [cell for cell in code_cells(notebook) if cell.id == "next-token"]
    assert "2983 '42'" in printed(cell)
