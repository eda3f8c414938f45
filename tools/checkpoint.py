"""Check, cut or convert a checkpoint, a folder with params.json, tokenizer.model and consolidated.00.pth.

    python tools/checkpoint.py check Meta-Llama-3-8B
    python tools/checkpoint.py cut Meta-Llama-3-8B Meta-Llama-3-8B-2layers --layers 2
    python tools/checkpoint.py convert Llama-3.2-1B-HF Llama-3.2-1B

`check` says whether the notebook can open FOLDER, and if not, why and what helps. `cut` keeps the first layers.
`convert` rewrites a folder in Hugging Face's layout into Meta's. SRC is only read; DST appears when it is complete, or
not at all. Files are mapped: no command needs as much memory as a layer takes. What `convert` changes, the rows of wq
and wk, waits beside DST until all is done (1.3 GB for the 8B).
"""
import argparse
import json
import math
import pickle
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from notebook import functions
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

FILES = PARAMS, VOCABULARY, PTH = "params.json", "tokenizer.model", "consolidated.00.pth"
TYPES = {torch.bfloat16, torch.float16, torch.float32}
AGAIN = "download all files again, from one place"
THEIRS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
          "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
          "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
          "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
          "feed_forward.w3": "mlp.up_proj"}
FORM = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "sliding_window": None, "partial_rotary_factor": 1}
SCALED = {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
notebook = functions()


def refuse(path, problem, remedy):
    """Leave with one sentence: what is wrong with `path`, and what helps."""
    sys.exit(f"{path} {problem}; {remedy}.")


def expect_file(path):
    """Exit unless `path` is a file, and not what a download that failed leaves there."""
    if not path.is_file() or not path.stat().st_size:
        refuse(path, "is missing or empty", "download it again")
    with open(path, "rb") as file:
        begins = file.read(100).lstrip()
    if begins.startswith(b"<"):
        refuse(path, "is a web page", "get access to the model, log in, and download it again")
    if begins.startswith(b"version https://git-lfs"):
        refuse(path, "only says where Git keeps the file", "run `git lfs pull` in its folder, or download it again")


def read_json(path):
    """The dict in the file `path`; exits if there is none."""
    expect_file(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        refuse(path, "is cut off, or something else than its name says", "download it again")


def vocabulary_size(path):
    """How many tokens the tokenizer.model at `path` makes, with the special ones; exits if it is no such file."""
    expect_file(path)
    try:
        return len(notebook.read_ranks(path)) + len(notebook.special)
    except ValueError:
        refuse(path, "is not Llama 3's list of lines, base64 and a number, but perhaps Llama 2's tokenizer or a "
               "tokenizer.json", "take tokenizer.model from the Llama 3 download")


def fitting(path, weights, params):
    """The sizes, with Meta's defaults for absent ones, and `weights` in order, if they fit `params`; exits if not."""
    config = notebook.defaults | {key: value for key, value in params.items() if value is not None}
    config["n_kv_heads"] = config["n_kv_heads"] or config["n_heads"]
    try:
        wanted = {name: list(shape) for name, shape in notebook.expected_shapes(config).items()}
    except (TypeError, ValueError, ArithmeticError) as error:
        refuse(path, f"has sizes beside it that no model has ({error!r})", AGAIN)
    found = {name: list(weight.shape) for name, weight in weights.items()}
    for name in wanted | found:
        want, have = wanted.get(name, "absent"), found.get(name, "absent")
        if want != have:
            refuse(path, f"does not fit the sizes beside it: {name} is {have} and should be {want}", AGAIN)
    types = {weight.dtype for weight in weights.values()}
    if len(types) > 1 or not types <= TYPES:
        refuse(path, f"has tensors of type {', '.join(sorted(map(str, types)))}",
               "take a copy that is all bfloat16, all float16 or all float32")
    return config, {name: weights[name] for name in wanted}


def opened(folder):
    """The sizes and the mapped tensors of a `folder` in Meta's layout; exits if anything is wrong."""
    if not folder.is_dir():
        refuse(folder, "is no folder", f"name one that holds {', '.join(FILES)}")
    if not (folder / PTH).exists() and (folder / "original" / PTH).exists():
        refuse(folder, "has Meta's files in a subfolder", f"take {folder / 'original'}")
    if not (folder / PTH).exists() and (folder / "config.json").exists():
        refuse(folder, "is in Hugging Face's layout", f"run: python tools/checkpoint.py convert {folder} {folder}-meta")
    if (folder / "consolidated.01.pth").exists():
        refuse(folder, "holds a model that is split over several files", "take one in a single file, 8B, 3B or 1B")
    for file in FILES:
        expect_file(folder / file)
    params, n_vocab = read_json(folder / PARAMS), vocabulary_size(folder / VOCABULARY)
    try:
        weights = torch.load(folder / PTH, mmap=True, weights_only=True, map_location="cpu")
        weights.pop("rope.freqs", None)
        config, weights = fitting(folder / PTH, weights, params)
    except pickle.UnpicklingError:
        refuse(folder / PTH, "holds code, none of which was run", "take the file from Meta, or from one whom you trust")
    except Exception:  # PyTorch raises many kinds for a broken file
        refuse(folder / PTH, "is cut off, or holds something else than tensors", "download it again")
    if config["vocab_size"] != n_vocab:
        refuse(folder / VOCABULARY, f"makes {n_vocab} tokens, and the model has {config['vocab_size']}", AGAIN)
    return config, weights


def write(target, layers, params, vocabulary, weights, head_dim=None):
    """Write the first `layers` (None: all) of a model to the folder `target`, with a progress bar.

    `params` is the content of params.json, `vocabulary` the path of a tokenizer.model, `weights` the mapped tensors.
    `head_dim` is given if the rows of wq and wk are still in the order of transformers.
    """
    layers = params["n_layers"] if layers is None else layers
    if not 1 <= layers <= params["n_layers"]:
        sys.exit(f"--layers {layers} is not possible; choose from 1 to {params['n_layers']}.")
    if target.exists():
        refuse(target, "exists already", "remove it, or choose another name")
    weights = {name: weight for name, weight in weights.items()
               if not name.startswith("layers.") or int(name.split(".")[1]) < layers}
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llama3-", ignore_cleanup_errors=True) as scratch:
            new = Path(scratch) / target.name
            new.mkdir()
            if head_dim:
                for name in tqdm([name for name in weights if name.endswith(("wq.weight", "wk.weight"))], "wq and wk"):
                    weights[name] = paired(weights[name], head_dim, Path(scratch) / name)
            weights = trimmed(weights)
            (new / PARAMS).write_text(json.dumps(params | {"n_layers": layers}), encoding="utf-8", newline="\n")
            shutil.copyfile(vocabulary, new / VOCABULARY)
            sizes = {weight.data_ptr(): weight.untyped_storage().nbytes() for weight in weights.values()}
            total = sum(sizes.values()) + 400 * len(weights)  # with the archive around them, about
            with open(new / PTH, "wb") as file, tqdm.wrapattr(file, "write", total, desc=target.name) as watched:
                torch.save(weights, watched)
            new.rename(target)
            del weights  # Windows removes no file that is mapped
    except (OSError, RuntimeError) as error:
        refuse(target, f"cannot be written ({error})", "its parent folder must be there, with room on the disk")
    except KeyboardInterrupt:
        refuse(target, "was not written, and nothing is left of it", "run the command again when you like")


def paired(weight, head_dim, path):
    """wq or wk, [heads * head_dim, dim], with the rows as neighbours that RoPE turns together; mapped from `path`.

    transformers has the partner of row i half a head further on (`rotate_half`), Meta in row i + 1. It is written a
    head at a time: larger pieces would leave gaps in the memory.
    """
    with open(path, "wb") as file:
        for head in weight.split(head_dim):
            rows = head.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
            file.write(rows.contiguous().view(torch.uint8).numpy())
    return torch.from_file(str(path), size=weight.numel(), dtype=weight.dtype).view(weight.shape)


def trimmed(weights):
    """`weights` on storages that hold nothing else, since `torch.save` writes a tensor's whole storage.

    Each is a window on the mapped file, no copy; tensors that are the same bytes keep sharing one.
    """
    windows, cut = {}, {}
    for name, weight in weights.items():
        begin = weight.storage_offset()
        end = begin + 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride()))
        window = weight.untyped_storage()[begin * weight.itemsize:end * weight.itemsize]
        window = windows.setdefault((weight.data_ptr(), len(window)), window)
        cut[name] = torch.empty(0, dtype=weight.dtype).set_(window, 0, weight.shape, weight.stride())
    return cut


def params_of(path):
    """The content of params.json, and whether the output is the embedding, from the config.json at `path`.

    Absent keys have the defaults of `LlamaConfig`. The settings of RoPE are read as transformers 4 spells them
    (`rope_theta`, `rope_scaling`) and as 5 does (`rope_parameters`). Exits if the model is not of Llama 3's form.
    """
    config = read_json(path)
    if config.get("quantization_config"):
        refuse(path, "says that the weights are quantized", "take a copy in bfloat16, float16 or float32")
    try:
        rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
        scaled = rope["rope_type"] != "default"
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        for key, value in (FORM | {"head_dim": dim // n_heads} | (SCALED if scaled else {})).items():
            have = (config | rope).get(key)
            if have not in (value, None):
                refuse(path, f"has {have!r} as {key}, Llama 3 has {value!r}", "take a model of Llama 3's form")
        multiplier = (config["intermediate_size"] + 0.5) / int(8 * dim / 3)  # in steps of 1 any width can be had
        params = {"dim": dim, "n_layers": config["num_hidden_layers"], "n_heads": n_heads,
                  "n_kv_heads": config.get("num_key_value_heads") or n_heads, "vocab_size": config["vocab_size"],
                  "ffn_dim_multiplier": multiplier, "multiple_of": 1, "norm_eps": config.get("rms_norm_eps", 1e-6),
                  "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
                  "use_scaled_rope": scaled, "max_seq_len": config.get("max_position_embeddings", 2048)}
        if scaled:
            params["rope_scaling_factor"] = rope["factor"]
        return params, config.get("tie_word_embeddings", False)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        refuse(path, f"is no config.json of a Llama ({error!r})", "download it again")


def weights_of(source, params, tied):
    """The mapped tensors of the Hugging Face folder `source` by Meta's names; exits if `params` asks for others.

    The rows of wq and wk are still in the order of transformers. `tied`: the output is the embedding.
    """
    files, weights, ours = {"model.safetensors"}, {}, {}
    for name in notebook.expected_shapes(params):
        block, part = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name).groups()
        ours[f"model.{block}{THEIRS[part]}.weight" if block else f"{THEIRS[part]}.weight"] = name
    if not (source / "model.safetensors").exists():
        files = {*read_json(source / "model.safetensors.index.json").get("weight_map", {}).values()}
    for file in sorted(files):
        expect_file(source / file)
        try:
            with safe_open(source / file, "pt") as content:
                found = [name for name in content.keys() if not name.endswith(".rotary_emb.inv_freq")]
                weights |= {ours.get(name, name): content.get_tensor(name) for name in found}
        except SafetensorError:
            refuse(source / file, "is cut off, or no safetensors file", "download it again")
    if tied and "tok_embeddings.weight" in weights:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return fitting(source, weights, params)[1]


def tokenizer_of(source, vocab_size):
    """The path of the tokenizer.model of a Hugging Face folder, and how many tokens it makes; says what changes.

    It is the folder's own, from `original` or from beside the weights; else Meta's, if tokenizer.json has the same.
    """
    own = [place / VOCABULARY for place in (source / "original", source) if (place / VOCABULARY).is_file()]
    path = source / "tokenizer.json"
    content = read_json(path) if path.exists() or not own else {}
    if not own and not same_pieces(content, notebook.read_ranks(notebook.packaged)):
        refuse(path, "is not the tokenizer of Llama 3", "take a model that has it")
    vocabulary = (own or [notebook.packaged])[0]
    n_vocab = vocabulary_size(vocabulary)
    if vocab_size != n_vocab and not vocab_size > n_vocab == notebook.llama3_8b["vocab_size"]:
        refuse(vocabulary, f"makes {n_vocab} tokens, and config.json says {vocab_size}", AGAIN)
    theirs = {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    ours = dict(enumerate(notebook.special, n_vocab - len(notebook.special)))
    if vocab_size > n_vocab:
        names = ", ".join(name for token, name in theirs.items() if token >= n_vocab)
        print(f"The rows of {vocab_size - n_vocab} added tokens are left out: {names or 'unnamed'}.", file=sys.stderr)
    others = [f"{token} is {ours[token]}, there {name}" for token, name in theirs.items()
              if token in ours and ours[token] != name and "<|reserved_special_token_" not in name]
    if others:
        print(f"Special tokens go by Meta's names here: {'; '.join(others)}.", file=sys.stderr)
    return vocabulary, n_vocab


def same_pieces(content, ranks):
    """Whether a tokenizer.json of this `content` has the pieces `ranks` (bytes to number) and all their merges.

    A piece is text there, one character a byte: itself where it can be seen, else the next free one from 256 on
    (`bytes_to_unicode` of GPT-2). The merges are all the ways to put a piece together from two, in the order of ranks.
    """
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    byte = {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(unseen)}
    try:
        vocab, merges = content["model"]["vocab"], content["model"]["merges"]
        pieces = {bytes(byte[character] for character in piece): rank for piece, rank in vocab.items()}
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        order = [vocab[left + right] for left, right in pairs]
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    cuts = [(piece[:i], piece[i:]) for piece in vocab for i in range(1, len(piece))]
    possible = {(left, right) for left, right in cuts if left in vocab and right in vocab}
    return pieces == ranks and order == sorted(order) and {*pairs} == possible


def check(folder):
    """Say that the notebook can open `folder`, and how large the model is; exits with what is wrong if it cannot."""
    config, weights = opened(folder)
    count = sum(math.prod(weight.shape) for weight in weights.values())
    print(f"{folder} fits: {config['n_layers']} layers of width {config['dim']}, {config['n_heads']} query heads, "
          f"{config['n_kv_heads']} key heads, {config['vocab_size']} tokens, {count:,} numbers.")
    if config["use_scaled_rope"] and config["dim"] < 4096 and config["rope_scaling_factor"] == 8:
        print('If it is a Llama 3.2, add "rope_scaling_factor": 32 to its params.json.')


def cut(source, target, layers):
    """Write the first `layers` of `source`, a folder in Meta's layout, to `target`, bit for bit."""
    weights = opened(source)[1]
    write(target, layers, read_json(source / PARAMS), source / VOCABULARY, weights)


def convert(source, target, layers=None):
    """Write `source`, a folder in Hugging Face's layout, to `target` in Meta's, with all layers or the first `layers`.

    Tokens that were added to Llama 3's are left out.
    """
    if (source / PTH).exists() or (source / "original" / PTH).exists():
        refuse(source, "holds Meta's layout already", f"open the folder in which {PTH} is")
    params, tied = params_of(source / "config.json")
    weights = weights_of(source, params, tied)
    vocabulary, n_vocab = tokenizer_of(source, params["vocab_size"])
    for name in ("tok_embeddings.weight", "output.weight"):
        weights[name] = weights[name][:n_vocab]
    params["vocab_size"] = n_vocab
    write(target, layers, params, vocabulary, weights, params["dim"] // params["n_heads"])


def main():
    """The command line described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("folder", metavar="FOLDER", type=Path)
    for name in ("cut", "convert"):
        command = commands.add_parser(name)
        command.add_argument("source", metavar="SRC", type=Path)
        command.add_argument("target", metavar="DST", type=Path, help="the folder to write")
        command.add_argument("--layers", metavar="N", type=int, required=name == "cut", help="how many layers to keep")
    options = vars(parser.parse_args())
    {"check": check, "cut": cut, "convert": convert}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
