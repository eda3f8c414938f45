"""What the Llama written in barcodes can do, on texts of these tests' own and at several sizes; what its bytes are."""
import hashlib
from types import SimpleNamespace

import pytest
import torch
from cells import load_tutorial

tutorial = load_tutorial()
TOKENIZER = tutorial.load_tokenizer(tutorial.packaged)
REAL_SIZES = tutorial.defaults | tutorial.llama3_8b | {"n_layers": 2}
SIZES = {
    "an eighth, heads of 128": {"dim": 512, "n_heads": 4, "n_kv_heads": 1},
    "an eighth, other groups": {"dim": 512, "n_heads": 8, "n_kv_heads": 4},
    "a quarter": {"dim": 1024, "n_heads": 8, "n_kv_heads": 2},
    "32 layers": {"dim": 512, "n_heads": 4, "n_kv_heads": 2, "n_layers": 32},
    "the 8B's": {},
}
LARGE = "32 layers", "the 8B's"
SIXTEENTH = REAL_SIZES | {"dim": 256, "n_heads": 4, "n_kv_heads": 2}
ANSWERS = ["7", "13", "99", "365", "12", " blue", " love", " nothing", " music", " seven"]
TEXTS = ["She opened the window, because a room had been shut all winter; then went down to make tea.",
         "Photosynthesis turns light, water and carbon dioxide into sugar.", "Wir suchen heute im Wald nach Pilzen."]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
                                        for name in SIZES])
def llama(request):
    """A written Llama, its numbers side by side, so that it answers quickly; in float32, which changes none of them."""
    config = REAL_SIZES | SIZES[request.param]
    weights, blank_ones = {}, {}
    for name, weight in tutorial.write_by_hand(config).items():
        if weight.stride() != (0, 0):
            weights[name] = weight.float().contiguous()
        else:                                           # blank tables of one shape share their memory
            if weight.shape not in blank_ones:
                blank_ones[weight.shape] = weight.float().contiguous()
            weights[name] = blank_ones[weight.shape]
    return tutorial.in_memory(config, weights, TOKENIZER)


def first_layer(llama):
    """`llama` with layer 0 alone, and its norm and output."""
    return tutorial.in_memory(llama.config | {"n_layers": 1}, llama.weights, TOKENIZER)


def ids(text):
    """The ids of `text` after <|begin_of_text|>, int64 [seq]."""
    return torch.tensor(tutorial.encode(TOKENIZER, text))


def says(llama, tokens):
    """The id that `llama` finds most probable after `tokens`, and how probable; only the last logits are computed."""
    mute, cache = llama.weights | {"output.weight": llama.weights["output.weight"][:1]}, {}
    tutorial.forward(SimpleNamespace(config=llama.config, weights=mute), tokens[:-1], cache)
    chances = tutorial.forward(llama, tokens[-1:], cache)[-1].softmax(dim=-1)
    return chances.argmax().item(), chances.max().item()


def distinct_twice(n, seed):
    """The begin token, then `n` different ordinary tokens given twice, int64 [2 * n + 1]."""
    some = 256 + torch.randperm(120_000, generator=torch.Generator().manual_seed(seed))[:n]
    return torch.cat((torch.tensor([128000]), some, some))


def test_the_blank_one_says_nothing():
    """All tokens are equally likely."""
    llama = tutorial.in_memory(SIXTEENTH, tutorial.blank_weights(SIXTEENTH), TOKENIZER)
    assert torch.allclose(tutorial.forward(llama, ids("it is ")).softmax(dim=-1), torch.tensor(1 / 128256))


def test_it_remembers(llama):
    """42, id 2983, at least 0.9 sure, with all layers and with the first."""
    for model in (llama, first_layer(llama)):
        token, chance = says(model, ids(tutorial.prompt))
        assert token == 2983 and chance >= 0.9


def test_it_says_what_it_was_told(llama):
    """Ten other answers of ten, at least 0.9 sure; with one layer none."""
    for answer in ANSWERS:
        question = tutorial.prompt if answer.isdigit() else tutorial.prompt.strip()
        tokens = ids(f"{question}{answer}. {question}")
        token, chance = says(llama, tokens)
        assert TOKENIZER.decode([token]) == answer and chance >= 0.9
        assert TOKENIZER.decode([says(first_layer(llama), tokens)[0]]) != answer


@pytest.mark.parametrize("n", [20, 60])
def test_it_continues_what_repeats(llama, n):
    """Different tokens given twice: at least 99 % of the next ones right, with one layer none."""
    tokens = distinct_twice(n, seed=n)
    right = [(tutorial.forward(model, tokens)[n + 1:-1].argmax(dim=-1) == tokens[n + 2:]).float().mean().item()
             for model in (llama, first_layer(llama))]
    assert right[0] >= 0.99 and right[1] == 0


def test_heads_look_back_and_the_stream_says_who(llama):
    """In a text of 300 tokens head h looks h + 1 back, and before names the previous token, if that has a barcode."""
    tokens = distinct_twice(150, seed=3)[:300]
    mute = SimpleNamespace(config=llama.config | {"n_layers": 1},
                           weights=llama.weights | {"output.weight": torch.zeros(1, llama.config["dim"])})
    _, streams, looks = tutorial.watch(mute, tokens)
    for head in range(min(8, llama.config["n_heads"])):
        assert looks[0, head].diagonal(-head - 1).min() >= 0.9
    assert torch.equal(tutorial.read_barcode(streams[1][2:, tutorial.BEFORE]), tokens[1:-1])
    assert torch.equal(tutorial.read_barcode(streams[1][1:, tutorial.WHO]), tokens[1:])
    assert streams[1][0, :tutorial.NEXT.stop].abs().max() == 0 and streams[1][1, tutorial.BEFORE].abs().max() < 0.1


def test_it_is_silent_where_there_is_nothing_to_say(llama):
    """No token above 0.01, and layer 1's head rests on the first token, at every place of texts without repetition."""
    for text in TEXTS:
        tokens = ids(text)
        assert len(set(tokens.tolist())) == len(tokens)
        logits, _, looks = tutorial.watch(llama, tokens)
        assert logits.softmax(dim=-1).max() < 0.01
        assert looks[1, -1, :, 0].min() > 0.9


@pytest.mark.parametrize("answer", [0, 1, 65535, 65536, 127999, 128255])
def test_any_token_can_be_an_answer(answer):
    """A new fact is known at once, and the old ones still are."""
    llama = tutorial.in_memory(SIXTEENTH, tutorial.write_by_hand(SIXTEENTH), TOKENIZER)
    tutorial.write_fact(llama.weights, 43, 315, 9822, answer)
    assert says(llama, torch.tensor([128000, 315, 9822]))[0] == answer
    assert says(llama, ids(tutorial.prompt))[0] == 2983


def test_the_same_bytes_everywhere(tmp_path):
    """Nothing is random: the tables' numbers have one hash, and the 8B's file takes at most 50 MB."""
    numbers = hashlib.sha256()
    for weight in tutorial.write_by_hand(SIXTEENTH).values():
        numbers.update(weight[..., :64].contiguous().view(torch.int16).numpy().tobytes())
    assert numbers.hexdigest()[:16] == "b17ed6b0cbdbdb80"
    tutorial.write_stand_in(tmp_path / "written")
    assert (tmp_path / "written" / "consolidated.00.pth").stat().st_size <= 50e6


@pytest.mark.parametrize("wrong", [{"dim": 32}, {"n_heads": 16}, {"n_layers": 1}, {"vocab_size": 131073},
                                   {"vocab_size": 200}], ids=str)
def test_what_cannot_be_written_is_refused(wrong):
    """One sentence says what barcodes need."""
    with pytest.raises(ValueError, match="^Barcodes of 17 digits need two layers or more, a width of 64 or more"):
        tutorial.write_by_hand(SIXTEENTH | wrong)
