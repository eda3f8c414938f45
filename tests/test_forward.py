"""What `forward` computes is what Meta's `llama_models` computes: the same bits on the CPU."""
import contextlib
import io
import math
from types import SimpleNamespace

import fairscale.nn.model_parallel.initialize as model_parallel
import pytest
import torch
import torch.distributed
from cells import load_tutorial
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer, precompute_freqs_cis
from torch._subclasses import FakeTensorMode

tutorial = load_tutorial()

WIDTH_256 = {
    "dim": 256, "n_layers": 3, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 1000, "multiple_of": 256,
    "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500000.0}
ONE_LAYER = WIDTH_256 | {"n_layers": 1, "n_heads": 32, "n_kv_heads": 8}
MODELS = {
    "grouped": WIDTH_256,
    "multi-head": WIDTH_256 | {"n_kv_heads": 8},
    "single KV head": WIDTH_256 | {"n_kv_heads": 1},
    "scaled RoPE": WIDTH_256 | {"use_scaled_rope": True},
    "few sizes given": {key: WIDTH_256[key] for key in ("dim", "n_layers", "n_heads", "vocab_size")},
    "other sizes": WIDTH_256 | {"dim": 512, "n_heads": 4, "ffn_dim_multiplier": None, "multiple_of": 32,
                                "norm_eps": 1e-2, "rope_theta": 10000.0},
    "8B widths": ONE_LAYER | {"dim": 4096, "multiple_of": 1024},
    "1B widths": ONE_LAYER | {"dim": 2048, "ffn_dim_multiplier": 1.5}}


def random_llama(params, dtype=torch.bfloat16):
    """A model as the notebook's `load_llama` returns it, with seeded normal weights.

    Each weight is cut from one repeated row of numbers: a wide model would take seconds to draw.
    """
    config = tutorial.defaults | {"n_kv_heads": params["n_heads"]} | params
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    weights = {}
    for name, shape in tutorial.expected_shapes(config).items():
        mean, std = (1, 0.3) if len(shape) == 1 else (0, 1) if "embeddings" in name else (0, shape[1] ** -0.5)
        shift, size = len(weights), math.prod(shape)
        numbers = noise.roll(shift).repeat(1 + size // len(noise))[:size].view(shape)
        weights[name] = (numbers * std + mean).to(dtype)
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


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Meta's layers ask fairscale how many processes share them: one, which needs no port."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with contextlib.redirect_stdout(io.StringIO()):
        model_parallel.initialize_model_parallel(1)
    yield
    model_parallel.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def agree_in_steps(llama, model, tokens, lengths):
    """Whether both give the same bits for `tokens` fed in chunks of `lengths`, each with its own cache."""
    cache, start, same = {}, 0, []
    for chunk in tokens.split(lengths):
        same.append(torch.equal(tutorial.forward(llama, chunk, cache), model(chunk[None], start)[0]))
        start += len(chunk)
    return all(same)


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_metas(name):
    """Prefill, one token, decoding with the cache, prompts in chunks: the same bits for every kind of model."""
    llama = random_llama(MODELS[name])
    model = meta_model(llama, MODELS[name])
    for lengths in [[17], [1], [17] + 6 * [1], [11, 6], [1, 5, 11]]:
        assert agree_in_steps(llama, model, random_tokens(llama.config, sum(lengths)), lengths), lengths
    if llama.config["dim"] == 256:                      # in pieces of 256, as `generate` sends it
        assert agree_in_steps(llama, model, random_tokens(llama.config, 600), [256, 256, 88])


def test_the_written_model_is_metas():
    """The Llama written in barcodes, told 7: the same bits for the whole text and token by token."""
    config, tokenizer = tutorial.narrow, tutorial.load_tokenizer(tutorial.packaged)
    llama = tutorial.in_memory(config, tutorial.write_by_hand(config), tokenizer)
    tokens = torch.tensor(tutorial.encode(tokenizer, tutorial.hint))
    for lengths in [[len(tokens)], len(tokens) * [1]]:
        assert agree_in_steps(llama, meta_model(llama, config), tokens, lengths), lengths


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("head_dim, theta", [(128, 500000.0), (64, 500000.0), (64, 100000.0), (128, 10000.0)])
def test_rotations_are_metas(head_dim, theta, scaled):
    """The rotations of all of Llama 3.1's 131,072 positions; a start in the middle gives the same ones."""
    config = {"dim": 4 * head_dim, "n_heads": 4, "rope_theta": theta, "use_scaled_rope": scaled,
              "rope_scaling_factor": 8}
    reference = precompute_freqs_cis(head_dim, 131072, theta, scaled)
    assert torch.equal(tutorial.rope(config, 0, 131072), reference)
    assert torch.equal(tutorial.rope(config, 100000, 100017), reference[100000:100017])


@pytest.mark.slow
def test_smollm2_is_metas(smol):
    """A trained model of 30 layers: a sentence, then 8 greedy tokens with the cache, the same bits."""
    model = meta_model(smol, smol.config)
    new, start, cache = tutorial.encode(smol.tokenizer, "The lighthouse keeper told me that the sea is"), 0, {}
    for _ in range(9):
        ours = tutorial.forward(smol, torch.tensor(new), cache)
        assert torch.equal(ours, model(torch.tensor([new]), start)[0])
        start, new = start + len(new), [ours[-1].argmax().item()]


def test_no_step_mixes_devices(monkeypatch):
    """With the weights on the CPU and `device` an accelerator, no step takes tensors of both; logits are on the CPU."""
    monkeypatch.setattr(tutorial, "device", torch.device("cuda:0"))
    with FakeTensorMode():
        shapes = tutorial.expected_shapes(WIDTH_256).items()
        weights = {name: torch.zeros(shape).bfloat16() for name, shape in shapes}
        llama, cache = SimpleNamespace(weights=weights, config=tutorial.defaults | WIDTH_256), {}
        assert tutorial.forward(llama, torch.tensor([1, 2, 3]), cache).device.type == "cpu"
        assert tutorial.forward(llama, torch.tensor([4]), cache).device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            tutorial.rms_norm(weights["norm.weight"], weights["norm.weight"].to("cuda:0"), 1e-5)
