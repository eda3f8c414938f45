"""For the tests of the web edition: what opens a page in a headless Chromium, if there is one."""
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")


def start_chromium():
    """A headless Chromium, which notes what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def open_page(browser, path, width=1280):
    """Let `browser` show the file at `path` in a window `width` pixels wide, and forget what earlier pages logged."""
    window = {"width": width, "height": 844, "mobile": False, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return document.readyState") == "complete")
