"""Every state in which a power cut can leave what some code wrote.

A `Recorder` watches a directory: around every call that makes names or syncs, it looks what has
become of the tree, so bytes written by any library are noticed. `crash_states` then cuts the power
after each change, and has every subset of what was not synced on the disk: of names each by
itself, of a file's bytes none, half, all, or their length alone.
"""

import itertools
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.powercut.disk import ROOT, Change, Disk, Node, Rebind, Resize, Tree, Write, as_tree

_WATCHED = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink")


class Changed(NamedTuple):
    number: int
    change: Change


class Made(NamedTuple):
    """A node, before it has a name. Its number is the next one."""

    is_directory: bool


class Synced(NamedTuple):
    number: int


Step = Changed | Made | Synced | str
"""A string is the name of what was acknowledged at this point."""


class Recorder:
    """What is done below `root`, step by step; what is there already counts as kept."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disk = Disk()
        self._numbers = {root.stat().st_ino: ROOT}
        self.steps: list[Step] = []
        self._look()
        for step in self.steps:
            if isinstance(step, Changed):
                self._disk.sync(step.number)
        self.start = Disk()
        for number, node in self._disk.seen.items():
            self.start.restore(number, node.copy())
        self.steps = []

    def acknowledge(self, what: str) -> None:
        """Whoever waited for it was told that it is done."""
        self._look()
        self.steps.append(what)

    @contextmanager
    def watching(self) -> Generator[None]:
        with contextmanager(self._patched)():
            yield
        self._look()

    def _patched(self) -> Generator[None]:
        calls = {name: self._noted(getattr(os, name)) for name in _WATCHED}
        syncs = {name: self._noted_sync(getattr(os, name)) for name in ("fsync", "fdatasync")}
        with patch.multiple(os, **calls, **syncs):
            yield

    def _noted(self, call: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._look()
            try:
                return call(*args, **kwargs)
            finally:
                self._look()

        return noted

    def _noted_sync(self, sync: Any) -> Any:
        def noted(descriptor: int) -> None:
            self._look()
            sync(descriptor)
            number = self._numbers.get(os.fstat(descriptor).st_ino)
            if number is not None:
                self.steps.append(Synced(number))

        return noted

    def _look(self) -> None:
        """Note what differs from the last look: new nodes first, then names, then bytes."""
        names_of, contents = _list(self._root)
        for inode in names_of.keys() | contents.keys():
            if inode not in self._numbers:
                self._numbers[inode] = self._disk.add(is_directory=inode in names_of)
                self.steps.append(Made(inode in names_of))
        gone = self._numbers.keys() - names_of.keys() - contents.keys()
        for inode, names in names_of.items():
            self._note_names(self._numbers[inode], names)
        for inode in gone:  # the file system will use its number again
            del self._numbers[inode]
        for inode, content in contents.items():
            self._note_content(self._numbers[inode], content)

    def _note_names(self, number: int, names: dict[str, int]) -> None:
        before = self._disk.seen[number].names or {}
        after = {name: self._numbers[inode] for name, inode in names.items()}
        changed: dict[str, int | None] = dict.fromkeys(before.keys() - after.keys())
        changed |= {name: child for name, child in after.items() if before.get(name) != child}
        if changed:
            self._note(number, Rebind(changed))

    def _note_content(self, number: int, content: bytes) -> None:
        before = bytes(self._disk.seen[number].content)
        if content == before:
            return
        if len(content) < len(before):
            self._note(number, Resize(len(content)))
        if content:
            self._note(number, Write(0, content))

    def _note(self, number: int, change: Change) -> None:
        self._disk.change(number, change)
        self.steps.append(Changed(number, change))


def _list(root: Path) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
    """Names of every directory, and bytes of every file, by inode."""
    names_of: dict[int, dict[str, int]] = {}
    contents: dict[int, bytes] = {}
    for directory, _, files in os.walk(root):
        with os.scandir(directory) as entries:
            names = {entry.name: entry.inode() for entry in entries if not entry.is_symlink()}
        names_of[Path(directory).stat().st_ino] = names
        for name in files:
            if name in names:
                contents[names[name]] = (Path(directory) / name).read_bytes()
    return names_of, contents


@dataclass(frozen=True, slots=True)
class CrashState:
    after_step: int
    acknowledged: tuple[str, ...]
    """What was acknowledged before the power cut, in order."""
    tree: Tree

    def write(self, root: Path) -> None:
        """Make it so in an empty directory."""
        for path, content in sorted(self.tree.items()):
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)


def crash_states(recorder: Recorder) -> Iterator[CrashState]:
    """Every state that differs from the others in its tree or in what was acknowledged.

    The last moments come first: what was acknowledged and is lost, is lost there.
    """
    met: set[Any] = set()
    for count in range(len(recorder.steps), -1, -1):
        done = recorder.steps[:count]
        acknowledged = tuple(step for step in done if isinstance(step, str))
        for tree in _trees(_disk_after(done, recorder.start)):
            key = (acknowledged, frozenset(tree.items()))
            if key not in met:
                met.add(key)
                yield CrashState(count, acknowledged, tree)


def _disk_after(steps: Sequence[Step], start: Disk) -> Disk:
    disk = Disk()
    for number, node in start.seen.items():
        disk.restore(number, node.copy())
    for step in steps:
        if isinstance(step, Made):
            disk.add(is_directory=step.is_directory)
        elif isinstance(step, Changed):
            disk.change(step.number, step.change)
        elif isinstance(step, Synced):
            disk.sync(step.number)
    return disk


def _trees(disk: Disk) -> Iterator[Tree]:
    uncertain = [number for number, node in disk.seen.items() if node.pending]
    choices = [_fates(disk.seen[number]) for number in uncertain]
    for fates in itertools.product(*choices):
        nodes = {number: node.copy() for number, node in disk.kept.items()}
        for number, fate in zip(uncertain, fates, strict=True):
            nodes[number].apply(fate)
        yield as_tree(nodes)


def _fates(node: Node) -> list[Sequence[Change]]:
    """The subsets of what is pending that are told apart."""
    if node.names is not None:
        return [
            subset
            for size in range(len(node.pending) + 1)
            for subset in itertools.combinations(node.pending, size)
        ]
    *earlier, last = node.pending
    fates: list[Sequence[Change]] = [[], node.pending]
    if earlier:
        fates.append(earlier)
    if isinstance(last, Write):
        half = last.data[: len(last.data) // 2]
        fates.append([*earlier, Write(last.offset, half)])
        fates.append([*earlier, Resize(last.offset + len(last.data))])
    return fates
