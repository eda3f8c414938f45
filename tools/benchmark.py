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
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from cells import as_python, code_cells, execute, first_part, load_tutorial, read, register_source, smollm2_folder
from memory import memory_during

GB = 1e9


def print_row(what, measured, against, wanted):
    """Print one row of the table."""
    print(f"| {what} | {measured} | {against} | {wanted} |", flush=True)


def seconds(function):
    """How long `function()` takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run_first_part(folder):
    """Run the first part here, on the checkpoint in `folder`; what it shows is thrown away."""
    os.environ |= {"LLAMA3_CHECKPOINT": str(folder), "LLAMA3_DEVICE": "cpu"}
    plt.switch_backend("agg")
    plt.show = lambda: plt.close("all")                 # as Jupyter does
    names = {"__name__": "notebook"}
    with redirect_stdout(io.StringIO()):
        for cell in code_cells(first_part(read())):
            register_source(cell.id, as_python(cell))
            exec(compile(as_python(cell), cell.id, "exec"), names)


def full_width():
    """Rows for two layers of the 8B's width, with every number stored: `forward`'s time, the first part's memory."""
    tutorial = load_tutorial()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "random-2layers"
        weights = {name: torch.randn(shape, dtype=torch.bfloat16).mul_(0.02).add_("norm" in name)
                   for name, shape in tutorial.expected_shapes(tutorial.two_layers).items()}
        tutorial.save_checkpoint(folder, tutorial.two_layers, weights)
        del weights
        before, peak = memory_during(lambda: run_first_part(folder))
        print_row("first part, 2 layers of full width, memory above the start", f"{(peak - before) / GB:.2f} GB",
                  "", "<= 0.33 GB")

        llama, tokens = tutorial.load_llama(folder), torch.arange(1000, 1017)
        matrices = [weight for name, weight in llama.weights.items()
                    if weight.ndim == 2 and name != "tok_embeddings.weight"]
        rows = {width: torch.ones(17, width, dtype=torch.bfloat16) for width in {w.shape[1] for w in matrices}}
        tutorial.forward(llama, tokens)
        forward = min(seconds(lambda: tutorial.forward(llama, tokens)) for _ in range(3))
        products = min(seconds(lambda: [rows[weight.shape[1]] @ weight.T for weight in matrices]) for _ in range(3))
        print_row("`forward`, 17 tokens, warm, 2 layers of full width", f"{forward:.2f} s",
                  f"{forward / products:.2f} times its bare matrix products", "<= 1.1")


def in_transformers(config):
    """A LlamaForCausalLM of the sizes in `config`, in bfloat16, with random weights, which are as fast as any."""
    from transformers import LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=config["dim"], intermediate_size=load_tutorial().ffn_width(config), vocab_size=config["vocab_size"],
        num_hidden_layers=config["n_layers"], num_attention_heads=config["n_heads"],
        num_key_value_heads=config["n_kv_heads"], max_position_embeddings=131072, bos_token_id=None, eos_token_id=None))
    return model.bfloat16().eval()


@torch.inference_mode()
def against_transformers():
    """Rows for SmolLM2 in bfloat16: reading a prompt, its memory, and one more token after it."""
    from transformers import DynamicCache
    tutorial = load_tutorial()
    llama = tutorial.load_llama(smollm2_folder())
    before, peak = memory_during(lambda: tutorial.generate(llama, list(range(1000, 5000)), 1))
    print_row("a prompt of 4,000 tokens, memory above the start", f"{(peak - before) / GB:.2f} GB", "", "<= 0.7 GB")

    theirs = in_transformers(llama.config)
    for length, speed_wanted, time_wanted in (16, ">= 1.0", ""), (2000, ">= 0.95", "<= 3.2"), (4000, ">= 0.95", "<= 4"):
        text, cache, past = torch.arange(1000, 1000 + length), {}, DynamicCache()
        ours = seconds(lambda: next(tutorial.continuation(llama, text.tolist(), 1, 0.0, 1.0, cache)))
        other = seconds(lambda: theirs(text[None], past_key_values=past, logits_to_keep=1))
        print_row(f"a prompt of {length:,} tokens", f"{ours:.1f} s", f"{ours / other:.1f} times transformers' time",
                  time_wanted)

        def one_of_theirs():
            theirs(text[None, -1:], past_key_values=past)
            past.crop(-1)

        # they take turns, so that a busy moment hits both
        turns = [(seconds(lambda: tutorial.forward(llama, text[-1:], dict(cache))), seconds(one_of_theirs))
                 for _ in range(15)]
        ours, other = (statistics.median(turn) for turn in zip(*turns))
        print_row(f"one more token after {length:,}", f"{1000 * ours:.0f} ms",
                  f"{other / ours:.2f} of transformers' speed", speed_wanted)


def whole_notebook():
    """The row for the whole notebook, run in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        took = seconds(lambda: execute(read(), folder=scratch, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE="cpu"))
    print_row("the whole notebook, alone in an empty folder", f"{took:.0f} s", "", "<= 50 s on 2 cores")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {isa}\n")
    print("| what | measured | against | wanted |\n| --- | --- | --- | --- |")
    full_width()
    against_transformers()
    whole_notebook()
