"""How a multipart body is read: in any pieces, in little memory, and not at all when broken."""

import asyncio
import hashlib
import itertools
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from app.api.multipart import (
    MAX_FIELD_BYTES,
    MAX_OVERHEAD_BYTES,
    MAX_PARTS,
    FileField,
    receive_upload,
)
from app.api.upload_slots import UploadSlots
from app.core import strict_json
from app.core.errors import (
    InvalidFileError,
    InvalidRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from app.core.storage.local import LocalBlobStore
from app.services.received_files import ReceivedFile
from tests.builders import TEXT_LINE, list_blobs

BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
# It has in it what is nearly, but not quite, the boundary.
CONTENT = TEXT_LINE + b'{"text": "\\r\\n--a-bound"}\r\n--a-bound\n' + TEXT_LINE
NO_LIMIT = 10**9


def part(name: str, content: bytes, *, filename: str | None = None) -> bytes:
    of_file = f'; filename="{filename}"\r\ncontent-type: text/plain' if filename else ""
    head = f'content-disposition: form-data; name="{name}"{of_file}'
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), head.encode(), content)


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE = part("purpose", b"fine-tune")
FILE = part("file", CONTENT, filename="größe.jsonl")
WHOLE = PURPOSE + FILE + END
MANY_PARTS = b"".join(part(f"x{number}", b"") for number in range(MAX_PARTS))


def receive(
    directory: Path,
    chunks: Iterable[bytes],
    *,
    content_type: str = FORM,
    content_encoding: str = "identity",
    max_bytes: int = NO_LIMIT,
    is_cut_off: bool = False,
    batch_bytes: int = 1024 * 1024,
) -> tuple[ReceivedFile, bytes]:
    """What is understood of a body that comes in these chunks, and the file that it leaves."""
    more = ({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks)
    end = {"type": "http.disconnect"} if is_cut_off else {"type": "http.request", "body": b""}
    remaining: Iterator[dict[str, Any]] = itertools.chain(more, [end])

    async def next_message() -> dict[str, Any]:
        return next(remaining)

    headers = {"content-type": content_type, "content-encoding": content_encoding}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": encoded}
    scratch = directory / "scratch"
    try:
        request = Request(scope, next_message)
        upload = asyncio.run(
            receive_upload(
                request,
                FileField("file", "file", max_bytes, advice="Split it.", is_dataset=True),
                UploadSlots(1),
                scratch=scratch,
                require_room=lambda _: None,
                batch_bytes=batch_bytes,
            )
        )
        return upload, scratch.read_bytes()
    finally:
        scratch.unlink(missing_ok=True)


def test_a_body_is_understood(tmp_path: Path) -> None:
    upload, content = receive(tmp_path, [WHOLE])

    assert content == CONTENT
    assert (upload.filename, upload.fields) == ("größe.jsonl", {"purpose": "fine-tune"})
    assert (upload.bytes, upload.crc32) == (len(CONTENT), zlib.crc32(CONTENT))
    assert upload.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_it_does_not_matter_where_a_body_is_cut(tmp_path: Path) -> None:
    expected = receive(tmp_path, [WHOLE])

    differing = [
        cut
        for cut in range(1, len(WHOLE))
        if receive(tmp_path, [WHOLE[:cut], WHOLE[cut:]], batch_bytes=1) != expected
    ]

    assert differing == []


@pytest.mark.parametrize(
    "almost",
    [b"\r\n--a-boundary", b"\r\n--a-boundary\r", b"\r\n--a-boundary-", b"\r\n--a-boundary\r\r\n-"],
)
def test_what_is_almost_a_boundary_belongs_to_the_file(tmp_path: Path, almost: bytes) -> None:
    content = TEXT_LINE + almost + b"x\n"
    body = PURPOSE + part("file", content, filename="a") + END

    differing = [
        cut
        for cut in range(len(PURPOSE), len(body))
        if receive(tmp_path, [body[:cut], body[cut:]], batch_bytes=1)[1] != content
    ]

    assert differing == []


def test_a_body_may_come_byte_by_byte(tmp_path: Path) -> None:
    single = [WHOLE[at : at + 1] for at in range(len(WHOLE))]

    assert receive(tmp_path, single, batch_bytes=1) == receive(tmp_path, [WHOLE])


def test_the_purpose_may_come_after_the_file(tmp_path: Path) -> None:
    upload, content = receive(tmp_path, [FILE + PURPOSE + END])

    assert (upload.fields, content) == ({"purpose": "fine-tune"}, CONTENT)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no form at all", id="garbage"),
        pytest.param(PURPOSE + FILE, id="no-end"),
        pytest.param(WHOLE[: len(PURPOSE) + 40], id="cut-in-a-header"),
        pytest.param(WHOLE.replace(b"a-boundary", b"b-boundary"), id="another-boundary"),
        pytest.param(b"--a-boundary\r\n: nothing\r\n\r\n\r\n" + END, id="nameless-header"),
        pytest.param(b"--a-boundary\r\na: b\r\nA: c\r\n\r\n\r\n" + END, id="a-header-twice"),
        pytest.param(b"--a-boundary\r\n\r\n\r\n" + FILE + END, id="nameless-part"),
        pytest.param(MANY_PARTS + FILE + END, id="too-many-parts"),
    ],
)
def test_a_broken_body_is_said_to_be_broken(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not well-formed") as refusal:
        receive(tmp_path, [body])

    assert refusal.value.code == "invalid_multipart"


def test_a_connection_that_breaks_off_is_no_end(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="closed before the end of the body"):
        receive(tmp_path, [PURPOSE + FILE[:100]], is_cut_off=True)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(PURPOSE + END, "'file' is missing", id="no-file"),
        pytest.param(FILE + FILE + END, "Send only one file", id="two-files"),
        pytest.param(PURPOSE + PURPOSE + FILE + END, "'purpose' is given twice", id="two-purposes"),
        pytest.param(
            part("x", b"y" * (MAX_FIELD_BYTES + 1)) + FILE + END,
            "at most 65,536 bytes",
            id="long-field",
        ),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused(tmp_path: Path, body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why):
        receive(tmp_path, [body])


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=a",
        "multipart/form-data; " + "x" * 1024 + "; boundary=a-boundary",
    ],
)
def test_a_body_that_is_no_form_is_not_read(tmp_path: Path, content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        receive(tmp_path, [], content_type=content_type)


def test_a_compressed_body_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="Content-Encoding: gzip"):
        receive(tmp_path, [], content_encoding="gzip")


def test_no_line_is_checked_by_the_thread_that_serves_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, threads = strict_json.jiter.from_json, list[int]()

    def parse_and_note(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return parse(*args, **options)

    monkeypatch.setattr(strict_json.jiter, "from_json", parse_and_note)
    last_line = part("file", TEXT_LINE * 3 + TEXT_LINE.strip(), filename="a")
    receive(tmp_path, [PURPOSE + last_line + END])

    assert len(threads) >= 4
    assert threading.get_ident() not in threads


def test_the_rest_of_a_file_of_problems_is_not_read(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield PURPOSE + part("file", b"", filename="a").removesuffix(b"\r\n")
        while True:
            taken += 1
            yield b"[]\n" * 1000

    with pytest.raises(InvalidFileError, match="at least 49 more"):
        receive(tmp_path, endless(), batch_bytes=10_000)
    assert taken < 10


def test_a_file_of_the_largest_size_is_taken_and_one_more_byte_is_not(tmp_path: Path) -> None:
    assert receive(tmp_path, [WHOLE], max_bytes=len(CONTENT))[1] == CONTENT

    with pytest.raises(PayloadTooLargeError, match=re.escape(f"at most {len(CONTENT) - 1:,}")):
        receive(tmp_path, [WHOLE], max_bytes=len(CONTENT) - 1)


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"", b"\n", id="before-the-first-boundary"),
        pytest.param(FILE + b"--a-boundary", b" ", id="after-a-boundary"),
        pytest.param(WHOLE, b"x", id="after-the-end"),
    ],
)
def test_what_surrounds_the_parts_is_not_read_for_ever(
    tmp_path: Path, beginning: bytes, piece: bytes
) -> None:
    pieces = itertools.repeat(piece * 65_536, 2 * MAX_OVERHEAD_BYTES // 65_536)

    with pytest.raises(PayloadTooLargeError, match="besides its file") as refusal:
        receive(tmp_path, itertools.chain([beginning], pieces), batch_bytes=1)

    assert refusal.value.code == "form_too_large"
    assert len(list(pieces)) > 0


@pytest.mark.parametrize(
    "body", [PURPOSE + FILE, PURPOSE + END, FILE + END, WHOLE], ids=["cut", "none", "why", "bad"]
)
def test_a_refused_upload_leaves_nothing_on_disk(
    client: TestClient, store: LocalBlobStore, body: bytes
) -> None:
    answer = client.post("/v1/files", content=body, headers={"content-type": FORM})

    assert answer.status_code == 400
    assert list_blobs(store) == []
