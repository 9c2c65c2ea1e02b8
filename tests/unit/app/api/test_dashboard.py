"""How the files of the dashboard are served. `tests/browser` uses them in a real browser."""

import hashlib
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.browser.dashboard import PAGES

pytestmark = pytest.mark.only_sqlite

DASHBOARD = Path(__file__).parents[4] / "app" / "dashboard"
MAX_PAGE_BYTES = 150 * 1024
ADDRESS = re.compile(r'(?:src|href)="(assets/[^"]+)"')
IMPORT = re.compile(r'(?:from|import)\s*"(\.[^"]+)"')
FETCHED = re.compile(r'fetch\("(assets/[^"]+)"\)')


def files_of(client: TestClient, page: str) -> set[str]:
    """Addresses of all files that a page loads, with what its modules import."""
    found: set[str] = set()
    waiting = ADDRESS.findall(client.get(page).text)
    while waiting:
        address = waiting.pop()
        if address in found:
            continue
        found.add(address)
        if address.endswith(".js"):
            text = client.get(f"/{address}").text
            folder = (Path("/") / address).parent
            imported = [str((folder / each).resolve())[1:] for each in IMPORT.findall(text)]
            waiting += imported + FETCHED.findall(text)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_and_all_its_files_are_served_and_light(client: TestClient, page: str) -> None:
    files = files_of(client, page)
    answers = {address: client.get(f"/{address}") for address in files}

    assert {address for address, answer in answers.items() if answer.status_code != 200} == set()
    assert len(files) > 5
    weight = sum(int(answer.headers["content-length"]) for answer in answers.values())
    assert weight < MAX_PAGE_BYTES, f"{weight:,} bytes"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_no_script_but_its_files(client: TestClient, page: str) -> None:
    answer = client.get(page)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", answer.text)


def test_a_file_is_sent_again_only_if_it_has_changed(client: TestClient) -> None:
    first = client.get("/assets/style.css")
    again = client.get("/assets/style.css", headers={"if-none-match": first.headers["etag"]})
    plain = client.get("/assets/style.css", headers={"accept-encoding": "identity"})

    assert (first.headers["content-encoding"], again.status_code) == ("gzip", 304)
    assert again.content == b""
    assert "content-encoding" not in plain.headers
    assert plain.content == first.content == (DASHBOARD / "style.css").read_bytes()


@pytest.mark.parametrize("name", ["nope.js", "../main.py", "..%2fmain.py", "pages", ""])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code == 404


def test_vendored_files_are_unchanged() -> None:
    vendor = DASHBOARD / "vendor"
    listed = dict(
        reversed(line.split("  ", 1))
        for line in (vendor / "SHA256SUMS").read_text("utf-8").splitlines()
    )
    found = {
        path.relative_to(vendor).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*/*")
        if path.is_file()
    }

    assert found == listed


def test_no_script_makes_html_of_text() -> None:
    own = [path for path in DASHBOARD.rglob("*.js") if "vendor" not in path.parts]
    risky = re.compile(r"unsafeHTML|unsafeSVG|innerHTML|outerHTML|insertAdjacentHTML|\beval\(")

    assert [path.name for path in own if risky.search(path.read_text("utf-8"))] == []
