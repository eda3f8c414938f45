"""The saved outputs of the first part hold on ARM, on three processors that QEMU plays.

LLAMA3_ARM=FOLDER runs it, up to the first experiment, for half an hour; with LLAMA3_ALL=1 to the end of the part.
FOLDER keeps Debian's arm64 Python and the aarch64 wheels, 5 GB that are fetched when they are missing. It takes
Debian's `apt-get`, and its package `qemu-user-static`.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cells import ROOT, compared, first_part, read, source

FOLDER, QEMU = os.environ.get("LLAMA3_ARM"), shutil.which("qemu-aarch64-static")
pytestmark = pytest.mark.skipif(not (FOLDER and QEMU), reason="LLAMA3_ARM=FOLDER runs the first part on emulated ARM")

# as a Raspberry Pi 5, Linux on a Mac M2, and servers (Neoverse N2). oneDNN cannot multiply bfloat16 on the first, and
# warns; on the others it rounds worse, and cells showed other last digits. The notebook does without it
PROCESSORS = {"no bfloat16": "neoverse-n1", "bfloat16": "max,sve=off", "bfloat16 and SVE": "max,sve256=off"}
# what PyTorch reads of the system: left to itself the emulator shows it this machine's x86, which it does not survive
SYSTEM = {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
                          "CPU part\t: 0xd0c\n\n",
          "sys/devices/system/cpu/cpu0/regs/identification/midr_el1": "0x00000000410fd0c0\n"}
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config
shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
for code in json.load(sys.stdin):
    with shell.display_trap, capture_output() as got:
        shell.run_cell(code)
    print("CELL", json.dumps([got.stdout, got.stderr, [output.data["text/plain"] for output in got.outputs]]))
"""


def fetch_python(apt, root):
    """Unpack Debian's arm64 Python into the new folder `root`, without rights; apt keeps its lists in `apt`."""
    for part in ("lists", "archives"):
        (apt / part / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = [f"-o{option}" for option in (
        "APT::Architecture=arm64", "APT::Architectures::=arm64", "APT::Install-Recommends=false",
        "Debug::NoLocking=true", f"Dir::State={apt}", f"Dir::State::status={apt / 'status'}", f"Dir::Cache={apt}")]
    subprocess.run(["apt-get", "-q", *options, "update"], check=True)
    subprocess.run(["apt-get", "-qyd", *options, "install", "python3", "libgomp1", "libstdc++6"], check=True)
    for package in (apt / "archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    for file, text in SYSTEM.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(text.encode())


def fetch_packages(program, folder):
    """Put the aarch64 wheels of what the notebook imports into `folder`, for the Python `program`."""
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("# its tests")[0].splitlines()
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in range(17, 35))]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--no-compile",
                    f"--python-version={program.name.removeprefix('python')}", f"--target={folder}",
                    *(f"--platform={platform}" for platform in platforms),
                    *(pin for pin in pins if "==" in pin and not pin.startswith("jupyter"))], check=True)


@pytest.fixture(scope="module")
def arm():
    """The path of an ARM Python, its root folder and the folder of its packages."""
    folder = Path(FOLDER).absolute()
    root, site = folder / "root", folder / "site"
    if not root.exists():
        fetch_python(folder / "apt", folder / "new-root")
        (folder / "new-root").rename(root)
    program = next(root.glob("usr/bin/python3.[0-9]*"))
    if not site.exists():
        fetch_packages(program, folder / "new-site")
        (folder / "new-site").rename(site)
    return program, root, site


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_saved_outputs_hold_on_arm(arm, processor, tmp_path):
    """Every cell shows what is saved, and nothing is written to stderr."""
    program, root, site = arm
    cells = [cell for cell in compared(first_part(read())).cells if cell.cell_type == "code"]
    if not os.environ.get("LLAMA3_ALL"):
        cells = cells[:[cell.id for cell in cells].index("told") + 1]
    codes = json.dumps([source(cell) for cell in cells])
    run = subprocess.run([QEMU, "-L", root, "-cpu", processor, program, "-c", RUN], input=codes,
                         cwd=tmp_path, capture_output=True, encoding="utf-8", env=os.environ | {
                             "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
                             "LLAMA3_CHECKPOINT": "stand-in-2layers", "LLAMA3_DEVICE": "cpu",
                             "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    got = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("CELL ")]
    assert len(got) == len(cells), f"{cells[len(got)].id} ended the run: {run.stderr}"
    saved = [["".join(output.text for output in cell.outputs if output.get("name") == "stdout"), "",
              [output.data["text/plain"] for output in cell.outputs if "data" in output]] for cell in cells]
    assert {cell.id: (there, here) for cell, there, here in zip(cells, saved, got) if there != here} == {}
    assert run.stderr == ""
