"""What a training process must apply to itself before it reads a job. It crosses to it as JSON."""

from pathlib import Path

from app.core.job.frozen import Frozen


class Limits(Frozen):
    """Limits of the process, as `setrlimit(2)` has them, in its units."""

    processes: int
    """Processes and threads of the user, over the whole machine."""
    memory_bytes: int | None
    """What the process may take in addition to what it has when it starts. Null for no limit."""
    open_files: int = 1024
    file_bytes: int = 16 * 1024**3
    """Size of one file. The largest that a job writes has outputs of layers, of up to 10 GB."""


class AppliedLayers(Frozen):
    """Layers that this machine may lack. `LayerKind` says what each of them is."""

    namespaces: bool = False
    files: bool = False
    system_calls: bool = False


class Confinement(Frozen):
    layers: AppliedLayers
    user: int | None
    """User to become, with a group of the same number. Null to stay."""
    limits: Limits
    hidden: Path
    """Directory to hide where there are mounts of its own: the data directory."""
    readable: tuple[Path, ...]
    """What may be read and executed, besides the system: libraries, code, the base model."""
    writable: tuple[Path, ...]
    """What may be written: the job directory, and a cache for compiled layers."""
