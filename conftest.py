"""Every pytest run computes on the CPU, on checkpoints made anew; only SmolLM2-135M, once written, is read again.

The English notebook opens two layers cut from a written model of 32, the Chinese one makes a blank model.
"""
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest


def pytest_addoption(parser):
    """The one switch for what takes longest and finds least."""
    parser.addoption("--weekly", action="store_true", help="try 300 systematic faults in place of 16")


def pytest_configure(config):
    """Make a folder for checkpoints; set what every kernel and every test finds in its environment."""
    scratch = tempfile.TemporaryDirectory(prefix="llama3-from-scratch-", ignore_cleanup_errors=True)
    config.add_cleanup(scratch.cleanup)
    config.llama3_blank = Path(scratch.name) / "blank-2layers"
    os.environ |= {"LLAMA3_DEVICE": "cpu", "TQDM_DISABLE": "1"}


def pytest_collection_modifyitems(items):
    """Every cell of a notebook is slow."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Set the checkpoint that a test opens; for a notebook that is before nbval starts its kernel."""
    blank = item.config.llama3_blank
    english = item.path.name == "llama3_from_scratch.ipynb"
    os.environ["LLAMA3_CHECKPOINT"] = str(truncated_checkpoint(blank.parent) if english else blank)


@cache
def truncated_checkpoint(scratch):
    """A folder in `scratch` with the first two layers of a written model of 32."""
    from cells import load_tutorial
    from checkpoint import cut_layers
    tutorial = load_tutorial()
    tutorial.write_stand_in(scratch / "written-32layers", tutorial.llama3_8b)
    cut_layers(scratch / "written-32layers", scratch / "cut-2layers", 2)
    return scratch / "cut-2layers"


@pytest.fixture(scope="session")
def smol():
    """SmolLM2-135M in Meta's layout, beside the notebook; written when missing."""
    from cells import load_tutorial, smollm2_folder
    return load_tutorial().load_llama(smollm2_folder())


@pytest.fixture(scope="module")
def quiet_folder(tmp_path_factory):
    """An empty folder to run cells in, on one thread, since two wait long on a busy machine; plots are never shown."""
    import matplotlib.pyplot as plt
    import torch
    folder, threads = tmp_path_factory.mktemp("run"), torch.get_num_threads()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plt, "show", lambda: plt.close("all"))
        yield folder
    torch.set_num_threads(threads)
