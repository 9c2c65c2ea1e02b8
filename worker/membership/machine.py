"""This machine among others: what it can do, what time it is, and whether it is drained."""

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from app.core.abilities.ability import Ability, Gpu
from app.core.base_models import Catalogue
from app.core.clock import steady_s
from app.core.compute_choices import training_memory
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.server_clock import ServerClock
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError
from app.core.job.artifacts import NUMERICS_VERSION
from app.core.settings import Settings
from app.core.settings.store_urls import is_shared

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 2.0
"""Interval at which a worker asks whether its machine is drained, and what time it is."""

_MEMORY_UNIT = 64 * 2**20
"""Bytes to which the memory is rounded down, so that machines of one kind have the same ability."""

_PROGRAM_S = 20.0
_INSTRUCTIONS = frozenset(
    {
        *("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
        *("avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
        *("asimd", "asimddp", "fphp", "asimdhp", "bf16", "i8mm", "sve", "sve2", "svebf16"),
    }
)
"""Flags in `/proc/cpuinfo` by which the libraries choose how they compute."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR")
"""Variables that limit the libraries to some of the instructions."""
_MODEL = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU architecture", "CPU part")
"""Lines of `/proc/cpuinfo` that name a kind of processor, whatever its speed and its cores are."""


def measure_ability(settings: Settings, catalogue: Catalogue) -> Ability:
    """Find out what a worker with these settings can do on this machine."""
    processor, instructions = _read_processor(Path("/proc/cpuinfo"))
    installed = tuple(installed.id for _, installed in catalogue.list_installed())
    return Ability(
        machine=settings.resolved_machine,
        cores=max(os.cpu_count() or 1, settings.resolved_training_threads),
        threads=settings.resolved_training_threads,
        memory_bytes=training_memory(settings) // _MEMORY_UNIT * _MEMORY_UNIT,
        gpu=None if settings.training_device == "cpu" else _find_gpu(),
        processor=processor,
        instructions=instructions,
        compiler=_first_line([os.environ.get("CXX", "g++"), "--version"]),
        torch=_version("torch"),
        transformers=_version("transformers"),
        peft=_version("peft"),
        numerics=NUMERICS_VERSION,
        base_models=None if is_shared(settings.store_url) else installed,
    )


def _read_processor(path: Path) -> tuple[str, str]:
    """Kind of the first processor, and the instructions that the libraries may use."""
    try:
        lines = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}", ""
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    kind = [platform.machine(), *(facts[name] for name in _MODEL if name in facts)]
    return " ".join(kind), " ".join([*sorted(_INSTRUCTIONS.intersection(flags)), *limits])


def _find_gpu() -> Gpu | None:
    """The first GPU, if the installed torch can use it. No process is started for its memory."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if "+cpu" in _version("torch") or (line := _first_line(query)) is None:
        return None
    name, _, megabytes = line.rpartition(", ")
    return Gpu(name=name, memory_bytes=int(megabytes) * 2**20) if megabytes.isdecimal() else None


def _first_line(command: list[str]) -> str | None:
    """First line that a program prints. None if there is no such program, or it fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - no input of users
            [program, *command[1:]], capture_output=True, text=True, timeout=_PROGRAM_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


class MachineWatch:
    """What a worker process asks the database about its machine, again and again.

    Attributes:
        clock: the time of the database's server.

    Args:
        machine: name of this machine.
        database: the database.
    """

    def __init__(self, machine: str, database: Database, clock: ServerClock | None = None) -> None:
        self.clock = clock or ServerClock()
        self._machine = machine
        self._database = database
        self._drained_s: float | None = None

    def drained_s(self) -> float | None:
        """When the machine was found to be drained, by `steady_s`. None if it is not."""
        return self._drained_s

    def look(self) -> None:
        """Ask for the time, and whether the machine is drained. Nothing changes if that fails."""
        try:
            with self._database.reading() as session:
                is_drained = Drains(session).is_drained(self._machine)
                self.clock.synchronize(session)
        except DatabaseBusyError:
            return
        if is_drained and self._drained_s is None:
            logger.info("the machine is drained: its workers take nothing more")
            self._drained_s = steady_s()
        elif not is_drained and self._drained_s is not None:
            logger.info("the machine is no longer drained")
            self._drained_s = None
