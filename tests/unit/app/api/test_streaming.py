import base64
import csv
import hashlib
import io
from urllib.parse import quote

import openai
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.api.blob_reading import BlobSegment, open_segments, read_segments
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from tests.asgi import stock_client
from tests.builders import add_file, add_succeeded_job, list_checkpoints, put_blob
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


@pytest.mark.parametrize("encoding", ["plain", "base64"])
@pytest.mark.parametrize("where", [0, 2_000_000, 3_999_999])
def test_a_damaged_file_never_arrives_whole(
    *,
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    caplog: pytest.LogCaptureFixture,
    encoding: str,
    where: int,
) -> None:
    content = bytearray(4_000_000)
    file = add_file(database, store, bytes(content))
    content[where] ^= 1
    put_blob(store, file.blob_key, bytes(content))

    answer = client.get(f"/v1/files/{file.id}/content?encoding={encoding}")

    assert len(answer.content) < int(answer.headers["content-length"])
    assert f"'{file.blob_key}' does not have the bytes that were written" in caplog.text


def test_a_damaged_file_of_an_archive_ends_it_early(
    client: TestClient, database: Database, store: LocalBlobStore, archive_url: str
) -> None:
    whole = client.get(archive_url).content
    job_id = archive_url.split("/")[-2]
    key = list_checkpoints(database, job_id)[0].files[0].blob_key
    with store.open(key) as source:
        content = bytearray(source.read())
    content[0] ^= 1
    put_blob(store, key, bytes(content))

    answer = client.get(archive_url)

    assert answer.headers["content-length"] == str(len(whole))
    assert len(answer.content) < len(whole)


def test_a_file_is_sent_whole_with_what_a_resume_will_need(client: TestClient, url: str) -> None:
    answer = client.get(url)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(TOTAL)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    saved_as = "attachment; filename=\"train.jsonl\"; filename*=UTF-8''train.jsonl"
    assert answer.headers["content-disposition"] == saved_as


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


@hypothesis_settings(
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


IN_BASE64 = base64.b64encode(CONTENT)


def test_any_file_is_sent_in_base64_on_request(client: TestClient, url: str) -> None:
    plain, encoded = client.get(f"{url}?encoding=plain"), client.get(f"{url}?encoding=base64")

    assert (plain.content, encoded.content) == (CONTENT, IN_BASE64)
    assert encoded.headers["content-length"] == str(len(IN_BASE64))
    assert encoded.headers["content-type"] == "text/plain; charset=utf-8"
    assert encoded.headers["content-disposition"].endswith("''train.jsonl.base64")
    assert encoded.headers["etag"] != plain.headers["etag"] == client.get(url).headers["etag"]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 700_000, 700_001])
def test_base64_is_right_for_every_length(
    client: TestClient, database: Database, store: LocalBlobStore, length: int
) -> None:
    content = (CONTENT * (length // TOTAL + 1))[:length]
    file = add_file(database, store, content)

    answer = client.get(f"/v1/files/{file.id}/content?encoding=base64")

    assert answer.content == base64.b64encode(content)
    assert answer.headers["content-length"] == str(len(answer.content))


@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_range_in_base64_is_a_part_of_what_is_sent_whole(
    client: TestClient, url: str, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, len(IN_BASE64) - 1))
    end = data.draw(st.integers(begin + 1, len(IN_BASE64)))

    part = client.get(f"{url}?encoding=base64", headers={"range": f"bytes={begin}-{end - 1}"})

    assert (part.status_code, part.content) == (206, IN_BASE64[begin:end])
    assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(IN_BASE64)}"


def test_a_download_in_one_encoding_is_not_resumed_in_the_other(
    client: TestClient, url: str
) -> None:
    etag = client.get(url).headers["etag"]

    answer = client.get(f"{url}?encoding=base64", headers={"range": "bytes=5-", "if-range": etag})

    assert (answer.status_code, answer.content) == (200, IN_BASE64)


@pytest.mark.only_sqlite
def test_a_large_file_is_encoded_piece_by_piece(store: LocalBlobStore) -> None:
    content = CONTENT * 5000
    put_blob(store, "large", content)
    expected = base64.b64encode(content)
    sha256 = hashlib.sha256(content).hexdigest()
    segments = [b"before", BlobSegment("large", len(content), sha256, in_base64=True), b"after"]
    part = range(6, len(expected) + 6)

    pieces = list(read_segments(store, segments, part, open_segments(store, segments, part)))

    assert max(map(len, pieces)) <= 2**20
    assert b"".join(pieces) == expected


def test_a_redirect_names_the_file_as_the_header_would(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = add_file(database, store, CONTENT, filename='../a"b.jsonl')

    def sign(_store: LocalBlobStore, _key: str, *, filename: str, **_rest: object) -> str:
        return f"http://s3.test/{quote(filename, safe='')}"

    monkeypatch.setattr(LocalBlobStore, "download_url", sign)
    app = create_app(settings.model_copy(update={"store_redirects": True}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        headers = {"authorization": "Bearer unused"}
        url = f"/v1/files/{file.id}/content"
        answer = client.get(url, headers=headers, follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (307, "http://s3.test/_a_b.jsonl")


def test_there_is_no_head(client: TestClient, url: str) -> None:
    assert client.head(url).status_code == client.head(f"{url}?encoding=base64").status_code == 405


def test_an_encoding_that_there_is_not_is_refused(client: TestClient, url: str) -> None:
    answer = client.get(f"{url}?encoding=hex")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "encoding")


@pytest.fixture
def job(database: Database, store: LocalBlobStore) -> Job:
    return add_succeeded_job(database, store)


def test_a_service_can_be_set_to_send_loss_logs_as_openai_does(
    settings: Settings, database: Database, store: LocalBlobStore, job: Job
) -> None:
    uploaded = add_file(database, store, CONTENT)
    app = create_app(settings.model_copy(update={"result_files_base64": True}))

    with (
        TestClient(app, base_url="http://127.0.0.1") as client,
        stock_client(client, is_strict=True) as stock,
    ):
        (log_id,) = stock.fine_tuning.jobs.retrieve(job.id).result_files
        log = stock.files.content(log_id)
        plain = stock.files.content(log_id, extra_query={"encoding": "plain"})
        (checkpoint,) = stock.fine_tuning.jobs.checkpoints.list(job.id)
        parts = [stock.files.content(one).text for one in getattr(checkpoint, "result_files", [])]
        upload = stock.files.content(uploaded.id).read()

    decoded = base64.b64decode(log.text).decode("utf-8")
    assert decoded == plain.text
    assert next(csv.reader(io.StringIO(decoded)))[0] == "step"
    assert upload == CONTENT
    assert [text.partition(" of step ")[0] for text in parts] == [
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_loss_logs_are_sent_as_they_are_unless_the_service_is_set_to_encode_them(
    strict: openai.OpenAI, job: Job
) -> None:
    (log_id,) = strict.fine_tuning.jobs.retrieve(job.id).result_files

    assert strict.files.content(log_id).text.startswith("step,")
    encoded = strict.files.content(log_id, extra_query={"encoding": "base64"}).text
    assert base64.b64decode(encoded).startswith(b"step,")
