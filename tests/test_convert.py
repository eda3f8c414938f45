"""`convert_checkpoint.py` on small models that `transformers` writes, which is the yardstick for what comes out."""
import base64
import importlib.util
import inspect
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from cells import anonymous_memory, functions
from convert_checkpoint import INDEX, SINGLE, ffn_sizes, main, name_there, same_tokenizer
from llama_models.llama3.tokenizer import Tokenizer
from safetensors.torch import load_file, save_file
from test_reference import SMALL, far_off, in_transformers, random_llama, random_tokens
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter
from truncate_checkpoint import FILES

COMMAND = [sys.executable, Path(__file__).with_name("convert_checkpoint.py")]
SIZES = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
         "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
SCALED = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
RANKS = Path(inspect.getfile(Tokenizer)).with_name("tokenizer.model")
BYTES = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


def convert(monkeypatch, source, target, *options):
    """Run the command in this process."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", str(source), str(target), *options])
    main()
    return target


def hugging_face(folder, dtype=torch.bfloat16, shard="1GB", **changes):
    """Write the folder of a random model with `changes` to SIZES, and a tokenizer.model of the bytes beside it.

    Norm weights are random as well, those that `transformers` leaves at 1.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | changes)).to(dtype)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.normal_(1, 0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.model").write_bytes(BYTES)
    return folder


def edit(path, **changes):
    """Change keys of the JSON in the file `path`; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8", newline="\n")


def state(folder):
    """The paths under `folder`, with the bytes of what is a file."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("changes", [
    {}, {"num_key_value_heads": 8}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}, {"shard": "100KB"},
    {"dtype": torch.float16}, {"dtype": torch.float32, "shard": "100KB"}, {"rope_parameters": SCALED},
    {"rope_parameters": SCALED, "tie_word_embeddings": True, "num_attention_heads": 4, "intermediate_size": 100},
], ids=lambda changes: ",".join(changes) or "grouped")
def test_logits_are_those_of_transformers(tmp_path, monkeypatch, changes):
    """In float32, within 0.0001 where logits are about 5, for every kind of model; the type is kept, SRC unchanged."""
    source = hugging_face(tmp_path / "source", **changes)
    assert (source / INDEX).exists() == ("shard" in changes)
    before = state(source)
    llama = functions().load_llama(convert(monkeypatch, source, tmp_path / "target"))
    assert before == state(source)
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == sorted(FILES)
    assert {weight.dtype for weight in llama.weights.values()} == {changes.get("dtype", torch.bfloat16)}
    llama.weights = {name: weight.float() for name, weight in llama.weights.items()}
    tokens = random_tokens(llama.config, 200)
    yardstick = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert far_off(llama, tokens, yardstick) < 1e-4
    assert functions().forward(llama, tokens).std() > 1


@pytest.mark.parametrize("changes, dtype", [
    ({}, torch.bfloat16), ({"n_kv_heads": 8}, torch.float16), ({"n_kv_heads": 1}, torch.bfloat16),
    ({"use_scaled_rope": True, "rope_scaling_factor": 32.0}, torch.float16),
    ({"ffn_dim_multiplier": 1.5, "tied": True}, torch.bfloat16)], ids=str)
def test_there_and_back(tmp_path, monkeypatch, changes, dtype):
    """A model of Meta's layout, saved by `transformers` in shards, has its bytes and its params.json again."""
    wanted = SMALL | {"use_scaled_rope": False, "max_seq_len": 131072} | changes
    llama = random_llama(wanted, dtype)
    model = in_transformers(llama)
    model.config.tie_word_embeddings = wanted.pop("tied", False)
    model.save_pretrained(tmp_path / "source", max_shard_size="1MB")
    lines = b"".join(base64.b64encode(b"%d" % rank) + b" %d\n" % rank for rank in range(1000 - 256))
    (tmp_path / "source" / "original").mkdir()
    (tmp_path / "source" / "original" / "tokenizer.model").write_bytes(lines)
    target = convert(monkeypatch, tmp_path / "source", tmp_path / "target")
    have = torch.load(target / "consolidated.00.pth", mmap=True, weights_only=True)
    assert list(have) == list(functions().expected_shapes(llama.config))
    for name, weight in llama.weights.items():
        assert have[name].dtype == dtype and have[name].view(torch.int16).equal(weight.view(torch.int16)), name
    tied = have["tok_embeddings.weight"].data_ptr() == have["output.weight"].data_ptr()
    assert tied == model.config.tie_word_embeddings, "an embedding that is also the output is stored once"
    params = json.loads((target / "params.json").read_text(encoding="utf-8"))
    assert functions().ffn_width(params) == functions().ffn_width(wanted)
    del params["multiple_of"], wanted["multiple_of"], params["ffn_dim_multiplier"], wanted["ffn_dim_multiplier"]
    assert params == wanted
    assert (target / "tokenizer.model").read_bytes() == lines


@pytest.mark.parametrize("dim, width, multiplier, multiple_of", [
    (4096, 14336, 1.3, 1024), (8192, 28672, 1.3, 4096), (2048, 8192, 1.5, 256), (3072, 8192, 1.0, 256)])
def test_widths_of_metas_models(dim, width, multiplier, multiple_of):
    """8B, 70B, 1B and 3B get the numbers of a model of Meta's, though not always their own."""
    sizes = ffn_sizes(dim, width)
    assert sizes in [{"ffn_dim_multiplier": a, "multiple_of": b}
                     for a, b in [(1.3, 1024), (1.3, 4096), (1.5, 256), (1.0, 256)]]
    assert functions().ffn_width({"dim": dim, **sizes}) == width


def test_any_width():
    """Every width comes out as it went in, odd ones too."""
    for dim in (8, 64, 576, 4096, 16384):
        for width in (*range(1, 2000), 11008, 14335, 53248, 53249):
            assert functions().ffn_width({"dim": dim, **ffn_sizes(dim, width)}) == width


@pytest.mark.parametrize("rope", [
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, {"rope_theta": 500000.0},
    {"rope_theta": 500000.0, "rope_scaling": None}, {"rope_parameters": SCALED},
    {"rope_theta": 500000.0, "rope_scaling": {key: value for key, value in SCALED.items() if key != "rope_theta"}},
], ids=["5", "4", "4 with null", "5 scaled", "4 scaled"])
def test_both_spellings_of_rope(tmp_path, monkeypatch, rope):
    """config.json as transformers 4 writes it and as 5 does."""
    source = hugging_face(tmp_path / "source")
    edit(source / "config.json", rope_parameters=None)
    edit(source / "config.json", **rope)
    target = convert(monkeypatch, source, tmp_path / "target")
    params = json.loads((target / "params.json").read_text(encoding="utf-8"))
    scaled = SCALED in rope.values() or bool(rope.get("rope_scaling"))
    assert params["rope_theta"] == 500000 and params["use_scaled_rope"] is scaled
    assert params.get("rope_scaling_factor") == (32 if scaled else None)


def test_first_layers(tmp_path, monkeypatch):
    """`--layers 2` keeps two, and leaves them as they are in the whole; without rotary frequencies of old files."""
    source = hugging_face(tmp_path / "source")
    weights = load_file(source / SINGLE) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights, source / SINGLE)
    whole = functions().load_llama(convert(monkeypatch, source, tmp_path / "whole")).weights
    cut = functions().load_llama(convert(monkeypatch, source, tmp_path / "cut", "--layers", "2"))
    assert cut.config["n_layers"] == 2
    assert [*cut.weights] == [name for name in whole if not name.startswith("layers.2.")]
    assert all(cut.weights[name].equal(whole[name]) for name in cut.weights)


@pytest.fixture(scope="module")
def metas(tmp_path_factory):
    """A folder 64 wide with the vocabulary of Llama 3 as tokenizer.json, made by `transformers` from Meta's file."""
    folder = tmp_path_factory.mktemp("metas") / "source"
    hugging_face(folder, vocab_size=128256, num_hidden_layers=1, tie_word_embeddings=True)
    (folder / "tokenizer.model").unlink()
    own = Tokenizer.get_instance()
    converter = TikTokenConverter(str(RANKS), own.pat_str, extra_special_tokens=[*own.special_tokens])
    converter.converted().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer_json(metas):
    """The content of that tokenizer.json."""
    return json.loads((metas / "tokenizer.json").read_text(encoding="utf-8"))


def test_metas_tokenizer(metas, tmp_path, monkeypatch):
    """tokenizer.json proves to be Llama 3's: Meta's own file is taken, and the model speaks with it."""
    target = convert(monkeypatch, metas, tmp_path / "target")
    llama, own = functions().load_llama(target), Tokenizer.get_instance()
    assert (target / "tokenizer.model").read_bytes() == RANKS.read_bytes()
    text = "Việt Nam, 生命 and 🦙: the answer is 42"
    assert llama.tokenizer.encode(text) == own.encode(text, bos=False, eos=False)
    assert llama.tokenizer.encode_single_token("<|eot_id|>") == 128009


def test_merges_of_older_files(tokenizer_json):
    """Files of before 2025 have each merge as one text with a space, not as a list of two; there are 280,147."""
    merges = [" ".join(merge) for merge in tokenizer_json["model"]["merges"]]
    assert len(merges) == 280147 and merges[:3] == ["Ġ Ġ", "Ġ ĠĠĠ", "ĠĠ ĠĠ"]
    older = tokenizer_json | {"model": tokenizer_json["model"] | {"merges": merges}}
    assert same_tokenizer(older, RANKS.read_bytes())


@pytest.mark.parametrize("spoil", [
    lambda vocab, merges, added: vocab.pop("Ġanswer"),
    lambda vocab, merges, added: vocab.update(a=vocab["b"], b=vocab["a"]),
    lambda vocab, merges, added: merges.pop(),
    lambda vocab, merges, added: merges.reverse(),
    lambda vocab, merges, added: merges.append(["Ġ", "?!"]),
    lambda vocab, merges, added: merges.append(["", "".join(merges[-1])]),
    lambda vocab, merges, added: added.pop(),
    lambda vocab, merges, added: added.append({"content": "<|im_end|>", "id": 128256}),
    lambda vocab, merges, added: added[9].update(content="<|im_end|>"),
    lambda vocab, merges, added: added.clear(),
], ids=["piece", "ranks", "merge", "order", "stranger", "half", "special", "one more", "name", "no special"])
def test_another_tokenizer(tokenizer_json, spoil):
    """A tokenizer.json with one difference is not Llama 3's."""
    vocab, merges = dict(tokenizer_json["model"]["vocab"]), list(tokenizer_json["model"]["merges"])
    added = [dict(token) for token in tokenizer_json["added_tokens"]]
    spoil(vocab, merges, added)
    assert not same_tokenizer({"model": {"vocab": vocab, "merges": merges}, "added_tokens": added}, RANKS.read_bytes())


def refused(monkeypatch, source, target, *options):
    """The sentence with which the command refuses; every file stays as it was, and nothing is left of DST."""
    before = state(source.parent)
    with pytest.raises(SystemExit) as stop:
        convert(monkeypatch, source, target, *options)
    assert before == state(source.parent)
    assert re.fullmatch(r".+[;:,] .+\.", stop.value.code), stop.value.code
    return stop.value.code


@pytest.mark.parametrize("changes, says", [
    ({"model_type": "mistral"}, "'mistral' as model_type"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "as architectures"),
    ({"hidden_act": "gelu"}, "'gelu' as hidden_act, Llama 3 has 'silu'; take a model of Llama 3's form"),
    ({"attention_bias": True}, "True as attention_bias"),
    ({"mlp_bias": True}, "True as mlp_bias"),
    ({"sliding_window": 4096}, "4096 as sliding_window"),
    ({"head_dim": 16}, "16 as head_dim, Llama 3 has 8"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized; take a copy in bfloat16"),
    ({"rope_parameters": SCALED | {"rope_type": "yarn"}}, "'yarn' as rope_type"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "'linear' as rope_type"),
    ({"rope_parameters": SCALED | {"low_freq_factor": 2.0}}, "2.0 as low_freq_factor, Llama 3 has 1"),
    ({"rope_parameters": SCALED | {"high_freq_factor": 8.0}}, "8.0 as high_freq_factor, Llama 3 has 4"),
    ({"rope_parameters": SCALED | {"original_max_position_embeddings": 4096}}, "4096 as original_max_position"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "0.5 as partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "no config.json of a Llama (KeyError('factor')); download it again"),
    ({"hidden_size": None}, "KeyError('hidden_size')"),
    ({"hidden_size": "64"}, "no config.json of a Llama"),
    ({"num_attention_heads": 0}, "no config.json of a Llama"),
    ({"num_hidden_layers": 0}, "do not fit together"),
    ({"num_attention_heads": 6, "head_dim": None}, "do not fit together"),
    ({"num_key_value_heads": 3}, "do not fit together"),
])
def test_another_model(tmp_path, monkeypatch, changes, says):
    """What is not of Llama 3's form is refused by its config.json, which is named."""
    source = hugging_face(tmp_path / "source")
    edit(source / "config.json", **changes)
    sentence = refused(monkeypatch, source, tmp_path / "target")
    assert sentence.startswith(f"{source / 'config.json'} ") and says in sentence, sentence


def put(file, content):
    """A function that writes the bytes `content` to `file` in a folder; None removes the file, a number cuts it off."""
    def spoil(source):
        path = source / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    return spoil


def tensors(change):
    """A function that applies `change` to the dict of tensors in a folder's only file of weights."""
    def spoil(source):
        weights = load_file(source / SINGLE)
        change(weights)
        save_file(weights, source / SINGLE)
    return spoil


def weight_map(content):
    """A function that replaces the map in a folder's index by `content`."""
    return lambda source: edit(source / INDEX, weight_map=content)


MISTAKES = [
    (shutil.rmtree, "config.json is missing"),
    (put("config.json", None), "config.json is missing"),
    *[(put("config.json", content), "config.json is missing or cannot be read; SRC must be a Hugging Face folder")
      for content in (b"<html>", b"[[1, 2]]", b"\xff")],
    (put(SINGLE, None), f"{INDEX} is missing"),
    *[(put(SINGLE, content), f"{SINGLE} is cut off, or no safetensors file; download it again")
      for content in (-1, 0, b"<!DOCTYPE html><html></html>")],
    (tensors(lambda weights: weights.pop("model.norm.weight")), "model.norm.weight is absent, and"),
    (tensors(lambda weights: weights.pop("lm_head.weight")), "lm_head.weight is absent, and by config.json"),
    (tensors(lambda weights: weights.update({"model.norm.weight": torch.ones(63)})), "is [63], and by config.json it"),
    *[(tensors(lambda weights, name=name: weights.update({name: torch.ones(64)})), f"holds {name}, which Llama 3 has")
      for name in ("model.layers.0.self_attn.q_proj.bias", "model.layers.3.input_layernorm.weight")],
    (tensors(lambda weights: weights.update({"model.norm.weight": torch.ones(64)})),
     "tensors of type torch.bfloat16, torch.float32; take a copy that is all bfloat16"),
    (tensors(lambda weights: weights.update({name: w.to(torch.float8_e4m3fn) for name, w in weights.items()})),
     "tensors of type torch.float8_e4m3fn; take a copy"),
    *[(put("tokenizer.model", content), "no list of the 256 tokens in base64 that config.json calls for; take")
      for content in (b"\n\x0e\n\x05<unk>\x15\x00\x18\x02", b"<html>\n" * 256, BYTES + b"IQ== 256\n")],
    (put("tokenizer.model", None), "tokenizer.json is missing"),
    (lambda source: (source / "tokenizer.model").rename(source / "tokenizer.json"), "tokenizer.json is missing or"),
    (lambda source: source.with_name("target").mkdir(), "target exists already; remove it or choose"),
    (lambda source: source.with_name("target").touch(), "target exists already; remove it or choose"),
]
SHARD = "model-00002-of-00005.safetensors"
MISTAKES_IN_SHARDS = [
    (put(SHARD, None), f"not complete: {SHARD} missing; download what is missing"),
    (put(SHARD, 999), f"{SHARD} is cut off"),
    (put(INDEX, 99), f"{INDEX} is missing or cannot be read"),
    *[(weight_map(content), f"{INDEX} does not say which file holds which tensor; download it again")
      for content in (None, {}, {"norm": 3})],
    (weight_map({"lm_head": SHARD}), f"{INDEX} names lm_head, and no file holds it; download the whole folder again"),
]


@pytest.mark.parametrize("shard, spoil, says", [("1GB", *mistake) for mistake in MISTAKES]
                         + [("100KB", *mistake) for mistake in MISTAKES_IN_SHARDS])
def test_broken_folder(tmp_path, monkeypatch, shard, spoil, says):
    """Each mistake in a folder is named in one sentence with its remedy."""
    source = hugging_face(tmp_path / "source", shard=shard)
    spoil(source)
    sentence = refused(monkeypatch, source, tmp_path / "target")
    assert sentence.startswith(str(tmp_path)) and says in sentence, sentence


def test_no_llama_3_tokenizer(tokenizer_json, tmp_path, monkeypatch):
    """A tokenizer.json of another kind, and Llama 3's own with a model whose vocabulary has another size."""
    other = {"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    for vocab_size, content in ((128256, other), (512, tokenizer_json)):
        source = hugging_face(tmp_path / f"{vocab_size}", vocab_size=vocab_size, num_hidden_layers=1)
        (source / "tokenizer.model").unlink()
        (source / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8", newline="\n")
        sentence = refused(monkeypatch, source, tmp_path / "target")
        assert f"{source / 'tokenizer.json'} is not the tokenizer of Llama 3, which has 128256 tokens;" in sentence


def test_no_package(tmp_path, monkeypatch):
    """Without a tokenizer.model and without llama-models: what to install."""
    source = hugging_face(tmp_path / "source")
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.json").write_bytes(b"{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install llama-models" in refused(monkeypatch, source, tmp_path / "target")


@pytest.mark.parametrize("layers", ["0", "4", "-1"])
def test_no_such_layers(tmp_path, monkeypatch, layers):
    """More layers than there are, or none."""
    source = hugging_face(tmp_path / "source")
    assert "from 1 to 3" in refused(monkeypatch, source, tmp_path / "target", "--layers", layers)


@pytest.mark.parametrize("size", [4_000, 50_000], ids=["for wq", "for the whole"])
def test_no_room(tmp_path, monkeypatch, size):
    """No room on the disk, which a limit on the size of every file stands for."""
    resource = pytest.importorskip("resource")
    source, before = hugging_face(tmp_path / "source"), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        sentence = refused(monkeypatch, source, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sentence.startswith(f"{tmp_path / 'target'} cannot be written") and "room on the disk" in sentence


def test_no_parent(tmp_path, monkeypatch):
    """DST in a folder that is not there."""
    source = hugging_face(tmp_path / "source")
    assert "its parent folder must be there" in refused(monkeypatch, source, tmp_path / "none" / "target")


def test_command(tmp_path):
    """As a program, with its progress bar."""
    source, target = hugging_face(tmp_path / "source"), tmp_path / "target"
    run = subprocess.run([*COMMAND, source, target], encoding="utf-8", errors="replace", capture_output=True,
                         env=os.environ | {"TQDM_DISABLE": ""})
    assert run.returncode == 0 and re.search(r"target: +(99|100)%", run.stderr), run.stderr
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


def test_memory(tmp_path, monkeypatch):
    """A wide model of 0.3 GB, all zeros, with layers of 59 MB: at its peak the command needs less than one of them."""
    params = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 5, "num_key_value_heads": 8}
    source = hugging_face(tmp_path / "source", num_hidden_layers=1)
    edit(source / "config.json", head_dim=128, **params)
    shapes = functions().expected_shapes({"dim": 1024, "n_layers": 5, "n_heads": 8, "n_kv_heads": 8, "vocab_size": 512,
                                          "ffn_dim_multiplier": 3.0, "multiple_of": 8192})
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name_there(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(source / SINGLE, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    seen, done = [anonymous_memory()], threading.Event()

    def look():
        while not done.wait(0.002):
            seen.append(anonymous_memory())

    watch = threading.Thread(target=look)
    watch.start()
    target = convert(monkeypatch, source, tmp_path / "target")
    done.set()
    watch.join()
    assert (target / "consolidated.00.pth").stat().st_size > 2.9e8
    assert max(seen) - seen[0] < 5.9e7, (len(seen), seen[0], max(seen))
