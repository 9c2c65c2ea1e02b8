"""A service whose bytes are in a bucket of S3: what its users see."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.errors import BlobDamagedError
from app.core.orphans import free_orphans
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore
from app.core.storage.local_copies import BlobRef, open_local
from app.main import create_app
from tests.builders import (
    TEXT_LINE,
    add_file,
    add_succeeded_job,
    build_result_file,
    list_checkpoints,
    put_blob,
)
from tests.standin_sampler import StandInSampler
from tests.stores.bucket import LARGE, damage, keys_of, left_here, server, settings, store
from tests.stores.servers import KEY_ID, SECRET, StoreServer

__all__ = ["server", "settings", "store"]

pytestmark = pytest.mark.only_sqlite

FORM = {"purpose": "fine-tune"}


def upload(client: TestClient, content: bytes = TEXT_LINE, name: str = "a.jsonl") -> Any:
    return client.post("/v1/files", files={"file": (name, content)}, data=FORM)


def test_files_are_in_the_bucket_and_not_here(
    client: TestClient, store: BlobStore, settings: Settings
) -> None:
    file_id = upload(client).json()["id"]

    assert keys_of(store) == [f"files/{file_id}"]
    assert left_here(settings) == []
    assert client.get(f"/v1/files/{file_id}/content").content == TEXT_LINE
    assert client.delete(f"/v1/files/{file_id}").status_code == 200
    assert keys_of(store) == []


def test_a_file_in_parts_is_joined_and_its_parts_are_gone(
    client: TestClient, store: BlobStore, settings: Settings
) -> None:
    pieces = [TEXT_LINE * 1000, TEXT_LINE * 500]
    size = sum(map(len, pieces))
    named = {"filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    upload_id = client.post("/v1/uploads", json={"bytes": size, **named}).json()["id"]
    part_ids = [
        client.post(f"/v1/uploads/{upload_id}/parts", files={"data": piece}).json()["id"]
        for piece in pieces
    ]

    answer = client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids})

    file = answer.json()["file"]
    assert (file["bytes"], file["examples"]) == (size, 1500)
    assert keys_of(store) == [f"files/{file['id']}"]
    assert left_here(settings) == []


@pytest.mark.parametrize("asked", ["bytes=0-0", "bytes=400000-900000", "bytes=-5", None])
def test_ranges_are_read_from_the_bucket(
    client: TestClient, database: Database, store: Any, asked: str | None
) -> None:
    file = add_file(database, store, LARGE)
    headers = {"range": asked} if asked else {}

    answer = client.get(f"/v1/files/{file.id}/content", headers=headers)

    expected = {
        "bytes=0-0": LARGE[:1],
        "bytes=400000-900000": LARGE[400_000:900_001],
        "bytes=-5": LARGE[-5:],
        None: LARGE,
    }
    assert answer.content == expected[asked]


@pytest.mark.parametrize("what", ["file", "archive"])
def test_damaged_bytes_never_arrive_whole(
    *,
    client: TestClient,
    database: Database,
    store: Any,
    server: StoreServer,
    settings: Settings,
    what: str,
) -> None:
    if what == "file":
        file = add_file(database, store, LARGE)
        url, key = f"/v1/files/{file.id}/content", file.blob_key
    else:
        job = add_succeeded_job(database, store, steps=(1,))
        url = f"/v1/fine_tuning/jobs/{job.id}/adapter"
        key = list_checkpoints(database, job.id)[0].files[0].blob_key
    whole = client.get(url)
    damage(server, settings, key)

    answer = client.get(url)

    assert len(whole.content) == int(whole.headers["content-length"])
    assert len(answer.content) < int(answer.headers["content-length"])


class TestStoreAway:
    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.core.storage.s3.calls.PATIENCE_S", 0.5)

    def test_nothing_is_promised_and_nothing_left_behind(
        self,
        *,
        app: FastAPI,
        client: TestClient,
        server: StoreServer,
        settings: Settings,
        store: BlobStore,
    ) -> None:
        server.kill()

        refused = upload(client)
        ready = client.get("/readyz")

        server.start()
        assert (refused.status_code, ready.status_code) == (503, 200)
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert int(refused.headers["retry-after"]) > 0
        assert ready.json()["store_answers"] is False
        outcome = {"operation": "put", "outcome": "away"}
        metrics = app.state.metrics.registry
        assert metrics.get_sample_value("tunery_store_requests_total", outcome) == 1
        assert (client.get("/v1/files").json()["data"], left_here(settings)) == ([], [])
        assert keys_of(store) == []
        assert upload(client).status_code == 200
        assert client.get("/readyz").json()["store_answers"] is True

    def test_what_needs_no_bytes_goes_on(
        self, client: TestClient, server: StoreServer, store: BlobStore
    ) -> None:
        file_id = upload(client).json()["id"]
        server.kill()

        download = client.get(f"/v1/files/{file_id}/content")
        listed = client.get("/v1/files").json()["data"]
        deleted = client.delete(f"/v1/files/{file_id}")

        server.start()
        assert (download.status_code, len(listed), deleted.status_code) == (503, 1, 200)
        assert keys_of(store) == [f"files/{file_id}"]  # an orphan from now on


class FullBucket(BaseHTTPRequestHandler):
    """Has room for nothing, as two kinds of servers say it."""

    status, code = 507, "XMinioStorageFull"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = f"<Error><Code>{self.code}</Code></Error>".encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.mark.parametrize(("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded")])
def test_a_full_bucket_is_like_a_full_disk(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
) -> None:
    handler = type("Handler", (FullBucket,), {"status": status, "code": code})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as bucket:
        threading.Thread(target=bucket.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.server_port}")
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
            answer = upload(client)
            listed = client.get("/v1/files").json()["data"]
        bucket.shutdown()

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (507, "insufficient_storage")
    assert "bucket is full" in error["message"]
    assert (listed, left_here(settings)) == ([], [])


def test_the_page_of_the_service_names_the_bucket_and_no_secret(
    client: TestClient, settings: Settings
) -> None:
    answer = client.get("/v1/organization/service")

    findings = {finding["check"]: finding["level"] for finding in answer.json()["findings"]}
    assert answer.json()["store"] == settings.store_url
    assert findings["store"] == "ok"
    assert (SECRET in answer.text, KEY_ID in answer.text) == (False, False)


def test_a_model_is_asked_with_its_adapter_from_the_bucket(
    client: TestClient,
    database: Database,
    store: Any,
    settings: Settings,
    server: StoreServer,
) -> None:
    """The sampler gets descriptors, which only files of this machine have."""
    job = add_succeeded_job(database, store, steps=(1,))
    (checkpoint,) = list_checkpoints(database, job.id)
    config = build_result_file(store, job, "adapter_config.json", '{"r": 1}')
    config.checkpoint_id = checkpoint.id
    with database.writing() as session:
        session.add(config)
    weights = next(file for file in checkpoint.files if file.filename.endswith("safetensors"))
    body = {"model": job.fine_tuned_model, "prompt": "one two"}

    with StandInSampler(settings.sampler_dir) as sampler:
        first = client.post("/v1/completions", json=body)
        server.kill()  # the copies are here now
        second = client.post("/v1/completions", json=body)

    assert (first.status_code, second.status_code) == (200, 200)
    sent = [hashlib.sha256(content).hexdigest() for content in sampler.asked[0].files]
    assert sent == [weights.sha256, config.sha256]
    assert sampler.asked[1].files == sampler.asked[0].files
    assert {path.name for path in settings.copies_dir.iterdir()} == {weights.sha256, config.sha256}


class TestCopies:
    @pytest.fixture
    def blobs(self, database: Database, store: Any) -> list[BlobRef]:
        files = [add_file(database, store, bytes([number]) * 1000) for number in range(4)]
        return [BlobRef(file.blob_key, file.sha256) for file in files]

    def open(self, store: BlobStore, settings: Settings, blob: BlobRef, **options: Any) -> bytes:
        with open_local(store, settings, blob, require_room=lambda _: None, **options) as copy:
            os.fstat(copy.fileno())
            return copy.read()

    def test_those_not_used_for_longest_make_room(
        self, store: BlobStore, settings: Settings, blobs: list[BlobRef]
    ) -> None:
        for place, blob in enumerate(blobs[:3]):
            self.open(store, settings, blob, max_bytes=3000)
            os.utime(settings.copies_dir / blob.sha256, (place, place))
        self.open(store, settings, blobs[0], max_bytes=3000)

        self.open(store, settings, blobs[3], max_bytes=3000)

        kept = {path.name for path in settings.copies_dir.iterdir()}
        assert kept == {blobs[place].sha256 for place in (0, 2, 3)}

    def test_one_that_is_too_large_is_read_and_not_kept(
        self, store: BlobStore, settings: Settings, blobs: list[BlobRef]
    ) -> None:
        assert self.open(store, settings, blobs[1], max_bytes=999) == b"\1" * 1000
        assert list(settings.copies_dir.iterdir()) == []

    def test_damaged_bytes_are_refused(
        self, store: BlobStore, settings: Settings, blobs: list[BlobRef], server: StoreServer
    ) -> None:
        damage(server, settings, blobs[0].key)

        with pytest.raises(BlobDamagedError):
            self.open(store, settings, blobs[0])

        assert list(settings.copies_dir.iterdir()) == []

    def test_unused_ones_are_deleted_with_the_orphans(
        self, database: Database, store: BlobStore, settings: Settings, blobs: list[BlobRef]
    ) -> None:
        for blob in blobs[:2]:
            self.open(store, settings, blob)
        os.utime(settings.copies_dir / blobs[0].sha256, (0, 0))

        freed = free_orphans(database, store, settings)

        assert freed.scratch_files == 1
        assert [path.name for path in settings.copies_dir.iterdir()] == [blobs[1].sha256]

    def test_a_store_of_this_machine_needs_none(self, settings: Settings) -> None:
        local = LocalBlobStore(settings.blobs_dir)
        put_blob(local, "files/one", b"1")
        blob = BlobRef("files/one", hashlib.sha256(b"1").hexdigest())

        assert self.open(local, settings, blob) == b"1"
        assert not settings.copies_dir.exists()
