"""For the tests of the web edition: its files, a headless Chromium that opens them, and what that complains of."""
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from cells import ROOT
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,900",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--force-prefers-reduced-motion"]
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")
# where the files of the repository can be read, as `build_site` says
SOURCE = "https://host/main"


def build_site(scratch):
    """A folder in `scratch`, whose name wants quoting, into which the one command has built the web edition."""
    folder = scratch / "a page 页#1"
    command = [sys.executable, ROOT / "site" / "build.py", folder, "--source", SOURCE]
    subprocess.run(command, check=True, cwd=scratch)
    return folder


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


def open_page(browser, path, width=1280, scheme="light"):
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
