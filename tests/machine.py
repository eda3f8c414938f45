"""What the tests ask of the machine that they run on: one thread, no windows."""
from contextlib import contextmanager

import matplotlib.pyplot as plt
import pytest
import torch


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
