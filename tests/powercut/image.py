"""What a disk has kept, in a real file that outlives the process of the file system.

One record for each sync, appended by one `write`, with its length and checksum before it: a
record that a kill cut short counts as never written, and nobody was told otherwise.
"""

import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

from tests.powercut.disk import Change, Disk, Node

_HEADER = struct.Struct("<II")


class Image:
    """An append-only file of records; open in one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def load(self) -> Disk:
        """The disk as it was kept; from now on, `append` adds to it.

        The records are first put together into one for each node that can still be found: an
        image is as long as its disk, however much was written to it.
        """
        disk = Disk()
        for number, node in self._replay().items():
            disk.restore(number, node)
        packed = self._path.with_suffix(".new")
        with packed.open("wb") as file:
            for number in disk.reachable(disk.kept):
                node = disk.kept[number]
                file.write(_pack((number, bytes(node.content), node.names, [])))
        packed.replace(self._path)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        return disk

    def append(self, number: int, node: Node, changes: list[Change]) -> None:
        """Keep changes of a node, all or none.

        A new node is appended before a name for it can be, without changes: only the changes of a
        directory name it, and until one of them is kept it is not found.
        """
        names = None if node.names is None else {}
        os.write(self._descriptor, _pack((number, b"", names, changes)))

    def _replay(self) -> dict[int, Node]:
        nodes: dict[int, Node] = {}
        for number, content, names, changes in self._records():
            node = nodes.setdefault(number, Node(bytearray(content), names))
            node.apply(changes)
        return nodes

    def _records(self) -> list[Any]:
        raw = self._path.read_bytes() if self._path.exists() else b""
        records, at = [], 0
        while at + _HEADER.size <= len(raw):
            size, checksum = _HEADER.unpack_from(raw, at)
            body = raw[at + _HEADER.size : at + _HEADER.size + size]
            if len(body) < size or zlib.crc32(body) != checksum:
                break
            records.append(pickle.loads(body))  # noqa: S301 - our own, of this run
            at += _HEADER.size + size
        return records


def _pack(record: tuple[int, bytes, dict[str, int] | None, list[Change]]) -> bytes:
    body = pickle.dumps(record, protocol=5)
    return _HEADER.pack(len(body), zlib.crc32(body)) + body
