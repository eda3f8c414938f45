"""Both notebooks in JupyterLab, in headless Chromium: the English one is run from its menu, the Chinese one opened."""
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
from machine import chromium, link, needs_chromium
from notebook import CHINESE, ENGLISH, ROOT, read, smollm2
from save import code_cells, is_measured
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.weekly, needs_chromium]
# no question about news over the page; every cell on the page at once, not when the browser is idle
SETTINGS = {"@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
PROMPTS = """return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .map(prompt => prompt.textContent)"""
OUTPUTS = """return [...document.querySelectorAll(`.jp-Notebook [data-mime-type='${arguments[0]}']`)]
    .map(output => output.textContent).filter(text => text.trim())"""
PICTURES = """return [...document.querySelectorAll('.jp-Notebook img')]
    .map(image => [image.complete && image.naturalWidth > 0, image.alt || image.src.slice(0, 80)])"""


def wait(seconds, ready):
    """Call `ready` until it returns something true, and return that; TimeoutException after `seconds`."""
    return WebDriverWait(None, seconds, poll_frequency=0.3).until(lambda _: ready())


def answers(address):
    """Whether a server answers at `address`."""
    try:
        return urlopen(address, timeout=30).status == 200
    except OSError:
        return False


@contextmanager
def jupyterlab(folder):
    """A JupyterLab server that shows `folder/work` and keeps its settings in `folder`; yields how to address a file."""
    for plugin, values in SETTINGS.items():
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
            cwd=folder / "work", env=os.environ | own, stdout=log, stderr=log)
        try:
            wait(180, lambda: answers(f"{site}/api?token={token}"))
            yield lambda file: f"{site}/lab/tree/{file}?token={token}"
        finally:
            server.terminate()
            server.wait(60)


def run_all(page):
    """Choose Run > Run All Cells on `page`, and wait for the last cell that has a prompt."""
    wait(180, lambda: page.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']"))
    (menu,) = [item for item in page.find_elements(By.CSS_SELECTOR, ".lm-MenuBar-item") if item.text == "Run"]
    menu.click()
    wait(60, lambda: page.find_elements(By.CSS_SELECTOR, ".lm-Menu-item[data-command='runmenu:run-all']"))[0].click()
    wait(1500, lambda: page.execute_script(OUTPUTS, "application/vnd.jupyter.error")
         or re.fullmatch(r"\[\d+\]:", [prompt for prompt in page.execute_script(PROMPTS) if prompt][-1]))


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_in_jupyterlab(path, tmp_path):
    """No error, every cell counted, every picture loaded, as many plots as saved, nothing on stderr."""
    notebook = read(path)
    notebook.cells = [cell for cell in notebook.cells if not (cell.cell_type == "code" and is_measured(cell))]
    code = code_cells(notebook)
    plots = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    for n, cell in enumerate(code, 1):
        cell.execution_count = None if path is ENGLISH else n
        cell.outputs = [] if path is ENGLISH else cell.outputs
    (tmp_path / "work").mkdir()
    nbformat.write(notebook, tmp_path / "work" / path.name)
    shutil.copytree(ROOT / "images", tmp_path / "work" / "images")
    link(tmp_path / "work" / "SmolLM2-135M", smollm2())
    with jupyterlab(tmp_path) as address, chromium(tmp_path / "profile") as page:
        page.get(address(path.name))
        wait(180, lambda: len(page.execute_script(PROMPTS)) == len(code))
        if path is ENGLISH:
            run_all(page)
        assert page.execute_script(OUTPUTS, "application/vnd.jupyter.error") == []
        assert page.execute_script(OUTPUTS, "application/vnd.jupyter.stderr") == []
        folded = [cell.metadata.get("jupyter", {}).get("source_hidden") for cell in code]
        counts = ["" if hidden else f"[{n}]:" for n, hidden in enumerate(folded, 1)]
        assert page.execute_script(PROMPTS) == counts              # a folded cell shows none
        diagrams = sum(cell.source.count("<img") for cell in notebook.cells if cell.cell_type == "markdown")
        wait(90, lambda: all(loaded for loaded, _ in page.execute_script(PICTURES)))
        assert len(page.execute_script(PICTURES)) == plots + diagrams
