"""The Llama to play with: writes its weights with the tutorial's own cells, and makes one page a language of it.

`html_of("en")` and `html_of("zh")` return HTML that needs nothing else.
"""
import html
import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from cells import new_tutorial

HERE = Path(__file__).parent
TEXTS = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": 32,
         "ffn_dim_multiplier": None, "norm_eps": 1e-5, "rope_theta": 500000.0}
DIGITS = 6


def tutorial_with_six_digits():
    """The functions of the tutorial, as a module of their own in which barcodes have 6 digits."""
    tutorial = new_tutorial()
    tutorial.DIGITS, tutorial.places = DIGITS, 2 ** torch.arange(DIGITS - 1, -1, -1)
    tutorial.WHO, tutorial.BEFORE, tutorial.NEXT = [slice(DIGITS * i, DIGITS * (i + 1)) for i in range(3)]
    tutorial.ONE, tutorial.FIRST, tutorial.REST = 3 * DIGITS, 3 * DIGITS + 1, -DIGITS - 2
    tutorial.begin_of = lambda config: 0
    return tutorial


def write_nearest(tutorial, weights, config):
    """Where several places match, let the nearest win: a turning pair takes off a little for every step back.

    The key's pair is the same for every token but the first, where the copying head rests; the query's is the key's,
    turned on by 18 positions, so that over 60 words the score falls at every step, and by no more than a vote counts.
    """
    wq, wk = [weights[f"layers.1.attention.{name}.weight"].unflatten(0, (heads, -1))
              for name, heads in (("wq", config["n_heads"]), ("wk", config["n_kv_heads"]))]
    key = torch.zeros(wk.shape[1])                      # [head_dim]
    key[4] = math.sqrt(15 * math.sqrt(len(key)))
    wq[-1, :, tutorial.ONE] += tutorial.rotate(key, tutorial.rope(config, 18, 19)[0])
    wk[-1, :, tutorial.ONE] += key
    wk[-1, :, tutorial.FIRST] -= key


def playable_llama(tutorial):
    """The small Llama, without a fact: bfloat16 values as float32 tensors. `tutorial` has barcodes of 6 digits."""
    config = tutorial.defaults | SIZES
    weights = tutorial.blank_weights(config)
    for part in ("embedding", "norms", "keys", "queries", "values", "home", "copier", "rest", "output"):
        getattr(tutorial, f"write_{part}")(weights, config)
    weights = {name: weight.float().contiguous() for name, weight in weights.items()}
    write_nearest(tutorial, weights, config)
    weights["layers.0.attention.wq.weight"] *= 2        # a head of 16 has fewer pairs to tell its neighbours apart by
    weights["output.weight"] *= 0.3                     # less sure of itself, so that the runners-up can be seen
    return SimpleNamespace(config=config, weights={name: weight.bfloat16().float() for name, weight in weights.items()})


def packed(llama):
    """`llama` as plain data: its sizes and, for every tensor, its shape and the numbers that are not zero."""
    weights = {}
    for name, weight in llama.weights.items():
        flat = weight.flatten()
        at = flat.nonzero().flatten()
        weights[name] = {"shape": list(weight.shape), "at": at.tolist(), "numbers": flat[at].tolist()}
    return {"config": llama.config, "weights": weights}


def vocabulary(language):
    """The words by number: the start of a text, which nobody can type, and 63 words in no order that means anything.

    The first of many orders in which 7 and 42, whose barcodes are added up, differ in two digits in both languages.
    """
    words = TEXTS[language]["words"].split()
    random.Random(105).shuffle(words)
    return ["", *words]


def marked(text):
    """`text` as HTML, *so* in italics."""
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", html.escape(text))


def html_of(language):
    """play.html in `language`, "en" or "zh"."""
    llama = playable_llama(tutorial_with_six_digits())
    texts = TEXTS[language]
    counts = {"weights": f"{sum(weight.numel() for weight in llama.weights.values()):,}",
              "filled": f"{sum(int(weight.count_nonzero()) for weight in llama.weights.values()):,}"}
    slots = {name: marked(text) for name, text in texts.items() if isinstance(text, str)}
    slots |= {f"{name}_{i}": marked(text) for name in ("own_words", "own_names", "parts_off")
              for i, text in enumerate(texts[name])}
    slots["about_text"] = slots["about_text"].format(**counts)
    data = {"llama": packed(llama), "words": vocabulary(language), "texts": texts}
    slots["data"] = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    for name, file in (("style", "style.css"), ("forward", "forward.js"), ("play", "play.js")):
        slots[name] = (HERE / file).read_text(encoding="utf-8")
    template = (HERE / "template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template)
