"""The saved outputs of the notebook hold on other processors, which this one plays by using fewer of its instructions.

ONEDNN_MAX_CPU_ISA limits the kernels that multiply bfloat16 matrices, ATEN_CPU_CAPABILITY all the others. Each sums in
another order, so the last bits differ. One processor is played in every run, unless it is the machine's own, and all
with LLAMA3_ALL_PROCESSORS=1.
"""
import os
import platform
import subprocess
import sys

import nbformat
import pytest
import torch
from cells import ROOT, compared, link, read, smollm2

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"),
                                reason="only x86 processors have the instructions that are left out here")

PROCESSORS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512 without bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "1"},
    "avx2 in products alone": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    "sse4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
}
EVERY_RUN = "avx2"


def python(settings, *arguments, folder=ROOT):
    """What `python *arguments` prints in `folder`, with `settings` in its environment, and whether it succeeded."""
    run = subprocess.run([sys.executable, *arguments], cwd=folder, env=os.environ | settings,
                         encoding="utf-8", errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run.stdout, run.returncode == 0


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_the_settings_are_obeyed(settings):
    """PyTorch names the capability that it was given; oneDNN, if it is asked at all, no higher set of instructions."""
    code = ("import torch; print(torch.backends.cpu.get_cpu_capability()); "
            "torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)")
    said, good = python(settings | {"ONEDNN_VERBOSE": "1"}, "-c", code)
    assert good, said
    assert settings.get("ATEN_CPU_CAPABILITY", "").upper() in said.splitlines()[0], said
    isa = "".join(line for line in said.splitlines() if ",cpu,isa:" in line)
    assert "bfloat16" not in isa and "AMX" not in isa, isa
    assert settings["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE" or "512" not in isa, isa


@pytest.mark.parametrize("name", PROCESSORS)
def test_saved_outputs_hold(name, tmp_path):
    """Every cell that is compared shows what is saved, with only the instructions that the processor `name` has."""
    if name != EVERY_RUN and not os.environ.get("LLAMA3_ALL_PROCESSORS"):
        pytest.skip("LLAMA3_ALL_PROCESSORS=1 plays this processor too")
    if name == "avx2" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        pytest.skip("this machine is that processor, and nbval runs on it")
    nbformat.write(compared(read()), tmp_path / "copy.ipynb")
    link(tmp_path / "SmolLM2-135M", smollm2())
    said, good = python(PROCESSORS[name], "-m", "pytest", "--nbval", "--nbval-current-env",
                        "--nbval-cell-timeout=1800", "-q", "-p", "no:cacheprovider", "--color=no", "copy.ipynb",
                        folder=tmp_path)
    assert good, said[-10000:]
