"""A full disk: what would fill it further is refused in time, and everything else still works.

The service is told to leave more free than there is; `make diskfull` fills a real disk.
"""

import errno
import itertools
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.files import FileRepository
from app.core.db.session import Database, Session
from app.core.disk import Ballast
from app.core.errors import NotFoundError, StorageFullError
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.asgi import fill_disk, full_disk, post_in_chunks
from tests.builders import NOW, TEXT_LINE, add_file, add_succeeded_job, list_blobs

FORM = "multipart/form-data; boundary=X"
HEAD = (
    b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
END = b"\r\n--X--\r\n"


@pytest.fixture
def full(app: FastAPI) -> None:
    fill_disk(app)


def answer_free(monkeypatch: pytest.MonkeyPatch, sizes: Iterable[int]) -> None:
    """From now on, the disk has these numbers of free bytes, one after the other."""
    free = iter(sizes)

    def statvfs(_: object) -> SimpleNamespace:
        return SimpleNamespace(f_files=0, f_favail=0, f_bavail=next(free), f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_an_upload_is_refused_before_a_byte_of_it_is_read(app: FastAPI, full: None) -> None:
    answer = post_in_chunks(app, "/v1/files", [HEAD, TEXT_LINE, END], FORM)

    assert (answer.status, answer.bytes_taken) == (507, 0)
    assert answer.body["error"]["code"] == "insufficient_storage"
    assert answer.body["error"]["type"] == "server_error"


def test_what_an_upload_announces_is_counted(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    headers = {"content-type": FORM}
    statuses: list[int] = []

    for lines in (1, 100):
        enough = itertools.repeat(10 * settings.min_free_bytes)
        free = itertools.chain([settings.min_free_bytes + 1000], enough)  # only the first look says
        answer_free(monkeypatch, free)
        answer = client.post("/v1/files", content=HEAD + TEXT_LINE * lines + END, headers=headers)
        statuses.append(answer.status_code)

    assert statuses == [200, 507]


def test_an_upload_ends_where_the_disk_becomes_full(
    app: FastAPI, store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """As many uploads may begin at once, and each of them announces less than is free."""
    mib_of_lines = TEXT_LINE * (2**20 // len(TEXT_LINE) + 1)
    answer_free(monkeypatch, [10 * settings.min_free_bytes] * 2 + [0] * 10)

    answer = post_in_chunks(app, "/v1/files", [HEAD, mib_of_lines, mib_of_lines, END], FORM)

    assert answer.status == 507
    assert answer.bytes_taken == len(HEAD + mib_of_lines + mib_of_lines)
    assert list_blobs(store) == []


class FullFile:
    """A file on a disk that is full: what is written is refused, now or when it is closed."""

    def __init__(self, file: BinaryIO, number: int, *, late: bool) -> None:
        self._file, self._number, self._late = file, number, late

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._late:
            raise OSError(self._number, "full")

    def write(self, data: bytes) -> int:
        if not self._late:
            raise OSError(self._number, "full")
        return len(data)


@pytest.mark.parametrize("late", [False, True], ids=["at-a-write", "at-the-end"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_a_disk_that_fills_up_under_an_upload_is_said_to_be_full(
    number: int,
    *,
    late: bool,
    client: TestClient,
    store: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *rest: Any) -> Any:
        file = opened(path, mode, *rest)
        return FullFile(file, number, late=late) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", open_full)
    headers = {"content-type": FORM}

    answer = client.post("/v1/files", content=HEAD + TEXT_LINE + END, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
    assert list_blobs(store) == []


def test_another_error_of_the_disk_is_a_failure(
    app: FastAPI, client: TestClient, store: LocalBlobStore, settings: Settings
) -> None:
    class BrokenStore(LocalBlobStore):
        def put(self, key: str, scratch: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    broken = BrokenStore(settings.blobs_dir)
    app.state.resources = replace(app.state.resources, store=broken)
    headers = {"content-type": FORM}

    answer = client.post("/v1/files", content=HEAD + TEXT_LINE + END, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert list_blobs(store) == []


def test_a_new_job_is_refused_and_one_that_was_granted_before_is_shown(
    app: FastAPI, client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    body = {"model": "tiny", "training_file": add_file(database, store).id}
    headers = {"idempotency-key": "one"}
    granted = client.post("/v1/fine_tuning/jobs", json=body, headers=headers).json()["id"]
    fill_disk(app)

    again = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
    new = client.post("/v1/fine_tuning/jobs", json=body)
    rerun = client.post(f"/v1/fine_tuning/jobs/{granted}/rerun")
    cancel = client.post(f"/v1/fine_tuning/jobs/{granted}/cancel")

    assert (again.status_code, again.json()["id"]) == (200, granted)
    assert (new.status_code, new.json()["error"]["code"]) == (507, "insufficient_storage")
    assert (rerun.status_code, cancel.status_code) == (507, 200)


def test_what_is_there_can_be_read_and_deleted(
    client: TestClient, database: Database, store: LocalBlobStore, full: None
) -> None:
    file = add_file(database, store)

    assert client.get(f"/v1/files/{file.id}/content").content == TEXT_LINE
    assert client.delete(f"/v1/files/{file.id}").status_code == 200
    assert list_blobs(store) == []


def test_readiness_says_that_there_is_no_room(client: TestClient, full: None) -> None:
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json()["has_room"] is False


def test_intake_goes_on_once_there_is_space_again(app: FastAPI, client: TestClient) -> None:
    headers, body = {"content-type": FORM}, HEAD + TEXT_LINE + END
    with full_disk(app):
        assert client.post("/v1/files", content=body, headers=headers).status_code == 507

    assert client.post("/v1/files", content=body, headers=headers).status_code == 200
    assert client.get("/readyz").json()["has_room"] is True


@pytest.fixture
def ballast(settings: Settings) -> Ballast:
    ballast = Ballast(settings)
    assert ballast.make_if_room()
    return ballast


def test_a_deletion_that_finds_no_space_has_the_ballast(
    app: FastAPI, database: Database, store: LocalBlobStore, ballast: Ballast
) -> None:
    file = add_file(database, store)
    calls: list[bool] = []

    def delete(session: Session) -> str:
        files = FileRepository(session, DEFAULT_PROJECT_ID)
        files.delete(files.get(file.id, now=NOW))  # again, so the first time was rolled back
        session.flush()
        calls.append(ballast.is_there)
        if ballast.is_there:
            raise StorageFullError("full")
        return "deleted"

    assert app.state.resources.write(delete, frees_space=True) == "deleted"
    assert calls == [True, False]
    with database.reading() as session, pytest.raises(NotFoundError):
        FileRepository(session, DEFAULT_PROJECT_ID).get(file.id, now=NOW)


def test_without_ballast_a_deletion_is_refused_after_one_try(
    app: FastAPI, settings: Settings
) -> None:
    calls: list[None] = []

    def fail(_: Session) -> None:
        calls.append(None)
        raise StorageFullError("full")

    with pytest.raises(StorageFullError):
        app.state.resources.write(fail, frees_space=True)

    assert len(calls) == 1


@pytest.mark.parametrize("what", ["file", "model"])
def test_every_route_that_frees_space_does_so_on_a_full_disk(
    what: str,
    *,
    app: FastAPI,
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    ballast: Ballast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = add_succeeded_job(database, store)
    path = {
        "file": f"/v1/files/{add_file(database, store).id}",
        "model": f"/v1/models/{job.fine_tuned_model}",
    }[what]
    backend = app.state.resources.database.backend
    commit = backend.commit

    def commit_if_room(session: Session) -> None:
        if ballast.is_there:
            raise StorageFullError("full")
        commit(session)

    monkeypatch.setattr(backend, "commit", commit_if_room)

    assert client.delete(path).status_code == 200
    assert not ballast.is_there


@pytest.mark.parametrize("what", ["file", "adapter"])
def test_a_download_needs_no_space_and_drops_no_ballast(
    what: str,
    *,
    app: FastAPI,
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    ballast: Ballast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = {
        "file": f"/v1/files/{add_file(database, store).id}/content",
        "adapter": f"/v1/fine_tuning/jobs/{add_succeeded_job(database, store).id}/adapter",
    }[what]

    def commit(_: Session) -> None:
        raise StorageFullError("full")

    monkeypatch.setattr(app.state.resources.database.backend, "commit", commit)

    assert client.get(path).status_code == 200
    assert ballast.is_there
