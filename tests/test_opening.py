"""Which folder the notebook opens, also alone in an empty folder, and that `save_checkpoint` leaves no half."""
import shutil

import pytest
import torch
from cells import as_python, code_cells, execute, first_part, load_tutorial, read
from save import shows_the_same

tutorial = load_tutorial()

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128256, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}


@pytest.fixture
def blank_folder(tmp_path):
    """A small blank checkpoint with Meta's tokenizer."""
    tutorial.save_checkpoint(tmp_path / "small", SIZES, tutorial.blank_weights(SIZES))
    return tmp_path / "small"


def chosen(place, monkeypatch):
    """The folder that the notebook's cells choose and open, or write and open, when they run in the folder `place`."""
    monkeypatch.chdir(place)
    cells = {cell.id: as_python(cell) for cell in code_cells(read())}
    names = dict(vars(tutorial))
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


@pytest.mark.slow
def test_first_part_alone(tmp_path):
    """In an empty folder part one shows what is saved, plots too, and leaves behind the blank checkpoint alone."""
    notebook, saved = execute(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=None), code_cells(first_part(read()))
    assert [cell.id for cell, old in zip(code_cells(notebook), saved) if not shows_the_same(cell, old)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["blank-2layers"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted(tmp_path, monkeypatch, error):
    """Interrupted while it writes, or out of room, `save_checkpoint` leaves nothing, and writes the next time."""
    def stop(weights, path):
        path.write_bytes(b"half")
        raise error
    weights = tutorial.blank_weights(SIZES)
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(torch, "save", stop)
        tutorial.save_checkpoint(tmp_path / "small", SIZES, weights)
    assert not list(tmp_path.iterdir())
    tutorial.save_checkpoint(tmp_path / "small", SIZES, weights)
    assert tutorial.load_llama(tmp_path / "small").config["n_layers"] == 2
