"""Measure what the notebook costs, as ratios against something measured in the same run, and print a table.

    python tools/benchmark.py           about 5 minutes; a contiguous 2-layer file of 3 GB is made and removed
    python tools/benchmark.py --full    also a 32-layer file of 16 GB, and a run of it under a 4 GB memory limit

No figure here is a test: machines differ. The last column says what is aimed at.
"""
import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from notebook import ROOT, first_part, functions, read, run, smollm2, source
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(ROOT / "tests"))
from machine import anonymous_memory  # noqa: E402
from models import in_transformers  # noqa: E402

GB = 1e9


def write_contiguous(folder, config):
    """Write a Meta-layout checkpoint with every weight stored in full, in the memory of one block of 64 MB.

    The file is laid out first, without its bytes; then each tensor is mapped and filled with random bfloat16.
    """
    functions().write_stand_in(folder, config)
    path = folder / "consolidated.00.pth"
    with FakeTensorMode():
        weights = {name: torch.empty(shape, dtype=torch.bfloat16)
                   for name, shape in functions().expected_shapes(config).items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(weights, path)
    block = torch.randn(2**25, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        for name, weight in torch.load(path, mmap=True).items():
            for part in weight.view(-1).split(len(block)):
                part.copy_(block[:len(part)] + ("norm" in name))


@contextmanager
def memory_watched():
    """A list whose one entry is the most anonymous memory, in bytes, that this process had while this is active."""
    peak, done = [anonymous_memory()], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_memory())

    threading.Thread(target=watch, daemon=True).start()
    yield peak
    done.set()


def walk(folder):
    """Run the first part's code on the checkpoint `folder`; print its peak of anonymous memory, and more, as JSON."""
    os.environ.update(LLAMA3_CHECKPOINT=str(folder), LLAMA3_DEVICE="cpu", MPLBACKEND="agg")
    names, start = {}, time.perf_counter()
    with memory_watched() as peak:
        for cell in first_part(read()).cells:
            if cell.cell_type == "code":
                if "def load_tensor" in cell.source:
                    base = anonymous_memory()
                exec(compile(source(cell), cell.id, "exec"), names)
    result = {"peak": peak[0], "imports": base, "seconds": time.perf_counter() - start, "token": names["next_token"]}
    print("RESULT" + json.dumps(result))


def walked(folder, limit=None):
    """The result of `walk(folder)` in a process of its own, under `limit` bytes of memory (page cache counts) if given.

    Raises subprocess.CalledProcessError when the process is killed or fails.
    """
    command = [sys.executable, __file__, "--walk", str(folder)]
    if limit:
        v1 = Path("/sys/fs/cgroup/memory")
        group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / "llama3_benchmark"
        group.mkdir(exist_ok=True)
        (group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")).write_bytes(b"%d" % limit)
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    output = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    return json.loads(output.split("RESULT")[1])


def read_all(weights):
    """Read every byte of the mapped `weights` once, with the one operation that does no more than that."""
    for weight in weights.values():
        weight.view(-1).view(torch.int16).max()


def seconds(function, times=3):
    """The least of `times` durations of `function()`."""
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations)


def forward_and_floors(folder):
    """Seconds for the checkpoint `folder`: a warm forward over 17 tokens, reading every tensor once, the bare products.

    Whichever of the last two is slower on a machine, memory or arithmetic, is the floor of the first.
    """
    llama, tokens = functions().load_llama(folder), torch.arange(1000, 1017)
    used = {name: weight for name, weight in llama.weights.items() if name != "tok_embeddings.weight"}
    rows = {width: torch.ones(17, width, dtype=torch.bfloat16) for width in {w.shape[-1] for w in used.values()}}
    functions().forward(llama, tokens)
    return (seconds(lambda: functions().forward(llama, tokens)), seconds(lambda: read_all(used)),
            seconds(lambda: [rows[weight.shape[1]] @ weight.T for weight in used.values() if weight.ndim == 2]))


def in_turn(ours, theirs, rounds):
    """Median seconds of `ours()` and of `theirs()`, which take turns, so that a busy moment hits both."""
    turns = [(seconds(ours, 1), seconds(theirs, 1)) for _ in range(rounds)]
    return [statistics.median(turn) for turn in zip(*turns)]


@torch.inference_mode()
def against_transformers(length):
    """Rows for a text of `length` tokens on SmolLM2 in bfloat16: reading the text, and one more token."""
    page, llama = functions(), functions().load_llama(smollm2())
    text = torch.arange(1000, 1000 + length)
    if length > 1000:
        base = anonymous_memory()
        with memory_watched() as peak:
            ours = seconds(lambda: list(page.continuation(llama, text.tolist(), 1, 0.0, 1.0)), 1)
    theirs = in_transformers(llama)
    if length > 1000:
        other = seconds(lambda: theirs(text[None], use_cache=True, logits_to_keep=1), 1)
        report(f"a prompt of {length:,} tokens", f"{ours:.1f} s", f"{ours / other:.1f} times transformers' time",
               "<= 3.2" if length < 3000 else "<= 4")
        report("its memory at the peak, above the start", f"{(peak[0] - base) / GB:.2f} GB", "", "<= 0.7 GB")
    cache = {}
    for piece in text.split(256):
        page.forward(llama, piece, cache)
    past = theirs(text[None], use_cache=True, logits_to_keep=1).past_key_values

    def one_of_ours():
        page.forward(llama, text[-1:], dict(cache))

    def one_of_theirs():
        theirs(text[None, -1:], past_key_values=past, use_cache=True)
        past.crop(-1)

    ours, other = in_turn(one_of_ours, one_of_theirs, 15)
    report(f"one more token after {length:,}", f"{1000 * ours:.0f} ms", f"{other / ours:.2f} of transformers' speed",
           ">= 1.0" if length < 100 else ">= 0.95")


def one_more(length, cached):
    """Seconds of one more token on SmolLM2 after `length` tokens."""
    llama, cache, text = functions().load_llama(smollm2()), {}, torch.arange(1000, 1001 + length)
    functions().forward(llama, text[:-1], cache)
    return seconds(lambda: functions().forward(llama, text[-1:], dict(cache)) if cached
                   else functions().forward(llama, text))


def report(what, measured, against, wanted):
    """Print one row of the table."""
    print(f"| {what} | {measured} | {against} | {wanted} |", flush=True)


def contiguous_rows(layers, limit=None):
    """The rows for a contiguous full-width file of `layers` layers, which is made in a temporary folder and removed."""
    config = functions().llama3_8b | {"n_layers": layers}
    size = 2 * sum(torch.Size(shape).numel() for shape in functions().expected_shapes(config).values())
    if shutil.disk_usage(tempfile.gettempdir()).free < 1.1 * size:
        sys.exit(f"{tempfile.gettempdir()}: {size / GB:.0f} GB are needed there. Let TMPDIR name a larger place.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"contiguous-{layers}layers"
        write_contiguous(folder, config)
        result = walked(folder, limit)
        under = f" under a limit of {limit / GB:.0f} GB" if limit else ""
        report(f"first part, {layers} layers, peak of anonymous memory{under}", f"{result['peak'] / GB:.2f} GB",
               f"file of {size / GB:.1f} GB; {result['imports'] / GB:.2f} GB are Python and PyTorch", "<= 0.5 GB")
        forward, reading, products = forward_and_floors(folder)
        report(f"`forward`, 17 tokens, warm, {layers} layers", f"{forward:.2f} s",
               f"{forward / reading:.2f} times reading every tensor once ({reading:.2f} s), "
               f"{forward / products:.2f} times its bare matrix products ({products:.2f} s)", "<= 1.1")


def main():
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also make and measure a 16 GB file")
    parser.add_argument("--walk", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.walk:
        return walk(options.walk)
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {isa}\n")
    report("what", "measured", "against", "wanted")
    report("---", "---", "---", "---")
    contiguous_rows(2)
    if options.full:
        contiguous_rows(32, limit=4 * GB)
    for length in (16, 2000, 4000):
        against_transformers(length)
    for cached, name, wanted in ((True, "with", "flat"), (False, "without", "")):
        short, long = (one_more(length, cached) for length in (16, 2000 if cached else 512))
        report(f"token after {2000 if cached else 512}, {name} cache", f"{1000 * long:.0f} ms",
               f"{long / short:.1f} times the token after 16 ({1000 * short:.0f} ms)", wanted)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        run(read(), folder=scratch, LLAMA3_CHECKPOINT=None, LLAMA3_DEVICE="cpu")
        took = time.perf_counter() - start
        report("the whole notebook, alone in an empty folder", f"{took:.0f} s", "", "<= 50 s on 2 cores")


if __name__ == "__main__":
    main()
