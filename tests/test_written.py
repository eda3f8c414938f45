"""What the Llama written by hand can do, on texts of these tests' own and for five seeds; what its bytes are.

Five seeds run at a quarter of the width, the page's own seed also at the 8B's true shapes (LLAMA3_ALL=1: all seeds).
Weights are widened to float32, which changes no number and multiplies faster.
"""
import hashlib
import os
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from cells import functions

notebook = functions()
TRUE = notebook.llama3_8b | {"n_layers": 2}
NARROW = TRUE | {"dim": 1024, "n_heads": 8, "n_kv_heads": 2}
CASES = [(config, seed) for config in (NARROW, TRUE) for seed in range(42, 47)
         if config is NARROW or seed == 42 or os.environ.get("LLAMA3_ALL")]

QUESTION = "the answer to the ultimate question of life, the universe, and everything is "
NUMBERS = ["7", "13", "99", "365", "12"]
WORDS = [" blue", " love", " nothing", " music", " seven"]
PROSE = ["She opened the window, because the room had been shut all winter; then she went down to make tea.",
         "Photosynthesis turns light, water and carbon dioxide into sugar. Plants do it in their leaves.",
         "Wir gehen heute in den Wald und suchen Pilze, denn es hat gestern geregnet.",
         "def f(x):\n    return [x + y for y in range(10) if y % 2]"]


@lru_cache(maxsize=1)
def tokenizer():
    """Meta's tokenizer, from the package `llama-models`."""
    return notebook.load_tokenizer(notebook.files("llama_models") / "llama3" / "tokenizer.model")


def widened(weights):
    """`weights` in float32 and contiguous; tensors that are the same view stay one tensor."""
    made = {}
    for weight in weights.values():
        view = weight.data_ptr(), weight.shape, weight.stride()
        made[view] = made[view] if view in made else weight.float().contiguous()
    return {name: made[weight.data_ptr(), weight.shape, weight.stride()] for name, weight in weights.items()}


def written(config, seed):
    """The Llama that `seed` writes for `config`, in float32."""
    return notebook.in_memory(config, widened(notebook.write_by_hand(config, seed)))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]['dim']}-{case[1]}")
def case(request):
    """A config and the Llama that a seed writes for it, in float32; pytest runs the tests of each model together."""
    return request.param[0], written(*request.param)


def first_layers(llama, n):
    """The first `n` layers of `llama`, with its norm and output, as the page's `shallow`."""
    return notebook.in_memory(llama.config | {"n_layers": n}, llama.weights)


def ids(text):
    """The ids of `text` after <|begin_of_text|>, int64 [seq]."""
    return torch.tensor(notebook.encode(tokenizer(), text))


def say(llama, text):
    """The id that `llama` finds most probable after `text`, and its probability; other tokens' logits cost too much."""
    mute, cache = llama.weights | {"output.weight": torch.zeros(1, llama.config["dim"])}, {}
    notebook.forward(notebook.in_memory(llama.config, mute), ids(text)[:-1], cache)
    probability, token = notebook.forward(llama, ids(text)[-1:], cache)[-1].softmax(dim=-1).max(dim=-1)
    return token.item(), probability.item()


def test_it_remembers(case):
    """`42`, id 2983, with probability 0.8 or more (0.7 when narrow), with 2 layers and after layer 0."""
    config, llama = case
    for model in (llama, first_layers(llama, 1)):
        token, probability = say(model, QUESTION)
        assert token == 2983 and probability > (0.8 if config is TRUE else 0.7)


def test_it_says_what_it_was_told(case):
    """At least 9 of 10 other answers, numbers after the question's space and words without it; with one layer none."""
    (_, llama), right = case, {1: 0, 2: 0}
    for answer in NUMBERS + WORDS:
        question = QUESTION if answer in NUMBERS else QUESTION.strip()
        for n in right:
            token, _ = say(first_layers(llama, n), f"{question}{answer}. {question}")
            right[n] += tokenizer().decode([token]) == answer
    assert right[2] >= 9 and right[1] == 0


@pytest.mark.parametrize("n", [20, 60])
def test_it_continues_what_repeats(case, n):
    """`n` different tokens, given twice: 95 % of the next ones right (90 % narrow); with one layer at most 20 %."""
    some = 256 + torch.randperm(120_000, generator=torch.Generator().manual_seed(n))[:n]
    tokens, (config, llama) = torch.cat((torch.tensor([128000]), some, some)), case
    right = {}
    for layers in (1, 2):
        guesses = notebook.forward(first_layers(llama, layers), tokens)[n + 1:-1].argmax(dim=-1)
        right[layers] = (guesses == tokens[n + 2:]).float().mean().item()
    assert right[2] >= (0.95 if config is TRUE else 0.9) and right[1] <= 0.2


def test_heads_look_back(case):
    """Head h of layer 0 has most of its weight h + 1 tokens back in a text of 300; the stream then names that token.

    `before`, columns 2 mod 4 of the stream, holds every (n_heads)-th number of the previous token's `who`.
    """
    some = torch.randint(100_000, (299,), generator=torch.Generator().manual_seed(5))
    tokens, (config, llama) = torch.cat((torch.tensor([128000]), some)), case
    n_heads = config["n_heads"]
    small = SimpleNamespace(config=llama.config | {"n_layers": 1}, tokenizer=llama.tokenizer,
                            weights=llama.weights | {"output.weight": torch.zeros(1, config["dim"])})
    _, streams, looks = notebook.watch(small, tokens)
    for head in range(8):
        back = looks[0, head].diagonal(-head - 1)
        assert back.mean() > 0.5 and (back > 0.5).float().mean() > 0.95
    who = llama.weights["tok_embeddings.weight"][:, 0::n_heads]
    named = (streams[1][:, 2::n_heads] @ who.T).argmax(dim=-1)
    assert (named[2:] == tokens[1:-1]).float().mean() >= 0.95


def test_it_is_quiet_without_a_reason(case):
    """At tokens that are new to the text hardly ever a token above one half; layer 1 rests on the first token."""
    (_, llama), loud, places, rest = case, 0, 0, []
    for text in PROSE:
        tokens = ids(text)
        logits, _, looks = notebook.watch(llama, tokens)
        new = [i for i in range(1, len(tokens)) if tokens[i] not in tokens[:i]]
        loud += (logits.softmax(dim=-1).amax(dim=-1)[new] > 0.5).sum().item()
        places += len(new)
        rest.append(looks[1][:, new, 0].mean().item())
    assert loud <= places / 20 and min(rest) > 0.8


def test_32_layers_say_the_same():
    """The layers from the third on are all but silent: 42 as with two, and the told answer."""
    deep = notebook.llama3_8b | {key: NARROW[key] for key in ("dim", "n_heads", "n_kv_heads")}
    llama = notebook.in_memory(deep, widened(notebook.write_by_hand(deep)))
    token, probability = say(llama, QUESTION)
    assert token == 2983 and probability > 0.8
    assert tokenizer().decode([say(llama, f"{QUESTION}7. {QUESTION}")[0]]) == "7"


def test_any_token_can_be_the_answer_of_a_fact():
    """Written into neuron 43 of a copy; what it knew stays, the old model is as it was, every other fact too."""
    llama = written(NARROW, 42)
    before = {name: hashlib.sha256(llama.weights[name].numpy().tobytes()).hexdigest()
              for name in llama.weights if "layers.0.feed_forward" in name}
    for answer in (0, 41, 42, 2983, 127_999, 128_000, 128_009, 128_255):
        word = tokenizer().decode_single_token_bytes(answer) if answer < 128_000 else tokenizer().decode([answer])
        taught = notebook.teach(llama, 43, " name", " is", word)
        assert say(taught, "Hello, my name is") == (answer, pytest.approx(1, abs=0.3))
        assert say(taught, QUESTION)[0] == 2983 and say(llama, "Hello, my name is")[1] < 0.5
        for name, digest in before.items():
            old, new = llama.weights[name], taught.weights[name]
            assert hashlib.sha256(old.numpy().tobytes()).hexdigest() == digest
            assert (old != new).any(dim=1 if "w2" not in name else 0).nonzero().flatten().tolist() == [43]


@pytest.mark.parametrize("sizes", [
    {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512}, {"dim": 192, "n_heads": 6, "n_kv_heads": 2},
    {"dim": 576, "n_heads": 9, "n_kv_heads": 3}, {"dim": 1024, "n_heads": 8, "n_kv_heads": 8},
    {"dim": 1024, "n_heads": 16, "n_kv_heads": 1, "vocab_size": 300, "n_layers": 5}], ids=str)
def test_other_sizes_can_be_written(sizes):
    """Names, shapes and one type as `expected_shapes` has them; every number finite."""
    config = TRUE | {"multiple_of": 32} | sizes
    weights = notebook.write_by_hand(config)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == notebook.expected_shapes(config)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("sizes", [{"dim": 66, "n_heads": 1}, {"dim": 12, "n_heads": 4}, {"vocab_size": 256}], ids=str)
def test_what_cannot_be_written_is_refused(sizes):
    """One sentence, before any arithmetic."""
    with pytest.raises(ValueError, match="cannot be written by hand. .+[.]$"):
        notebook.write_by_hand(NARROW | {"n_kv_heads": 1} | sizes)


HASHES = {
    "tok_embeddings.weight": "d9103fd91527",
    "layers.0.attention_norm.weight": "bac19a0426a7",
    "layers.0.attention.wq.weight": "d4d7ab3f39af",
    "layers.0.attention.wk.weight": "60b88157a0fb",
    "layers.0.attention.wv.weight": "fde098c6168e",
    "layers.0.attention.wo.weight": "203009f2ab79",
    "layers.0.ffn_norm.weight": "a5f0aecddda7",
    "layers.0.feed_forward.w1.weight": "194fe0e94947",
    "layers.0.feed_forward.w2.weight": "824c8922fc71",
    "layers.0.feed_forward.w3.weight": "56d3781b3d0f",
    "layers.1.attention_norm.weight": "a7d5bb92fed8",
    "layers.1.attention.wq.weight": "e70ae7afd44e",
    "layers.1.attention.wk.weight": "6c26b58d5423",
    "layers.1.attention.wv.weight": "a0d598b6f397",
    "layers.1.attention.wo.weight": "a07248239462",
    "layers.1.ffn_norm.weight": "7159d1354d9b",
    "layers.1.feed_forward.w1.weight": "194fe0e94947",
    "layers.1.feed_forward.w2.weight": "824c8922fc71",
    "layers.1.feed_forward.w3.weight": "56d3781b3d0f",
    "norm.weight": "4b542f90fa1b",
    "output.weight": "8d422806d5a9",
}


def test_bytes():
    """The same on every processor: SHA-256 of what each tensor of the page's stand-in is a view of, and of the view."""
    assert fingerprints(notebook.write_by_hand(TRUE)) == HASHES


def fingerprints(weights):
    """For each tensor 12 hexadecimal digits that change with a number, the shape or the strides."""
    digits = {}
    for name, weight in weights.items():
        reach = 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride()))
        numbers = weight.as_strided((reach,), (1,)).contiguous().view(torch.int16).numpy().astype("<i2").tobytes()
        digits[name] = hashlib.sha256(numbers + repr((tuple(weight.shape), weight.stride())).encode()).hexdigest()[:12]
    return digits
