"""Rewrite a Llama 3 in Hugging Face's layout into Meta's, the one that the notebook opens.

    python tests/convert_checkpoint.py Llama-3.2-1B-HF Llama-3.2-1B

SRC holds config.json, the weights (model.safetensors, or several files with model.safetensors.index.json) and
tokenizer.json, or Meta's tokenizer.model, beside them or in `original`. (Where `original` holds consolidated.00.pth as
well, open that folder: it is in Meta's layout already.) SRC is only read. DST appears when it is complete, or not at
all; `--layers N` keeps the first layers. Every number keeps its type and its bits; the rows of wq and wk alone change
places. Files are mapped, so the command needs 0.1 GB of memory beside Python and PyTorch, whatever the size of SRC,
and 0.2 GB for a moment to compare tokenizer.json; the new wq and wk wait in a folder beside DST until it is done
(1.3 GB for the 8B).
"""
import base64
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch
from cells import functions
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from truncate_checkpoint import arguments, check, layer_of, scratch, write

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
         "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
         "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
         "feed_forward.w3": "mlp.up_proj"}
TYPES = {torch.bfloat16, torch.float16, torch.float32}
FFN = [(1.3, 1024), (1.3, 4096), (1.5, 256), (1.0, 256)]  # ffn_dim_multiplier and multiple_of: 8B, 70B, 1B, 3B
SPECIAL = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006,
           "<|end_header_id|>": 128007, "<|eot_id|>": 128009}


def read_json(path):
    """The dict in the file `path`; exits if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        sys.exit(f"{path} is missing or cannot be read; SRC must be a Hugging Face folder, with all its files.")
    return content


def params_of(path):
    """The content of params.json, and whether the output is the embedding, from the config.json at `path`.

    Absent keys have the defaults of `LlamaConfig`. The settings of RoPE are read as transformers 4 spells them
    (`rope_theta`, `rope_scaling`) and as 5 does (`rope_parameters`). Exits if the model is not of Llama 3's form.
    """
    config = read_json(path)
    if config.get("quantization_config"):
        sys.exit(f"{path} says that the weights are quantized; take a copy in bfloat16, float16 or float32.")
    try:
        rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        form = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
                "attention_bias": False, "mlp_bias": False, "sliding_window": None, "head_dim": dim // n_heads,
                "partial_rotary_factor": 1}
        scaled = rope["rope_type"] != "default"
        if scaled:
            form |= {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4,
                     "original_max_position_embeddings": 8192}
        for key, value in form.items():
            have = (config | rope).get(key)
            if have not in (value, None):
                sys.exit(f"{path} has {have!r} as {key}, Llama 3 has {value!r}; take a model of Llama 3's form.")
        n_kv_heads = config.get("num_key_value_heads") or n_heads
        least = min(dim, n_heads, n_kv_heads, config["num_hidden_layers"], config["vocab_size"])
        if least < 1 or dim % (2 * n_heads) or n_heads % n_kv_heads:
            raise ValueError("its sizes do not fit together")
        params = {"dim": dim, "n_layers": config["num_hidden_layers"], "n_heads": n_heads,
                  "n_kv_heads": n_kv_heads, "vocab_size": config["vocab_size"],
                  **ffn_sizes(dim, config["intermediate_size"]), "norm_eps": config.get("rms_norm_eps", 1e-6),
                  "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
                  "use_scaled_rope": scaled, "max_seq_len": config.get("max_position_embeddings", 2048)}
        if scaled:
            params["rope_scaling_factor"] = rope["factor"]
        return params, config.get("tie_word_embeddings", False)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        sys.exit(f"{path} is no config.json of a Llama ({error!r}); download it again.")


def ffn_sizes(dim, width):
    """The `ffn_dim_multiplier` and `multiple_of` that give a model of width `dim` feed-forward networks of `width`.

    Those of one of Meta's models if they fit; in steps of 1 any width can be had.
    """
    for multiplier, step in [*FFN, ((width + 0.5) / int(8 * dim / 3), 1)]:
        sizes = {"ffn_dim_multiplier": multiplier, "multiple_of": step}
        if functions().ffn_width({"dim": dim, **sizes}) == width:
            return sizes


def tensors(source):
    """The tensors in the folder `source` by their names there, mapped; exits if a file is missing or broken."""
    files, promised = [SINGLE], {}
    if not (source / SINGLE).is_file():
        promised = read_json(source / INDEX).get("weight_map")
        if not isinstance(promised, dict) or {str} != {type(file) for file in promised.values()}:
            sys.exit(f"{source / INDEX} does not say which file holds which tensor; download it again.")
        files = sorted({*promised.values()})
    if absent := [file for file in files if not (source / file).is_file()]:
        sys.exit(f"{source} is not complete: {', '.join(absent)} missing; download what is missing.")
    found = {}
    for file in files:
        try:
            with safe_open(source / file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}
        except SafetensorError:
            sys.exit(f"{source / file} is cut off, or no safetensors file; download it again.")
    if lost := promised.keys() - found:
        sys.exit(f"{source / INDEX} names {min(lost)}, and no file holds it; download the whole folder again.")
    return found


def name_there(name):
    """The name in Hugging Face's files of what Meta calls `name`."""
    if layer_of(name) < 0:
        return f"{NAMES[name.removesuffix('.weight')]}.weight"
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def weights_of(source, params, tied):
    """The tensors in the folder `source` by Meta's names, mapped, each in the shape that `params` asks for.

    The rows of wq and wk are still in the order of transformers. `tied`: the output is the embedding. Exits if a tensor
    is absent, surplus, or of another shape or type.
    """
    found = {name: tensor for name, tensor in tensors(source).items() if not name.endswith(".rotary_emb.inv_freq")}
    if tied:
        found["lm_head.weight"] = found.get("model.embed_tokens.weight")
    weights = {}
    for name, shape in functions().expected_shapes(params).items():
        theirs = name_there(name)
        weights[name] = found.pop(theirs, None)
        have = "absent" if weights[name] is None else list(weights[name].shape)
        if have != list(shape):
            sys.exit(f"{source}: {theirs} is {have}, and by config.json it should be {list(shape)}; "
                     "download all files again, from one place.")
    if found:
        sys.exit(f"{source} holds {min(found)}, which Llama 3 has not; take a model of Llama 3's form.")
    types = {weight.dtype for weight in weights.values()}
    if len(types) > 1 or not types <= TYPES:
        sys.exit(f"{source} has tensors of type {', '.join(sorted(map(str, types)))}; "
                 "take a copy that is all bfloat16, all float16 or all float32.")
    return weights


def paired(weight, n_heads, path):
    """wq or wk, [n_heads * head_dim, dim], with the rows as neighbours that RoPE turns together; mapped from `path`.

    transformers has the partner of row i half a head further on (`rotate_half`), Meta in row i + 1. It is written a
    head at a time: larger pieces would leave gaps in the memory, of 0.2 GB for the 8B.
    """
    with open(path, "wb") as file:
        for head in weight.chunk(n_heads):
            rows = head.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
            file.write(rows.contiguous().view(torch.uint8).numpy())
    return torch.from_file(str(path), size=weight.numel(), dtype=weight.dtype).view(weight.shape)


def tokenizer_of(source, vocab_size):
    """The path of the tokenizer.model that belongs to the folder `source`.

    Its own, from `original` or from beside the weights; else Meta's, from the package llama-models, if tokenizer.json
    holds the same. Exits if there is neither.
    """
    for path in (source / "original" / "tokenizer.model", source / "tokenizer.model"):
        if path.is_file():
            lines = path.read_bytes().splitlines()
            if len(lines) + 256 != vocab_size or not all(re.fullmatch(rb"[\w+/]+=* \d+", line) for line in lines):
                sys.exit(f"{path} is no list of the {vocab_size - 256} tokens in base64 that config.json calls for; "
                         "take tokenizer.model from Meta's Llama 3.")
            return path
    path, package = source / "tokenizer.json", importlib.util.find_spec("llama_models")
    content = read_json(path)
    if not package:
        sys.exit(f"{source} has no tokenizer.model; put Llama 3's there, or run: pip install llama-models.")
    metas = Path(package.submodule_search_locations[0]) / "llama3" / "tokenizer.model"
    if vocab_size != 128256 or not same_tokenizer(content, metas.read_bytes()):
        sys.exit(f"{path} is not the tokenizer of Llama 3, which has 128256 tokens; take a model that has it.")
    return metas


def same_tokenizer(content, metas):
    """Whether a tokenizer.json of this `content` has the pieces, merges and special tokens of Meta's file, in bytes.

    A piece is text there, one character a byte: itself where it can be seen, else the next free one from 256 on
    (`bytes_to_unicode` of GPT-2). The merges are all the ways to put a piece together from two, in the order of ranks.
    """
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = sorted({*range(256)} - {*seen})
    byte = {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(unseen)}
    try:
        vocab = content["model"]["vocab"]
        pieces = {base64.b64encode(bytes(byte[c] for c in piece)): rank for piece, rank in vocab.items()}
        special = {token["content"]: token["id"] for token in content["added_tokens"]}
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
        merges = {(left, right): vocab[left + right] for left, right in merges}
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    same = pieces == {text: int(rank) for text, rank in map(bytes.split, metas.splitlines())}
    same = same and {*special.values()} == {*range(128000, 128256)} and SPECIAL.items() <= special.items()
    same = same and [*merges.values()] == sorted(merges.values())
    return same and merges.keys() == {(piece[:i], piece[i:]) for piece in vocab for i in range(1, len(piece))
                                      if piece[:i] in vocab and piece[i:] in vocab}


def main():
    """The command described at the top of this file."""
    options = arguments(__doc__, "a folder in Hugging Face's layout")
    params, tied = params_of(options.source / "config.json")
    if options.layers is None:
        options.layers = params["n_layers"]
    check(options, params["n_layers"])
    tokenizer = tokenizer_of(options.source, params["vocab_size"])
    weights = weights_of(options.source, params, tied)
    weights = {name: weight for name, weight in weights.items() if layer_of(name) < options.layers}
    with scratch(options.target) as folder:
        for name in tqdm([name for name in weights if name.endswith(("wq.weight", "wk.weight"))], "wq and wk"):
            heads = params["n_heads" if "wq" in name else "n_kv_heads"]
            weights[name] = paired(weights[name], heads, folder / name)
        write(folder, options.target, params | {"n_layers": options.layers}, tokenizer, weights)
        del weights  # Windows removes no file that is mapped


if __name__ == "__main__":
    main()
