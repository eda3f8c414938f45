"""Single faults, each put into one cell of a copy of the notebook, are caught by the notebook's own saved outputs.

One process runs the copy from the first cell to the last. At each cell that a fault stands in it forks: the child goes
on with the faulty cell, until what a cell shows is not what is saved. nbval collects the cells and compares; only its
kernel is replaced, by a shell inside the process that forks, so that what lies before a fault is run once for all.
"""
import json
import os
import subprocess
import sys

import nbformat
import pytest
from cells import ROOT, environment, functions, read
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

AT_ONCE = 2
UNCHANGED = "nothing is changed"
# these make the logits nan, and round() raises
RAISES = {"forward: mask hides the token itself", "forward: softmax over the heads"}
NEXT = "{(layer + 1) % config['n_layers']}"
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
     "index(max(union for union in unions if union < math.inf))"),
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
    ("mean square: a sum", "mean-square", ".mean(-1", ".sum(-1"),
    ("norm: no epsilon", "rms-norm", " + eps)", ")"),
    ("norm: epsilon outside the root", "rms-norm", "torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)",
     "1 / (y.pow(2).mean(-1, keepdim=True).sqrt() + eps)"),
    ("norm: in bfloat16", "rms-norm", "y = x.float()", "y = x"),
    ("norm: a sum", "rms-norm", ".mean(-1", ".sum(-1"),
    ("norm: over the tokens", "rms-norm", ".mean(-1", ".mean(0"),
    ("norm: mean taken away", "rms-norm", "y = x.float()", "y = x.float() - x.float().mean(-1, keepdim=True)"),
    ("norm: no weight", "rms-norm", ".to(x.dtype) * weight", ".to(x.dtype)"),
    ("walk: no weight of attention_norm", "attention-norm", 'load_tensor("layers.0.attention_norm.weight")', "1"),
    ("walk: ffn_norm for attention_norm", "attention-norm", "attention_norm", "ffn_norm"),
    ("walk: attention_norm of layer 1", "attention-norm", "layers.0", "layers.1"),

    # queries and RoPE
    ("walk: heads of wq interleaved", "unwrap", "view(n_heads, head_dim, dim)",
     "view(head_dim, n_heads, dim).transpose(0, 1)"),
    ("walk: wq transposed", "unwrap", 'wq.weight")', 'wq.weight").T.contiguous()'),
    ("walk: wq of layer 1", "unwrap", "layers.0", "layers.1"),
    ("walk: head 1 for head 0", "q", "wq_heads[0]", "wq_heads[1]"),
    ("walk: pairs of the two halves", "pairs", "view(seq, head_dim // 2, 2)",
     "view(seq, 2, head_dim // 2).transpose(1, 2)"),
    ("walk: theta of 10,000", "freqs", 'config["rope_theta"]', "10000"),
    ("walk: frequencies reversed", "freqs", "/ head_dim)", "/ head_dim).flip(0)"),
    ("walk: exponents over dim", "freqs", "/ head_dim)", "/ dim)"),
    ("walk: positions from 1", "angles", "torch.arange(seq)", "torch.arange(1, seq + 1)"),
    ("rotate: backwards", "rotate", "pairs * rotations", "pairs * rotations.conj()"),
    ("rotate: not at all", "rotate", "pairs * rotations", "pairs"),
    ("rotate: the two halves", "rotate", "    pairs = torch.view_as_complex(", HALVES),
    ("cos and sin: a sign", "cos-sin", "even * cos - odd * sin", "even * cos + odd * sin"),
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
    ("walk: keys not rotated", "k", "rotate(x @ wk[:head_dim].T, rotations)", "x @ wk[:head_dim].T"),
    ("walk: KV head 1 for 0", "k", "wk[:head_dim]", "wk[head_dim:2 * head_dim]"),
    ("walk: wk of layer 1", "k", "layers.0", "layers.1"),
    ("walk: scores not scaled", "scores", " / math.sqrt(head_dim)", ""),
    ("walk: scores over head_dim", "scores", "math.sqrt(head_dim)", "head_dim"),
    ("walk: queries not rotated", "scores", "q_rotated @", "q @"),
    ("walk: masked scores not scaled", "mask", " / math.sqrt(head_dim)", ""),
    ("walk: masked queries not rotated", "mask", "q_rotated @", "q @"),
    ("walk: no mask", "mask", " + mask", ""),
    ("walk: mask lets the next token through", "mask", "triu(1)", "triu(2)"),
    ("walk: mask hides the token itself", "mask", "triu(1)", "triu(0)"),
    ("walk: mask of the past", "mask", "triu(1)", "tril(-1)"),
    ("walk: mask not infinite", "mask", "-torch.inf", "-1.0"),
    ("walk: softmax over the queries", "softmax", "softmax(dim=-1)", "softmax(dim=0)"),
    ("walk: value of KV head 1", "v", "wv[:head_dim]", "wv[head_dim:2 * head_dim]"),
    ("walk: wk for wv", "v", "attention.wv", "attention.wk"),
    ("walk: weights transposed", "v", "weights @ v", "weights.T @ v"),

    # all heads, and the stream
    ("walk: keys of all heads not rotated", "kv", "rotate(k_heads, rotations[:, None])", "k_heads"),
    ("walk: values rotated", "kv", "v_heads = (x @ wv.T).view(seq, n_kv_heads, head_dim)",
     "v_heads = rotate((x @ wv.T).view(seq, n_kv_heads, head_dim), rotations[:, None])"),
    ("walk: KV head modulo", "heads", "k_heads[:, head // group], v_heads[:, head // group]",
     "k_heads[:, head % n_kv_heads], v_heads[:, head % n_kv_heads]"),
    ("walk: KV head of the values modulo", "heads", "v_heads[:, head // group]", "v_heads[:, head % n_kv_heads]"),
    ("walk: queries of all heads not rotated", "heads", "rotate(x @ wq_heads[head].T, rotations)",
     "x @ wq_heads[head].T"),
    ("walk: no mask for all heads", "heads", " + mask", ""),
    ("walk: heads in reverse", "heads", "torch.cat(outputs,", "torch.cat(outputs[::-1],"),
    ("walk: heads interleaved", "heads", "torch.cat(outputs, dim=-1)", "torch.stack(outputs, dim=-1).flatten(1)"),
    ("saving: keys alone", "saving", "return 2 * config", "return config"),
    ("walk: wo transposed", "residual", 'wo.weight").T', 'wo.weight")'),
    ("walk: wo of layer 1", "residual", "layers.0", "layers.1"),
    ("walk: stream from the normalized tensor", "residual", "h = token_embeddings +", "h = x +"),
    ("walk: no residual", "residual", "h = token_embeddings +", "h ="),

    # feed-forward
    ("walk: no ffn_norm", "gate", 'rms_norm(h, load_tensor("layers.0.ffn_norm.weight"), norm_eps)', "h"),
    ("walk: attention_norm for ffn_norm", "gate", "ffn_norm", "attention_norm"),
    ("walk: feed-forward before attention", "gate", "rms_norm(h,", "rms_norm(token_embeddings,"),
    ("walk: ReLU for SiLU", "gate", "F.silu(", "F.relu("),
    ("walk: GELU for SiLU", "gate", "F.silu(", "F.gelu("),
    ("walk: gate not bent", "gate", "F.silu(", "("),
    ("walk: w1 and w3 swapped", "gate", "list(gate.shape)",
     "gate, up = F.silu(up), before_gate\nlist(gate.shape)"),
    ("walk: output from the normalized tensor", "down", "out = h +", "out = x +"),
    ("walk: no residual around the feed-forward", "down", "out = h +", "out ="),
    ("walk: gate added", "down", "gate * up", "gate + up"),

    # the loop
    ("forward: attention added to the normalized tensor", "forward", "h = h + attention @", "h = x + attention @"),
    ("forward: feed-forward added to the normalized tensor", "forward", "h = h + (gate", "h = x + (gate"),
    ("forward: no residual around attention", "forward", "h = h + attention @", "h = attention @"),
    ("forward: no residual around the feed-forward", "forward", "h = h + (gate", "h = (gate"),
    ("forward: KV head of the keys modulo", "forward", "k.repeat_interleave(n_heads // n_kv_heads, dim=1)",
     "k.repeat(1, n_heads // n_kv_heads, 1)"),
    ("forward: KV head of the values modulo", "forward", "v.repeat_interleave(n_heads // n_kv_heads, dim=1)",
     "v.repeat(1, n_heads // n_kv_heads, 1)"),
    ("forward: no mask", "forward", " + mask", ""),
    ("forward: mask lets the next token through", "forward", "triu(start + 1)", "triu(start + 2)"),
    ("forward: mask hides the token itself", "forward", "triu(start + 1)", "triu(start)"),
    ("forward: softmax over the queries", "forward", "softmax(dim=-1)", "softmax(dim=1)"),
    ("forward: softmax over the heads", "forward", "softmax(dim=-1)", "softmax(dim=0)"),
    ("forward: queries not rotated", "forward", "rotate(q.view(seq, n_heads, head_dim), rotations)",
     "q.view(seq, n_heads, head_dim)"),
    ("forward: keys not rotated", "forward", "rotate(k.view(seq, n_kv_heads, head_dim), rotations)",
     "k.view(seq, n_kv_heads, head_dim)"),
    ("forward: values rotated", "forward", "v = v.view(seq, n_kv_heads, head_dim)",
     "v = rotate(v.view(seq, n_kv_heads, head_dim), rotations)"),
    ("forward: scores not scaled", "forward", " / math.sqrt(head_dim)", ""),
    ("forward: scores over the root of dim", "forward", "math.sqrt(head_dim)", 'math.sqrt(config["dim"])'),
    ("forward: no attention_norm", "forward", 'norm(h, f"layers.{layer}.attention_norm")', "h"),
    ("forward: no ffn_norm", "forward", 'norm(h, f"layers.{layer}.ffn_norm")', "h"),
    ("forward: ffn_norm for attention_norm", "forward", "{layer}.attention_norm", "{layer}.ffn_norm"),
    ("forward: attention_norm for ffn_norm", "forward", "{layer}.ffn_norm", "{layer}.attention_norm"),
    ("forward: no weights in the norms", "forward", "x, weight(name)", "x, 1"),
    ("forward: wq transposed", "forward", 'attention.wq").T', 'attention.wq")'),
    ("forward: wo transposed", "forward", 'attention.wo").T', 'attention.wo")'),
    ("forward: heads not moved back", "forward", "(weights @ v).transpose(0, 1)", "(weights @ v)"),
    ("forward: ReLU for SiLU", "forward", "F.silu(", "F.relu("),
    ("forward: GELU for SiLU", "forward", "F.silu(", "F.gelu("),
    ("forward: gate not bent", "forward", "F.silu(", "("),
    ("forward: w1 and w3 swapped", "forward", "h = h + (gate * up)",
     'gate, up = F.silu(up), x @ weight(f"layers.{layer}.feed_forward.w1").T\n        h = h + (gate * up)'),
    ("forward: no last norm", "forward", 'norm(h, "norm")', "h"),
    ("forward: embedding of the next row", "forward", "[tokens.cpu()]", "[tokens.cpu() + 1]"),
    ("forward: one layer left out", "forward", 'range(config["n_layers"])', 'range(max(1, config["n_layers"] - 1))'),
    ("forward: layers in reverse", "forward", 'range(config["n_layers"])', 'range(config["n_layers"])[::-1]'),
    *[(f"forward: the next layer's {name}", "forward", "{layer}." + name, NEXT + "." + name)
      for name in ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
                   "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")],

    # the next token
    ("logits: first row for the last", "logits", "final_embedding[-1]", "final_embedding[0]"),
    ("logits: embedding for output", "logits", "output.weight", "tok_embeddings.weight"),
    ("next token: sigmoid for softmax", "next-token", "logits.softmax(dim=-1)", "logits.sigmoid()"),
    ("best: first row for the last", "paris", "[-1]", "[0]"),
    ("lens: one layer less", "lens", "first_layers(smol, n)", "first_layers(smol, max(n - 1, 0))"),

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
    ("top-p: one token too few", "sample", "cumsum(dim=-1) - probs >", "cumsum(dim=-1) >"),
    ("top-p: one token too many", "sample", "cumsum(dim=-1) - probs >", "cumsum(dim=-1) - 2 * probs >"),
    ("top-p: not scaled up", "sample", "probs / probs.sum()", "probs"),
    ("temperature: ignored", "sample", "logits / temperature", "logits"),
    ("temperature: multiplied", "sample", "logits / temperature", "logits * temperature"),
    ("sample: rank for id", "sample-function", "ids[torch.multinomial(probs, 1)]", "torch.multinomial(probs, 1)"),
    ("sample: temperature ignored", "sample-function", "filtered(logits, temperature,", "filtered(logits, 1.0,"),
    ("sample: top-p ignored", "sample-function", "temperature, top_p)\n    return", "temperature, 1.0)\n    return"),
    ("continuation: goes on after the end of a turn", "continuation", ', "<|eot_id|>")', ",)"),
    ("continuation: one token more", "continuation", "range(max_new_tokens)", "range(max_new_tokens + 1)"),
    ("chat: one line break", "chat-prompt", r"<|end_header_id|>\n\n", r"<|end_header_id|>\n"),
    ("chat: turn not ended", "chat-prompt", '        ids += [tokenizer.encode_single_token("<|eot_id|>")]\n', ""),
    ("loss: not shifted", "loss-function", "tokens[1:]", "tokens[:-1]"),
    ("variants: one changes nothing", "variants", '"F.relu("', '"F.silu("'),
]


class Forks:
    """A pytest plugin: instead of running the cells that nbval collected, run them as told at the top of this file.

    Prints a line of JSON for each fault: its name, the id of the cell that caught it or null, and how.
    """

    def pytest_runtestloop(self, session):
        """Run every cell, and fork at the faults; the unchanged cells must show what is saved."""
        self.shell, running = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False})), 0
        for i, item in enumerate(session.items):
            for name, cell, old, new in FAULTS:
                if cell != item.cell.id:
                    continue
                if running == AT_ONCE:
                    running -= 1
                    os.wait()
                running += 1
                if os.fork() == 0:
                    self.child(session.items[i:], name, item.cell.source.replace(old, new))
            assert not self.difference(item, item.cell.source), item.cell.id
        while running:
            running -= 1
            os.wait()
        return True

    def child(self, items, name, source):
        """Run the first of `items` with `source`, the others as they are; print what comes of it; end the process."""
        caught = how = None
        for item in items:
            how = self.difference(item, source if item is items[0] else item.cell.source)
            if how:
                caught = item.cell.id
                break
        os.write(1, f"{json.dumps([name, caught, how])}\n".encode())
        os._exit(0)

    def difference(self, item, source):
        """Run `source` in place of nbval's `item`: None if nbval finds the saved output, else "output" or "error".

        Cells tagged `nbval-ignore-output` are left out: nothing rests on them.
        """
        if not item.options["check"]:
            return None
        with self.shell.display_trap, capture_output() as got:
            result = self.shell.run_cell(source)
        if not result.success:
            return "error"
        outputs = [{"output_type": "stream", "name": name, "text": text}
                   for name, text in (("stdout", got.stdout), ("stderr", got.stderr)) if text]
        outputs += [{"output_type": "display_data", "data": output.data, "metadata": {}} for output in got.outputs]
        same = item.compare_outputs([nbformat.from_dict(output) for output in outputs], item.cell.outputs)
        return None if same else "output"


@pytest.fixture(scope="module")
def caught(tmp_path_factory):
    """What became of each fault: a dictionary from its name to the cell that caught it, or None, and how."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    folder = tmp_path_factory.mktemp("mutants")
    functions().load_llama(ROOT / "SmolLM2-135M")
    (folder / "SmolLM2-135M").symlink_to(ROOT / "SmolLM2-135M")
    nbformat.write(read(), folder / "copy.ipynb")
    with environment(OMP_NUM_THREADS=1, MPLBACKEND="module://matplotlib_inline.backend_inline"):
        run = subprocess.run([sys.executable, __file__], cwd=folder, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    return {name: (cell, how) for name, cell, how in lines}


def test_each_fault_stands_once_in_its_cell():
    """The text that a fault takes out is there exactly once, so that the fault is the one meant."""
    sources = {cell.id: cell.source for cell in read().cells}
    assert not [name for name, cell, old, new in FAULTS if sources.get(cell, "").count(old) != 1]
    assert len({name for name, *_ in FAULTS}) == len(FAULTS)


def test_a_child_with_no_fault_finds_all_outputs(caught):
    """A forked process alone changes nothing: what is caught below is the fault."""
    assert caught[UNCHANGED] == (None, None)


def test_each_fault_is_caught_by_an_output(caught):
    """No fault passes, and none but RAISES is found by an error in place of another output."""
    assert len(caught) == len(FAULTS)
    wrong = {name: how for name, (cell, how) in caught.items() if how != ("error" if name in RAISES else "output")}
    assert wrong == {UNCHANGED: None}


if __name__ == "__main__":
    sys.exit(pytest.main(["--nbval", "--nbval-current-env", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:warnings",
                          "copy.ipynb"],
                         plugins=[Forks()]))
