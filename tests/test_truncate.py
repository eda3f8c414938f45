"""`truncate_checkpoint.py` on a 32-layer file of full width and 4 MB, made the way the notebook makes its stand-in."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cells import functions, room
from truncate_checkpoint import FILES, main

COMMAND = [sys.executable, Path(__file__).with_name("truncate_checkpoint.py")]


def truncate(source, target, layers):
    """Run the command; the completed process."""
    return subprocess.run([*COMMAND, source, target, "--layers", str(layers)], encoding="utf-8", errors="replace",
                          capture_output=True, env=os.environ | {"TQDM_DISABLE": ""})


def mapped(folder):
    """The tensors of `folder` by name."""
    return torch.load(folder / "consolidated.00.pth", mmap=True, weights_only=True)


def same(one, other):
    """Whether two tensors are equal in shape, stride, type and every number."""
    return one.stride() == other.stride() and one.dtype == other.dtype and torch.equal(one, other)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with 32 layers at full width, made the stand-in's way (4 MB), with a key that is new to the notebook."""
    notebook, folder = functions(), tmp_path_factory.mktemp("source") / "32layers"
    notebook.write_stand_in(folder, notebook.llama3_8b | {"another key": None})
    return folder


@pytest.fixture(scope="module")
def cut(source, tmp_path_factory):
    """`source` cut to 2 layers, under the name that the notebook prints on its page."""
    before = {path: path.read_bytes() for path in source.iterdir()}
    target = tmp_path_factory.mktemp("cut") / "stand-in-2layers"
    run = truncate(source, target, 2)
    assert run.returncode == 0 and "100%" in run.stderr, run.stderr
    assert before == {path: path.read_bytes() for path in source.iterdir()}, "SRC has changed"
    return target


def test_cut_is_the_stand_in(source, cut, tmp_path):
    """The cut has the tensors of the notebook's own stand-in, its tokenizer, and every key of params.json."""
    own = tmp_path / "stand-in-2layers"
    functions().write_stand_in(own)
    assert sorted(path.name for path in cut.iterdir()) == sorted(FILES)
    assert (cut / "tokenizer.model").read_bytes() == (own / "tokenizer.model").read_bytes()
    params = [json.loads((folder / "params.json").read_bytes()) for folder in (source, cut)]
    assert params[1] == params[0] | {"n_layers": 2}
    wanted, have = mapped(own), mapped(cut)
    assert list(wanted) == list(have)
    assert [name for name in wanted if not same(wanted[name], have[name])] == []
    assert (cut / "consolidated.00.pth").stat().st_size < 4e6


def test_one_storage_for_all(tmp_path):
    """Tensors that are parts of one storage do not drag it along; those that share bytes share them in the cut."""
    source, target, buffer = tmp_path / "source", tmp_path / "target", torch.arange(1_000_000, dtype=torch.int16)
    weights = {f"layers.{i}.{name}.weight": buffer[start + 100_000 * i:][:n].view(-1, 100) for i in range(5)
               for name, start, n in [("a", 0, 20_000), ("b", 10_000, 30_000), ("c", 40_000, 40_000)]}
    weights["tok_embeddings.weight"] = weights["output.weight"] = buffer[900_000:].view(100, -1).T
    functions().write_checkpoint(source, {}, b"", weights)
    assert truncate(source, target, 1).returncode == 0
    have = mapped(target)
    assert all(same(have[name], weights[name]) for name in have) and len(have) == 5
    assert (target / "consolidated.00.pth").stat().st_size < 2 * (80_000 + 100_000) + 5_000
    a, b, c, tied, output = (have[name].data_ptr() for name in sorted(have))
    assert b - a == 20_000 and tied == output
    assert json.loads((target / "params.json").read_bytes()) == {"n_layers": 1}


@pytest.mark.parametrize("layers, spoil, says", [
    (2, lambda source, target: shutil.rmtree(source), "params.json, tokenizer.model, consolidated.00.pth missing"),
    (2, lambda source, target: (source / "tokenizer.model").unlink(), "tokenizer.model missing"),
    (2, lambda source, target: (source / "consolidated.00.pth").write_bytes(b"<html>"), "cannot be read"),
    (2, lambda source, target: (source / "params.json").write_bytes(b"[][]"), "cannot be read"),
    (2, lambda source, target: torch.save({"norm": buffer()}, source / "consolidated.00.pth"), "cannot be read"),
    (2, lambda source, target: (source / "consolidated.01.pth").touch(), "several files"),
    (2, lambda source, target: target.mkdir(), "exists already"),
    (0, lambda source, target: None, "from 1 to 3"),
    (4, lambda source, target: None, "from 1 to 3"),
])
def test_refusals(tmp_path, monkeypatch, layers, spoil, says):
    """One sentence in place of an exit status, and no trace in the folder."""
    source, target = tmp_path / "source", tmp_path / "target"
    small(source)
    spoil(source, target)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["truncate_checkpoint.py", str(source), str(target), "--layers", str(layers)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert says in stop.value.code and "\n" not in stop.value.code
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_disk_full(tmp_path):
    """No room: one sentence after the progress bar, SRC as it was, nothing of DST."""
    source, target = tmp_path / "source", tmp_path / "target"
    small(source)
    before = [path.read_bytes() for path in sorted(source.iterdir())]
    with room(50_000):
        run = truncate(source, target, 2)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"{target} cannot be written"), run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert before == [path.read_bytes() for path in sorted(source.iterdir())]


def buffer():
    """20,000 numbers, 40 kB."""
    return torch.arange(20_000, dtype=torch.int16)


def small(folder):
    """Write a folder in Meta's layout with 3 layers of one tensor each, [20000]."""
    functions().write_checkpoint(folder, {}, b"", {f"layers.{i}.w.weight": buffer() for i in range(3)})
