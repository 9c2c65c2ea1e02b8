import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_succeeded_job, put_blob
from tests.effort import effort

CONTENT = bytes(range(256)) * 4
TOTAL = len(CONTENT)


@pytest.fixture
def url(client: TestClient, database: Database, store: LocalBlobStore) -> str:
    return f"/v1/files/{add_file(database, store, CONTENT).id}/content"


def test_a_file_that_was_cut_off_is_not_passed_off_as_whole(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store, CONTENT)
    put_blob(store, file.blob_key, CONTENT[:100])

    answer = client.get(f"/v1/files/{file.id}/content")

    assert (answer.content, answer.headers["content-length"]) == (CONTENT[:100], str(TOTAL))


def test_a_file_is_sent_whole_with_what_a_resume_will_need(client: TestClient, url: str) -> None:
    answer = client.get(url)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(TOTAL)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''train.jsonl"


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, TOTAL),
        ("bytes=-100", TOTAL - 100, TOTAL),
        ("bytes=-99999", 0, TOTAL),
        ("bytes=1000-99999", 1000, TOTAL),
        (f"bytes={TOTAL - 1}-{TOTAL - 1}", TOTAL - 1, TOTAL),
    ],
)
def test_a_range_is_sent(client: TestClient, url: str, asked: str, begin: int, end: int) -> None:
    answer = client.get(url, headers={"range": asked})

    assert (answer.status_code, answer.content) == (206, CONTENT[begin:end])
    assert answer.headers["content-length"] == str(end - begin)
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{TOTAL}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=5-2",
        "bytes=-",
        "bytes=a-b",
        "lines=0-1",
        "bytes=0-1 ",
        "bytes=" + "9" * 5000 + "-",
        "",
    ],
)
def test_what_is_no_single_range_of_bytes_is_ignored(
    client: TestClient, url: str, asked: str
) -> None:
    answer = client.get(url, headers={"range": asked})

    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", [f"bytes={TOTAL}-", "bytes=-0", "bytes=999999-9999999"])
def test_a_range_behind_the_end_cannot_be_sent(client: TestClient, url: str, asked: str) -> None:
    answer = client.get(url, headers={"range": asked})

    assert answer.status_code == 416
    assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert answer.headers["content-range"] == f"bytes */{TOTAL}"


def test_a_range_of_what_has_changed_is_not_sent(client: TestClient, url: str) -> None:
    answer = client.get(url, headers={"range": "bytes=5-", "if-range": '"another"'})

    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_download_of_the_same_bytes_is_resumed(client: TestClient, url: str) -> None:
    etag = client.get(url).headers["etag"]

    answer = client.get(url, headers={"range": "bytes=5-", "if-range": etag})

    assert (answer.status_code, answer.content) == (206, CONTENT[5:])


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_what_the_client_has_is_not_sent_again(client: TestClient, url: str, form: str) -> None:
    etag = client.get(url).headers["etag"]

    answer = client.get(url, headers={"if-none-match": form.format(etag)})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == etag


def test_another_etag_is_no_reason_to_send_nothing(client: TestClient, url: str) -> None:
    assert client.get(url, headers={"if-none-match": '"another"'}).status_code == 200


@pytest.fixture
def archive_url(client: TestClient, database: Database, store: LocalBlobStore) -> str:
    return f"/v1/fine_tuning/jobs/{add_succeeded_job(database, store, steps=(1,)).id}/adapter"


@settings(
    max_examples=effort(40, long=100), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_archive_is_the_sum_of_its_ranges(
    client: TestClient, archive_url: str, data: st.DataObject
) -> None:
    whole = client.get(archive_url).content
    begin = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(begin + 1, len(whole)))

    part = client.get(archive_url, headers={"range": f"bytes={begin}-{end - 1}"}).content

    assert part == whole[begin:end]
