"""Keep the first layers of a checkpoint in Meta's layout, byte for byte.

    python tests/truncate_checkpoint.py Meta-Llama-3-8B Meta-Llama-3-8B-2layers --layers 2

SRC is only read. DST appears when it is complete, or not at all. The file is mapped, so the command needs little
memory of its own, whatever the size of SRC.
"""
import argparse
import json
import pickle
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

FILES = ("params.json", "tokenizer.model", "consolidated.00.pth")


def layer_of(name):
    """The layer that the tensor `name` belongs to, or -1: `layers.3.ffn_norm.weight` is in 3, `norm.weight` in none."""
    return int(name.split(".")[1]) if name.startswith("layers.") else -1


def read(source):
    """The contents of params.json, the mapped tensors and the number of layers of the folder `source`.

    Exits if it is no such folder.
    """
    if absent := [name for name in FILES if not (source / name).is_file()]:
        sys.exit(f"{source} is no checkpoint in Meta's layout: {', '.join(absent)} missing.")
    if (source / "consolidated.01.pth").exists():
        sys.exit(f"{source} holds a model that is split over several files; only one in a single file can be cut.")
    try:
        params = dict(json.loads((source / "params.json").read_text(encoding="utf-8")))
        weights = torch.load(source / "consolidated.00.pth", mmap=True, weights_only=True, map_location="cpu")
        return params, weights, 1 + max(layer for layer in map(layer_of, weights) if layer >= 0)
    except (ValueError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError):
        sys.exit(f"{source} is no checkpoint in Meta's layout: params.json or consolidated.00.pth cannot be read.")


def trimmed(weights):
    """`weights` on storages that hold nothing else, since `torch.save` writes a tensor's whole storage.

    Tensors whose bytes overlap keep sharing one storage. Every storage is a window on the mapped file: no copies.
    """
    end, cut = 0, {}
    for name, weight in sorted(weights.items(), key=lambda item: item[1].data_ptr()):
        if weight.data_ptr() >= end:
            overlapping, begin = [], weight.data_ptr()
        overlapping.append(name)
        reach = 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride()))
        end = max(end, weight.data_ptr() + reach * weight.element_size())
        base = weight.untyped_storage().data_ptr()
        window = weight.untyped_storage()[begin - base:end - base]
        for other in overlapping:
            old = weights[other]
            offset = (old.data_ptr() - begin) // old.element_size()
            cut[other] = torch.empty(0, dtype=old.dtype).set_(window, offset, old.shape, old.stride())
    return {name: cut[name] for name in weights}


@contextmanager
def scratch(target):
    """A folder beside `target` for what is not complete yet; it goes in the end. Exits if the disk refuses to write."""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llama3-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{target} cannot be written ({error}); its parent folder must be there, with room on the disk.")


def write(folder, target, params, tokenizer, weights):
    """Write the three files of `target` in the `scratch` folder `folder`, with a progress bar, then rename them.

    `params` is the content of params.json, `tokenizer` the path of a tokenizer.model, `weights` maps names to tensors.
    """
    storages = [weight.untyped_storage() for weight in weights.values()]
    total = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    total += 400 * len(weights)  # what the archive around the tensors may add, so that the bar does not overflow
    new = folder / target.name
    new.mkdir()
    (new / "params.json").write_text(json.dumps(params), encoding="utf-8", newline="\n")
    shutil.copyfile(tokenizer, new / "tokenizer.model")
    with open(new / "consolidated.00.pth", "wb") as file:
        with tqdm.wrapattr(file, "write", total=total, desc=target.name) as watched:
            torch.save(weights, watched)
    new.rename(target)


def arguments(description, source, **layers):
    """The command line `SRC DST --layers N`; `source` says what SRC is, `layers` is more about the option."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", type=Path, help=source)
    parser.add_argument("target", metavar="DST", type=Path, help="the folder to write")
    parser.add_argument("--layers", metavar="N", type=int, help="how many layers to keep", **layers)
    return parser.parse_args()


def check(options, n_layers):
    """Exit if SRC, which has `n_layers` layers, cannot give as many as `options` ask for, or if DST is there."""
    if not 1 <= options.layers <= n_layers:
        sys.exit(f"--layers {options.layers}: {options.source} has {n_layers} layers, choose from 1 to {n_layers}.")
    if options.target.exists():
        sys.exit(f"{options.target} exists already; remove it or choose another name.")


def main():
    """The command described at the top of this file."""
    options = arguments(__doc__, "a folder in Meta's layout", required=True)
    params, weights, n_layers = read(options.source)
    check(options, n_layers)
    kept = trimmed({name: weight for name, weight in weights.items() if layer_of(name) < options.layers})
    with scratch(options.target) as folder:
        write(folder, options.target, params | {"n_layers": options.layers},
              options.source / "tokenizer.model", kept)


if __name__ == "__main__":
    main()
