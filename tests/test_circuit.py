"""What section 13 claims of SmolLM2 holds on texts that the page does not show: three other seeds and lengths."""
import pytest
import torch
from notebook import functions, smollm2

notebook = functions()
PREVIOUS, INDUCTION = (16, 0), [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smol():
    """SmolLM2-135M in float32, under the name that the page's functions know it by."""
    small = notebook.load_llama(smollm2())
    weights = {name: weight.float() for name, weight in small.weights.items()}
    return notebook.in_memory(small.config, weights, small.tokenizer)


@pytest.fixture(scope="module", params=[(18, 101), (30, 102), (40, 103)], ids=str)
def texts(request, smol):
    """Three texts of n random tokens given twice, int64 [3, 2 * n + 1], and n."""
    n, seed = request.param
    begin = smol.tokenizer.encode_single_token("<|begin_of_text|>")
    return torch.stack([notebook.twice(begin, n, 1000, 20000, seed + 10 * i) for i in range(3)]), n


@torch.inference_mode()
def right(smol, texts, tap):
    """The share of the repeated tokens that `smol` with `tap` guesses right."""
    tokens, n = texts
    said = torch.stack([notebook.forward(smol, text, tap=tap)[n + 1:-1].argmax(dim=-1) for text in tokens])
    return (said == tokens[:, n + 2:]).float().mean().item()


def test_the_path_goes_through_the_keys(smol, texts):
    """What (16, 0) writes, hidden from the keys of layers 17 and 18, ends the copying; from queries or values, not."""
    whole = right(smol, texts, notebook.leave)
    assert whole > 0.4
    assert right(smol, texts, notebook.cut(smol, [PREVIOUS], "k", (17, 18))) < 0.1
    for writer, reader in ((PREVIOUS, "q"), (PREVIOUS, "v"), ((11, 1), "k")):
        assert right(smol, texts, notebook.cut(smol, [writer], reader, (17, 18))) > 0.6 * whole


def test_other_heads_may_go(smol, texts):
    """Without the induction heads, or (16, 0), little is copied; without as many others of the same layers, most is."""
    whole = right(smol, texts, notebook.leave)
    assert right(smol, texts, notebook.without(INDUCTION)) < 0.15
    assert right(smol, texts, notebook.without([PREVIOUS])) < 0.3
    others = [(17, 0), (17, 7), (17, 8), (18, 1), (18, 3)]
    assert right(smol, texts, notebook.without(others)) > 0.7 * whole


def test_heads_are_found_again(smol, texts):
    """The measures name the same previous-token head, and at least four of the five induction heads."""
    tokens, n = texts
    looks = torch.stack([notebook.watch(smol, text)[2] for text in tokens])
    assert notebook.best_heads(notebook.one_back(looks).mean(0), 1) == [PREVIOUS]
    assert len({*notebook.best_heads(notebook.copying(looks, n).mean(0), 5)} & {*INDUCTION}) >= 4


def test_the_weights_name_the_partner(smol, monkeypatch):
    """For each induction head, (16, 0) fits the keys best of the 153 earlier heads, by twice the next."""
    monkeypatch.setitem(notebook.fit.__globals__, "fine_weights", smol.weights)
    for reader in INDUCTION:
        fits = {divmod(i, 9): notebook.fit(reader, divmod(i, 9)) for i in range(153)}
        first, second = sorted(fits.values(), reverse=True)[:2]
        assert fits[PREVIOUS] == first > 2 * second
