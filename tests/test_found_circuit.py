"""What sections 13 and 15 claim of SmolLM2 holds on texts it does not show: other seeds, lengths and countries."""
import pytest
import torch
from cells import load_tutorial

tutorial = load_tutorial()
PREVIOUS, INDUCTION = (16, 0), [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smol32(smol):
    """SmolLM2-135M in float32."""
    weights = {name: weight.float() for name, weight in smol.weights.items()}
    return tutorial.in_memory(smol.config, weights, smol.tokenizer)


@pytest.fixture(scope="module", params=[(18, 101), (30, 102), (40, 103)], ids=str)
def texts(request, smol32):
    """Three texts of n random tokens given twice, int64 [3, 2 * n + 1], and n."""
    n, seed = request.param
    begin = smol32.tokenizer.encode_single_token("<|begin_of_text|>")
    return torch.stack([tutorial.twice(begin, n, 1000, 20000, seed + 10 * i) for i in range(3)]), n


@torch.inference_mode()
def share_right(smol32, texts, tap, further=0):
    """The share of the repeated tokens that `smol32` with `tap` guesses right, or for which it names one `further`."""
    tokens, n = texts
    said = torch.stack([tutorial.forward(smol32, text, tap=tap)[n + 1:-1 - further].argmax(dim=-1) for text in tokens])
    return (said == tokens[:, n + 2 + further:]).float().mean().item()


def test_the_path_goes_through_the_keys(smol32, texts):
    """What (16, 0) writes, hidden from the keys of layers 17 and 18, ends the copying; from queries or values, not."""
    whole = share_right(smol32, texts, tutorial.leave)
    assert whole > 0.4
    assert share_right(smol32, texts, tutorial.cut(smol32, [PREVIOUS], "k", (17, 18))) < 0.1
    for writer, reader in ((PREVIOUS, "q"), (PREVIOUS, "v"), ((11, 1), "k")):
        assert share_right(smol32, texts, tutorial.cut(smol32, [writer], reader, (17, 18))) > 0.6 * whole


@torch.inference_mode()
def weights_on(smol32, texts, tap, further=0):
    """The weight of (17, 3) and of (18, 6), in the second copy, on what followed each token in the first; float32 [2].

    Or on what stands `further`.
    """
    tokens, n = texts
    weights = []
    for text in tokens:
        found = {}
        tutorial.forward(smol32, text, tap=tutorial.both(tap, tutorial.record(found)))
        looks = torch.stack([found["weights", 17][3], found["weights", 18][6]])
        weights.append(looks[:, n + 1:].diagonal(2 + further, 1, 2).mean(dim=-1))
    return torch.stack(weights).mean(dim=0)


def test_each_head_reads_for_itself(smol32, texts):
    """Hidden from one layer's keys, what (16, 0) writes is missed by that layer's head alone."""
    for layer, blind, sees in ((17, 0, 1), (18, 1, 0)):
        weights = weights_on(smol32, texts, tutorial.cut(smol32, [PREVIOUS], "k", (layer,)))
        assert weights[blind] < 0.1 and weights[sees] > 0.5


def test_notes_name_a_token(smol32, texts):
    """Notes that stand one place late lead a place too far, and with them some of what is said."""
    late = tutorial.cut(smol32, [PREVIOUS], "k", (17, 18), tutorial.one_late)
    assert weights_on(smol32, texts, late).max() < 0.2 and weights_on(smol32, texts, late, further=1).min() > 0.4
    assert share_right(smol32, texts, late, further=1) > 0.05 > share_right(smol32, texts, tutorial.leave, further=1)


def test_other_heads_may_go(smol32, texts):
    """Without the induction heads, or (16, 0), little is copied; without as many others of the same layers, most is."""
    whole = share_right(smol32, texts, tutorial.leave)
    assert share_right(smol32, texts, tutorial.without(INDUCTION)) < 0.15
    assert share_right(smol32, texts, tutorial.without([PREVIOUS])) < 0.3
    others = [(17, 0), (17, 7), (17, 8), (18, 1), (18, 3)]
    assert share_right(smol32, texts, tutorial.without(others)) > 0.7 * whole


def test_heads_are_found_again(smol32, texts):
    """The measures name the same previous-token head, and at least four of the five induction heads."""
    tokens, n = texts
    looks = torch.stack([tutorial.watch(smol32, text)[2] for text in tokens])
    assert tutorial.best_heads(tutorial.one_back(looks).mean(0), 1) == [PREVIOUS]
    assert len({*tutorial.best_heads(tutorial.what_followed(looks, n).mean(0), 5)} & {*INDUCTION}) >= 4
