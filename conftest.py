"""Every pytest run, of a notebook or of `tests`, opens a stand-in that is written anew, and computes on the CPU."""
import os
import tempfile
from pathlib import Path


def pytest_configure(config):
    """Point LLAMA3_CHECKPOINT at a stand-in in a temporary folder, whatever lies beside the notebook."""
    scratch = tempfile.TemporaryDirectory(prefix="llama3-from-scratch-", ignore_cleanup_errors=True)
    config.add_cleanup(scratch.cleanup)
    os.environ["LLAMA3_CHECKPOINT"] = str(Path(scratch.name) / "stand-in-2layers")
    os.environ["LLAMA3_DEVICE"] = "cpu"
