import io
import struct
import zipfile
from pathlib import Path

import pytest

from app.api.archive import zip_segments
from app.api.streaming import BlobSegment
from app.core.db.tables import File
from app.core.storage.local import LocalBlobStore
from tests.builders import build_file, put_blob

GIB = 2**30


def store_file(store: LocalBlobStore, name: str, content: bytes) -> File:
    file = build_file(content, filename=name)
    put_blob(store, file.blob_key, content)
    return file


def archive(store: LocalBlobStore, files: list[File]) -> bytes:
    sent = io.BytesIO()
    for segment in zip_segments(files):
        if isinstance(segment, BlobSegment):
            with store.open(segment.key) as blob:
                sent.write(blob.read())
        else:
            sent.write(segment)
    return sent.getvalue()


def write_sparse(path: Path, files: list[File], contents: dict[str, bytes]) -> None:
    """The archive with holes for the blobs that are not in `contents`: large, and no bytes."""
    with path.open("wb") as target:
        for segment in zip_segments(files):
            if isinstance(segment, bytes):
                target.write(segment)
            elif segment.key in contents:
                target.write(contents[segment.key])
            else:
                target.seek(segment.bytes, io.SEEK_CUR)


def test_the_archive_has_every_file_as_it_is(store: LocalBlobStore) -> None:
    contents = {
        "adapter_model.safetensors": bytes(range(256)) * 40,
        "empty.txt": b"",
        "größe.json": b"{}",
    }
    files = [store_file(store, name, content) for name, content in contents.items()]

    with zipfile.ZipFile(io.BytesIO(archive(store, files))) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == contents
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_files_are_the_same_archive(store: LocalBlobStore) -> None:
    files = [store_file(store, "a", b"1"), store_file(store, "b", b"2")]

    assert archive(store, files) == archive(store, files)


def test_an_unpacked_file_can_be_read_by_its_owner(store: LocalBlobStore) -> None:
    files = [store_file(store, "a", b"1")]

    with zipfile.ZipFile(io.BytesIO(archive(store, files))) as opened:
        (info,) = opened.infolist()
    assert info.external_attr >> 16 == 0o100644
    assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_a_file_behind_three_gibibytes_is_found(tmp_path: Path) -> None:
    last = build_file(b"the last one", filename="last")
    files = [
        build_file(filename=name, bytes=size)
        for name, size in (("first", 3 * GIB), ("second", GIB // 2))
    ]
    path = tmp_path / "large.zip"

    write_sparse(path, [*files, last], {last.blob_key: b"the last one"})

    with zipfile.ZipFile(path) as opened:
        assert opened.read("last") == b"the last one"
        assert [info.file_size for info in opened.infolist()] == [3 * GIB, GIB // 2, 12]


@pytest.mark.parametrize(
    "sizes", [(4 * GIB,), (2 * GIB, 2 * GIB - 60), (4 * GIB - 38,), (9 * GIB, 1, 5 * GIB)]
)
def test_a_file_behind_four_gibibytes_is_found(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    files = [build_file(filename=f"{number}", bytes=size) for number, size in enumerate(sizes)]
    last = build_file(b"the last one", filename="last")
    path = tmp_path / "large.zip"

    write_sparse(path, [*files, last], {last.blob_key: b"the last one"})

    with zipfile.ZipFile(path) as opened:
        assert opened.read("last") == b"the last one"
        assert [info.file_size for info in opened.infolist()] == [*sizes, 12]


def test_the_size_of_a_large_file_is_in_front_of_it_as_well(tmp_path: Path) -> None:
    """A program that reads the archive as a stream does not know the directory at its end."""
    file = build_file(filename="large", bytes=5 * GIB)
    path = tmp_path / "large.zip"
    write_sparse(path, [file], {})

    with path.open("rb") as archive:
        archive.seek(30 + len("large"))
        assert struct.unpack("<2H2Q", archive.read(20)) == (1, 16, 5 * GIB, 5 * GIB)
