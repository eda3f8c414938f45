"""`checkpoint.py convert` on small models that `transformers` writes, which is the yardstick for what comes out."""
import base64
import ctypes
import json
import re
import threading

import checkpoint
import pytest
import torch
from checkpoint import FILES, SCALED
from machine import anonymous_memory, room
from notebook import functions
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SIZES = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
         "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
SCALED = SCALED | {"rope_theta": 500000.0, "factor": 32.0}
BYTES = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


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


def converted(source, *layers):
    """The folder beside `source` to which it was converted; `source` stays as it was."""
    before, target = state(source), source.with_name("target")
    checkpoint.convert(source, target, *layers)
    assert before == state(source)
    return target


def refused(source):
    """The one sentence with which the command refuses; every file stays as it was, and nothing is left of DST."""
    before = state(source.parent)
    with pytest.raises(SystemExit) as stop:
        checkpoint.convert(source, source.with_name("target"))
    assert before == state(source.parent)
    assert re.fullmatch(r".+; .+\.", stop.value.code), stop.value.code
    return stop.value.code


def agree(source, target):
    """Whether `transformers`, from `source`, and the notebook, from `target`, compute the same logits in float32."""
    llama = functions().load_llama(target)
    llama.weights = {name: weight.float() for name, weight in llama.weights.items()}
    tokens = torch.randint(llama.config["vocab_size"], (50,), generator=torch.Generator().manual_seed(1))
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0, :, :llama.config["vocab_size"]]
    ours = functions().forward(llama, tokens)
    return ours.std() > 0.5 and (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [
    {}, {"num_key_value_heads": 8, "dtype": torch.float16}, {"num_key_value_heads": 1, "intermediate_size": 171},
    {"shard": "100KB", "dtype": torch.float32}, {"tie_word_embeddings": True},
    {"rope_parameters": SCALED | {"factor": 8.0}},
    {"rope_parameters": SCALED, "tie_word_embeddings": True, "num_attention_heads": 4, "intermediate_size": 100},
], ids=lambda changes: ",".join(changes) or "grouped")
def test_logits_are_those_of_transformers(tmp_path, changes):
    """Every kind of model computes what it did; the numbers keep their type, and a tied table is stored once."""
    source = hugging_face(tmp_path / "source", **changes)
    assert (source / INDEX).exists() == ("shard" in changes)
    target = converted(source)
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert agree(source, target)
    weights = torch.load(target / "consolidated.00.pth", mmap=True, weights_only=True)
    assert {weight.dtype for weight in weights.values()} == {changes.get("dtype", torch.bfloat16)}
    tied = weights["tok_embeddings.weight"].data_ptr() == weights["output.weight"].data_ptr()
    assert tied == changes.get("tie_word_embeddings", False)
    checkpoint.check(target)


@pytest.mark.parametrize("dim, width", [(64, 175), (2048, 8192), (3072, 8192), (4096, 14336), (4096, 14335),
                                        (8192, 28672), (16384, 53248)])
def test_widths(tmp_path, dim, width):
    """Every width of the feed-forward network comes out as it went in, those of Meta's models and odd ones."""
    config = SIZES | {"hidden_size": dim, "intermediate_size": width, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert functions().ffn_width(checkpoint.params_of(tmp_path / "config.json")[0]) == width


@pytest.mark.parametrize("rope", [
    {"rope_theta": 500000.0}, {"rope_theta": 500000.0, "rope_scaling": None}, {"rope_parameters": SCALED},
    {"rope_theta": 500000.0, "rope_scaling": {key: value for key, value in SCALED.items() if key != "rope_theta"}},
], ids=["4", "4 with null", "5 scaled", "4 scaled"])
def test_both_spellings_of_rope(tmp_path, rope):
    """config.json as transformers 4 writes it and as 5 does."""
    source = hugging_face(tmp_path / "source")
    edit(source / "config.json", rope_parameters=None)
    edit(source / "config.json", **rope)
    params = json.loads((converted(source) / "params.json").read_text(encoding="utf-8"))
    scaled = SCALED in rope.values() or bool(rope.get("rope_scaling"))
    assert params["rope_theta"] == 500000 and params["use_scaled_rope"] is scaled
    assert params.get("rope_scaling_factor") == (32 if scaled else None)


def test_first_layers(tmp_path):
    """`--layers 2` keeps two, as they are in the whole. The tokenizer may lie in `original`, rotary frequencies go."""
    source = hugging_face(tmp_path / "source")
    (source / "original").mkdir()
    (source / "tokenizer.model").rename(source / "original" / "tokenizer.model")
    weights = load_file(source / SINGLE) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights, source / SINGLE)
    whole = functions().load_llama(converted(source).rename(tmp_path / "whole")).weights
    cut = functions().load_llama(converted(source, 2))
    assert cut.config["n_layers"] == 2
    assert [*cut.weights] == [name for name in whole if not name.startswith("layers.2.")]
    assert all(cut.weights[name].equal(whole[name]) for name in cut.weights)


def tokenizer_json(path, added=(), **renamed):
    """The content of the tokenizer.json that `transformers` makes of the tokenizer.model at `path`.

    `renamed` maps Meta's names of special tokens, without <| and |>, to others; `added` are more names.
    """
    names = [renamed.get(name[2:-2], name) for name in functions().special] + [*added]
    tokenizer = TikTokenConverter(str(path), functions().pattern, extra_special_tokens=names).converted()
    return json.loads(tokenizer.to_str())


def with_tokenizer_json(folder, content, **changes):
    """A model with one layer in `folder`, with a tokenizer.json of this `content` in place of its tokenizer.model."""
    hugging_face(folder, num_hidden_layers=1, tie_word_embeddings=True, **changes)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8", newline="\n")
    return folder


@pytest.mark.slow
def test_metas_tokenizer(tmp_path, capsys):
    """tokenizer.json proves to be Llama 3's: Meta's own file is taken, and nothing is to be said."""
    content = tokenizer_json(functions().packaged)
    assert len(content["model"]["merges"]) == 280147
    target = converted(with_tokenizer_json(tmp_path / "source", content, vocab_size=128256, hidden_size=16))
    assert (target / "tokenizer.model").read_bytes() == functions().packaged.read_bytes()
    assert capsys.readouterr().err.strip() == ""


@pytest.fixture
def metas(tmp_path, monkeypatch):
    """The path of a file of the 256 bytes, which plays Meta's own tokenizer.model for a while."""
    path = tmp_path / "bytes.model"
    path.write_bytes(BYTES)
    monkeypatch.setattr(functions(), "packaged", path)
    monkeypatch.setitem(functions().llama3_8b, "vocab_size", 512)
    return path


def test_added_tokens(metas, tmp_path, capsys):
    """A fine-tune with 32 added rows, two of them tokens with names: these rows are left out, and that is said."""
    content = tokenizer_json(metas, added=["<|im_end|>", "<|im_start|>"])
    source = with_tokenizer_json(tmp_path / "source", content, vocab_size=544)
    target = converted(source)
    assert agree(source, target)
    llama = functions().load_llama(target)
    assert llama.config["vocab_size"] == 512 == len(llama.weights["output.weight"])
    assert llama.weights["output.weight"].untyped_storage().nbytes() == 2 * 512 * 64
    assert capsys.readouterr().err.strip() == "The rows of 32 added tokens are left out: <|im_end|>, <|im_start|>."


def test_other_special_names(metas, tmp_path, capsys):
    """Llama 3's pieces and merges under other special names: it is converted, and Meta's names are told."""
    content = tokenizer_json(metas, begin_of_text="<｜begin▁of▁sentence｜>", reserved_special_token_5="<think>",
                             step_id="<|reserved_special_token_250|>")
    source = with_tokenizer_json(tmp_path / "source", content)
    target = converted(source)
    assert agree(source, target)
    assert functions().load_llama(target).tokenizer.encode_single_token("<|begin_of_text|>") == 256
    assert capsys.readouterr().err.strip() == (
        "Special tokens go by Meta's names here: 256 is <|begin_of_text|>, there <｜begin▁of▁sentence｜>; "
        "271 is <|reserved_special_token_5|>, there <think>.")


@pytest.mark.parametrize("vocab_size, own", [(500, 512), (520, 128256)])
def test_another_vocabulary(metas, tmp_path, monkeypatch, vocab_size, own):
    """A model has all of the tokenizer's tokens, and only Llama 3's own vocabulary can have had some added."""
    monkeypatch.setitem(functions().llama3_8b, "vocab_size", own)
    sentence = refused(hugging_face(tmp_path / "source", vocab_size=vocab_size))
    assert f"tokenizer.model makes 512 tokens, and config.json says {vocab_size}; download all files" in sentence


@pytest.mark.parametrize("spoil", [
    lambda vocab, merges: vocab.pop("Ġ"),
    lambda vocab, merges: vocab.update({"a": 1, "Ġ": 0}),
    lambda vocab, merges: merges.pop(),
    lambda vocab, merges: merges.reverse(),
    lambda vocab, merges: merges.append(["", "Ġab"]),
    lambda vocab, merges: merges.append(["b", "a"]),
], ids=["piece", "ranks", "merge", "order", "half", "stranger"])
def test_another_tokenizer(spoil):
    """Pieces and merges prove to be the same, in both spellings of merges; with one difference they don't."""
    ranks = {b"a": 0, b" ": 1, b"b": 2, b"ab": 3, b" a": 4, b" ab": 5}
    vocab = {"a": 0, "Ġ": 1, "b": 2, "ab": 3, "Ġa": 4, "Ġab": 5}
    merges = [["a", "b"], ["Ġ", "a"], ["Ġ", "ab"], ["Ġa", "b"]]
    assert checkpoint.same_pieces({"model": {"vocab": vocab, "merges": merges}}, ranks)
    assert checkpoint.same_pieces({"model": {"vocab": vocab, "merges": [" ".join(merge) for merge in merges]}}, ranks)
    spoil(vocab, merges)
    assert not checkpoint.same_pieces({"model": {"vocab": vocab, "merges": merges}}, ranks)


@pytest.mark.parametrize("changes, says", [
    ({"model_type": "mistral"}, "has 'mistral' as model_type, Llama 3 has 'llama'; take a model of Llama 3's form"),
    ({"attention_bias": True}, "True as attention_bias"),
    ({"head_dim": 16}, "16 as head_dim, Llama 3 has 8"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized; take a copy in bfloat16"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "'linear' as rope_type"),
    ({"rope_parameters": SCALED | {"high_freq_factor": 8.0}}, "8.0 as high_freq_factor, Llama 3 has 4"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "no config.json of a Llama (KeyError('factor')); download it again"),
    ({"hidden_size": "64"}, "no config.json of a Llama"),
    ({"num_attention_heads": 0}, "no config.json of a Llama"),
    ({"num_hidden_layers": 0}, "model.layers.0.input_layernorm.weight is [64] and should be absent"),
    ({"num_key_value_heads": 3}, "wk.weight is [16, 64] and should be [24, 64]; download all files again"),
])
def test_another_model(tmp_path, changes, says):
    """What is not of Llama 3's form is refused by its config.json."""
    source = hugging_face(tmp_path / "source")
    edit(source / "config.json", **changes)
    sentence = refused(source)
    assert sentence.startswith(str(source)) and says in sentence, sentence


def put(file, content):
    """A function that writes the bytes `content` to `file` in a folder; None removes the file, a number cuts it off."""
    def spoil(source):
        path = source / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    return spoil


def tensors(**changes):
    """A function that makes `changes` to the tensors of a folder; None removes one. Names have __ for dots."""
    def spoil(source):
        weights = load_file(source / SINGLE) | {name.replace("__", "."): weight for name, weight in changes.items()}
        save_file({name: weight for name, weight in weights.items() if weight is not None}, source / SINGLE)
    return spoil


SHARD = "model-00002-of-00005.safetensors"
MISTAKES = [
    ("1GB", put("config.json", 99), "config.json is cut off, or something else"),
    ("1GB", put(SINGLE, None), f"{INDEX} is missing"),
    ("1GB", put(SINGLE, -1), f"{SINGLE} is cut off, or no safetensors file; download it again"),
    ("1GB", put(SINGLE, b"version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull` in its folder"),
    ("1GB", tensors(model__norm__weight=None), "norm.weight is absent and should be [64]; download all files again"),
    ("1GB", tensors(model__layers__0__self_attn__q_proj__bias=torch.ones(64)), "bias is [64] and should be absent"),
    ("1GB", tensors(model__norm__weight=torch.ones(64)), "tensors of type torch.bfloat16, torch.float32; take a copy"),
    ("1GB", put("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00\x18\x02"), "perhaps Llama 2's tokenizer"),
    ("1GB", put("tokenizer.model", None), "tokenizer.json is missing"),
    ("1GB", lambda source: (put("tokenizer.model", None)(source), put("tokenizer.json", b"{}")(source)),
     "tokenizer.json is not the tokenizer of Llama 3; take a model that has it"),
    ("1GB", put("consolidated.00.pth", b""), "Meta's layout already; open the folder in which"),
    ("100KB", put(SHARD, None), f"{SHARD} is missing"),
    ("100KB", put(SHARD, 999), f"{SHARD} is cut off"),
]


@pytest.mark.parametrize("shard, spoil, says", MISTAKES)
def test_broken_folder(tmp_path, shard, spoil, says):
    """Each mistake in a folder is named in one sentence with its remedy."""
    source = hugging_face(tmp_path / "source", shard=shard)
    spoil(source)
    sentence = refused(source)
    assert sentence.startswith(str(tmp_path)) and says in sentence, sentence


def test_disk_full(tmp_path):
    """No room for the new wq, which a limit on the size of every file stands for: nothing is left."""
    source = hugging_face(tmp_path / "source")
    with room(4_000):
        assert "target cannot be written (" in refused(source)


def test_memory(tmp_path):
    """The new wq and wk of 8 layers, 134 MB, wait on the disk: at its peak the command needs less than half of that."""
    source, target = hugging_face(tmp_path / "source"), tmp_path / "target"
    config = LlamaConfig(**SIZES | {"hidden_size": 2048, "num_hidden_layers": 8, "num_key_value_heads": 8},
                         architectures=["LlamaForCausalLM"])
    config.save_pretrained(source)
    with torch.device("meta"):
        names = LlamaForCausalLM(config).state_dict()
    save_file({name: torch.zeros(like.shape).bfloat16() for name, like in names.items()}, source / SINGLE)
    anonymous_memory() and ctypes.CDLL(None).malloc_trim(0)  # memory that is free again must not hide what is taken
    seen, done = [anonymous_memory()], threading.Event()

    def look():
        while not done.wait(0.002):
            seen.append(anonymous_memory())

    watch = threading.Thread(target=look)
    watch.start()
    checkpoint.convert(source, target)
    done.set()
    watch.join()
    assert max(seen) - seen[0] < 6.7e7, (len(seen), seen[0], max(seen))
