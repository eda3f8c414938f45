"""Which folder the page opens, what `load_llama` refuses, and that `save_checkpoint` leaves no half."""
import json
import os
import shutil
import sys

import pytest
import torch
from cells import as_python, code_cells, functions, read

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}
PARAMS, VOCABULARY, PTH = "params.json", "tokenizer.model", "consolidated.00.pth"


class Code:
    """An object whose pickle leaves Python when it is loaded."""

    def __reduce__(self):
        return sys.exit, ("The code ran; that is bad.",)


# ways to spoil a folder
SPOIL = {
    "no params.json": lambda folder: (folder / PARAMS).unlink(),
    "one layer more": lambda folder: (folder / PARAMS).write_bytes(json.dumps(SIZES | {"n_layers": 3}).encode()),
    "Llama 2's tokenizer": lambda folder: (folder / VOCABULARY).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x18\x02"),
    "a web page": lambda folder: (folder / PTH).write_bytes(b"<!DOCTYPE html>403 Forbidden"),
    "half the weights": lambda folder: os.truncate(folder / PTH, (folder / PTH).stat().st_size // 2),
    "code": lambda folder: torch.save({"norm.weight": Code()}, folder / PTH),
}


@pytest.fixture
def blank_folder(tmp_path):
    """A small blank checkpoint with Meta's tokenizer."""
    functions().save_checkpoint(tmp_path / "small", SIZES, functions().blank_weights(SIZES))
    return tmp_path / "small"


@pytest.mark.parametrize("how", SPOIL)
def test_spoiled_folder(blank_folder, how):
    """One sentence names the folder and the command that finds out what is wrong; no code is run."""
    SPOIL[how](blank_folder)
    with pytest.raises(ValueError) as caught:
        functions().load_llama(str(blank_folder))
    assert f"python tools/checkpoint.py check {blank_folder}" in str(caught.value) and "\n" not in str(caught.value)


def chosen(place, monkeypatch):
    """The folder that the notebook's cells choose and open, or write and open, when they run in the folder `place`."""
    monkeypatch.chdir(place)
    cells = {cell.id: as_python(cell) for cell in code_cells(read())}
    names = dict(vars(functions()))
    for name in ("setup", "open"):
        exec(cells[name], names)
    return names["folder"]


def test_variable_is_never_ignored(blank_folder, tmp_path, monkeypatch):
    """LLAMA3_CHECKPOINT names what is missing: that is said, although another checkpoint would be there."""
    blank_folder.rename(tmp_path / "Meta-Llama-3-8B")
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="missing"):
        chosen(tmp_path, monkeypatch)


@pytest.mark.parametrize("value", [None, ""])
def test_variable_unset(blank_folder, tmp_path, monkeypatch, value):
    """Unset or empty: the first of Meta's folders that is there, else the blank one, written on the spot."""
    monkeypatch.delenv("LLAMA3_CHECKPOINT", raising=False)
    if value is not None:
        monkeypatch.setenv("LLAMA3_CHECKPOINT", value)
    assert chosen(tmp_path, monkeypatch).name == "blank-2layers" and (tmp_path / "blank-2layers").is_dir()
    for name in ("Meta-Llama-3-8B-2layers", "Meta-Llama-3-8B"):
        shutil.copytree(blank_folder, tmp_path / name)
        assert chosen(tmp_path, monkeypatch).name == name


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted(tmp_path, monkeypatch, error):
    """Interrupted while it writes, or out of room, `save_checkpoint` leaves nothing, and writes the next time."""
    def stop(weights, path):
        path.write_bytes(b"half")
        raise error
    weights = functions().blank_weights(SIZES)
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(torch, "save", stop)
        functions().save_checkpoint(tmp_path / "small", SIZES, weights)
    assert not list(tmp_path.iterdir())
    functions().save_checkpoint(tmp_path / "small", SIZES, weights)
    assert functions().load_llama(tmp_path / "small").config["n_layers"] == 2
