"""`/docs` works on a machine that reaches nothing but the service."""

import re

from starlette.testclient import TestClient

ADDRESS = re.compile(r"""(?:href|src)=["'](.*?)["']|url\(\s*["']?(.*?)["']?\s*\)""")


def addresses_in(text: str) -> list[str]:
    found = ["".join(groups) for groups in ADDRESS.findall(text)]
    return [address for address in found if not address.startswith("data:")]


def test_the_page_loads_only_what_the_service_serves(client: TestClient) -> None:
    page = client.get("/docs")
    addresses = addresses_in(page.text)

    assert page.status_code == 200
    assert "://" not in page.text
    assert len(addresses) == 4, "a style sheet, an icon and two scripts"
    for address in addresses:
        answer = client.get(f"/{address}")
        assert answer.status_code == 200, address
        assert len(answer.content) > 100, address


def test_the_page_runs_no_script_but_its_files(client: TestClient) -> None:
    page = client.get("/docs")
    directives = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )

    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == "'self'"
    assert not re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", page.text)


def test_the_style_sheet_loads_nothing(client: TestClient) -> None:
    style = client.get("/docs/assets/swagger-ui.css")

    assert style.status_code == 200
    assert addresses_in(style.text) == []


def test_the_page_sends_the_document_to_no_validator(client: TestClient) -> None:
    assert "validatorUrl: null" in client.get("/docs/page.js").text


def test_an_asset_that_is_not_there_is_answered_in_the_envelope(client: TestClient) -> None:
    answer = client.get("/docs/assets/nothing.js")

    assert answer.status_code == 404
    assert "message" in answer.json()["error"]


def test_there_is_no_second_page(client: TestClient) -> None:
    assert client.get("/redoc").status_code == 404
