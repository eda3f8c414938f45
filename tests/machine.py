"""What the tests ask of the machine that they run on: a disk that is full, one thread, no windows."""
from contextlib import contextmanager

import matplotlib.pyplot as plt
import pytest
import torch


@contextmanager
def files_limited_to(size):
    """No file of this process and its children can grow beyond `size` bytes for a while, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def one_thread_no_plots_in(folder):
    """In `folder`, on one thread, since two wait long for one another on a busy machine; plots are never shown."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    try:
        with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(plt, "show", lambda: plt.close("all"))
            yield
    finally:
        torch.set_num_threads(threads)
