"""Measure what the notebook costs, as ratios against something measured in the same run, and print a table.

    python tools/benchmark.py           about 5 minutes; a 2-layer file of 3 GB is made and removed

No figure here is a test: machines differ. The last column says what is aimed at.
"""
import argparse
import io
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import torch
from cells import execute, first_part, load_tutorial, read, smollm2_folder
from IPython.core.interactiveshell import InteractiveShell
from memory import memory_during

GB = 1e9


def print_row(what, measured, against, wanted):
    """Print one row of the table."""
    print(f"| {what} | {measured} | {against} | {wanted} |", flush=True)


def seconds(function, times=3):
    """The least of `times` durations of `function()`."""
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations)


def memory_of_first_part(folder):
    """What `memory_during` says of the first part on the checkpoint in `folder`; for a process that ends with it."""
    os.environ |= {"LLAMA3_CHECKPOINT": str(folder), "LLAMA3_DEVICE": "cpu", "MPLBACKEND": "agg"}
    shell = InteractiveShell.instance()

    def walk():
        for cell in first_part(read()).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source).raise_error()

    with redirect_stdout(io.StringIO()):
        return memory_during(walk)


def full_width():
    """Rows for two layers of the 8B's width, with every number stored: the first part's memory, `forward`'s time."""
    tutorial = load_tutorial()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "random-2layers"
        weights = {name: torch.randn(shape, dtype=torch.bfloat16).mul_(0.02).add_("norm" in name)
                   for name, shape in tutorial.expected_shapes(tutorial.two_layers).items()}
        tutorial.save_checkpoint(folder, tutorial.two_layers, weights)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as alone:
            before, peak = alone.submit(memory_of_first_part, folder).result()
        print_row("first part, 2 layers of full width, peak of anonymous memory", f"{peak / GB:.2f} GB",
                  f"{before / GB:.2f} GB are Python and PyTorch", "<= 0.5 GB")

        llama, tokens = tutorial.load_llama(folder), torch.arange(1000, 1017)
        matrices = [weight for name, weight in llama.weights.items()
                    if weight.ndim == 2 and name != "tok_embeddings.weight"]
        rows = {width: torch.ones(17, width, dtype=torch.bfloat16) for width in {w.shape[1] for w in matrices}}
        tutorial.forward(llama, tokens)
        forward = seconds(lambda: tutorial.forward(llama, tokens))
        products = seconds(lambda: [rows[weight.shape[1]] @ weight.T for weight in matrices])
        print_row("`forward`, 17 tokens, warm, 2 layers of full width", f"{forward:.2f} s",
                  f"{forward / products:.2f} times its bare matrix products", "<= 1.1")


def in_transformers(config):
    """A LlamaForCausalLM of the sizes in `config`, in bfloat16, with random weights, which are as fast as any."""
    from transformers import LlamaConfig, LlamaForCausalLM
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=config["dim"], intermediate_size=load_tutorial().ffn_width(config), vocab_size=config["vocab_size"],
        num_hidden_layers=config["n_layers"], num_attention_heads=config["n_heads"],
        num_key_value_heads=config["n_kv_heads"], rms_norm_eps=config["norm_eps"], rope_parameters=rope,
        max_position_embeddings=131072, bos_token_id=None, eos_token_id=None))
    return model.bfloat16().eval()


@torch.inference_mode()
def against_transformers():
    """Rows for SmolLM2 in bfloat16: reading a prompt, its memory, and one more token after it."""
    from transformers import DynamicCache
    tutorial = load_tutorial()
    llama = tutorial.load_llama(smollm2_folder())
    before, peak = memory_during(lambda: tutorial.generate(llama, list(range(1000, 5000)), 1))
    print_row("a prompt of 4,000 tokens, memory above the start", f"{(peak - before) / GB:.2f} GB", "", "<= 0.7 GB")

    theirs, one_more = in_transformers(llama.config), {}
    for length, speed_wanted, time_wanted in (16, ">= 1.0", ""), (2000, ">= 0.95", "<= 3.2"), (4000, ">= 0.95", "<= 4"):
        text, cache, past = torch.arange(1000, 1000 + length), {}, DynamicCache()
        ours = seconds(lambda: next(tutorial.continuation(llama, text.tolist(), 1, 0.0, 1.0, cache)), 1)
        other = seconds(lambda: theirs(text[None], past_key_values=past, logits_to_keep=1), 1)
        print_row(f"a prompt of {length:,} tokens", f"{ours:.1f} s", f"{ours / other:.1f} times transformers' time",
                  time_wanted)

        def one_of_theirs():
            theirs(text[None, -1:], past_key_values=past)
            past.crop(-1)

        # they take turns, so that a busy moment hits both
        turns = [(seconds(lambda: tutorial.forward(llama, text[-1:], dict(cache)), 1), seconds(one_of_theirs, 1))
                 for _ in range(15)]
        one_more[length], other = (statistics.median(turn) for turn in zip(*turns))
        print_row(f"one more token after {length:,}", f"{1000 * one_more[length]:.0f} ms",
                  f"{other / one_more[length]:.2f} of transformers' speed", speed_wanted)
    print_row("token after 2,000, with cache", "", f"{one_more[2000] / one_more[16]:.1f} times the token after 16",
              "flat")


def whole_notebook():
    """The row for the whole notebook, run in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        took = seconds(lambda: execute(read(), folder=scratch, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE="cpu"), 1)
    print_row("the whole notebook, alone in an empty folder", f"{took:.0f} s", "", "<= 50 s on 2 cores")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {isa}\n")
    print_row("what", "measured", "against", "wanted")
    print_row("---", "---", "---", "---")
    full_width()
    against_transformers()
    whole_notebook()
