"""Bytes reach the disk and the hashes in their order, and a disk that fails is not overheard."""

import hashlib
import os
import zlib
from io import BytesIO
from pathlib import Path

import pytest

from app.services.received_files import FileSink


def test_what_was_fed_is_written_and_hashed_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    chunks = [bytes([number]) * 30 for number in range(10)]

    with (tmp_path / "file").open("xb") as target:
        sink = FileSink(target, sync_bytes=100)
        for chunk in chunks:
            sink.feed(chunk)
        sink.drain()
        sink.close()

    content = b"".join(chunks)
    assert (tmp_path / "file").read_bytes() == content
    assert (sink.sha256, sink.crc32) == (hashlib.sha256(content).hexdigest(), zlib.crc32(content))
    assert synced == [120, 240]


def test_a_disk_that_fails_is_noticed_with_the_next_chunk_or_at_the_end() -> None:
    class FullDisk(BytesIO):
        def write(self, _data: object, /) -> int:
            raise OSError(28, "No space left on device")

    sink = FileSink(FullDisk())

    sink.feed(b"a")
    with pytest.raises(OSError, match="No space left"):
        sink.feed(b"b")
    sink.feed(b"c")
    with pytest.raises(OSError, match="No space left"):
        sink.drain()
    sink.drain()
    sink.close()
