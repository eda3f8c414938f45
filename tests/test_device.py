"""The page on an accelerator, by a stand-in: real arithmetic on the CPU, under the rules of a device of its own.

What it cannot show: whether a real device has every operation in every type, and how its last bits round.
The CPU's memory is measured too: it does not hold the weights, which stay in their file.
"""
import weakref

import matplotlib.pyplot as plt
import pytest
import torch
from cells import anonymous_memory, environment, first_part, functions, read, source, tokenizer_model
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda")
SMALL = {"dim": 256, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "multiple_of": 64}
TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}
BACK = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.__repr__, torch.Tensor.__format__}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class OnDevice(torch.Tensor):
    """A tensor on the stand-in device; whatever is computed from it is on the device too."""


class StandInDevice(TorchFunctionMode):
    """While active, `.to(DEVICE)` gives OnDevice, and what CUDA or a Mac refuses raises.

    TypeError: a device tensor given to NumPy, or float64 put on the device (a Mac has none). RuntimeError: an operation
    on tensors of both sides, but for CPU tensors without axes and CPU indices of a device tensor. `most` is how many
    tensors that were moved there existed at once.
    """
    live = most = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = _devices(args, kwargs) if func is torch.Tensor.to else []
        here = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice)]
        if DEVICE in wanted:
            rest, named = tree_map(lambda leaf: None if leaf == DEVICE else leaf, (args[1:], kwargs))
            result = args[0].as_subclass(OnDevice).to(*rest, **named)
            self._count(result)
        elif here and (func in BACK or torch.device("cpu") in wanted):
            return func(here[0].as_subclass(torch.Tensor), *args[1:], **kwargs)
        elif here and func in TO_NUMPY:
            raise TypeError("can't convert a device tensor to numpy; use .cpu() first")
        elif here and func == torch.Tensor.device.__get__:
            return DEVICE
        else:
            compared = args[:1] + args[2:] if func in INDEXING and isinstance(args[0], OnDevice) else (args, kwargs)
            if here and any(type(leaf) is torch.Tensor and leaf.ndim for leaf in tree_leaves(compared)):
                raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")
            result = func(*args, **kwargs)
        if any(isinstance(leaf, OnDevice) and leaf.dtype is torch.float64 for leaf in tree_leaves(result)):
            raise TypeError("the device has no float64")
        return result

    def _count(self, moved):
        """Count `moved` for as long as it lives."""
        self.live += 1
        self.most = max(self.most, self.live)
        weakref.finalize(moved, self._forget)

    def _forget(self):
        self.live -= 1


def _devices(args, kwargs):
    """The devices named by the arguments of `Tensor.to`."""
    return [torch.device(value) for value in (*args[1:], *kwargs.values()) if isinstance(value, (torch.device, str))]


def first_part_names(folder, device=None):
    """Every name that the first part leaves behind, run in this process on the checkpoint in `folder`."""
    names = {"__name__": "first_part"}
    with environment(LLAMA3_CHECKPOINT=folder, LLAMA3_DEVICE=device):
        for cell in first_part(read()).cells:
            if cell.cell_type == "code":
                exec(compile(source(cell), f"<cell {cell.id}>", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small checkpoint; figures are drawn and closed, none is shown."""
    monkeypatch.setattr(plt, "show", lambda: (plt.gcf().canvas.draw(), plt.close("all")))
    plt.switch_backend("agg")
    functions().write_stand_in(tmp_path / "small", functions().llama3_8b | SMALL)
    return tmp_path / "small"


def test_first_part_on_a_device(folder, monkeypatch):
    """The first part finds the device, mixes nothing, and comes to the same tensors, bit for bit."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: DEVICE)
    on_cpu = first_part_names(folder, device="cpu")
    with StandInDevice():
        on_device = first_part_names(folder)
    assert on_cpu["device"].type == "cpu" and on_device["device"] == DEVICE
    assert isinstance(on_device["wq"], OnDevice) and not isinstance(on_device["all_logits"], OnDevice)
    for name, value in on_cpu.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, on_device[name].as_subclass(torch.Tensor)), name
    assert on_cpu["next_token"] == on_device["next_token"]


def test_generate_on_a_device(folder, monkeypatch):
    """`forward` has one weight at a time on the device; `generate`, with its cache, says what it says on the CPU."""
    page = functions()
    llama, tokens = page.load_llama(folder), torch.tensor([128000, 1820, 4320])
    logits, text = page.forward(llama, tokens), page.generate(llama, "the answer", max_new_tokens=4)
    monkeypatch.setitem(page.forward.__globals__, "device", DEVICE)
    with StandInDevice() as stand_in:
        assert torch.equal(page.forward(llama, tokens), logits)
        assert 1 < stand_in.most <= 4                              # the stream, rotations, the mask, one weight
        assert page.generate(llama, "the answer", max_new_tokens=4) == text


def test_weights_stay_in_their_file(tmp_path):
    """A checkpoint of 0.27 GB, opened, read to the end, one weight of it copied: that takes less than 0.13 GB."""
    page, config = functions(), functions().llama3_8b | {"dim": 512, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2}
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in page.expected_shapes(config).items()}
    page.write_checkpoint(tmp_path / "plain", config, tokenizer_model().read_bytes(), weights)
    before = anonymous_memory()
    llama = page.load_llama(tmp_path / "plain")
    assert all(weight.view(torch.int16).max() == 0 for weight in llama.weights.values())
    wq = llama.weights["layers.0.attention.wq.weight"].clone()
    assert anonymous_memory() - before < 1.3e8 and wq.shape == (512, 512)


@pytest.mark.parametrize("mixed", [
    lambda near, far: near + far, lambda near, far: torch.cat([far, near]), lambda near, far: torch.equal(near, far),
    lambda near, far: near[far.long()], lambda near, far: plt.plot(far), lambda near, far: near.double().to(DEVICE),
    lambda near, far: far.numpy()])
def test_stand_in_refuses(mixed):
    """What a real device refuses, the stand-in refuses."""
    with StandInDevice(), pytest.raises((RuntimeError, TypeError)):
        mixed(torch.zeros(2), torch.zeros(2).to(DEVICE))


def test_stand_in_allows():
    """What a real device allows: CPU numbers without axes, CPU indices, lists, and the way back."""
    with StandInDevice():
        far = torch.arange(3.0).to(DEVICE)
        assert far.device == DEVICE and far.cpu().device.type == "cpu"
        assert isinstance(far * torch.tensor(2.0), OnDevice) and isinstance(far[torch.tensor([1])], OnDevice)
        assert far.tolist() == [0, 1, 2] and far[1].item() == 1 and (far.cpu() + torch.ones(3)).sum() == 6
