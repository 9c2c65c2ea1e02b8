"""Tabs of a real browser in which nothing may go wrong unseen."""

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, Request, sync_playwright

AXE = Path(__file__).parents[2] / ".venv-clients/node_modules/axe-core/axe.min.js"

_FLAGS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_TELL_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});
"""
_ABORTED = "net::ERR_ABORTED"
"""Failure of a request that the page itself ended, such as a stream when the tab is left."""


@contextmanager
def launching() -> Generator[Browser]:
    """Start chromium, and end it after the block."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Tabs:
    """Opens tabs on one service and writes down what goes wrong in them."""

    browser: Browser
    base_url: str
    faults: list[str] = field(default_factory=list)
    """Errors of the console and of scripts, violations of the policy, and failed requests."""

    def open(
        self,
        path: str,
        *,
        theme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
    ) -> Page:
        """Open a tab with a profile of its own. `path` begins with a slash."""
        context = self.browser.new_context(
            base_url=self.base_url,
            color_scheme=theme,
            viewport={"width": width, "height": height},
            accept_downloads=True,
        )
        context.add_init_script(_TELL_VIOLATIONS)
        return self.open_beside(context.new_page(), path)

    def open_beside(self, page: Page, path: str) -> Page:
        """Go to `path` in a tab that exists, and watch it from now on."""
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("requestfailed", self._note_failure)
        page.goto(path)
        return page

    def forgive(self, pattern: str) -> None:
        """Drop the faults so far that match the pattern, which the test caused on purpose."""
        self.faults[:] = [fault for fault in self.faults if not re.search(pattern, fault)]

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"{kind}: {text}")

    def _note_failure(self, request: Request) -> None:
        if request.failure != _ABORTED:
            self.faults.append(f"request: {request.failure} {request.url}")


def find_barriers(page: Page) -> list[str]:
    """What axe finds of serious or critical impact: who cannot use the page, and where."""
    page.evaluate(AXE.read_text("utf-8"))
    found: dict[str, Any] = page.evaluate("() => axe.run()")
    return [
        f"{each['id']}: {each['help']}: {[node['target'] for node in each['nodes']]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def scrolls_sideways(page: Page) -> bool:
    return page.evaluate("() => document.documentElement.scrollWidth > innerWidth")
