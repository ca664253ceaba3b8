"""The browser: `CHROMIUM` is its path; by default it is the `chromium` of the system."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("There is no chromium. Install it (Debian: apt-get install chromium), or set CHROMIUM to its path.")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as started:
        yield started
