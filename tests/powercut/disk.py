"""A disk that has promised nothing until it is told to sync.

The worst that POSIX allows. To sync a file keeps its bytes, and not its name; to sync a directory
keeps the names in it, and nothing of what they mean. Whatever was not synced when the power goes
may be on the disk or not, each change by itself and in any order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

ROOT = 1


class Write(NamedTuple):
    """Bytes of a file."""

    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file's length."""

    size: int


class Rebind(NamedTuple):
    """What names in one directory mean from now on: a node's number, or nothing.

    A rename within a directory is one of these, so never half done; a rename from one directory
    into another is two of them, and may be.
    """

    names: dict[str, int | None]


Change = Write | Resize | Rebind


@dataclass(slots=True)
class Node:
    """A file, or a directory if `names` is not None: as seen, and what of it is not yet kept."""

    content: bytearray = field(default_factory=bytearray)
    names: dict[str, int] | None = None
    pending: list[Change] = field(default_factory=list)

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, Write):
                end = change.offset + len(change.data)
                self._grow(end)
                self.content[change.offset : end] = change.data
            elif isinstance(change, Resize):
                self._grow(change.size)
                del self.content[change.size :]
            else:
                self._rebind(change)

    def copy(self) -> "Node":
        return Node(bytearray(self.content), None if self.names is None else dict(self.names))

    def _grow(self, size: int) -> None:
        self.content.extend(bytes(max(0, size - len(self.content))))

    def _rebind(self, change: Rebind) -> None:
        assert self.names is not None
        for name, number in change.names.items():
            if number is None:
                self.names.pop(name, None)
            else:
                self.names[name] = number


class Disk:
    """Nodes by number. What is kept is a second set of them, which only `sync` touches."""

    def __init__(self) -> None:
        self.seen: dict[int, Node] = {ROOT: Node(names={})}
        self.kept: dict[int, Node] = {ROOT: Node(names={})}
        self._last = ROOT

    def add(self, *, is_directory: bool) -> int:
        """A new node, which nobody finds before it has a name."""
        self._last += 1
        self.restore(self._last, Node(names={} if is_directory else None))
        return self._last

    def restore(self, number: int, node: Node) -> None:
        """A node as it was kept."""
        self._last = max(self._last, number)
        self.seen[number] = node
        self.kept[number] = node.copy()

    def change(self, number: int, change: Change) -> None:
        node = self.seen[number]
        node.apply([change])
        node.pending.append(change)

    def sync(self, number: int, changes: list[Change] | None = None) -> list[Change]:
        """Keep all that is pending of one node, or only these changes; returns what was kept."""
        node = self.seen[number]
        done = node.pending if changes is None else changes
        self.kept[number].apply(done)
        node.pending = []
        return done

    def reachable(self, nodes: dict[int, Node]) -> set[int]:
        """The numbers that have a way from the root."""
        found, ahead = {ROOT}, [ROOT]
        while ahead:
            for number in (nodes[ahead.pop()].names or {}).values():
                if number not in found:
                    found.add(number)
                    ahead.append(number)
        return found


Tree = dict[str, bytes | None]
"""Content by path; None is a directory."""


def as_tree(nodes: dict[int, Node]) -> Tree:
    """What somebody sees who lists it from the root."""
    tree: Tree = {}
    ahead = [("", ROOT)]
    while ahead:
        prefix, number = ahead.pop()
        for name, child in (nodes[number].names or {}).items():
            node = nodes[child]
            path = f"{prefix}{name}"
            tree[path] = bytes(node.content) if node.names is None else None
            if node.names is not None:
                ahead.append((f"{path}/", child))
    return tree
