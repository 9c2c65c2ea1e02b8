"""What keeps a browser from doing more with an answer than to show or save it."""

import csv
import io
import re
from collections.abc import Mapping
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from app.api.requests import MAX_JSON_BYTES
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_job, add_succeeded_job

POLICY = "default-src 'none'; frame-ancestors 'none'"


def test_every_answer_has_them_also_one_that_is_given_again(
    client: TestClient, database: Database
) -> None:
    job = f"/v1/fine_tuning/jobs/{add_job(database).id}"
    paths = ["/healthz", "/v1/files", "/nope", "/v1/files/nope", job, job, "/openapi.json"]

    for path in paths:
        headers = client.get(path, headers={"Origin": "https://elsewhere.example"}).headers
        assert headers["content-security-policy"] == POLICY
        kept = "private, no-cache" if path == job else "no-store"
        assert headers["cache-control"] == kept
        check_others(headers)


def check_others(headers: Mapping[str, str]) -> None:
    """Those that are the same on every answer."""
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/docs", "text/html"),
        ("/docs/page.js", "text/javascript"),
        ("/docs/assets/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/assets/swagger-ui.css", "text/css"),
        ("/docs/assets/favicon.png", "image/png"),
    ],
)
def test_the_documentation_has_them_too(client: TestClient, path: str, kind: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    check_others(answer.headers)


def test_a_refusal_has_them_too(client: TestClient) -> None:
    too_large = b"{" + b" " * MAX_JSON_BYTES + b"}"
    kinds = {"content-type": "application/json"}
    refusals = [
        client.get("/docs/assets/nothing.js"),
        client.get("/nope"),
        client.put("/v1/files"),
        client.post("/v1/fine_tuning/jobs", content=too_large, headers=kinds),
        client.post("/v1/fine_tuning/jobs", content=b"a"),
    ]

    assert [one.status_code for one in refusals] == [404, 404, 405, 413, 415]
    for answer in refusals:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        check_others(answer.headers)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, POST"),
        ("/v1/files/file-1", "DELETE, GET"),
        ("/healthz", "GET"),
        ("/docs", "GET"),
        ("/docs/page.js", "GET"),
        ("/docs/assets/swagger-ui.css", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_offered_is_told_which_are(
    client: TestClient, path: str, allowed: str
) -> None:
    answer = client.put(path)

    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    check_others(answer.headers)


def test_a_crash_and_a_preflight_have_them_too(client: TestClient) -> None:
    preflight = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    asked = client.options("/v1/fine_tuning/jobs", headers=preflight)
    client.app.state.resources = None  # pyright: ignore - whatever a route does now is a crash
    crash = client.get("/v1/files")

    assert (asked.status_code, crash.status_code) == (405, 500)
    for answer in (asked, crash):
        assert answer.headers["content-security-policy"] == POLICY
        assert "access-control-allow-origin" not in answer.headers


def test_a_download_may_be_kept_if_it_is_checked_each_time(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    url = f"/v1/files/{add_file(database, store).id}/content"
    whole = client.get(url)
    part = client.get(url, headers={"Range": "bytes=0-3", "If-Range": whole.headers["etag"]})
    same = client.get(url, headers={"If-None-Match": whole.headers["etag"]})

    assert [one.status_code for one in (whole, part, same)] == [200, 206, 304]
    for answer in (whole, part, same):
        assert answer.headers["cache-control"] == "private, no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "saved_as"),
    [
        ("train.jsonl", "train.jsonl"),
        ("../../etc/cron.d/x", "_.._etc_cron.d_x"),
        ("C:\\a\\b.csv", "C__a_b.csv"),
        ('a";filename=evil.html', "a_;filename=evil.html"),
        ("a\r\nSet-Cookie: b=c", "a__Set-Cookie_ b=c"),
        ("Zahlen für \u202elsj.exe", "Zahlen für _lsj.exe"),
        ("...", "download"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_download_is_saved_under_a_name_that_is_only_a_name(
    name: str, saved_as: str, client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store, filename=name)

    said = client.get(f"/v1/files/{file.id}/content").headers["content-disposition"]

    match = re.fullmatch(r"attachment; filename=\"([ -~]*)\"; filename\*=UTF-8''(\S+)", said)
    assert match is not None, said
    assert unquote(match[2]) == saved_as
    assert match[1] == saved_as.encode("ascii", "replace").decode().replace("?", "_")


def test_a_loss_log_for_spreadsheets_has_nothing_but_numbers(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store)

    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/metrics", headers={"Accept": "text/csv"})

    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{job.id}-')
    head, *rows = csv.reader(io.StringIO(answer.text))
    assert all(re.fullmatch(r"[a-z_]+", cell) for cell in head)
    assert rows
    assert all(cell == "" or float(cell) is not None for row in rows for cell in row)
