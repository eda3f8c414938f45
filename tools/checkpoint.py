"""Check, cut or convert a checkpoint, a folder with params.json, tokenizer.model and consolidated.00.pth.

    python tools/checkpoint.py check Meta-Llama-3-8B
    python tools/checkpoint.py cut Meta-Llama-3-8B Meta-Llama-3-8B-2layers --layers 2
    python tools/checkpoint.py convert Llama-3.2-1B-HF Llama-3.2-1B

`check` says whether the notebook can open a folder, and if not, why and what helps. `cut` keeps the first layers.
`convert` rewrites a folder in Hugging Face's layout into Meta's, or with --layers N its first layers. SRC is only
read; DST appears when it is complete, or not at all. Files are mapped: no command needs as much memory as a layer
takes. What `convert` changes, the rows of wq and wk, waits beside DST until all is done (1.3 GB for the 8B).
"""
import argparse
import json
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from cells import load_tutorial
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

PARAMS, VOCABULARY, PTH = "params.json", "tokenizer.model", "consolidated.00.pth"
FILES = PARAMS, VOCABULARY, PTH
DOWNLOAD_AGAIN = "download all files again, from one place"
META_NAMES = {
    "model.layers": "layers", "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3"}
REQUIRED = {"model_type": "llama", "hidden_act": "silu", "quantization_config": None}
SCALED = {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
tutorial = load_tutorial()


def refuse(path, problem, remedy):
    """Leave with one sentence: what is wrong with `path`, and what helps."""
    sys.exit(f"{path} {problem}; {remedy}.")


def expect_file(path):
    """Exit unless `path` is a file, and not what a download that failed leaves there."""
    if not path.is_file() or not path.stat().st_size:
        refuse(path, "is missing or empty", "download it again")
    with open(path, "rb") as file:
        begins = file.read(100).lstrip()
    if begins.startswith((b"<", b"version https://git-lfs")):
        refuse(path, "is a web page, or a note of Git LFS", "get access to the model, log in, and download it again")


def read_json(path, *keys):
    """The dict in the file `path`; exits if there is none, or if it lacks one of `keys`."""
    expect_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not set(keys) <= set(content):
        refuse(path, "is cut off, or something else than its name says", "download it again")
    return content


def fitting(path, weights, params):
    """The sizes, with Meta's defaults for absent ones, and `weights` in order, if they fit `params`; exits if not.

    `path` is what the sentence blames, `weights` the tensors by Meta's names, `params` the content of params.json.
    """
    config = tutorial.defaults | {key: value for key, value in params.items() if value is not None}
    config["n_kv_heads"] = config["n_kv_heads"] or config["n_heads"]
    wanted = {name: list(shape) for name, shape in tutorial.expected_shapes(config).items()}
    found = {name: list(weight.shape) for name, weight in weights.items()}
    for name in wanted | found:
        want, have = wanted.get(name, "absent"), found.get(name, "absent")
        if want != have:
            refuse(path, f"does not fit the sizes beside it: {name} is {have} and should be {want}", DOWNLOAD_AGAIN)
    types = {weight.dtype for weight in weights.values()}
    if len(types) > 1 or not types <= {torch.bfloat16, torch.float16, torch.float32}:
        refuse(path, f"has tensors of type {', '.join(sorted(map(str, types)))}",
               "take a copy that is all bfloat16, all float16 or all float32")
    return config, {name: weights[name] for name in wanted}


def load(folder):
    """The sizes and the mapped tensors by name of a `folder` in Meta's layout; exits if anything is wrong."""
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
    params = read_json(folder / PARAMS)
    try:
        n_vocab = len(tutorial.read_ranks(folder / VOCABULARY)) + len(tutorial.special)
    except ValueError:
        refuse(folder / VOCABULARY, "is not Llama 3's list of lines, base64 and a number, but perhaps Llama 2's "
               "tokenizer or a tokenizer.json", "take tokenizer.model from the Llama 3 download")
    try:
        weights = torch.load(folder / PTH, mmap=True, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        refuse(folder / PTH, "holds code, none of which was run", "take the file from Meta, or from one whom you trust")
    except Exception:  # PyTorch raises many kinds for a broken file
        weights = None
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        refuse(folder / PTH, "is cut off, or holds something else than tensors", "download it again")
    weights.pop("rope.freqs", None)
    try:
        config, weights = fitting(folder / PTH, weights, params)
    except (ArithmeticError, TypeError):
        refuse(folder / PARAMS, "has a size that is no number, or none that can be", "download it again")
    if config["vocab_size"] != n_vocab:
        refuse(folder / VOCABULARY, f"makes {n_vocab} tokens, and the model has {config['vocab_size']}", DOWNLOAD_AGAIN)
    return config, weights


def write_checkpoint(target, params, vocabulary, weights, head_dim=None):
    """Write a model to the folder `target`, with a progress bar; exits, and leaves nothing, if that fails.

    `params` is the content of params.json, `vocabulary` the path of a tokenizer.model, `weights` the mapped tensors.
    `head_dim` is given if the rows of wq and wk are still in the order of transformers.
    """
    if target.exists():
        refuse(target, "exists already", "remove it, or choose another name")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llama3-", ignore_cleanup_errors=True) as scratch:
            new = Path(scratch) / target.name
            new.mkdir()
            if head_dim:
                turned = [name for name in weights if name.endswith(("wq.weight", "wk.weight"))]
                weights = weights | {name: paired(weights[name], head_dim, Path(scratch) / name)
                                     for name in tqdm(turned, "wq and wk")}
            (new / PARAMS).write_text(json.dumps(params), encoding="utf-8", newline="\n")
            shutil.copyfile(vocabulary, new / VOCABULARY)
            sizes = {weight.data_ptr(): weight.untyped_storage().nbytes() for weight in weights.values()}
            total = sum(sizes.values()) + 400 * len(weights)  # with the archive around them, about
            with open(new / PTH, "wb") as file, tqdm.wrapattr(file, "write", total, desc=target.name) as watched:
                torch.save(weights, watched)
            new.rename(target)
            del weights  # Windows removes no file that is mapped
    except (OSError, RuntimeError) as error:
        refuse(target, f"cannot be written ({error})", "its parent folder must be there, with room on the disk")


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


def params_of(path):
    """The content of params.json, and whether the output is the embedding, from the config.json at `path`.

    Absent keys have the defaults of `LlamaConfig`. The settings of RoPE are read as transformers 4 spells them
    (`rope_theta`, `rope_scaling`) and as 5 does (`rope_parameters`). Exits if the model is not of Llama 3's form.
    """
    config = read_json(path)
    try:
        rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
        scaled = rope["rope_type"] != "default"
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        for key, value in (REQUIRED | {"head_dim": dim // n_heads} | (SCALED if scaled else {})).items():
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
    except (KeyError, TypeError, ZeroDivisionError) as error:
        refuse(path, f"is no config.json of a Llama ({error!r})", "download it again")


def weights_of(hf_folder, params, tied):
    """The mapped tensors of the Hugging Face `hf_folder` by Meta's names; exits if `params` asks for others.

    The rows of wq and wk are still in the order of transformers. `tied`: the output is the embedding.
    """
    files, weights = {"model.safetensors"}, {}
    if not (hf_folder / "model.safetensors").exists():
        files = {*read_json(hf_folder / "model.safetensors.index.json", "weight_map")["weight_map"].values()}
    for file in sorted(files):
        expect_file(hf_folder / file)
        try:
            with safe_open(hf_folder / file, "pt") as content:
                for theirs in content.keys():
                    name = theirs
                    for old, new in META_NAMES.items():
                        name = name.replace(old, new)
                    weights[name] = content.get_tensor(theirs)
        except SafetensorError:
            refuse(hf_folder / file, "is cut off, or no safetensors file", "download it again")
    if tied and "tok_embeddings.weight" in weights:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return fitting(hf_folder, weights, params)[1]


def kept_tokens(path, vocab_size):
    """How many of `vocab_size` tokens Llama 3 has itself, all others being added ones; says what will be different.

    Exits unless the tokenizer.json at `path` has the pieces of Meta's tokenizer.model under the same numbers. A piece
    is text there, one character a byte.
    """
    ranks, content = tutorial.read_ranks(tutorial.packaged), read_json(path, "model", "added_tokens")
    letters = {byte: letter for letter, byte in tutorial.gpt2_bytes().items()}
    pieces = {"".join(letters[byte] for byte in piece): rank for piece, rank in ranks.items()}
    if content["model"].get("vocab") != pieces:
        refuse(path, "is not the tokenizer of Llama 3", "take a model that has it")
    n_vocab = len(ranks) + len(tutorial.special)
    if vocab_size < n_vocab:
        refuse(path, f"makes {n_vocab} tokens, and config.json says {vocab_size}", DOWNLOAD_AGAIN)
    theirs = {token["id"]: token["content"] for token in content["added_tokens"]}
    if vocab_size > n_vocab:
        names = ", ".join(name for token, name in theirs.items() if token >= n_vocab)
        print(f"The rows of {vocab_size - n_vocab} added tokens are left out: {names or 'unnamed'}.", file=sys.stderr)
    others = [f"{token} is {name}, there {theirs[token]}" for token, name in enumerate(tutorial.special, len(ranks))
              if theirs.get(token, name) != name and "<|reserved_special_token_" not in theirs[token]]
    if others:
        print(f"Special tokens go by Meta's names here: {'; '.join(others)}.", file=sys.stderr)
    return n_vocab


def check(folder):
    """Say that the notebook can open `folder`, and how large the model is; exits with what is wrong if it cannot."""
    config, weights = load(folder)
    count = sum(weight.numel() for weight in weights.values())
    print(f"{folder} fits: {config['n_layers']} layers of width {config['dim']}, {config['n_heads']} query heads, "
          f"{config['n_kv_heads']} key heads, {config['vocab_size']} tokens, {count:,} numbers.")
    if config["use_scaled_rope"] and config["dim"] < 4096 and config["rope_scaling_factor"] == 8:
        print('If it is a Llama 3.2, add "rope_scaling_factor": 32 to its params.json.')


def first_layers(layers, weights, n_layers):
    """Those of the `weights` of a model of `n_layers` that one of the first `layers` needs; exits if it has fewer."""
    if not 1 <= layers <= n_layers:
        sys.exit(f"--layers {layers} is not possible; choose from 1 to {n_layers}.")
    return {name: weight for name, weight in weights.items()
            if not name.startswith("layers.") or int(name.split(".")[1]) < layers}


def cut_layers(folder, target, layers):
    """Write the first `layers` of `folder`, which is in Meta's layout, to `target`, bit for bit."""
    config, weights = load(folder)
    weights = first_layers(layers, weights, config["n_layers"])
    write_checkpoint(target, read_json(folder / PARAMS) | {"n_layers": layers}, folder / VOCABULARY, weights)


def convert(hf_folder, target, layers=None):
    """Write a folder in Hugging Face's layout to `target` in Meta's: all layers, or so many of the first.

    The rows of tokens that were added to Llama 3's are left out.
    """
    if (hf_folder / PTH).exists() or (hf_folder / "original" / PTH).exists():
        refuse(hf_folder, "holds Meta's layout already", f"open the folder in which {PTH} is")
    params, tied = params_of(hf_folder / "config.json")
    weights = weights_of(hf_folder, params, tied)
    if layers is not None:
        weights = first_layers(layers, weights, params["n_layers"])
        params["n_layers"] = layers
    n_vocab = kept_tokens(hf_folder / "tokenizer.json", params["vocab_size"])
    for name in ("tok_embeddings.weight", "output.weight"):
        rows = weights[name][:n_vocab]
        window = rows.untyped_storage()[:rows.nbytes]  # no copy, but without the rest, which would be written as well
        weights[name] = torch.empty(0, dtype=rows.dtype).set_(window, 0, rows.shape)
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    params["vocab_size"] = n_vocab
    write_checkpoint(target, params, tutorial.packaged, weights, params["dim"] // params["n_heads"])


def main():
    """The command line described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("folder", type=Path)
    for name in ("cut", "convert"):
        command = commands.add_parser(name)
        command.add_argument("source", metavar="SRC", type=Path)
        command.add_argument("target", metavar="DST", type=Path, help="the folder to write")
        command.add_argument("--layers", metavar="N", type=int, required=name == "cut", help="how many layers to keep")
    options = parser.parse_args()
    if options.command == "check":
        check(options.folder)
    else:
        write = cut_layers if options.command == "cut" else convert
        write(options.source, options.target, options.layers)


if __name__ == "__main__":
    main()
