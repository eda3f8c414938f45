"""For the tests of the web edition: its files, and a headless Chromium that opens them."""
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from cells import ROOT
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
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
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def open_page(browser, path, width=1280):
    """Let `browser` show the file at `path` in a window `width` pixels wide, and forget what earlier pages logged."""
    window = {"width": width, "height": 844, "mobile": False, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return document.readyState") == "complete")
