"""A real browser, and pages of it that remember everything that went wrong in them."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.program import Daemon

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PATIENCE = 20_000
"""Milliseconds that a page gets to show something: the machine may have much to do."""

VIEWS = ("models", "pulls", "running", "catalog", "libs", "metrics", "logs", "tokens", "doctor")
_WATCH = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def chromium() -> str:
    """The path of the browser; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no browser is installed (Debian: apt-get install chromium)")
    return found


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A headless browser."""
    path = chromium()
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to run as root otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*root, "--disable-gpu"])
        yield browser
        browser.close()


class Tab:
    """One page; ``problems`` are errors on its console, exceptions, and violations of its policy."""

    def __init__(self, browser: Browser, daemon: Daemon, **options: Any) -> None:  # noqa: ANN401
        self._context = browser.new_context(**{"viewport": WIDE, **options})
        self._context.set_default_timeout(PATIENCE)
        self._context.add_init_script(_WATCH)
        self.page: Page = self._context.new_page()
        self.daemon = daemon
        self.problems: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"{message.type}: {message.text}")

    def open(self, view: str = "models", url: str | None = None) -> Page:
        """Go to a view, and wait until it is there."""
        self.page.goto(url or f"{self.daemon.url}/ui/#/{view}")
        self.page.locator("main h1").first.wait_for()
        return self.page

    def excuse(self, *words: str) -> None:
        """Take problems that were meant to be out of the list; each must be there."""
        for word in words:
            assert any(word in each for each in self.problems), (word, self.problems)
        self.problems = [each for each in self.problems if not any(word in each for word in words)]

    def faults(self) -> list[str]:
        """What axe-core finds that is serious or critical, with where it is."""
        result = Axe().run(self.page)
        return [
            f"{found['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for found in result.response["violations"]
            if found["impact"] in {"serious", "critical"}
            for node in found["nodes"]
        ]

    def close(self) -> None:
        """End it."""
        self._context.close()


@contextlib.contextmanager
def tab(browser: Browser, daemon: Daemon, **options: Any) -> Iterator[Tab]:  # noqa: ANN401
    """A tab in which nothing may go wrong but what is excused."""
    opened = Tab(browser, daemon, **options)
    try:
        yield opened
        assert not opened.problems, opened.problems
    finally:
        opened.close()
