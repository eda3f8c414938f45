"""`checkpoint.py check` answers the mistakes that readers make; `cut` keeps the first layers and leaves no half."""
import base64
import json
import os
import pickle
import re
import subprocess
import sys

import checkpoint
import pytest
import torch
from checkpoint import FILES, PARAMS, PTH, VOCABULARY
from machine import room
from notebook import functions

SMALL = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "multiple_of": 256,
         "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}
BYTES = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
PAGE = b"\r\n<!DOCTYPE html><html><body>403 Forbidden</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16060617592\n"
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00\x18\x03"
TOKENIZER_JSON = b'{\n  "version": "1.0",\n  "model": {"type": "BPE"}\n}\n'


def weights(**changes):
    """The random tensors of a model of the sizes SMALL, with `changes`; None removes one. Names have __ for dots."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator).bfloat16()
            for name, shape in functions().expected_shapes(SMALL).items()}
    made |= {name.replace("__", "."): weight for name, weight in changes.items()}
    return {name: weight for name, weight in made.items() if weight is not None}


def params(**changes):
    """The bytes of a params.json that differs from SMALL."""
    return json.dumps(SMALL | changes).encode()


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint in Meta's layout, to spoil: 64 wide, 3 layers, the 256 bytes as its vocabulary."""
    folder = tmp_path / "small"
    folder.mkdir()
    spoil(folder, **{PARAMS: params(), VOCABULARY: BYTES, PTH: weights()})
    return folder


def spoil(folder, **files):
    """Write each of `files` in `folder`: bytes as they are, all else as PyTorch saves it; None removes a file."""
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)


def state(folder):
    """The paths under `folder`, with the time of change and the bytes of what is a file."""
    return {path: path.is_file() and (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*")}


def refused(folder, command, *arguments):
    """The one sentence with which `command` refuses; everything around `folder` stays as it was."""
    before = state(folder.parent)
    with pytest.raises(SystemExit) as stop:
        command(folder, *arguments)
    assert before == state(folder.parent)
    assert re.fullmatch(r".+; .+\.", stop.value.code) and len(stop.value.code) < 400, stop.value.code
    return stop.value.code


MISTAKES = [
    *[({file: None}, file, "is missing or empty; download it again") for file in FILES],
    *[({file: b""}, file, "is missing or empty; download it again") for file in FILES],
    *[({file: PAGE}, file, "is a web page; get access to the model, log in, and download it again") for file in FILES],
    *[({file: POINTER}, file, "only says where Git keeps the file; run `git lfs pull`") for file in FILES],
    *[({VOCABULARY: other}, VOCABULARY, "perhaps Llama 2's tokenizer or a tokenizer.json; take tokenizer.model from")
      for other in (SENTENCEPIECE, TOKENIZER_JSON)],
    ({VOCABULARY: BYTES[:-9]}, VOCABULARY, "makes 511 tokens, and the model has 512; download all files again"),
    *[({PARAMS: text}, PARAMS, "is cut off, or something else than its name says; download it again")
      for text in (b'{"dim": 64,', b"\xff", b'"8B"', b"8")],
    ({PARAMS: params(dim=128)}, PTH, "tok_embeddings.weight is [512, 64] and should be [512, 128]; download all files"),
    ({PARAMS: params(n_layers=4)}, PTH, "layers.3.attention_norm.weight is absent and should be [64]"),
    ({PARAMS: params(n_layers=2)}, PTH, "layers.2.attention_norm.weight is [64] and should be absent"),
    ({PARAMS: params(n_kv_heads=4)}, PTH, "layers.0.attention.wk.weight is [32, 64] and should be [64, 64]"),
    ({PARAMS: params(n_layers=0)}, PTH, "layers.0.attention_norm.weight is [64] and should be absent"),
    *[({PARAMS: params(**{key: value})}, PTH, "has sizes beside it that no model has (")
      for key, value in (("dim", "64"), ("n_layers", [3]), ("n_heads", 0), ("multiple_of", 0))],
    ({PTH: weights(norm__weight=None)}, PTH, "norm.weight is absent and should be [64]; download all files again"),
    ({PTH: weights(layers__0__attention__bias=torch.zeros(3))}, PTH, "attention.bias is [3] and should be absent"),
    ({PTH: weights(norm__weight=torch.ones(64))}, PTH, "type torch.bfloat16, torch.float32; take a copy that is all"),
    ({PTH: {name: w.char() for name, w in weights().items()}}, PTH, "tensors of type torch.int8; take a copy"),
    ({PTH: weights(norm__weight=64)}, PTH, "is cut off, or holds something else than tensors; download it again"),
    ({PTH: [1, 2]}, PTH, "is cut off, or holds something else than tensors"),
]


@pytest.mark.parametrize("files, blamed, says", MISTAKES)
def test_spoiled_file(folder, files, blamed, says):
    """Each mistake in one file gets a sentence with the file and its remedy, from `cut` as well."""
    spoil(folder, **files)
    sentence = refused(folder, checkpoint.check)
    assert sentence.startswith(f"{folder / blamed} ") and says in sentence, sentence
    assert refused(folder, checkpoint.cut, folder.with_name("target"), 2) == sentence


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_cut_off(folder, share):
    """A download that stopped early."""
    os.truncate(folder / PTH, round((folder / PTH).stat().st_size * share))
    assert refused(folder, checkpoint.check).startswith(f"{folder / PTH} is cut off")


class Code:
    """An object whose pickle makes the folder `path` when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["archive", "bare pickle", "inside the weights"])
def test_code_in_the_file(folder, tmp_path, form):
    """A file that carries code is refused, and the code does not run."""
    code = Code(tmp_path / "it ran")
    spoil(folder, **{PTH: {"archive": code, "bare pickle": pickle.dumps(code),
                           "inside the weights": weights(norm__weight=code)}[form]})
    sentence = refused(folder, checkpoint.check)
    assert form == "bare pickle" or sentence.startswith(f"{folder / PTH} holds code, none of which was run; take")


@pytest.mark.parametrize("files, says", [
    ({"config.json": b"{}", PARAMS: None, VOCABULARY: None, PTH: None},
     "is in Hugging Face's layout; run: python tools/checkpoint.py convert {0} {0}-meta."),
    ({f"original/{PTH}": b"", PTH: None}, "has Meta's files in a subfolder; take {0}{1}original."),
    ({"consolidated.01.pth": b""}, "holds a model that is split over several files; take one in a single file"),
])
def test_other_layout(folder, files, says):
    """Another layout than Meta's, and a model in several files, are named as such."""
    (folder / "original").mkdir()
    spoil(folder, **files)
    assert f"{folder} {says.format(folder, os.sep)}" in refused(folder, checkpoint.check)


@pytest.mark.parametrize("there", [False, True])
def test_no_folder(tmp_path, there):
    """A name under which there is nothing, or a file."""
    (tmp_path / "checkpoint").touch() if there else None
    assert "is no folder; name one that holds params.json, tok" in refused(tmp_path / "checkpoint", checkpoint.check)


@pytest.mark.parametrize("files", [{}, {PTH: weights(rope__freqs=torch.ones(8))},
                                   {PARAMS: params(multiple_of=None, a_key_of_tomorrow="new")}])
def test_fits(folder, capsys, files):
    """What the notebook opens fits, and the sizes are said: with `rope.freqs`, without keys that have a default."""
    spoil(folder, **files)
    checkpoint.check(folder)
    assert capsys.readouterr().out == (f"{folder} fits: 3 layers of width 64, 4 query heads, 2 key heads, 512 tokens, "
                                       "250,304 numbers.\n")
    assert len(functions().load_llama(folder).weights) == 30


def test_scaling_of_3_2(folder, capsys):
    """Meta's params.json of Llama 3.2 does not say by how much RoPE is scaled."""
    for key, said in (("max_seq_len", True), ("rope_scaling_factor", False)):
        spoil(folder, **{PARAMS: params(use_scaled_rope=True, **{key: 32})})
        checkpoint.check(folder)
        assert ('add "rope_scaling_factor": 32' in capsys.readouterr().out) == said


def same(one, other):
    """Whether two tensors are equal in shape, stride, type and every number."""
    return one.stride() == other.stride() and one.dtype == other.dtype and torch.equal(one, other)


def test_cut(folder, tmp_path):
    """The cut has the first layers bit for bit, the tokenizer, and every key of params.json."""
    before, target = state(folder), tmp_path / "target"
    spoil(folder, **{PARAMS: params(a_key_of_tomorrow="new")})
    checkpoint.cut(folder, target, 2)
    assert {**state(folder), folder / PARAMS: None} == {**before, folder / PARAMS: None}, "SRC has changed"
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert json.loads((target / PARAMS).read_bytes()) == SMALL | {"n_layers": 2, "a_key_of_tomorrow": "new"}
    assert (target / VOCABULARY).read_bytes() == BYTES
    have = torch.load(target / PTH, mmap=True, weights_only=True)
    wanted = {name: weight for name, weight in weights().items() if not name.startswith("layers.2.")}
    assert list(have) == list(wanted) and all(same(have[name], wanted[name]) for name in wanted)


def test_one_storage_for_all(folder, tmp_path):
    """Tensors that are parts of one storage do not drag it along; those that are the same bytes stay one."""
    made = weights()
    made["output.weight"] = made["tok_embeddings.weight"]
    buffer, begin = torch.cat([weight.flatten() for weight in made.values()]), 0
    for name, weight in made.items():
        made[name], begin = buffer[begin:begin + weight.numel()].view(weight.shape), begin + weight.numel()
    made["output.weight"] = made["tok_embeddings.weight"]
    made["layers.0.attention.wq.weight"] = buffer.as_strided((64, 64), (1, 2), 100)
    spoil(folder, **{PTH: made})
    checkpoint.cut(folder, tmp_path / "target", 1)
    have = torch.load(tmp_path / "target" / PTH, mmap=True, weights_only=True)
    assert all(same(have[name], made[name]) for name in have) and len(have) == 12
    assert have["output.weight"].data_ptr() == have["tok_embeddings.weight"].data_ptr()
    distinct = sum(have[name].nbytes for name in have if name != "output.weight")
    assert (tmp_path / "target" / PTH).stat().st_size < distinct + 12_000


@pytest.mark.parametrize("layers", [0, 4])
def test_no_such_layers(folder, layers):
    """None, or more than there are."""
    assert "choose from 1 to 3" in refused(folder, checkpoint.cut, folder.with_name("target"), layers)


def test_target_is_there(folder, tmp_path):
    """A folder that is there is never written over."""
    (tmp_path / "target").mkdir()
    assert "exists already; remove it, or choose" in refused(folder, checkpoint.cut, tmp_path / "target", 2)
    assert "its parent folder must be there" in refused(folder, checkpoint.cut, tmp_path / "none" / "target", 2)


def test_interrupted(folder, monkeypatch):
    """The reader presses Ctrl+C while the weights are written: nothing is left."""
    def stop(tensors, file):
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, "save", stop)
    assert "was not written, and nothing is left of it" in refused(folder, checkpoint.cut, folder.parent / "target", 2)


def test_disk_full(folder):
    """No room for the weights, which a limit on the size of every file stands for: nothing is left."""
    with room(50_000):
        sentence = refused(folder, checkpoint.cut, folder.parent / "target", 2)
    assert sentence.startswith(f"{folder.parent / 'target'} cannot be written (") and "room on the disk" in sentence


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    """`cut` shows a bar, `check` takes the result, and `convert` refuses it in one sentence."""
    run = subprocess.run([sys.executable, checkpoint.__file__, "cut", folder, tmp_path / "cut", "--layers", "2"],
                         capture_output=True, encoding="utf-8", env=os.environ | {"TQDM_DISABLE": ""})
    assert run.returncode == 0 and re.search(r"cut: +(99|100)%", run.stderr), run.stderr
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "check", str(tmp_path / "cut")])
    checkpoint.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'cut'} fits: 2 layers")
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "convert", str(folder), str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match="Meta's layout already; open the folder in which"):
        checkpoint.main()
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "cut", str(folder), str(tmp_path / "whole")])
    with pytest.raises(SystemExit, match="2"):
        checkpoint.main()
    assert "the following arguments are required: --layers" in capsys.readouterr().err
