"""Both notebooks in JupyterLab, in headless Chromium; its menu runs the English first part (LLAMA3_ALL=1: all)."""
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.request import urlopen

import nbformat
import pytest
import torch
from cells import CHINESE, ENGLISH, ROOT, compared, first_part, functions, link, read, smollm2
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tqdm import tqdm

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,900",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# no question about news over the page; every cell on the page at once, not when the browser is idle
SETTINGS = {"@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
PROMPTS = "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
SHOWN = PROMPTS + ".filter(prompt => prompt)"             # a folded cell has none
OUTPUTS = """return [...document.querySelectorAll(`.jp-Notebook [data-mime-type='${arguments[0]}']`)]
    .map(output => output.textContent)"""
WAITING = "return [...document.querySelectorAll('.jp-Notebook img')].filter(image => !image.complete).length"
BROKEN = """return [...document.querySelectorAll('.jp-Notebook img')].filter(image => image.naturalWidth == 0)
    .map(image => image.alt || image.src.slice(0, 80))"""

browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed "
                             "(Debian: apt-get install chromium chromium-driver)")


def outputs(page, kind):
    """The text of each output on `page` of Jupyter's type `kind`, such as "error" or "stderr"."""
    return page.execute_script(OUTPUTS, f"application/vnd.jupyter.{kind}")


@contextmanager
def jupyterlab(folder, settings=SETTINGS, **environment):
    """A JupyterLab server that shows `folder/work`, with `environment` added to its own; yields how to address a file.

    Its settings, `{plugin: {key: value}}`, and all it writes lie in `folder`. Raises subprocess.TimeoutExpired when
    it does not stop.
    """
    for plugin, values in settings.items():
        file = folder / "config/lab/user-settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(json.dumps(values).encode())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token, site = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"],
            cwd=folder / "work", env=os.environ | own | environment, stdout=log, stderr=log)
        try:
            wait(180, lambda: answers(f"{site}/api?token={token}"))
            yield lambda file: f"{site}/lab/tree/{file}?token={token}"
        finally:
            server.terminate()
            server.wait(60)


def answers(address):
    """Whether a server answers at `address`."""
    try:
        return urlopen(address, timeout=30).status == 200
    except OSError:
        return False


def wait(seconds, ready):
    """Call `ready` until it returns something true, and return that; TimeoutException after `seconds`."""
    return WebDriverWait(None, seconds, poll_frequency=0.3).until(lambda _: ready())


@contextmanager
def chromium(profile):
    """A headless Chromium with `profile`, an empty folder, as its user data."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    page = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield page
    finally:
        page.quit()


def run_all(page):
    """Choose Run > Run All Cells on `page`, and wait for the last cell that isn't folded."""
    wait(180, lambda: page.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']"))
    (menu,) = [item for item in page.find_elements(By.CSS_SELECTOR, ".lm-MenuBar-item") if item.text == "Run"]
    menu.click()
    wait(60, lambda: page.find_elements(By.CSS_SELECTOR, ".lm-Menu-item[data-command='runmenu:run-all']"))[0].click()
    wait(90, lambda: page.execute_script(SHOWN)[-1] != "[ ]:")
    wait(1500, lambda: outputs(page, "error") or re.fullmatch(r"\[\d+\]:", page.execute_script(SHOWN)[-1]))


def lay_out(folder, name, notebook):
    """Put `notebook` as `name`, the diagrams and SmolLM2, if it is there, into the new `folder`."""
    folder.mkdir()
    nbformat.write(notebook, folder / name)
    shutil.copytree(ROOT / "images", folder / "images")
    link(folder / "SmolLM2-135M", smollm2())


@browser
def test_chromium_fits_its_driver():
    """Both are of one version; with two, no page would open."""
    said = [subprocess.run([program, "--version"], capture_output=True, encoding="utf-8").stdout
            for program in (CHROMIUM, DRIVER)]
    assert len({re.search(r"\d+", text).group() for text in said}) == 1, said


@browser
@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=["english runs", "chinese opens"])
def test_in_jupyterlab(path, tmp_path):
    """No error, every cell counted, every picture loaded, as many plots as saved, nothing left on stderr.

    The Chinese notebook has the code of the English one, which alone is run, and is looked at as it is saved.
    """
    english = read(ENGLISH) if os.environ.get("LLAMA3_ALL") else first_part(read(ENGLISH))
    notebook = compared(english) if path is ENGLISH else read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    plots = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    if path is ENGLISH:
        for cell in code:
            cell.outputs, cell.execution_count = [], None
    lay_out(tmp_path / "work", path.name, notebook)
    with jupyterlab(tmp_path) as address, chromium(tmp_path / "profile") as page:
        page.get(address(path.name))
        wait(180, lambda: len(page.execute_script(PROMPTS)) == len(code))
        if path is ENGLISH:
            run_all(page)
        assert outputs(page, "error") == []
        folded = [cell.metadata.get("jupyter", {}).get("source_hidden") for cell in code]
        counts = ["" if hidden else f"[{n}]:" for n, hidden in enumerate(folded, 1)]
        assert page.execute_script(PROMPTS) == counts              # a folded cell shows none
        assert len(page.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output img[src^='data:image/png']")) == plots
        diagrams = page.find_elements(By.CSS_SELECTOR, ".jp-RenderedMarkdown img")
        assert len(diagrams) == sum(cell.source.count("<img") for cell in notebook.cells)
        wait(90, lambda: page.execute_script(WAITING) == 0)
        assert page.execute_script(BROKEN) == []
        assert [text for text in outputs(page, "stderr") if text.strip()] == []


def test_progress_bar(tmp_path, monkeypatch, capsys):
    """A forward pass that takes long shows at which of its layers it is, and takes the bar away at the end."""
    page = functions()
    page.write_stand_in(tmp_path / "deep", page.llama3_8b | {"dim": 64, "n_layers": 32, "n_heads": 4, "n_kv_heads": 2})
    monkeypatch.setitem(page.forward.__globals__, "tqdm",
                        lambda *layers, **options: tqdm(*layers, **options | {"delay": 0, "mininterval": 0,
                                                                              "disable": False}))
    page.forward(page.load_llama(tmp_path / "deep"), torch.tensor([1]))
    shown = capsys.readouterr().err.split("\r")
    assert {f"{layer}/32" for layer in range(32)} <= set(re.findall(r"\d+/32", "".join(shown)))
    assert shown[-1].strip() == shown[-2].strip() == ""
