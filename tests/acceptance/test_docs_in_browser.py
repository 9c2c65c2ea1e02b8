"""`/docs` in a real browser: it shows every route, breaks no rule, and asks no other server."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.processes import InstalledService
from tests.programs import require_programs

LIMIT_S = 120
RENDER_MS = 20_000
"""Time that the page itself is given; the browser passes it as fast as it can."""
_BY_A_PAGE = '"initiator":"http'
"""What only those lines of the browser's log have that are about requests of a page."""


@dataclass(frozen=True)
class Visit:
    """What a browser has made of the page."""

    dom: str
    log: str
    """Its console, in which it reports what a policy has refused."""
    addresses: set[str]
    """Every address that the page asked for. The browser asks its maker's servers by itself."""


@pytest.fixture(scope="module")
def docs_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledService]:
    with InstalledService(tmp_path_factory.mktemp("docs") / "data", workers=0) as service:
        yield service


def visit(url: str, place: Path) -> Visit:
    require_programs("chromium")
    requests = place / "requests.json"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",  # the tests may run as root
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={place / 'profile'}",
        f"--log-net-log={requests}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        f"--virtual-time-budget={RENDER_MS}",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    asked = [each for each in requests.read_text("utf-8").splitlines() if _BY_A_PAGE in each]
    found = {address for each in asked for address in re.findall(r'"url":"([^"]+)"', each)}
    return Visit(done.stdout, done.stderr, found)


@pytest.fixture(scope="module")
def page(docs_service: InstalledService, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visit(f"{docs_service.url}/docs", tmp_path_factory.mktemp("browser"))


def test_the_page_shows_every_route(page: Visit) -> None:
    shown = re.sub(r"<wbr>|\u200b", "", page.dom)

    assert "/v1/fine_tuning/jobs" in shown
    assert shown.count('class="opblock-summary-method"') > 20
    assert "<svg" in page.dom


def test_its_policy_refuses_nothing_that_it_needs(page: Visit) -> None:
    assert "Content Security Policy" not in page.log
    assert "Uncaught" not in page.log


def test_it_asks_no_other_server(page: Visit, docs_service: InstalledService) -> None:
    assert {urlsplit(each).netloc for each in page.addresses} == {urlsplit(docs_service.url).netloc}
