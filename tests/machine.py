"""What the tests ask of the machine that they run on: its memory, its links, a disk that is full, and a browser."""
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,900",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--force-prefers-reduced-motion"]
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")


def anonymous_memory():
    """Bytes of this process that no file backs; skips the test where the system does not count them (Linux does)."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8") if status.exists() else "")
    return 1024 * int(found[1]) if found else pytest.skip("this system does not say how much memory no file backs")


@contextmanager
def room(size):
    """No file of this process and its children can grow beyond `size` bytes for a while, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def link(place, folder):
    """Make `place` a link to `folder`, or a copy where this system has no links or keeps them from its users."""
    try:
        place.symlink_to(folder, target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(folder, place)


@contextmanager
def quiet(folder):
    """In `folder`, on one thread, since two wait long for one another on a busy machine; plots are never shown."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plt, "show", lambda: plt.close("all"))
        yield
    torch.set_num_threads(threads)


@contextmanager
def chromium(profile):
    """A headless Chromium with `profile`, an empty folder, as its user data."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def opened(browser, path, width=1280, scheme="light"):
    """`browser` with the file at `path` in a window `width` pixels wide, of which it has nothing to complain yet."""
    window = {"width": width, "height": 844, "mobile": False, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    complaints(browser)
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return document.readyState") == "complete")
    return browser


def complaints(browser):
    """What the console says since it was last asked, and the addresses outside this machine that were asked for."""
    log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in log if event["method"] == "Network.requestWillBeSent"]
    local = ("file:", "data:", "about:")
    return browser.get_log("browser") + [address for address in asked if not address.startswith(local)]
