"""The disk that forgets, without a mount; `make powercut` proves the same of it mounted."""

from pathlib import Path

import pytest

from tests.powercut.disk import ROOT, Disk, Rebind, Resize, Write, as_tree
from tests.powercut.image import Image


def test_what_is_seen_is_kept_only_once_it_is_synced() -> None:
    disk = Disk()
    file = disk.add(is_directory=False)
    disk.change(file, Write(0, b"bytes"))
    disk.change(ROOT, Rebind({"file": file}))

    kept = [as_tree(disk.kept)]
    for number in (ROOT, file):
        disk.sync(number)
        kept.append(as_tree(disk.kept))

    assert as_tree(disk.seen) == {"file": b"bytes"}
    assert kept == [{}, {"file": b""}, {"file": b"bytes"}]


def test_writes_beyond_the_end_leave_zeros_before_them() -> None:
    disk = Disk()
    file = disk.add(is_directory=False)

    for change in (Write(3, b"xyz"), Resize(4), Resize(6), Write(1, b"b")):
        disk.change(file, change)

    assert bytes(disk.seen[file].content) == b"\0b\0x\0\0"


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    return tmp_path / "image"


def keep(image: Image, disk: Disk, number: int) -> None:
    image.append(number, disk.seen[number], disk.sync(number))


def write_image(path: Path) -> None:
    """`a/file`, with its bytes written twice."""
    image = Image(path)
    disk = image.load()
    directory, file = disk.add(is_directory=True), disk.add(is_directory=False)
    for number in (directory, file):
        keep(image, disk, number)
    disk.change(ROOT, Rebind({"a": directory}))
    disk.change(directory, Rebind({"file": file}))
    disk.change(file, Write(0, b"first"))
    for number in (ROOT, directory, file):
        keep(image, disk, number)
    disk.change(file, Write(0, b"second"))
    keep(image, disk, file)


def test_an_image_is_the_disk_as_it_was_kept(image_path: Path) -> None:
    write_image(image_path)

    trees = [as_tree(Image(image_path).load().seen) for _ in range(2)]

    assert trees == [{"a": None, "a/file": b"second"}] * 2


def test_a_record_is_kept_whole_or_not_at_all(image_path: Path) -> None:
    """However far the last one came before its process was killed."""
    write_image(image_path)
    whole = image_path.read_bytes()
    trees = []

    for size in range(len(whole) + 1):
        image_path.write_bytes(whole[:size])
        tree = as_tree(Image(image_path).load().seen)
        if tree not in trees:
            trees.append(tree)

    contents = [b"", b"first", b"second"]
    assert trees[:2] == [{}, {"a": None}]
    assert trees[2:] == [{"a": None, "a/file": content} for content in contents]


def test_what_is_not_found_any_more_takes_no_room(image_path: Path) -> None:
    write_image(image_path)
    image = Image(image_path)
    disk = image.load()
    disk.change(ROOT, Rebind({"a": None}))
    keep(image, disk, ROOT)

    assert as_tree(Image(image_path).load().seen) == {}
    assert b"second" not in image_path.read_bytes()
