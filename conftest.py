"""Every pytest run, of a notebook or of `tests`, opens a truncated checkpoint made anew, and computes on the CPU."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def pytest_configure(config):
    """Point LLAMA3_CHECKPOINT at the stand-in, written with 32 layers and cut to 2, whatever lies beside the page."""
    from cells import ROOT, functions
    scratch = tempfile.TemporaryDirectory(prefix="llama3-from-scratch-")
    config.add_cleanup(scratch.cleanup)
    whole, cut = Path(scratch.name) / "stand-in-32layers", Path(scratch.name) / "stand-in-2layers"
    functions().write_stand_in(whole, functions().llama3_8b)
    subprocess.run([sys.executable, ROOT / "tests" / "truncate_checkpoint.py", whole, cut, "--layers", "2"],
                   check=True, capture_output=True)
    os.environ |= {"LLAMA3_CHECKPOINT": str(cut), "LLAMA3_DEVICE": "cpu", "TQDM_DISABLE": "1"}
