"""The parent's side of the sandbox: what this machine offers, and what each job gets of it."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.core.errors import OperatorError
from app.core.job.child.containment import (
    Layer,
    LayerKind,
    describe_layers,
    find_layers,
    missing_core_layers,
)
from app.core.job.child.training_events import Noted
from worker.launch.locks import try_lock
from worker.launch.sandbox.confinement import AppliedLayers, Confinement, Limits
from worker.launch.sandbox.grants import hand_over, make_cache, readable_paths
from worker.launch.sandbox.limits import available_memory, count_threads
from worker.launch.sandbox.probe import FIRST_USER

_USERS = 64
"""Number of users, one for each training process of a machine: as many as may run at once."""

_MORE_PROCESSES = 512
"""Processes and threads that a job may have in addition to twice its training threads."""

_GPU = Path("/dev/nvidiactl")
"""Exists where there is an NVIDIA GPU. Its driver reserves more address space than there is memory,
so a limit would stop jobs that fit."""


class SandboxError(OperatorError):
    """The sandbox is required, and this machine lacks a part of it."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How the training processes of this worker are contained.

    Attributes:
        layers: the layers that were tried on this machine. Empty if the sandbox is off.
        data_dir: the data directory.
        locks_dir: directory for the lock files of this machine.
        threads: number of threads that a job computes with.
    """

    layers: Sequence[Layer]
    data_dir: Path
    locks_dir: Path
    threads: int

    def describe(self) -> Noted:
        """Say in a message for the user how a job is contained."""
        if not self.layers:
            message = "The training process is not contained, because TUNERY_SANDBOX is off."
            return Noted(level="warn", message=message)
        message = f"The training process is {describe_layers(self.layers)}."
        level = "warn" if missing_core_layers(self.layers) else "info"
        return Noted(level=level, message=message)

    @contextmanager
    def confine(self, directory: Path, module: str) -> Generator[Confinement | None]:
        """Prepare a job directory for its training process.

        Yields what the process must apply; None if it is not contained. The block must last for as
        long as the process lives, because the process may be given a user of its own.

        Args:
            directory: the job directory.
            module: what the process runs.
        """
        if not self.layers:
            yield None
            return
        directory, hidden = directory.resolve(), self.data_dir.resolve()
        with self._take_user() as user:
            cache = make_cache(directory, os.geteuid() if user is None else user)
            if user is not None:
                hand_over(directory, cache, user)
            yield Confinement(
                layers=AppliedLayers(
                    namespaces=self._has(LayerKind.NAMESPACES),
                    files=self._has(LayerKind.FILES),
                    system_calls=self._has(LayerKind.SYSTEM_CALLS),
                ),
                user=user,
                limits=self._limits(user),
                hidden=hidden,
                readable=tuple(readable_paths(directory, module, hidden=hidden)),
                writable=(directory, cache),
            )

    def _has(self, kind: LayerKind) -> bool:
        return any(layer.kind is kind and not layer.missing for layer in self.layers)

    @contextmanager
    def _take_user(self) -> Generator[int | None]:
        if not self._has(LayerKind.USER):
            yield None
            return
        for number in range(_USERS):
            lock = try_lock(self.locks_dir / f"user-{number}.lock")
            if lock is not None:
                try:
                    yield FIRST_USER + number
                finally:
                    os.close(lock)
                return
        raise OSError(f"all {_USERS} users for training processes are taken")

    def _limits(self, user: int | None) -> Limits:
        others = count_threads(os.geteuid()) if user is None else 0
        return Limits(
            processes=others + 2 * self.threads + _MORE_PROCESSES,
            memory_bytes=None if _GPU.exists() else available_memory(),
        )


NO_SANDBOX = Sandbox((), Path(), Path(), 1)


def make_sandbox(
    mode: Literal["auto", "required", "off"], *, data_dir: Path, locks_dir: Path, threads: int
) -> Sandbox:
    """Find out how training processes can be contained on this machine.

    Raises:
        SandboxError: `mode` is `required`, and a core layer is not available.
    """
    layers = () if mode == "off" else find_layers()
    missing = missing_core_layers(layers)
    if mode == "required" and missing:
        raise SandboxError(
            f"TUNERY_SANDBOX is required, and this machine lacks {', '.join(missing)}. Give the "
            "worker a kernel and a container that allow it, or set TUNERY_SANDBOX=auto."
        )
    return Sandbox(layers, data_dir, locks_dir, threads)
