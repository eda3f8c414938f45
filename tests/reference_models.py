"""Small models with seeded weights, for the notebook's `forward` and for Meta's code."""
import math
from types import SimpleNamespace

import torch
from cells import functions
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer

page = functions()

WIDTH_256 = {
    "dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 1000, "multiple_of": 256,
    "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500000.0}
ONE_LAYER = WIDTH_256 | {"n_layers": 1, "n_heads": 32, "n_kv_heads": 8}
MODELS = {
    "grouped": WIDTH_256,
    "multi-head": WIDTH_256 | {"n_kv_heads": 8},
    "single KV head": WIDTH_256 | {"n_kv_heads": 1},
    "other sizes": WIDTH_256 | {"dim": 512, "n_heads": 4, "ffn_dim_multiplier": None, "multiple_of": 32,
                                "norm_eps": 1e-2, "rope_theta": 10000.0},
    "8B widths": ONE_LAYER | {"dim": 4096, "multiple_of": 1024},
    "3B widths": ONE_LAYER | {"dim": 3072, "n_heads": 24, "ffn_dim_multiplier": 1.0},
    "1B widths, output tied": ONE_LAYER | {"dim": 2048, "ffn_dim_multiplier": 1.5, "tied": True},
    "1B widths, output of its own": ONE_LAYER | {"dim": 2048, "ffn_dim_multiplier": 1.5},
}


def random_llama(params, dtype=torch.bfloat16):
    """A model as the notebook's `load_llama` returns it, with seeded normal weights; `tied`: output = embedding.

    Each weight is cut from one repeated row of numbers: a wide model would take seconds to draw.
    """
    config = page.defaults | {key: value for key, value in params.items() if key != "tied"}
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    weights = {}
    for name, shape in page.expected_shapes(config).items():
        mean, std = (1, 0.3) if len(shape) == 1 else (0, 1) if "embeddings" in name else (0, shape[1] ** -0.5)
        shift, size = len(weights), math.prod(shape)
        numbers = noise.roll(shift).repeat(1 + size // len(noise))[:size].view(shape)
        weights[name] = (numbers * std + mean).to(dtype)
    if params.get("tied"):
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return SimpleNamespace(config=config, weights=weights)


def meta_model(llama, params):
    """Meta's Transformer (llama3/model.py) with the very tensors of `llama`, sizes from `params` as in params.json.

    Raises RuntimeError where Meta's names or shapes are others.
    """
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Transformer(ModelArgs(**params | {"max_batch_size": 1, "max_seq_len": 700}))
    finally:
        torch.set_default_dtype(torch.float32)
    model.load_state_dict(llama.weights, assign=True)
    return model


def random_tokens(config, n):
    """Seeded token ids, int64 [n]."""
    return torch.randint(config["vocab_size"], (n,), generator=torch.Generator().manual_seed(1))
