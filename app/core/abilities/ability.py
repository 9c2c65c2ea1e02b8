"""What a worker can do, and the part of it that decides the bits of a training."""

import hashlib
from typing import Literal, Self

from pydantic import Field, ValidationError

from app.core.job.child.job_spec import ComputeSettings, DeviceName
from app.core.job.frozen import Frozen

_LABELS = {
    "processor": "processor",
    "instructions": "instructions",
    "compiler": "C++ compiler",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
}
"""Fields of an environment, with their names for people."""


class Gpu(Frozen):
    name: str
    memory_bytes: int = Field(ge=0)


class Environment(Frozen):
    """All that decides the bits of a training besides the job and the number of threads."""

    device: DeviceName
    processor: str
    """Architecture, vendor, family and model of the processor. With a GPU, its name instead."""
    instructions: str
    """Instruction sets that the libraries may use. Empty with a GPU."""
    compiler: str | None
    """C++ compiler of compiled layers, with its version. None if the layers are not compiled."""
    torch: str
    transformers: str
    peft: str

    @property
    def digest(self) -> str:
        """Short name of the environment, for comparisons in the database."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class StoredPlan(Frozen):
    """How the attempt that began a job computed it. Attempts that resume it must do the same."""

    compute: ComputeSettings
    threads: int = Field(ge=1)
    """Threads of the processor that it trains with."""
    numerics: int
    """Numerics version of its saved states."""
    environment: Environment


class Ability(Frozen):
    """What one worker can do."""

    machine: str = ""
    """Name of the machine, for people. Empty in what the database has, so that machines of one kind
    are equal there."""
    cores: int = Field(ge=1)
    """Processors of the machine: the most threads that a job may need here."""
    threads: int = Field(ge=1)
    """Threads that a new job trains with."""
    memory_bytes: int = Field(ge=0)
    """Memory of the machine that is for jobs, free or not."""
    gpu: Gpu | None = None
    """GPU that jobs may use. None if there is none."""
    processor: str
    """Architecture, vendor, family and model of the processor."""
    instructions: str
    """Instruction sets that the libraries may use."""
    compiler: str | None = None
    """C++ compiler with its version. None if there is none."""
    torch: str
    transformers: str
    peft: str
    numerics: int
    """Numerics version of the saved states that it reads and writes."""
    base_models: tuple[str, ...] | None = None
    """Ids of the base models that are installed. None if it can fetch any."""

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Read the JSON form. None if there is none, or a newer version has written it."""
        try:
            return None if text is None else cls.model_validate_json(text)
        except ValidationError:
            return None

    def environment(self, device: DeviceName, *, is_compiled: bool) -> Environment:
        """The environment of a job that trains here on this device."""
        gpu = self.gpu if device == "cuda" else None
        return Environment(
            device=device,
            processor=gpu.name if gpu else self.processor,
            instructions="" if gpu else self.instructions,
            compiler=self.compiler if is_compiled else None,
            torch=self.torch,
            transformers=self.transformers,
            peft=self.peft,
        )

    def plan(self, compute: ComputeSettings, threads: int) -> StoredPlan:
        """The plan of a job that trains here with these choices."""
        device: Literal["cpu", "cuda"] = compute.device or "cpu"
        return StoredPlan(
            compute=compute,
            threads=threads,
            numerics=self.numerics,
            environment=self.environment(device, is_compiled=bool(compute.compile)),
        )

    @property
    def digests(self) -> frozenset[str]:
        """The environments that the worker offers."""
        devices: list[DeviceName] = ["cpu"] if self.gpu is None else ["cpu", "cuda"]
        return frozenset(
            self.environment(device, is_compiled=is_compiled).digest
            for device in devices
            for is_compiled in (False, True)
        )

    def has_model(self, base_model: str) -> bool:
        """Whether the base model is installed here, or can be fetched."""
        return self.base_models is None or base_model in self.base_models

    def describe(self) -> str:
        """The main facts, for people."""
        gpu = "" if self.gpu is None else f", {self.gpu.name}"
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{cores}, {self.memory_bytes / 1e9:.1f} GB of memory{gpu}"

    def differences(self, plan: StoredPlan) -> list[str]:
        """Why the worker cannot execute a plan, for people. Empty if it can."""
        needed = plan.environment
        has = self.environment(needed.device, is_compiled=needed.compiler is not None)
        pairs: dict[str, tuple[object, object]] = {
            label: (getattr(needed, name), getattr(has, name)) for name, label in _LABELS.items()
        }
        if needed.device == "cuda" and self.gpu is None:
            pairs = {"GPU": (needed.processor, None)}
        if plan.threads > self.cores:
            pairs["threads"] = plan.threads, self.cores
        return [
            f"{label} ({has or 'none'} instead of {needed or 'none'})"
            for label, (needed, has) in pairs.items()
            if needed != has
        ]
