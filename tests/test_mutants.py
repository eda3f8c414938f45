"""Single faults, each put into one cell of a copy of the notebook, are caught by the notebook's own saved outputs.

FAULTS are chosen; `mutants` makes many more from the cells' syntax trees. Every run has 60 of the latter, of cells
before `forward`, and runs the first part: nine in ten are seen. LLAMA3_FAULTS=1 adds 60 chosen and the second part.
LLAMA3_ALL=1 has all of the chosen, and 300 of the many, of which 95 % are seen, in up to an hour. Samples are drawn by
a hash of names, so that an edited cell changes only its own part.
"""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cells import environment, first_part, link, read, smollm2
from forks import Forks
from mutants import mutants

ALL = os.environ.get("LLAMA3_ALL") == "1"
CHOSEN = ALL or os.environ.get("LLAMA3_FAULTS") == "1"
UNCHANGED = "nothing is changed"
# these leave a row without any score, nothing to stack, or no cache: the next line raises
RAISES = {"walk: mask of the past", "edit: nothing is replaced", "edit: the page's own names win", "cache: not kept"}
NEXT = """f"layers.{(layer + 1) % config['n_layers']}.\""""
HALVES = """    real, imag = x.float().chunk(2, dim=-1)
    pairs = torch.complex(real, imag) * rotations
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)

def unused(x, rotations):
    pairs = torch.view_as_complex("""

# what the fault is, the id of its cell, the text to take out (once in the cell), the text to put in
FAULTS = [
    (UNCHANGED, "load-tensor", "def load_tensor", "def load_tensor"),

    # text
    ("ranks: one too high", "ranks", "int(rank)", "int(rank) + 1"),
    ("split: digits one by one", "split", r"\p{N}{1,3}", r"\p{N}"),
    ("split: no space before a word", "split", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+"),
    ("split: digits in one piece", "split", r"\p{N}{1,3}", r"\p{N}+"),
    ("bpe: merges the highest rank first", "bpe", "index(min(unions))",
     "index(max((union for union in unions if union < math.inf), default=math.inf))"),
    ("bpe: a piece of the vocabulary is merged too", "bpe", "if piece in ranks", "if False"),
    ("special tokens: another order", "special", '"<|eom_id|>", "<|eot_id|>"', '"<|eot_id|>", "<|eom_id|>"'),
    ("special tokens: headers swapped", "special", '"<|start_header_id|>", "<|end_header_id|>"',
     '"<|end_header_id|>", "<|start_header_id|>"'),
    ("special tokens: numbered from one too high", "tokenizer", "len(ranks) + i for", "len(ranks) + i + 1 for"),
    ("tokens: no begin token", "tokens", "return [begin] + ", "return "),
    ("tokens: a typed special token counts", "tokens", "disallowed_special=()", 'allowed_special="all"'),

    # embedding and norm; the walk and `forward` share the norm
    ("embedding: the next row", "embedding", "[tokens]", "[tokens + 1]"),
    ("embedding: the row before", "embedding", "[tokens]", "[tokens - 1]"),
    ("mean square: a sum", "rms-norm", "float().pow(2).mean(-1)[", "float().pow(2).sum(-1)["),
    ("norm: no epsilon", "rms-norm", " + eps)", ")"),
    ("norm: epsilon outside the root", "rms-norm", "torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)",
     "1 / (y.pow(2).mean(-1, keepdim=True).sqrt() + eps)"),
    ("norm: in bfloat16", "rms-norm", "y = x.float()", "y = x"),
    ("norm: a sum", "rms-norm", "y.pow(2).mean(-1", "y.pow(2).sum(-1"),
    ("norm: over the tokens", "rms-norm", "y.pow(2).mean(-1", "y.pow(2).mean(0"),
    ("norm: mean taken away", "rms-norm", "y = x.float()", "y = x.float() - x.float().mean(-1, keepdim=True)"),
    ("norm: no weight", "rms-norm", ".to(x.dtype) * weight", ".to(x.dtype)"),
    ("walk: no weight of attention_norm", "attention-norm", "token_embeddings, attention_norm", "token_embeddings, 1"),
    ("walk: ffn_norm for attention_norm", "attention-norm", "layers.0.attention_norm", "layers.0.ffn_norm"),
    ("walk: attention_norm of layer 1", "attention-norm", "layers.0", "layers.1"),

    # queries and RoPE
    ("walk: heads of wq interleaved", "q", "view(n_heads, head_dim, dim)",
     "view(head_dim, n_heads, dim).transpose(0, 1)"),
    ("walk: wq transposed", "load-tensor", 'wq.weight")', 'wq.weight").T.contiguous()'),
    ("walk: wq of layer 1", "load-tensor", "layers.0", "layers.1"),
    ("walk: head 1 for head 0", "q", "wq_heads[0]", "wq_heads[1]"),
    ("walk: theta of 10,000", "freqs", 'config["rope_theta"]', "10000"),
    ("walk: frequencies reversed", "freqs", "head_dim, 2)", "head_dim, 2).flip(0)"),
    ("walk: exponents over dim", "freqs", "/ head_dim", "/ dim"),
    ("walk: positions from 1", "freqs", "torch.arange(seq)", "torch.arange(1, seq + 1)"),
    ("rotate: backwards", "rotate", "pairs * rotations", "pairs * rotations.conj()"),
    ("rotate: not at all", "rotate", "pairs * rotations", "pairs"),
    ("rotate: the two halves", "rotate", "    pairs = torch.view_as_complex(", HALVES),
    ("rope: theta of 10,000", "rope", 'config["rope_theta"]', "10000"),
    ("rope: frequencies reversed", "rope", "/ head_dim)  #", "/ head_dim).flip(0)  #"),
    ("rope: scaling skipped", "rope", 'if config["use_scaled_rope"]', "if False"),
    ("rope: scaling always on", "rope", 'if config["use_scaled_rope"]', "if True"),
    ("rope: scaling factor fixed", "rope", 'config["rope_scaling_factor"]', "8"),
    ("rope: blend upside down", "rope", '(1 - keep) * freqs / config["rope_scaling_factor"] + keep * freqs',
     'keep * freqs / config["rope_scaling_factor"] + (1 - keep) * freqs'),
    ("rope: blend too wide", "rope", "(4 - 1)", "4"),
    ("rope: blend too early", "rope", "8192", "4096"),
    ("rope: no blend", "rope", "clamp(0, 1)", "clamp(0, 1).round()"),
    ("rope: always from position 0", "rope", "torch.arange(start, end)", "torch.arange(end - start)"),

    # keys, scores, values
    ("walk: queries not rotated", "stripes", "q_rotated @", "q @"),
    ("walk: keys not rotated", "stripes", "k_rotated.T", "k.T"),
    ("walk: scores with RoPE not scaled", "stripes", " / math.sqrt(head_dim)", ""),
    ("distance: one position for all", "distance", "rope(config, m, m + 3)", "rope(config, m, m + 1)"),
    ("walk: KV head 1 for 0", "k", "wk_heads[0]", "wk_heads[1]"),
    ("walk: wk of layer 1", "k", "layers.0", "layers.1"),
    ("walk: scores not scaled", "scores", "k.T / math.sqrt(head_dim)", "k.T"),
    ("walk: scores over head_dim", "scores", "k.T / math.sqrt(head_dim)", "k.T / head_dim"),
    ("walk: one score not scaled", "scores", "float()) / math.sqrt(head_dim)", "float())"),
    ("walk: masked scores not scaled", "mask", " / math.sqrt(head_dim)", ""),
    ("walk: masked queries not rotated", "mask", "rotate(q, rotations)", "q"),
    ("walk: masked keys not rotated", "mask", "rotate(k, rotations)", "k"),
    ("walk: no mask", "mask", " + mask", ""),
    ("walk: mask lets the next token through", "mask", "triu(1)", "triu(2)"),
    ("walk: mask hides the token itself", "mask", "triu(1)", "triu(0)"),
    ("walk: mask of the past", "mask", "triu(1)", "tril(-1)"),
    ("walk: mask not infinite", "mask", "-torch.inf", "-1.0"),
    ("walk: softmax over the queries", "weights", "softmax(dim=-1)", "softmax(dim=0)"),
    ("walk: value of KV head 1", "v", "wv_heads[0]", "wv_heads[1]"),
    ("walk: wk for wv", "v", "attention.wv", "attention.wk"),
    ("walk: weights transposed", "head-output", "weights @ v", "weights.T @ v"),

    # all heads, and the stream
    ("walk: keys of all heads not rotated", "attend", "rotate(x @ wk_heads[head // group].T, rotations)",
     "x @ wk_heads[head // group].T"),
    ("walk: values rotated", "attend", "x @ wv_heads[head // group].T",
     "rotate(x @ wv_heads[head // group].T, rotations)"),
    ("walk: KV head of the keys modulo", "attend", "wk_heads[head // group]", "wk_heads[head % n_kv_heads]"),
    ("walk: KV head of the values modulo", "attend", "wv_heads[head // group]", "wv_heads[head % n_kv_heads]"),
    ("walk: queries of all heads not rotated", "attend", "rotate(x @ wq_heads[head].T, rotations)",
     "x @ wq_heads[head].T"),
    ("walk: no mask for all heads", "attend", " + mask", ""),
    ("walk: heads in reverse", "residual", "in heads]", "in heads[::-1]]"),
    ("walk: heads interleaved", "residual", "torch.cat([output for _, output in heads], dim=-1)",
     "torch.stack([output for _, output in heads], dim=-1).flatten(1)"),
    ("saving: keys alone", "saving", "2 * 128 * 2", "128 * 2"),
    ("walk: wo transposed", "residual", 'wo.weight").T', 'wo.weight")'),
    ("walk: wo of layer 1", "residual", "layers.0", "layers.1"),
    ("walk: stream from the normalized tensor", "residual", "h = token_embeddings +", "h = x +"),
    ("walk: no residual", "residual", "h = token_embeddings +", "h ="),

    # feed-forward
    ("walk: no ffn_norm", "gate", 'rms_norm(h, load_tensor("layers.0.ffn_norm.weight"), norm_eps)', "h"),
    ("walk: attention_norm for ffn_norm", "gate", "layers.0.ffn_norm", "layers.0.attention_norm"),
    ("walk: feed-forward before attention", "gate", "rms_norm(h,", "rms_norm(token_embeddings,"),
    ("walk: ReLU for SiLU", "neurons", "F.silu(", "F.relu("),
    ("walk: GELU for SiLU", "neurons", "F.silu(", "F.gelu("),
    ("walk: gate not bent", "neurons", "F.silu(", "("),
    ("walk: w1 and w3 swapped", "neurons", "F.silu(gate_scores) * up", "F.silu(up) * gate_scores"),
    ("walk: gate added", "neurons", "(gate_scores) * up", "(gate_scores) + up"),
    ("walk: neuron 42 read against another register", "waits", "row[register::4]", "row[::4]"),
    ("walk: output from the normalized tensor", "down", "out = h +", "out = x_ffn +"),
    ("walk: no residual around the feed-forward", "down", "out = h +", "out ="),

    # the loop
    ("forward: attention added to the normalized tensor", "forward", "h = h + attention @", "h = x + attention @"),
    ("forward: feed-forward added to the normalized tensor", "forward", "h = h + (gate", "h = x + (gate"),
    ("forward: no residual around attention", "forward", "h = h + attention @", "h = attention @"),
    ("forward: no residual around the feed-forward", "forward", "h = h + (gate", "h = (gate"),
    ("forward: KV head of the keys modulo", "forward", "k.repeat_interleave(n_heads // n_kv_heads, dim=0)",
     "k.repeat(n_heads // n_kv_heads, 1, 1)"),
    ("forward: KV head of the values modulo", "forward", "v.repeat_interleave(n_heads // n_kv_heads, dim=0)",
     "v.repeat(n_heads // n_kv_heads, 1, 1)"),
    ("forward: no mask", "forward", " + mask", ""),
    ("forward: mask lets the next token through", "forward", "triu(start + 1)", "triu(start + 2)"),
    ("forward: mask hides the token itself", "forward", "triu(start + 1)", "triu(start)"),
    ("forward: softmax over the queries", "forward", "softmax(dim=-1)", "softmax(dim=1)"),
    ("forward: softmax over the heads", "forward", "softmax(dim=-1)", "softmax(dim=0)"),
    ("forward: queries not rotated", "forward", "rotate(q, rotations)", "q"),
    ("forward: keys not rotated", "forward", "rotate(k, rotations)", "k"),
    ("forward: values rotated", "forward", "rotate(k, rotations)", "rotate(k, rotations); v = rotate(v, rotations)"),
    ("forward: scores not scaled", "forward", " / math.sqrt(head_dim)", ""),
    ("forward: scores over the root of dim", "forward", "math.sqrt(head_dim)", 'math.sqrt(config["dim"])'),
    ("forward: no attention_norm", "forward", 'norm(h, block + "attention_norm")', "h"),
    ("forward: no ffn_norm", "forward", 'norm(h, block + "ffn_norm")', "h"),
    ("forward: ffn_norm for attention_norm", "forward", 'block + "attention_norm', 'block + "ffn_norm'),
    ("forward: attention_norm for ffn_norm", "forward", 'block + "ffn_norm', 'block + "attention_norm'),
    ("forward: no weights in the norms", "forward", "h, weight(name)", "h, 1"),
    ("forward: wq transposed", "forward", 'attention.wq").T', 'attention.wq")'),
    ("forward: wo transposed", "forward", 'attention.wo").T', 'attention.wo")'),
    ("forward: heads not moved back", "forward", "attention.transpose(0, 1)", "attention"),
    ("forward: ReLU for SiLU", "forward", "F.silu(", "F.relu("),
    ("forward: GELU for SiLU", "forward", "F.silu(", "F.gelu("),
    ("forward: gate not bent", "forward", "F.silu(", "("),
    ("forward: w1 and w3 swapped", "forward", "h = h + (gate * up)",
     'gate, up = F.silu(up), x @ weight(block + "feed_forward.w1").T\n        h = h + (gate * up)'),
    ("forward: no last norm", "forward", 'norm(h, "norm")', "h"),
    ("forward: embedding of the next row", "forward", "[tokens.cpu()]", "[tokens.cpu() + 1]"),
    ("forward: one layer left out", "forward", 'range(config["n_layers"])', 'range(max(1, config["n_layers"] - 1))'),
    ("forward: layers in reverse", "forward", 'range(config["n_layers"])', 'range(config["n_layers"])[::-1]'),
    *[(f"forward: the next layer's {name}", "forward", f'block + "{name}', f'{NEXT} + "{name}')
      for name in ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
                   "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")],

    # the next token
    ("logits: first row for the last", "logits", "final_embedding[-1]", "final_embedding[0]"),
    ("logits: embedding for output", "logits", "output.weight", "tok_embeddings.weight"),
    ("next token: sigmoid for softmax", "next-token", "logits.softmax(dim=-1)", "logits.sigmoid()"),

    # what is read off the stream
    ("before: who one column off", "before", "[:, 0::n_heads]", "[:, 1::n_heads]"),
    ("before: the register one column off", "before", "[:, 2::n_heads]", "[:, 3::n_heads]"),
    ("edit: nothing is replaced", "edit", "source.replace(old, new)", "source.replace(new, old)"),
    ("edit: the page's own names win", "edit", "globals() | extra", "extra | globals()"),
    ("watch: scores for weights", "watch", "looks.append(weights);", "looks.append(scores);"),
    ("watch: only what is normalized", "watch", "streams.append(h);", "streams.append(rms_norm(h, 1, 1e-5));"),
    ("watch: each layer's stream twice", "watch", "streams.append(h);",
     "streams.append(streams[-1] if len(streams) % 2 else h);"),
    ("lens: the first token", "lens-one", "streams[:, -1]", "streams[:, 0]"),
    ("lens: no norm", "lens-one", 'rms_norm(rows, load_tensor("norm.weight"), norm_eps)', "rows"),
    ("parts: who for next", "logit-parts", "output.weight", "tok_embeddings.weight"),
    ("parts: no factor of the last norm", "logit-parts", " * scale", ""),
    ("parts: the factor of the embedding", "logit-parts", "rows[-1].pow", "rows[0].pow"),
    ("parts: no weight of the last norm", "logit-parts", ' * llama.weights["norm.weight"].float()', ""),
    ("parts: sums for differences", "logit-parts", "rows[1:] - rows[:-1]", "rows[1:]"),
    ("parts: the first token", "logit-parts", "streams[:, -1]", "streams[:, 0]"),
    ("parts: attention and feed-forward exchanged", "lens-one",
     'f"layer {layer} attention", f"layer {layer} feed-forward"',
     'f"layer {layer} feed-forward", f"layer {layer} attention"'),
    ("one layer: two", "one-layer", '"n_layers": 1}', '"n_layers": 2}'),
    ("guess: the first row", "guess", "[-1]", "[0]"),
    ("twice: once", "measures", "once, once", "once"),
    ("one back: the token itself", "measures", "diagonal(-1, dim1", "diagonal(0, dim1"),
    ("copying: the present token's earlier place", "measures", "diagonal(2, dim1", "diagonal(1, dim1"),
    ("copying: one place late", "measures", "diagonal(2, dim1", "diagonal(3, dim1"),
    ("resting: on the second token", "look", "1:, 0]", "1:, 1]"),
    ("teach: who read from one", "teach", "0::4", "1::4"),
    ("teach: before read from next", "teach", "2::4", "3::4"),
    ("teach: answer written to before", "teach", "w2[3::4", "w2[2::4"),
    ("teach: before and who exchanged", "teach", "before, who, answer = [", "who, before, answer = ["),
    ("teach: numbers of another register", "teach", "[:, 3::4]", "[:, 2::4]"),
    ("teach: the shared tensors", "teach", ".clone()", ""),

    # the Llama written by hand
    ("written: another seed", "stand-in", "manual_seed(seed)", "manual_seed(seed + 1)"),
    ("written: the tooth of another head", "stand-in", "torch.arange(n_heads) == 0", "torch.arange(n_heads) == 1"),
    ("written: a tooth one column off", "stand-in", "step - register", "step - register - 1"),
    ("written: a fact's register one column off", "stand-in", "+ token) - register", "+ token) - register - 1"),
    ("written: the fact one neuron off", "stand-in", "374, 220, 2983, 42", "374, 220, 2983, 43"),
    ("written: the gate one neuron off", "stand-in", "waits_for(now - neuron,", "waits_for(now - neuron - 1,"),
    ("written: up one neuron off", "stand-in", "waits_for(before - neuron,", "waits_for(before - neuron - 1,"),
    ("written: another answer", "stand-in", "waits_for(answer - neuron,", "waits_for(answer - neuron + 1,"),
    ("written: gate and up exchanged", "stand-in", "0), w1, w2, w3]\n    second", "0), w3, w2, w1]\n    second"),
    ("written: the gate reads before", "stand-in", "(now - neuron, WHO,", "(now - neuron, BEFORE,"),
    ("written: layer 0 hides one", "stand-in", "registers(1, 1, 0, 0)", "registers(1, 0, 0, 0)"),
    ("written: layer 0 shows before", "stand-in", "registers(1, 1, 0, 0)", "registers(1, 1, 1, 0)"),
    ("written: heads look at themselves", "stand-in", "(head + 1) *", "head *"),
    ("written: heads look ahead", "stand-in", "-length * math.sin", "length * math.sin"),
    ("written: layer 1 asks for before", "stand-in", "read(asking, WHO, dim), read(eyes, BEFORE",
     "read(asking, BEFORE, dim), read(eyes, BEFORE"),
    ("written: layer 1 offers who", "stand-in", "read(eyes, BEFORE", "read(eyes, WHO"),
    ("written: layer 1 copies into before", "stand-in", "read(copies, NEXT", "read(copies, BEFORE"),
    ("written: head 0 shows in one", "stand-in", "read(shows, BEFORE", "read(shows, ONE"),
    ("written: the begin token speaks", "stand-in", " * ((place < 0) | (place >= dim // 4))", ""),
    ("written: nowhere to rest", "stand-in", "0.08 * (place >= 0)", "0 * text"),
    ("written: output read from before", "stand-in", "waits_for(0, NEXT", "waits_for(0, BEFORE"),

    # part two
    ("lens: after attention", "lens", "streams[::2, -1]", "streams[1::2, -1]"),

    # the cache
    ("cache: not appended to", "forward", "cache[layer] = k, v", "cache.setdefault(layer, (k, v))"),
    ("cache: not kept", "forward", "cache[layer] = k, v", "pass"),
    ("cache: new keys before old", "forward", "(cache[layer][0], k)", "(k, cache[layer][0])"),
    ("cache: a mask of several new tokens from 0", "forward", "triu(start + 1)", "triu(1 + start * (seq == 1))"),
    ("cache: positions from 0", "forward", "rope(config, start, start + seq)", "rope(config, 0, seq)"),
    ("cache: position off by one", "forward", "rope(config, start, start + seq)",
     "rope(config, max(start - 1, 0), max(start - 1, 0) + seq)"),
    ("cache: mask from 0", "forward", "triu(start + 1)", "triu(1)"),
    ("cache: keys for values", "forward", "cache[layer] = k, v", "cache[layer] = k, k"),

    # sampling and chat
    ("top-p: one token too few", "sample-function", "cumsum(dim=-1) - probs", "cumsum(dim=-1)"),
    ("top-p: one token too many", "sample-function", "cumsum(dim=-1) - probs", "cumsum(dim=-1) - 2 * probs"),
    ("temperature: ignored", "sample-function", "logits / temperature", "logits"),
    ("temperature: multiplied", "sample-function", "logits / temperature", "logits * temperature"),
    ("sample: rank for id", "sample-function", "ids[torch.multinomial(probs, 1)]", "torch.multinomial(probs, 1)"),
    ("sample: top-p ignored", "sample-function", "before > top_p", "before > 1"),
    ("continuation: goes on after the end of a turn", "continuation", ', "<|eot_id|>")', ",)"),
    ("continuation: one token more", "continuation", "range(max_new_tokens)", "range(max_new_tokens + 1)"),
    ("chat: one line break", "chat-prompt", "{role}<|end_header_id|>\\n\\n", "{role}<|end_header_id|>\\n"),
    ("chat: turn not ended", "chat-prompt", ' + marked("<|eot_id|>")', ""),
    ("loss: not shifted", "loss-function", "tokens[2:]", "tokens[1:-1]"),
    ("variants: one changes nothing", "variants", '"F.relu("', '"F.silu("'),
    ("found: nothing taken away", "without", "] = 0\"", "] *= 1\""),
    ("chat: the second turn forgets the end token", "two-turns", '"<|eot_id|>\\n"', '"\\n"'),
    ("grown: a copying head for one that looks back", "grown-heads", "one_back(looks)", "copying(looks, 20)"),
    ("grown: the first half is learned too", "repeat-loss", "[:, n + 1:-1]", "[:, 1:n]"),
    ("grown: one layer for two", "train-both", "grow(2)", "grow(1)"),
]


# systematic faults that change nothing that is computed, and why
UNCHANGING = {
    'tokenizer-lines: there = [name for name in names if Path(name)] + ["stand-in-2layers"]':
        "tests name the folder by LLAMA3_CHECKPOINT",
    "bpe: while len(parts) > 0:": "what merges into one piece stands in the vocabulary, and was found there before",
    'ffn-width: width = ((config["ffn_dim_multiplier"] or 1) * int(8 * config["dim"] / 3))':
        "less than one is cut off, and the width is rounded up to a multiple",
    'load-llama: if folder.name == "stand-in-2layers" or not folder.exists():':
        "here the folder has this name and is missing; another that is missing stands in test_mistakes.py",
    "float32: torch.tensor(256, dtype=torch.bfloat16) + 0": "bfloat16 loses the one, as the cell shows",
    "freqs: exponents = torch.arange(0, head_dim, 2) / head_dim": "integers divide into the same fractions",
    "freqs: angles = torch.outer(torch.arange(seq), freqs)": "outer makes floats of them",
    "mask: without rotations = rope(config, 0, seq)": "the same as before, for a checkpoint whose RoPE is not scaled",
    "before: for token, previous in zip(tokens[2:], named[2:].tolist()):": "tiktoken takes a tensor of one number too",
    'guess: word = llama.tokenizer.decode([chances.argmax()]) if chances.max() > 0.05 else "?"':
        "tiktoken takes a tensor of one number too",
    "distances: print([round(heads[head][0].diagonal(-head - 1).float().mean().item(), 1) "
    "for head in range(min(8, n_heads, seq + 1))])": "17 tokens and 32 heads, so it is 8 either way",
    "distances: print([round(heads[head][0].diagonal(-head - 1).float().mean().item(), 1) "
    "for head in range(min(8, n_heads, seq - 2))])": "17 tokens and 32 heads, so it is 8 either way",
    "logit-parts: [round(share) for share in shares.values()], "
    "round(sum(shares.values()) / logits[next_token].item(), 2)": "it is 1.00",
    "generate: text = utf8": "nothing is printed here; with stream=True test_reference.py compares the text",
    "repeat-loss: texts = torch.cat((torch.zeros(24, 1, dtype=torch.int64), once, once), dim=1)":
        "a copy is the same; the last exercise reverses it",
    "scaled: speeds = rope(defaults | llama3_8b, 1, 2)[-1].angle().cpu()": "it has one row",
}


def systematic(cells):
    """The sample of systematic faults: the name, the cell's id and its faulty source of each."""
    faults = [(name, cell.id, source) for cell in cells if cell.cell_type == "code"
              for name, source in mutants(cell).items()
              if ALL or name not in UNCHANGING and cell.id in early(cells)]
    return by_chance(faults)[:300 if ALL else 60]


def by_chance(faults):
    """`faults` in an order that depends on their names alone."""
    return sorted(faults, key=lambda fault: hashlib.sha256(fault[0].encode()).digest())


def early(cells):
    """The ids of the cells before `forward`: what is faulty there is seen without a pass through a model.

    But for `rope`, whose scaling shows in section 17."""
    ids = [cell.id for cell in cells]
    return set(ids[:ids.index("forward")]) - {"rope"}


def chosen(cells):
    """FAULTS in the same form, but for those whose cell is missing."""
    sources = {cell.id: cell.source for cell in cells}
    faults = [(name, cell, sources[cell].replace(old, new)) for name, cell, old, new in FAULTS if cell in sources]
    sample = by_chance(fault for fault in faults[1:] if fault[1] in early(cells))[:60 * CHOSEN]
    return faults if ALL else [faults[0], *sample]


@pytest.fixture(scope="module")
def caught(tmp_path_factory):
    """What became of each fault: a dictionary from its name to the cell that caught it, or None, and how."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    folder = tmp_path_factory.mktemp("mutants")
    link(folder / "SmolLM2-135M", smollm2())
    nbformat.write(read() if CHOSEN else first_part(read()), folder / "copy.ipynb")
    # the children write the stand-in where they are; a progress bar on a slow machine is no difference
    with environment(LLAMA3_CHECKPOINT="stand-in-2layers", OMP_NUM_THREADS=1, TQDM_DISABLE=1,
                     MPLBACKEND="module://matplotlib_inline.backend_inline"):
        run = subprocess.run([sys.executable, __file__], cwd=folder, encoding="utf-8", errors="replace",
                             capture_output=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    print(f"{len(lines)} faults, {sum(seconds for *_, seconds in lines):.0f} seconds of processor time")
    return {name: (cell, how) for name, cell, how, _ in lines}


def test_each_fault_stands_once_in_its_cell():
    """The text that a fault takes out is there exactly once, so that the fault is the one meant."""
    sources = {cell.id: cell.source for cell in read().cells}
    times = {name: sources[cell].count(old) if cell in sources else f"no cell {cell}" for name, cell, old, _ in FAULTS}
    assert len(times) == len(FAULTS)
    assert {name: found for name, found in times.items() if found != 1} == {}


def test_a_child_with_no_fault_finds_all_outputs(caught):
    """A forked process alone changes nothing: what is caught below is the fault."""
    assert caught[UNCHANGED] == (None, None)


@pytest.mark.skipif(not CHOSEN, reason="LLAMA3_FAULTS=1 runs a sample of the chosen faults, LLAMA3_ALL=1 all of them")
def test_chosen_faults_are_caught(caught):
    """None passes, and none but RAISES is found by an error in place of another output; nine in ten of a sample."""
    found = {name: caught.get(name, (None, "not run")) for name, *_ in chosen(read().cells) if name != UNCHANGED}
    passed = [name for name, (_, how) in found.items() if how in (None, "not run")]
    raised = [name for name, (_, how) in found.items() if how == "error" and name not in RAISES]
    assert len(passed) <= (0 if ALL else len(found) / 10), passed
    assert not ALL or raised == [], raised


def test_systematic_faults_are_caught(caught):
    """Of those that change what is computed nearly all; of those that change nothing (run by LLAMA3_ALL), none."""
    names = [name for name, *_ in systematic(read().cells)]
    changing = [name for name in names if name not in UNCHANGING]
    unseen = [name for name in changing if caught[name][1] is None]
    assert len(unseen) <= (0.05 if ALL else 0.1) * len(changing), "\n".join(unseen)
    assert [name for name in names if name in UNCHANGING and caught[name][1]] == []


def test_what_changes_nothing_is_a_systematic_fault():
    """Every name in UNCHANGING is still one that is made."""
    made = {name for cell in read().cells if cell.cell_type == "code" for name in mutants(cell)}
    assert UNCHANGING.keys() - made == set()


if __name__ == "__main__":
    cells = read(Path("copy.ipynb")).cells
    sys.exit(pytest.main(["--nbval", "--nbval-current-env", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:warnings",
                          "copy.ipynb"],
                         plugins=[Forks(chosen(cells) + systematic(cells))]))
