"""`check` answers readers' mistakes, `cut` keeps layers, `convert` computes what `transformers` does."""
import base64
import ctypes
import io
import json
import os
import re
import subprocess
import sys

import checkpoint
import pytest
import torch
from cells import load_tutorial
from checkpoint import FILES, PARAMS, PTH, SCALED, VOCABULARY
from memory import anonymous_memory, memory_during
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

tutorial = load_tutorial()

PIECES = [bytes([byte]) for byte in range(256)] + [b" a", b" an"]
LINES = b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(PIECES))
WIDTH_64 = {
    "dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 514, "multiple_of": 256,
    "ffn_dim_multiplier": None, "norm_eps": 1e-05, "rope_theta": 500000.0}
HF_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 514, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
LLAMA3_2 = SCALED | {"rope_theta": 500000.0, "factor": 32.0}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Code:
    """An object whose pickle leaves Python when it is loaded."""

    def __reduce__(self):
        return sys.exit, ("The code ran; that is bad.",)


def weights(changes=None):
    """The random tensors of a model of the sizes WIDTH_64, with `changes` by name; None removes one."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator).bfloat16()
            for name, shape in tutorial.expected_shapes(WIDTH_64).items()}
    return {name: weight for name, weight in (made | (changes or {})).items() if weight is not None}


def params_json(**changes):
    """The bytes of a params.json that differs from WIDTH_64."""
    return json.dumps(WIDTH_64 | changes).encode()


def config_json(**changes):
    """The bytes of a config.json that differs from HF_CONFIG."""
    return json.dumps(HF_CONFIG | changes).encode()


def spoil(folder, files):
    """Write `files`, name to content, in `folder`: bytes as they are, a number cuts a file off there, None removes it.

    All else is written as PyTorch saves it.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, int):
            os.truncate(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)


@pytest.fixture
def meta_folder(tmp_path):
    """A small checkpoint in Meta's layout, to spoil: 64 wide, 3 layers."""
    spoil(tmp_path / "small", {PARAMS: params_json(), VOCABULARY: LINES, PTH: weights()})
    return tmp_path / "small"


@pytest.fixture
def make_hf_folder(tmp_path, monkeypatch):
    """A function that makes a folder in Hugging Face's layout, of a random model with `changes` to HF_CONFIG.

    Norm weights are random as well, those that `transformers` leaves at 1. PIECES play Meta's own tokenizer.model;
    tokenizer.json is what `transformers` makes of it, with more tokens `added`, and Meta's special ones `renamed`.
    """
    metas, folder = tmp_path / "pieces.model", tmp_path / "source"
    metas.write_bytes(LINES)
    monkeypatch.setattr(tutorial, "packaged", metas)

    def make(dtype=torch.bfloat16, shard="1GB", added=(), renamed=None, **changes):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**HF_CONFIG | changes)).to(dtype)
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.data.normal_(1, 0.3)
        model.save_pretrained(folder, max_shard_size=shard)
        names = [(renamed or {}).get(name, name) for name in tutorial.special] + [*added]
        tokenizer = TikTokenConverter(str(metas), tutorial.pattern, extra_special_tokens=names).converted()
        spoil(folder, {"tokenizer.json": tokenizer.to_str().encode()})
        return folder
    return make


def contents(folder):
    """The paths under `folder`, with the bytes of what is a file."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refused(command, folder, *arguments):
    """The one sentence with which `command` refuses; everything around `folder` stays as it was."""
    before = contents(folder.parent)
    with pytest.raises(SystemExit) as stop:
        command(folder, *arguments)
    assert before == contents(folder.parent)
    assert re.fullmatch(r".+; .+\.", stop.value.code) and len(stop.value.code) < 400, stop.value.code
    return stop.value.code


@pytest.mark.parametrize("files, blamed, says", [
    ({PARAMS: None}, PARAMS, "is missing or empty; download it again"),
    ({PTH: b"\r\n<!DOCTYPE html>403 Forbidden"}, PTH, "is a web page, or a note of Git LFS; get access to the model"),
    ({PTH: b"version https://git-lfs.github.com/spec/v1\noid"}, PTH, "is a web page, or a note of Git LFS"),
    ({VOCABULARY: b"\n\x0e\n\x05<unk>\x15\x00\x18\x02"}, VOCABULARY, "Llama 2's tokenizer or a tokenizer.json; take"),
    ({VOCABULARY: LINES[:-9]}, VOCABULARY, "makes 513 tokens, and the model has 514; download all files again"),
    ({PARAMS: b'{"dim": 64,'}, PARAMS, "is cut off, or something else than its name says; download it again"),
    ({PARAMS: params_json(n_heads=0)}, PARAMS, "has a size that is no number, or none that can be; download it again"),
    ({PARAMS: params_json(dim="64")}, PARAMS, "has a size that is no number, or none that can be; download it again"),
    ({PARAMS: params_json(dim=128)}, PTH, "tok_embeddings.weight is [514, 64] and should be [514, 128]; download all"),
    ({PARAMS: params_json(n_layers=4)}, PTH, "layers.3.attention_norm.weight is absent and should be [64]; download"),
    ({PTH: 200_000}, PTH, "is cut off, or holds something else than tensors; download it again"),
    ({PTH: weights({"norm.weight": Code()})}, PTH, "holds code, none of which was run; take the file from Meta"),
    ({PTH: None, "config.json": b"{}"}, "", "is in Hugging Face's layout; run: python tools/checkpoint.py convert "),
    ({PTH: None, f"original/{PTH}": b""}, "", "has Meta's files in a subfolder; take "),
    ({PTH: weights({"norm.weight": None}), "consolidated.01.pth": b""}, "", "is split over several files; take one in"),
])
def test_spoiled_folder(meta_folder, files, blamed, says):
    """`check` and `cut` name the file and the remedy; the tutorial's `load_llama`, the folder and how to `check` it."""
    spoil(meta_folder, files)
    sentence = refused(checkpoint.check, meta_folder)
    assert sentence.startswith(f"{meta_folder / blamed} ") and says in sentence, sentence
    assert refused(checkpoint.cut_layers, meta_folder, meta_folder.with_name("target"), 2) == sentence
    with pytest.raises(ValueError) as caught:
        tutorial.load_llama(meta_folder)
    assert f"python tools/checkpoint.py check {meta_folder}" in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder_and_other_types(meta_folder):
    """A name under which there is nothing; a folder in which some tensors are quantized."""
    assert "is no folder; name one that holds params.json, tok" in refused(checkpoint.check, meta_folder / "checkpoint")
    spoil(meta_folder, {PTH: weights({"norm.weight": torch.ones(64, dtype=torch.int8)})})
    assert "type torch.bfloat16, torch.int8; take a copy that is all bfloat16" in refused(checkpoint.check, meta_folder)


@pytest.mark.parametrize("factor, hint", [
    (32, ""), (None, 'If it is a Llama 3.2, add "rope_scaling_factor": 32 to its params.json.\n')])
def test_fits(meta_folder, capsys, factor, hint):
    """What opens is said to fit: absent keys take Meta's defaults, unknown ones and `rope.freqs` are ignored."""
    params = params_json(norm_eps=None, a_key_of_tomorrow="new", use_scaled_rope=True, rope_scaling_factor=factor)
    spoil(meta_folder, {PARAMS: params, PTH: weights({"rope.freqs": torch.ones(8)})})
    checkpoint.check(meta_folder)
    assert capsys.readouterr().out == (f"{meta_folder} fits: 3 layers of width 64, 4 query heads, 2 key heads, "
                                       f"514 tokens, 250,560 numbers.\n{hint}")
    llama = tutorial.load_llama(meta_folder)
    assert len(llama.weights) == 30 and llama.config["norm_eps"] == 1e-5 and llama.config["multiple_of"] == 256


def test_cut(meta_folder):
    """The command keeps the first layers bit for bit, the tokenizer and every key of params.json, and shows a bar."""
    spoil(meta_folder, {PARAMS: params_json(a_key_of_tomorrow="new")})
    before, target = contents(meta_folder), meta_folder.with_name("target")
    run = subprocess.run([sys.executable, checkpoint.__file__, "cut", meta_folder, target, "--layers", "2"],
                         capture_output=True, encoding="utf-8", env=os.environ | {"TQDM_DISABLE": ""})
    assert run.returncode == 0 and re.search(r"target: +(99|100)%", run.stderr), run.stderr
    assert before == contents(meta_folder)
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert json.loads((target / PARAMS).read_bytes()) == WIDTH_64 | {"n_layers": 2, "a_key_of_tomorrow": "new"}
    assert (target / VOCABULARY).read_bytes() == LINES
    have = torch.load(target / PTH, mmap=True, weights_only=True)
    wanted = {name: weight for name, weight in weights().items() if not name.startswith("layers.2.")}
    assert list(have) == list(wanted) and all(torch.equal(have[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("target, layers, says", [
    ("target", 4, "choose from 1 to 3"), ("small", 2, "exists already; remove it, or choose another name"),
    ("none/target", 2, "its parent folder must be there, with room on the disk")])
def test_cut_refuses(meta_folder, target, layers, says):
    """No such layers, a folder that is there, or one that has no parent."""
    assert says in refused(checkpoint.cut_layers, meta_folder, meta_folder.parent / target, layers)


def agree(hf_folder, target):
    """Whether `transformers`, from `hf_folder`, and the notebook, from `target`, compute the same logits in float32."""
    llama = tutorial.load_llama(target)
    llama.weights = {name: weight.float() for name, weight in llama.weights.items()}
    tokens = torch.randint(llama.config["vocab_size"], (50,), generator=torch.Generator().manual_seed(1))
    model = LlamaForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0, :, :llama.config["vocab_size"]]
    ours = tutorial.forward(llama, tokens)
    return ours.std() > 0.5 and (ours - theirs).abs().max() < 1e-4


OLD = {"rope_parameters": None, "rope_theta": 500000.0}  # as transformers 4 spells it


@pytest.mark.parametrize("changes, rewritten", [
    ({"num_key_value_heads": 8, "dtype": torch.float16}, {}),
    ({"shard": "100KB", "dtype": torch.float32, "intermediate_size": 175}, {}),
    ({"rope_parameters": LLAMA3_2, "tie_word_embeddings": True, "num_attention_heads": 4}, {}),
    ({}, OLD), ({}, OLD | {"rope_scaling": {key: LLAMA3_2[key] for key in LLAMA3_2 if key != "rope_theta"}}),
])
def test_logits_are_those_of_transformers(make_hf_folder, changes, rewritten):
    """Every kind of model computes what it did; the numbers keep their type, and a tied table is stored once."""
    folder = make_hf_folder(**changes)
    assert (folder / INDEX).exists() == ("shard" in changes)
    if rewritten:
        spoil(folder, {"config.json": config_json(**rewritten)})
    before, target = contents(folder), folder.with_name("target")
    checkpoint.convert(folder, target)
    assert before == contents(folder) and sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert agree(folder, target)
    have = torch.load(target / PTH, mmap=True, weights_only=True)
    assert {weight.dtype for weight in have.values()} == {changes.get("dtype", torch.bfloat16)}
    tied = have["tok_embeddings.weight"].data_ptr() == have["output.weight"].data_ptr()
    assert tied == changes.get("tie_word_embeddings", False)
    checkpoint.check(target)


def test_convert_keeps_the_first_layers(make_hf_folder):
    """With --layers 2, what `cut` leaves of the whole; four are refused where there are three."""
    folder = make_hf_folder()
    whole, two, then_two = [folder.with_name(name) for name in ("whole", "two", "then-two")]
    checkpoint.convert(folder, whole)
    checkpoint.cut_layers(whole, then_two, 2)
    checkpoint.convert(folder, two, 2)
    assert [*contents(two).values()] == [*contents(then_two).values()]
    assert "--layers 4 is not possible" in refused(checkpoint.convert, folder, folder.with_name("four"), 4)


def test_other_tokens(make_hf_folder, capsys):
    """A fine-tune with 32 added rows, two of them with names, and with other names for Meta's special tokens."""
    renamed = {"<|begin_of_text|>": "<s>", "<|step_id|>": "<|reserved_special_token_250|>"}
    folder = make_hf_folder(vocab_size=546, added=["<|im_end|>", "<|im_start|>"], renamed=renamed)
    target = folder.with_name("target")
    checkpoint.convert(folder, target)
    assert agree(folder, target)
    llama = tutorial.load_llama(target)
    assert llama.config["vocab_size"] == 514 == len(llama.weights["output.weight"])
    assert llama.weights["output.weight"].untyped_storage().nbytes() == 2 * 514 * 64
    assert llama.tokenizer.encode_single_token("<|begin_of_text|>") == 258
    assert capsys.readouterr().err.strip() == (
        "The rows of 32 added tokens are left out: <|im_end|>, <|im_start|>.\n"
        "Special tokens go by Meta's names here: 258 is <|begin_of_text|>, there <s>.")


@pytest.mark.parametrize("changes, files, says", [
    ({}, {"config.json": config_json(model_type="mistral")}, "has 'mistral' as model_type, Llama 3 has 'llama'; take"),
    ({}, {"config.json": config_json(head_dim=16)}, "16 as head_dim, Llama 3 has 8"),
    ({}, {"config.json": config_json(quantization_config={"bits": 4})}, "{'bits': 4} as quantization_config"),
    ({}, {"config.json": config_json(rope_scaling={"type": "linear"}, rope_parameters=None)}, "'linear' as rope_type"),
    ({}, {"config.json": config_json(rope_parameters=LLAMA3_2 | {"high_freq_factor": 8.0})}, "8.0 as high_freq_factor"),
    ({"vocab_size": 512}, {}, "tokenizer.json makes 514 tokens, and config.json says 512; download all files again"),
    ({}, {"config.json": 99}, "config.json is cut off, or something else than its name says; download it again"),
    ({}, {SINGLE: None}, f"{INDEX} is missing or empty; download it again"),
    ({}, {SINGLE: 99_999}, f"{SINGLE} is cut off, or no safetensors file; download it again"),
    ({}, {"tokenizer.json": None}, "tokenizer.json is missing or empty; download it again"),
    ({}, {"config.json": config_json(num_attention_heads=0)}, "is no config.json of a Llama (ZeroDivisionError("),
    ({}, {"tokenizer.json": b'{"model": {"vocab": {"a": 0}}, "added_tokens": []}'}, "is not the tokenizer of Llama 3"),
    ({}, {PTH: b""}, f"holds Meta's layout already; open the folder in which {PTH} is"),
])
def test_convert_refuses(make_hf_folder, changes, files, says):
    """What is not of Llama 3's form, and each mistake in a folder, is named in one sentence with its remedy."""
    folder = make_hf_folder(**changes)
    spoil(folder, files)
    sentence = refused(checkpoint.convert, folder, folder.with_name("target"))
    assert sentence.startswith(str(folder)) and says in sentence, sentence


class FullDisk(io.FileIO):
    """A file for which there is little room left on the disk."""

    def write(self, data):
        """Write `data`, until about 2,000 bytes are there."""
        if self.tell() > 2000:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_full_disk(meta_folder, make_hf_folder, monkeypatch):
    """No room for all the weights, and none for the new wq: nothing is left."""
    made = make_hf_folder()
    monkeypatch.setattr(checkpoint, "open", FullDisk, raising=False)
    for command, folder in ((checkpoint.cut_layers, meta_folder), (checkpoint.convert, made)):
        assert "target cannot be written (" in refused(command, folder, folder.with_name("target"), 2)


@pytest.mark.skipif(anonymous_memory() is None, reason="this system does not say how much memory no file backs")
def test_memory(make_hf_folder):
    """The new wq and wk of 8 layers, 134 MB, wait on the disk: less than half of that is ever taken."""
    folder = make_hf_folder()
    made = LlamaConfig(**HF_CONFIG | {"hidden_size": 2048, "num_hidden_layers": 8, "num_key_value_heads": 8})
    made.save_pretrained(folder)
    with torch.device("meta"):
        names = LlamaForCausalLM(made).state_dict()
    save_file({name: torch.zeros(like.shape).bfloat16() for name, like in names.items()}, folder / SINGLE)
    ctypes.CDLL(None).malloc_trim(0)                    # memory that is free again must not hide what is taken
    before, most = memory_during(lambda: checkpoint.convert(folder, folder.with_name("target")))
    assert most - before < 6.7e7, (before, most)
