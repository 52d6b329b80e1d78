"""A page of the package in Debian's Chromium, driven by Playwright; for tests that skip where there is none."""

import os
import shutil
import threading
from contextlib import contextmanager

import pytest


CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium():
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(page):
    """The address of a page while it is served."""
    before = set(threading.enumerate())
    page.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False)
    try:
        yield page.local_url
    finally:
        page.close()
        assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("Thread-") and not t.daemon]


class Visitor:
    """
    Somebody who looks at a page, and what their browser has asked for and complained about.
    """

    def __init__(self, browser, address, width=1200, height=900):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.hosts, self.complaints = set(), []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.goto(address)
        self.page.wait_for_selector("#dso-answers table")

    def tab(self, name):
        """Open a tab, by the menu where there is no room for it."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.first.is_visible():
            tab.first.click()
        else:
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=name).first.click()

    def turn(self, strength, label="fair"):
        """Set a strength as the slider's own number."""
        field = self.page.get_by_label(f"number input for Strength of {label}")
        field.fill(f"{strength:g}")
        field.blur()

    def wait_for(self, text, selector="#dso-answers"):
        self.page.wait_for_function(
            "([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, text]
        )

    def answers(self):
        """The strength that the bars are for, and the unsteered and steered probability of each answer."""
        return read(self.page.evaluate(CELLS))


# The texts of the cells of the bars, row by row; none while there is a message in their place.
CELLS = (
    """() => [...document.querySelectorAll('#dso-answers tr')].map(row => [...row.cells].map(c => c.textContent))"""
)


def read(cells):
    """The strength that the bars are for, and the unsteered and steered probability of each answer."""
    (_, _, steered, _), *rows = cells
    return float(steered.rpartition(" ")[2]), {row[0]: (float(row[1]), float(row[2])) for row in rows}
