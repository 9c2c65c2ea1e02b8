"""Files that are sent in parts, on both databases: what is kept, what is refused, what is freed."""

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.v1 import uploads as routes
from app.core.access import LOCAL_CALLER
from app.core.clock import utc_now
from app.core.dataset.checker import DatasetSummary
from app.core.db.repositories.uploads import COMPLETION_GRACE, ENDED_KEPT_FOR
from app.core.db.session import Database
from app.core.db.tables import Upload, UploadPart
from app.core.errors import PayloadTooLargeError
from app.core.settings import Settings
from app.core.storage.blob_store import stored
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from app.schemas.uploads import UploadComplete
from app.services import uploads as upload_service
from app.services.received_files import ReceivedFile
from tests.asgi import full_disk, post_in_chunks
from tests.builders import build_chat_file, list_blobs
from tests.fakes import FrozenClock
from tests.killing import is_killed_before
from tests.waiting import wait_until
from worker.janitor import Janitor

if TYPE_CHECKING:
    from app.api.deps import Resources

CONTENT = build_chat_file(6)
PARTS = [CONTENT[:100], CONTENT[100:300], CONTENT[300:]]
UPLOADS = "/v1/uploads"


def create(client: TestClient, **changes: Any) -> dict[str, Any]:
    body = {
        "bytes": len(CONTENT),
        "filename": "train.jsonl",
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    }
    answer = client.post(UPLOADS, json=body | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post_part(client: TestClient, upload_id: str, content: bytes) -> Any:
    return client.post(f"{UPLOADS}/{upload_id}/parts", files={"data": ("upload", content)})


def send(client: TestClient, upload_id: str, *parts: bytes) -> list[str]:
    answers = [post_part(client, upload_id, part) for part in parts]
    assert [answer.status_code for answer in answers] == [200] * len(parts), answers[-1].text
    return [answer.json()["id"] for answer in answers]


def complete(client: TestClient, upload_id: str, part_ids: list[str], **more: Any) -> Any:
    return client.post(f"{UPLOADS}/{upload_id}/complete", json={"part_ids": part_ids} | more)


def cancel(client: TestClient, upload_id: str) -> Any:
    return client.post(f"{UPLOADS}/{upload_id}/cancel")


def read(client: TestClient, upload_id: str) -> dict[str, Any]:
    return client.get(f"{UPLOADS}/{upload_id}").json()


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_parts_become_a_file_like_any_other(client: TestClient, store: LocalBlobStore) -> None:
    upload = create(client, filename="a/b/train.jsonl")
    assert (upload["status"], upload["file"], upload["parts"]) == ("pending", None, [])
    assert upload["expires_at"] - upload["created_at"] == 3600
    part_ids = send(client, upload["id"], *PARTS)

    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()

    answer = complete(client, upload["id"], part_ids, md5=md5.upper())

    done = answer.json()
    assert (answer.status_code, done["status"], done["parts"]) == (200, "completed", [])
    plain = client.post(
        "/v1/files",
        files={"file": ("train.jsonl", CONTENT)},
        data={"purpose": "fine-tune"},
    ).json()
    own = {"id", "created_at"}
    assert {k: v for k, v in done["file"].items() if k not in own} == {
        k: v for k, v in plain.items() if k not in own
    }
    assert client.get(f"/v1/files/{done['file']['id']}").json() == done["file"]
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == CONTENT
    assert list_blobs(store) == sorted(f"files/{file['id']}" for file in (done["file"], plain))


def test_the_file_expires_as_was_asked_for_when_the_upload_was_created(client: TestClient) -> None:
    upload = create(client, expires_after={"anchor": "created_at", "seconds": 7200})

    file = complete(client, upload["id"], send(client, upload["id"], *PARTS)).json()["file"]

    assert file["expires_at"] == file["created_at"] + 7200


def test_an_upload_lists_the_parts_it_has(client: TestClient) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS[:2])

    parts = read(client, upload["id"])["parts"]

    assert [part["id"] for part in parts] == part_ids
    assert [(part["bytes"], part["sha256"]) for part in parts] == [
        (len(part), hashlib.sha256(part).hexdigest()) for part in PARTS[:2]
    ]
    assert {(part["object"], part["upload_id"]) for part in parts} == {
        ("upload.part", upload["id"])
    }


def test_a_part_that_is_sent_again_is_the_same_part(
    client: TestClient, store: LocalBlobStore
) -> None:
    upload = create(client)

    first = send(client, upload["id"], *PARTS)
    again = send(client, upload["id"], *PARTS)

    assert again == first
    assert len(list_blobs(store)) == len(PARTS)
    assert complete(client, upload["id"], again).status_code == 200


def test_equal_parts_of_one_file_are_one_part_that_is_named_twice(client: TestClient) -> None:
    line = b'{"text": "the same"}\n'
    upload = create(client, bytes=3 * len(line))
    part_ids = send(client, upload["id"], line, line, line)
    assert len(set(part_ids)) == 1

    file = complete(client, upload["id"], part_ids).json()["file"]

    assert client.get(f"/v1/files/{file['id']}/content").content == 3 * line


def test_parts_that_are_not_named_are_freed(client: TestClient, store: LocalBlobStore) -> None:
    upload = create(client)
    send(client, upload["id"], b"sent by mistake")

    file = complete(client, upload["id"], send(client, upload["id"], *PARTS)).json()["file"]

    assert list_blobs(store) == [f"files/{file['id']}"]


def test_completion_can_be_repeated(client: TestClient, store: LocalBlobStore) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)

    first = complete(client, upload["id"], part_ids)
    again = complete(client, upload["id"], part_ids)

    assert (again.status_code, again.json()) == (200, first.json())
    assert len(list_blobs(store)) == 1
    check_refusal(complete(client, upload["id"], part_ids[::-1]), 400, "upload_not_pending", None)


def test_a_completed_upload_outlives_its_file(client: TestClient) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)
    file = complete(client, upload["id"], part_ids).json()["file"]

    assert client.delete(f"/v1/files/{file['id']}").status_code == 200

    assert complete(client, upload["id"], part_ids).json() == read(client, upload["id"])
    assert (read(client, upload["id"])["status"], read(client, upload["id"])["file"]) == (
        "completed",
        None,
    )


def test_a_bad_file_is_refused_with_every_problem_and_the_upload_stays_pending(
    client: TestClient, store: LocalBlobStore
) -> None:
    content = b'{"text": "good"}\n{"text": 5}\n[]\n'
    upload = create(client, bytes=len(content))
    part_ids = send(client, upload["id"], content[:20], content[20:])
    kept = list_blobs(store)

    answer = complete(client, upload["id"], part_ids)

    check_refusal(answer, 400, "invalid_file", "file")
    error = answer.json()["error"]
    assert [(one["line"], one["code"]) for one in error["errors"]] == [
        (2, "wrong_type"),
        (3, "not_an_object"),
    ]
    assert error["error_count"] == 2
    assert read(client, upload["id"])["status"] == "pending"
    assert list_blobs(store) == kept
    assert client.get("/v1/files").json()["data"] == []


def test_a_wrong_order_is_refused_and_can_be_put_right(client: TestClient) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)

    wrong = complete(client, upload["id"], part_ids[::-1])
    right = complete(client, upload["id"], part_ids)

    check_refusal(wrong, 400, "invalid_file", "file")
    assert right.status_code == 200


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_bytes_that_the_service_has_lost_do_not_become_a_file(
    damage: str, client: TestClient, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)
    path = store._path(f"uploads/{part_ids[1]}")
    if damage == "changed":
        path.write_bytes(PARTS[1].replace(b"e", b"o", 1))
    else:
        path.unlink()

    answer = complete(client, upload["id"], part_ids)

    check_refusal(answer, 400, "upload_damaged", None)
    assert client.get("/v1/files").json()["data"] == []
    assert cancel(client, upload["id"]).status_code == 200


def test_another_md5_is_refused_and_the_parts_are_kept(
    client: TestClient, store: LocalBlobStore
) -> None:
    lines = [b'{"text": "one"}\n', b'{"text": "two"}\n']
    upload = create(client, bytes=sum(map(len, lines)))
    part_ids = send(client, upload["id"], *lines)
    md5 = hashlib.md5(b"".join(lines), usedforsecurity=False).hexdigest()
    kept = list_blobs(store)

    wrong = complete(client, upload["id"], part_ids[::-1], md5=md5)  # whose lines are all good

    check_refusal(wrong, 400, "upload_md5_mismatch", "md5")
    assert list_blobs(store) == kept
    assert complete(client, upload["id"], part_ids, md5=md5).status_code == 200


@pytest.mark.parametrize("named", [[0, 1], [0, 1, 2, 2], []], ids=["missing", "twice", "none"])
def test_parts_of_another_size_than_was_declared_are_refused(
    named: list[int], client: TestClient
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)

    answer = complete(client, upload["id"], [part_ids[number] for number in named])

    check_refusal(answer, 400, "upload_size_mismatch", "part_ids")
    assert f"was created for {len(CONTENT):,} bytes" in answer.json()["error"]["message"]
    assert complete(client, upload["id"], part_ids).status_code == 200


def test_parts_of_another_upload_are_refused(client: TestClient) -> None:
    other = create(client)
    foreign = send(client, other["id"], *PARTS)
    upload = create(client)
    own = send(client, upload["id"], PARTS[0])

    for part_id in (foreign[1], "part_nothing"):
        answer = complete(client, upload["id"], [*own, part_id])
        check_refusal(answer, 400, "part_not_found", "part_ids[1]")


def test_cancelling_frees_the_bytes_and_ends_the_upload(
    client: TestClient, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)

    first, again = cancel(client, upload["id"]), cancel(client, upload["id"])

    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()) == (200, first.json())
    assert list_blobs(store) == []
    for answer in (
        post_part(client, upload["id"], PARTS[0]),
        complete(client, upload["id"], part_ids),
    ):
        check_refusal(answer, 400, "upload_not_pending", None)
    assert list_blobs(store) == []


def test_a_completed_upload_cannot_be_cancelled(client: TestClient) -> None:
    upload = create(client)
    complete(client, upload["id"], send(client, upload["id"], *PARTS))

    check_refusal(cancel(client, upload["id"]), 400, "upload_not_pending", None)
    assert read(client, upload["id"])["status"] == "completed"


def let_expire(database: Database, upload_id: str, *, ago: timedelta) -> None:
    with database.writing() as session:
        upload = session.get(Upload, upload_id)
        assert upload is not None
        upload.expires_at = utc_now() - ago


def run_janitor(settings: Settings, database: Database, store: LocalBlobStore, at: Any) -> None:
    Janitor(settings, database=database, store=store, clock=FrozenClock(at)).run_if_due()


def test_an_upload_expires_and_the_janitor_frees_its_bytes(
    client: TestClient, database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    upload, other = create(client), create(client)
    part_ids = send(client, upload["id"], *PARTS)
    kept = send(client, other["id"], PARTS[0])
    let_expire(database, upload["id"], ago=COMPLETION_GRACE + timedelta(seconds=1))

    for _ in range(2):
        assert read(client, upload["id"])["status"] == "expired"
        for answer in (
            post_part(client, upload["id"], PARTS[0]),
            complete(client, upload["id"], part_ids),
            cancel(client, upload["id"]),
        ):
            check_refusal(answer, 400, "upload_not_pending", None)
        run_janitor(settings, database, store, utc_now())

    assert read(client, upload["id"])["parts"] == []
    assert list_blobs(store) == [f"uploads/{part_id}" for part_id in kept]


def test_a_completion_that_came_in_time_is_given_the_time_it_takes(
    app: FastAPI,
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    settings: Settings,
) -> None:
    upload = create(client)
    body = UploadComplete(part_ids=send(client, upload["id"], *PARTS))
    let_expire(database, upload["id"], ago=timedelta(minutes=1))
    run_janitor(settings, database, store, utc_now())
    came_at = utc_now() - timedelta(minutes=5)

    resources = app.state.resources
    done = asyncio.run(routes.complete_upload(upload["id"], body, LOCAL_CALLER, resources, came_at))

    assert done.status == "completed"


def test_uploads_that_ended_long_ago_are_forgotten_and_their_files_are_not(
    client: TestClient, database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    upload = create(client)
    file = complete(client, upload["id"], send(client, upload["id"], *PARTS)).json()["file"]
    end = utc_now() + upload_service.LIFETIME + ENDED_KEPT_FOR

    run_janitor(settings, database, store, end - timedelta(minutes=1))
    assert client.get(f"{UPLOADS}/{upload['id']}").status_code == 200
    run_janitor(settings, database, store, end + timedelta(minutes=1))

    check_refusal(client.get(f"{UPLOADS}/{upload['id']}"), 404, "upload_not_found", None)
    assert client.get(f"/v1/files/{file['id']}/content").content == CONTENT


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        pytest.param(
            {"purpose": "assistants"}, 400, "unsupported_purpose", "purpose", id="purpose"
        ),
        pytest.param({"bytes": 0}, 400, "invalid_value", "bytes", id="no-bytes"),
        pytest.param({"bytes": 10**30}, 413, "file_too_large", "bytes", id="too-large"),
        pytest.param({"bytes": "7"}, 400, "invalid_value", "bytes", id="text"),
        pytest.param({"mime": "x"}, 400, "unknown_parameter", "mime", id="unknown"),
        pytest.param(
            {"expires_after": {"anchor": "created_at", "seconds": 60}},
            400,
            "invalid_value",
            "expires_after.seconds",
            id="too-soon",
        ),
        pytest.param(
            {"expires_after": {"seconds": 3600}},
            400,
            "missing_required_parameter",
            "expires_after.anchor",
            id="no-anchor",
        ),
    ],
)
def test_a_bad_upload_is_not_created(
    client: TestClient, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    good = {"bytes": 1, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}

    check_refusal(client.post(UPLOADS, json=good | changes), status, code, param)


def test_a_part_and_all_parts_together_have_a_largest_size(
    app: FastAPI, settings: Settings, store: LocalBlobStore
) -> None:
    small = create_app(settings.model_copy(update={"max_upload_bytes": len(CONTENT)}))
    with TestClient(small, base_url="http://127.0.0.1") as client:
        upload = create(client)
        send(client, upload["id"], *PARTS)

        together = post_part(client, upload["id"], b"x")
        alone = post_in_chunks(
            small,
            f"{UPLOADS}/{upload['id']}/parts",
            [b'--X\r\nContent-Disposition: form-data; name="data"\r\n\r\n', *[b"x" * 2**20] * 65],
            "multipart/form-data; boundary=X",
        )

    check_refusal(together, 413, "file_too_large", "data")
    assert (alone.status, alone.body["error"]["code"]) == (413, "file_too_large")
    assert "A part can have at most 67,108,864 bytes" in alone.body["error"]["message"]
    assert len(list_blobs(store)) == len(PARTS)


def test_there_is_a_largest_number_of_parts(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS[:2])
    third, first = store.scratch_file(), store.scratch_file()
    third.write_bytes(PARTS[2])
    first.write_bytes(PARTS[0])

    with pytest.raises(PayloadTooLargeError, match="at most 2 parts") as refusal:
        add_part(database, store, upload["id"], third, max_parts=2)
    again = add_part(database, store, upload["id"], first, max_parts=2)

    assert (refusal.value.code, refusal.value.param) == ("file_too_large", "data")
    assert again.id == part_ids[0]
    assert list_blobs(store) == [f"uploads/{part_id}" for part_id in part_ids]


def test_a_part_of_no_upload_is_refused_before_it_is_read(app: FastAPI, client: TestClient) -> None:
    assert client.get("/readyz").status_code == 200
    chunks = [b"x" * 2**20] * 10

    answer = post_in_chunks(
        app, f"{UPLOADS}/upload_1/parts", chunks, "multipart/form-data; boundary=X"
    )

    assert (answer.status, answer.bytes_taken) == (404, 0)


def test_a_body_that_is_no_part_is_refused(client: TestClient, store: LocalBlobStore) -> None:
    path = f"{UPLOADS}/{create(client)['id']}/parts"

    check_refusal(client.post(path, json={}), 415, "unsupported_media_type", None)
    check_refusal(
        client.post(path, files={"file": b"x"}), 400, "missing_required_parameter", "data"
    )
    assert list_blobs(store) == []


def test_a_full_disk_takes_neither_part_nor_file_and_frees_what_is_cancelled(
    app: FastAPI, client: TestClient, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)
    kept = list_blobs(store)
    body = {"bytes": 1, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    with full_disk(app):
        for answer in (
            client.post(UPLOADS, json=body),
            post_part(client, upload["id"], b"one more"),
            complete(client, upload["id"], part_ids),
        ):
            check_refusal(answer, 507, "insufficient_storage", None)
        assert list_blobs(store) == kept
        assert read(client, upload["id"])["status"] == "pending"
        assert cancel(client, upload["id"]).status_code == 200
    assert list_blobs(store) == []


def test_the_same_part_sent_at_once_is_one_part(client: TestClient, store: LocalBlobStore) -> None:
    upload = create(client)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: post_part(client, upload["id"], PARTS[0]), range(16)))

    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(read(client, upload["id"])["parts"]) == len(list_blobs(store)) == 1


def test_completions_at_once_make_one_file(client: TestClient, store: LocalBlobStore) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: complete(client, upload["id"], part_ids), range(12)))

    assert {answer.status_code for answer in answers} == {200}
    (file_id,) = {answer.json()["file"]["id"] for answer in answers}
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [file_id]
    assert list_blobs(store) == [f"files/{file_id}"]


@pytest.mark.parametrize("round_", range(4))
def test_of_completing_cancelling_and_adding_at_once_each_is_done_or_refused(
    round_: int, client: TestClient, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)
    acts = [
        lambda: complete(client, upload["id"], part_ids),
        lambda: cancel(client, upload["id"]),
        lambda: post_part(client, upload["id"], b"one more"),
    ]

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda act: act(), acts[round_ % 3 :] + acts))

    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.json()["error"]["code"] for answer in refused} <= {"upload_not_pending"}
    after = read(client, upload["id"])
    assert after["status"] in ("completed", "cancelled")
    file = after["file"]
    assert list_blobs(store) == ([f"files/{file['id']}"] if file else [])


@pytest.mark.parametrize("how", ["cancelled", "completed"])
def test_what_ends_an_upload_while_its_parts_are_joined_decides(
    how: str, app: FastAPI, client: TestClient, store: LocalBlobStore, settings: Settings
) -> None:
    """The parts are gone by then, under the hands of the request that joins them."""
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS)
    first_part = f"uploads/{part_ids[0]}"
    resources = app.state.resources

    class EndingStore(LocalBlobStore):
        def open(self, key: str) -> BinaryIO:
            if key == first_part:
                app.state.resources = resources
                if how == "cancelled":
                    assert cancel(client, upload["id"]).status_code == 200
                else:
                    assert complete(client, upload["id"], part_ids).status_code == 200
            return super().open(key)

    app.state.resources = replace(resources, store=EndingStore(settings.blobs_dir))
    answer = complete(client, upload["id"], part_ids)

    if how == "cancelled":
        check_refusal(answer, 400, "upload_not_pending", None)
    else:
        assert answer.json() == read(client, upload["id"])
    assert len(list_blobs(store)) == (how == "completed")


def add_part(
    database: Database, store: LocalBlobStore, upload_id: str, scratch: Path, **limits: int
) -> UploadPart:
    """Add the bytes at `scratch`, as the route does once it has received them."""
    limits = {"max_bytes": 10**9} | limits
    part = upload_service.build_part(upload_id, build_received(scratch), now=utc_now())
    with stored(store, {part.blob_key: scratch}):
        added = database.transact(
            lambda session: upload_service.add_part(
                session, LOCAL_CALLER, part, now=utc_now(), **limits
            )
        )
    if added is not part:
        store.delete(part.blob_key)
    return added


def build_received(path: Path) -> ReceivedFile:
    content = path.read_bytes()
    return ReceivedFile(
        path=path,
        filename="upload",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        crc32=0,
        summary=DatasetSummary(),
        fields={},
    )


@pytest.mark.only_sqlite
@pytest.mark.parametrize("what", ["part", "complete"])
def test_a_request_that_was_killed_anywhere_can_be_sent_again(
    what: str, client: TestClient, settings: Settings, store: LocalBlobStore
) -> None:
    upload = create(client)
    part_ids = send(client, upload["id"], *PARTS[:2])

    def act() -> None:
        resources: Resources = create_app(settings).state.resources
        if what == "complete":
            body = UploadComplete(part_ids=part_ids)
            asyncio.run(
                routes.complete_upload(upload["id"], body, LOCAL_CALLER, resources, utc_now())
            )
        else:
            scratch = store.scratch_file()
            scratch.write_bytes(PARTS[2])
            add_part(resources.database, store, upload["id"], scratch)

    if what == "complete":
        part_ids += send(client, upload["id"], PARTS[2])
    operation = 1
    while is_killed_before(operation, act):
        after = read(client, upload["id"])
        assert [part["id"] for part in after["parts"]][:2] == part_ids[:2] or after["file"]
        operation += 1

    assert operation > 3
    part_ids = part_ids[:2] + send(client, upload["id"], PARTS[2]) if what == "part" else part_ids
    done = complete(client, upload["id"], part_ids).json()
    assert done["status"] == "completed"
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == CONTENT
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_an_api_without_a_worker_frees_what_was_left_behind_on_its_machine(
    settings: Settings, store: LocalBlobStore
) -> None:
    left, young, copy = store.scratch_file(), store.scratch_file(), settings.copies_dir / ("a" * 64)
    copy.parent.mkdir()
    for path in (left, young, copy):
        path.write_bytes(b"half of an upload")
    os.utime(left, (0, 0))
    os.utime(copy, (0, 0))

    with TestClient(create_app(settings)):
        wait_until(lambda: not left.exists() and not copy.exists(), within_s=20)

    assert young.exists()
