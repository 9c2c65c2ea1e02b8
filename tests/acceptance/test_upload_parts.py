"""Files that are sent in parts, as the stock client sends them, to a service that is killed."""

import hashlib
import io
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.acceptance.processes import InstalledService
from tests.builders import build_chat_file, write_catalogue
from tests.waiting import wait_until

CONTENT = build_chat_file(2000)
PART_BYTES = len(CONTENT) // 4 + 1
PARTS = [CONTENT[at : at + PART_BYTES] for at in range(0, len(CONTENT), PART_BYTES)]
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def create(client: openai.OpenAI) -> str:
    upload = client.uploads.create(
        bytes=len(CONTENT), filename="mine.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    return upload.id


def list_parts(client: openai.OpenAI, upload_id: str) -> list[dict[str, Any]]:
    answer: Any = client.get(f"/uploads/{upload_id}", cast_to=object)
    return answer["parts"]


@pytest.mark.parametrize("how", ["path", "bytes"])
def test_the_client_sends_a_file_in_parts_by_itself(
    client: openai.OpenAI, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(CONTENT)
    common: dict[str, Any] = {
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
        "part_size": PART_BYTES,
        "md5": MD5,
    }
    if how == "path":
        upload = client.uploads.upload_file_chunked(file=path, **common)
    else:
        upload = client.uploads.upload_file_chunked(
            file=CONTENT, filename="mine.jsonl", bytes=len(CONTENT), **common
        )

    assert (upload.status, upload.object, upload.bytes) == ("completed", "upload", len(CONTENT))
    assert upload.file is not None
    assert (upload.file.filename, upload.file.status) == ("mine.jsonl", "processed")
    assert client.files.retrieve(upload.file.id).bytes == len(CONTENT)
    assert client.files.content(upload.file.id).read() == CONTENT


def test_an_upload_is_cancelled(client: openai.OpenAI) -> None:
    upload_id = create(client)
    part = client.uploads.parts.create(upload_id, data=PARTS[0])
    assert (part.object, part.upload_id) == ("upload.part", upload_id)

    assert client.uploads.cancel(upload_id).status == "cancelled"

    with pytest.raises(openai.BadRequestError) as refusal:
        client.uploads.complete(upload_id, part_ids=[part.id])
    assert refusal.value.code == "upload_not_pending"


def test_a_bad_file_is_refused_with_every_problem(client: openai.OpenAI) -> None:
    content = CONTENT + b'{"text": 5}\n[]\n'
    with pytest.raises(openai.BadRequestError) as refusal:
        client.uploads.upload_file_chunked(
            file=content,
            filename="mine.jsonl",
            bytes=len(content),
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=PART_BYTES,
        )

    assert refusal.value.code == "invalid_file"
    assert isinstance(refusal.value.body, dict)
    assert [(one["line"], one["code"]) for one in refusal.value.body["errors"]] == [
        (2001, "wrong_type"),
        (2002, "not_an_object"),
    ]


@pytest.fixture(params=["sqlite", "postgresql"])
def killable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InstalledService]:
    """A service of this test's own, on either database."""
    data_dir = tmp_path / "data"
    write_catalogue(data_dir)
    settings: dict[str, str] = {}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgres").empty_database()
    with InstalledService(data_dir, workers=0, **settings) as service:
        yield service


def send_half_a_part(service: InstalledService, upload_id: str) -> socket.socket:
    """Send the head of a request and half of its body; returns the open connection."""
    address = urlsplit(service.base_url)
    body = (
        b'--X\r\nContent-Disposition: form-data; name="data"; filename="upload"\r\n\r\n'
        + PARTS[2][: PART_BYTES // 2]
    )
    head = (
        f"POST /v1/uploads/{upload_id}/parts HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary=X\r\nContent-Length: {2 * len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname or "", address.port or 0))
    connection.sendall(head.encode() + body)
    return connection


def restart_api(service: InstalledService) -> None:
    service.processes["api"].stop(signal.SIGKILL)
    service.start("api")


def test_an_upload_is_resumed_after_the_api_was_killed(killable: InstalledService) -> None:
    with killable.client() as client:
        upload_id = create(client)
        sent = [client.uploads.parts.create(upload_id, data=part).id for part in PARTS[:2]]
    scratch = killable.data_dir / "blobs" / ".incoming"
    with send_half_a_part(killable, upload_id):
        wait_until(lambda: list(scratch.iterdir()), within_s=30)
        restart_api(killable)

    with killable.client() as client:
        kept = {part["sha256"]: part["id"] for part in list_parts(client, upload_id)}
        assert list(kept.values()) == sent
        part_ids: list[str] = []
        for part in PARTS:  # as docs/files.md shows it
            known = kept.get(hashlib.sha256(part).hexdigest())
            part_ids.append(known or client.uploads.parts.create(upload_id, data=part).id)
        assert part_ids[:2] == sent

        done = client.uploads.complete(upload_id, part_ids=part_ids, md5=MD5)
    restart_api(killable)

    with killable.client() as client:
        again = client.uploads.complete(upload_id, part_ids=part_ids, md5=MD5)
        assert again == done
        assert again.file is not None
        assert [file.id for file in client.files.list()] == [again.file.id]
        assert client.files.content(again.file.id).read() == CONTENT


def test_the_client_of_a_lost_answer_gets_the_same_part(client: openai.OpenAI) -> None:
    upload_id = create(client)

    first = client.uploads.parts.create(upload_id, data=io.BytesIO(PARTS[0]))
    again = client.uploads.parts.create(upload_id, data=io.BytesIO(PARTS[0]))

    assert again == first
    assert len(list_parts(client, upload_id)) == 1
