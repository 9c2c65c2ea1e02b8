"""Downloads that are redirected to the store: what stock clients and a browser make of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.builders import TEXT_LINE
from tests.stores.bucket import server
from tests.stores.servers import BUCKET, StoreServer
from tunery.local_service import LocalService

__all__ = ["server"]

LINES = TEXT_LINE * 20_000


@dataclass(frozen=True)
class Lab:
    service: LocalService
    client: openai.OpenAI
    file_id: str

    @property
    def url(self) -> str:
        return f"{self.service.base_url}/files/{self.file_id}/content"


@pytest.fixture
def lab(server: StoreServer, store_prefix: str, tmp_path: Path) -> Iterator[Lab]:
    limits = {
        "store_url": f"s3://{BUCKET}/{store_prefix}",
        "store_redirects": "true",
        "min_free_bytes": "0",
    }
    with (
        LocalService(tmp_path / "data", limits, workers=0) as service,
        openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0) as client,
    ):
        file = client.files.create(file=("lines.jsonl", LINES), purpose="fine-tune")
        yield Lab(service, client, file.id)


HEADERS = {"authorization": "Bearer unused"}


def test_the_stock_client_follows(lab: Lab, server: StoreServer) -> None:
    sent = lab.client.files.content(lab.file_id)

    assert sent.read() == LINES
    assert [each.status_code for each in sent.response.history] == [307]
    assert sent.response.url.port == server.port
    assert "authorization" not in sent.response.request.headers  # the store would refuse both


def test_curl_follows_and_resumes(lab: Lab, tmp_path: Path) -> None:
    target = tmp_path / "lines"
    target.write_bytes(LINES[:100_000])
    command = ["curl", "-sSfL", "-C", "-", "-H", f"authorization: {HEADERS['authorization']}"]

    subprocess.run([*command, "-o", target, lab.url], check=True)

    assert target.read_bytes() == LINES


def test_a_browser_and_what_is_computed_here_are_not_redirected(lab: Lab) -> None:
    dashboard = httpx.get(lab.url)
    encoded = httpx.get(f"{lab.url}?encoding=base64", headers=HEADERS)

    assert (dashboard.status_code, dashboard.content) == (200, LINES)
    assert encoded.status_code == 200


def test_what_the_client_has_is_not_sent_again(lab: Lab) -> None:
    etag = httpx.get(lab.url).headers["etag"]

    answer = httpx.get(lab.url, headers={**HEADERS, "if-none-match": etag})

    assert (answer.status_code, answer.headers["etag"]) == (304, etag)


def test_a_redirect_is_not_kept_and_is_in_the_audit_trail(lab: Lab) -> None:
    answers = [
        httpx.get(lab.url, headers={**HEADERS, **ranged})
        for ranged in ({}, {"range": "bytes=0-9"}, {"range": "bytes=10-19"})
    ]

    trail = httpx.get(f"{lab.service.base_url}/organization/audit_logs").json()["data"]
    downloads = [event for event in trail if event["type"] == "file.downloaded"]
    assert [answer.status_code for answer in answers] == [307, 307, 307]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
    assert len(downloads) == 2  # a later range belongs to a download that has begun


def test_a_file_that_is_gone_is_not_found_here(lab: Lab) -> None:
    lab.client.files.delete(lab.file_id)

    assert httpx.get(lab.url, headers=HEADERS).status_code == 404


def test_nobody_is_redirected_without_a_key(lab: Lab) -> None:
    command = [sys.executable, "-m", "tunery", "keys", "create"]
    settings = {"TUNERY_DATA_DIR": str(lab.service.data_dir)}
    subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)

    refused = httpx.get(lab.url, headers=HEADERS)

    assert (refused.status_code, "location" in refused.headers) == (401, False)
