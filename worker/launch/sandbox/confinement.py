"""What a training process must apply to itself before it reads a job. It crosses to it as JSON."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Limits(_Frozen):
    """Limits of the process, as `setrlimit(2)` has them, in its units."""

    processes: int
    """Processes and threads of the user, over the whole machine."""
    memory_bytes: int | None
    """What the process may take in addition to what it has when it starts. Null for no limit."""
    open_files: int = 1024
    file_bytes: int = 16 * 1024**3
    """Size of one file. The largest that a job writes is a tokenized dataset, of a few GB."""


class Layers(_Frozen):
    """The layers of the sandbox that this machine has."""

    namespaces: bool = False
    """Own processes, network and mounts, and no others in sight."""
    files: bool = False
    """Landlock."""
    system_calls: bool = False
    """The seccomp filter."""


class Confinement(_Frozen):
    layers: Layers
    user: int | None
    """User to become, with a group of the same number. Null to stay."""
    limits: Limits
    hidden: Path
    """Directory to hide where there are mounts of its own: the data directory."""
    readable: tuple[Path, ...]
    """What may be read and executed, besides the system: libraries, code, the base model."""
    writable: tuple[Path, ...]
    """What may be written: the job directory, and a cache for compiled layers."""
