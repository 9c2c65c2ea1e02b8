"""Reads a file from a multipart form while it arrives, in constant memory.

Starlette's own form parser is not used: it writes the whole body to a temporary directory before
the route runs, without a limit.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.api.deps import Resources
from app.api.errors import MAX_ECHO
from app.api.requests import require_no_content_encoding
from app.api.upload_slots import UploadSlots
from app.core.dataset.checker import DatasetSummary
from app.core.dataset.file_check import FileChecker
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.services.received_files import (
    FileSink,
    ReceivedFile,
    RequireRoom,
    check_content,
    scratch_file,
)

MAX_FIELD_BYTES = 64 * 1024
MAX_PARTS = 20
MAX_OVERHEAD_BYTES = 2 * MAX_PARTS * MAX_FIELD_BYTES
"""Maximum size of the body without the file: all fields at their longest, and their headers."""

_MAX_CONTENT_TYPE = 1024
"""Characters of the header `Content-Type` that are read: parsing 64 KiB would delay all others."""

_BATCH_BYTES = 1024 * 1024
"""Bytes that are handled in another thread at once, so many that the switch costs nothing."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileField:
    """The field of a form that contains the file."""

    name: str
    noun: str
    """What error messages call the content."""
    max_bytes: int
    advice: str
    """What the sender of a larger file can do."""
    is_dataset: bool
    """Whether the lines are checked. If not, the file's summary is empty."""


def form_of(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a form with these fields."""
    schema = {"type": "object", "required": required, "properties": properties}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def receive_and_use(
    request: Request,
    field: FileField,
    resources: Resources,
    use: Callable[[ReceivedFile], T],
    *,
    turn: AbstractAsyncContextManager[None] | None = None,
) -> T:
    """Read a file from a form to its end, then run `use` on it, in another thread.

    Args:
        turn: what is held while `use` runs.

    Raises:
        ServiceError: as `receive_upload`, `use` or `turn`.
    """
    slots = resources.upload_slots
    async with (
        slots.take(),
        # In a thread, because deleting a large file takes long.
        contextmanager_in_threadpool(scratch_file(resources.store)) as scratch,
    ):
        received = await receive_upload(
            request, field, slots, scratch=scratch, require_room=resources.require_room
        )
        async with turn or nullcontext():
            return await to_thread.run_sync(use, received)


async def receive_upload(
    request: Request,
    field: FileField,
    slots: UploadSlots,
    *,
    scratch: Path,
    require_room: RequireRoom,
    batch_bytes: int = _BATCH_BYTES,
) -> ReceivedFile:
    """Read a multipart body to its end, and leave the file at `scratch`.

    Args:
        require_room: called before the first byte is read, and before each batch is written.
        batch_bytes: how many bytes are handled at once.

    Raises:
        UnsupportedMediaTypeError: the body is not multipart/form-data.
        PayloadTooLargeError: the file has more than `field.max_bytes`, or the form around it more
            than `MAX_OVERHEAD_BYTES`.
        StorageFullError: the disk has no room for the file.
        InvalidFileError: the file has so many problems that the rest of it was not read.
        InvalidRequestError: the body is not well formed, or contains no file.
    """
    require_no_content_encoding(request)
    header = request.headers.get("content-type", "")[:_MAX_CONTENT_TYPE]
    content_type, options = parse_options_header(header)
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaTypeError(
            f"Send the {field.noun} as multipart/form-data, in the field '{field.name}'."
        )
    announced = request.headers.get("content-length", "")
    announced_bytes = int(announced) if announced.isdecimal() else 0
    if announced_bytes > field.max_bytes + MAX_OVERHEAD_BYTES:
        raise _too_large(field)
    require_room(announced_bytes)
    with scratch.open("xb") as target:
        sink = FileSink(target)
        try:
            form = _Form(options[b"boundary"], field, sink, require_room)
            await _pump(request, form, slots, batch_bytes)
            received = await slots.check(form.finish, scratch)
        except FormParserError as error:
            raise _malformed(str(error)) from error
        except ClientDisconnect as error:
            raise _malformed("the connection was closed before the end of the body") from error
        finally:
            await to_thread.run_sync(sink.close)
    return await slots.check_table(received)


async def _pump(request: Request, form: "_Form", slots: UploadSlots, batch_bytes: int) -> None:
    batch = bytearray()
    async for chunk in request.stream():
        batch += chunk
        if len(batch) >= batch_bytes:
            await slots.check(form.feed, bytes(batch))
            batch.clear()
    await slots.check(form.feed, bytes(batch))


class _Form:
    """One multipart body, parsed while its bytes arrive."""

    def __init__(
        self, boundary: bytes, field: FileField, sink: FileSink, require_room: RequireRoom
    ) -> None:
        self._field = field
        self._sink = sink
        self._require_room = require_room
        self._checker = FileChecker() if field.is_dataset else None
        self._bytes = 0
        self._body_bytes = 0
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._field_name = ""
        self._field_value = bytearray()
        self._is_file = False
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        self._require_room(len(data))  # other requests write as well
        self._parser.write(data)
        self._body_bytes += len(data)
        if self._body_bytes - self._bytes > MAX_OVERHEAD_BYTES:
            raise PayloadTooLargeError(
                f"The form has more than {MAX_OVERHEAD_BYTES:,} bytes besides its file.",
                code="form_too_large",
            )

    def finish(self, path: Path) -> ReceivedFile:
        """Check what is left after the last byte, once the file is written."""
        self._sink.drain()
        if not self._is_complete:
            raise _malformed("its closing boundary is missing")
        if self._filename is None:
            name = self._field.name
            raise InvalidRequestError(
                f"The field '{name}' is missing.", code="missing_required_parameter", param=name
            )
        return ReceivedFile(
            path=path,
            filename=self._filename,
            bytes=self._bytes,
            sha256=self._sink.sha256,
            crc32=self._sink.crc32,
            summary=self._checker.finish() if self._checker else DatasetSummary(),
            fields=self._fields,
            unchecked_table=self._checker.table if self._checker else None,
        )

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        self._headers = {}
        self._field_value = bytearray()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name = bytes(self._header_name).lower()
        if name in self._headers:
            raise _malformed("a part has two headers with the same name")
        self._headers[name] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field_name = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._field_name:
            raise _malformed("a part has no name")
        self._is_file = self._field_name == self._field.name
        if self._field_name in self._fields:
            raise InvalidRequestError(
                f"The field {self._field_name[:MAX_ECHO]!r} is given twice. Keep one.",
                param=self._field_name[:MAX_ECHO],
            )
        if self._is_file:
            if self._filename is not None:
                raise InvalidRequestError(
                    f"Send only one {self._field.noun} per request.", param=self._field.name
                )
            self._filename = options.get(b"filename", b"upload").decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        chunk = data[start:end]
        if not self._is_file:
            self._field_value += chunk
            if len(self._field_value) > MAX_FIELD_BYTES:
                raise InvalidRequestError(f"A field can have at most {MAX_FIELD_BYTES:,} bytes.")
            return
        self._bytes += len(chunk)
        if self._bytes > self._field.max_bytes:
            raise _too_large(self._field)
        self._sink.feed(chunk)
        if self._checker:
            self._checker.feed(chunk)
            if self._checker.has_stopped:
                check_content(self._checker.finish())

    def _end_part(self) -> None:
        if not self._is_file:
            self._fields[self._field_name] = self._field_value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_complete = True


def _malformed(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The body is not well-formed multipart/form-data: {why}.", code="invalid_multipart"
    )


def _too_large(field: FileField) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"A {field.noun} can have at most {field.max_bytes:,} bytes here. {field.advice}",
        code="file_too_large",
        param=field.name,
    )
