"""What the tests ask of the machine that they run on: its memory, its links, a disk that is full, and a browser."""
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

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
def chromium(profile, **capabilities):
    """A headless Chromium with `profile`, an empty folder, as its user data, and Selenium's `capabilities`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    for name, value in capabilities.items():
        options.set_capability(name, value)
    page = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield page
    finally:
        page.quit()
