"""What `load_llama` and `save_checkpoint` do with a reader's mistake, and what is no mistake: that opens."""
import json
import os
import pickle
import shutil

import pytest
import torch
from notebook import ENGLISH, functions, read

PARAMS, VOCABULARY, PTH = "params.json", "tokenizer.model", "consolidated.00.pth"
SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}


@pytest.fixture
def folder(tmp_path):
    """A small blank checkpoint with Meta's tokenizer."""
    functions().save_checkpoint(tmp_path / "small", SIZES, functions().blank_weights(SIZES))
    return tmp_path / "small"


def state(folder):
    """The paths under `folder`, with the bytes of what is a file."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


class Code:
    """An object whose pickle makes the folder `path` when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def sizes(**changes):
    """A function that changes the sizes in a folder's params.json."""
    return lambda folder: (folder / PARAMS).write_text(json.dumps(SIZES | changes), encoding="utf-8")


@pytest.mark.parametrize("spoil", [
    shutil.rmtree,
    *[lambda folder, name=name: (folder / name).unlink() for name in (PARAMS, VOCABULARY, PTH)],
    *[lambda folder, name=name: (folder / name).write_bytes(b"<html>\n") for name in (PARAMS, VOCABULARY, PTH)],
    lambda folder: os.truncate(folder / PTH, (folder / PTH).stat().st_size // 2),
    lambda folder: torch.save(Code(folder.parent / "it ran"), folder / PTH),
    lambda folder: (folder / PTH).write_bytes(pickle.dumps(Code(folder.parent / "it ran"))),
    lambda folder: (folder / VOCABULARY).write_bytes(b"IQ== 0\nIg== 1\n"),
    sizes(n_layers=1), sizes(n_layers=3), sizes(dim=128), sizes(dim="64"), sizes(n_kv_heads=4), sizes(n_heads=0),
])
def test_refused(folder, spoil):
    """One sentence names the folder and the command that knows more; nothing is changed, and no code is run."""
    spoil(folder)
    before = state(folder.parent)
    with pytest.raises(ValueError) as caught:
        functions().load_llama(str(folder))
    assert f"python tools/checkpoint.py check {folder}" in str(caught.value) and str(caught.value).count("\n") == 0
    assert before == state(folder.parent)


def test_no_mistakes(folder):
    """Absent keys take Meta's defaults, unknown ones stay, `rope.freqs` is ignored."""
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128256, "norm_eps": None, "a key of tomorrow": 1}
    config = functions().defaults | {"n_kv_heads": 4} | {key: value for key, value in params.items() if value}
    torch.save(functions().blank_weights(config) | {"rope.freqs": torch.ones(8)}, folder / PTH)
    (folder / PARAMS).write_text(json.dumps(params), encoding="utf-8")
    llama = functions().load_llama(folder)
    assert llama.config == config and llama.config["norm_eps"] == 1e-5
    assert [*llama.weights] == [*functions().expected_shapes(config)]


def chosen(place, monkeypatch):
    """The folder that the notebook's cells choose and open, or write and open, when they run in the folder `place`."""
    monkeypatch.chdir(place)
    cells = [cell.source for cell in read(ENGLISH).cells if cell.cell_type == "code"]
    names = dict(vars(functions()))
    for words in ("LLAMA3_CHECKPOINT", "not folder.exists()", "llama = load_llama(folder)"):
        exec(next(cell for cell in cells if words in cell), names)
    return names["folder"]


def test_variable_is_never_ignored(folder, tmp_path, monkeypatch):
    """LLAMA3_CHECKPOINT names what is missing: that is said, although another checkpoint would be there."""
    folder.rename(tmp_path / "Meta-Llama-3-8B")
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="missing"):
        chosen(tmp_path, monkeypatch)


@pytest.mark.parametrize("value", [None, ""])
def test_variable_unset(folder, tmp_path, monkeypatch, value):
    """Unset or empty: the first of Meta's folders that is there, else the blank one, written on the spot."""
    monkeypatch.delenv("LLAMA3_CHECKPOINT", raising=False)
    if value is not None:
        monkeypatch.setenv("LLAMA3_CHECKPOINT", value)
    assert chosen(tmp_path, monkeypatch).name == "blank-2layers" and (tmp_path / "blank-2layers").is_dir()
    for name in ("Meta-Llama-3-8B-2layers", "Meta-Llama-3-8B"):
        shutil.copytree(folder, tmp_path / name)
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
