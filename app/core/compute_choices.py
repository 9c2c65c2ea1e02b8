"""What the operator has chosen of how jobs are computed, and how memory is divided."""

from app.core.job.child.job_spec import ComputeSettings
from app.core.machine.memory import measure_memory
from app.core.settings import Settings

_SHARE_OF_SAMPLER = 4
"""By default, the sampler may fill one part in so many of the memory of the machine."""

_OVERHEAD = 1.25
"""Memory that the allocator takes, as a multiple of what the sampler has filled: it keeps blocks
of other sizes for later, and an adapter is there twice while it is read."""

_LIBRARIES = 1024**3
"""Bytes of the sampler's libraries, and of what one step computes."""

_SWITCHES = {"auto": None, "always": True, "never": False}


def compute_choices(settings: Settings) -> ComputeSettings:
    """The choices that the settings make. The training child makes the others."""
    dtype = settings.training_dtype
    device = settings.training_device
    return ComputeSettings(
        device=None if device == "auto" else device,
        forward=None if settings.training_forward == "auto" else settings.training_forward,
        dtype=None if dtype == "auto" else dtype,
        compile=_SWITCHES[settings.training_compile],
        gradient_checkpointing=_SWITCHES[settings.training_checkpointing],
        micro_batch_tokens=settings.micro_batch_tokens,
    )


def sampling_memory(settings: Settings) -> int:
    """Maximum bytes that the sampler may fill with models, adapters and requests."""
    return settings.sampling_memory_bytes or measure_memory().total // _SHARE_OF_SAMPLER


def sampler_memory(settings: Settings) -> int:
    """Maximum bytes of memory that the process of the sampler may take."""
    return round(_OVERHEAD * sampling_memory(settings)) + _LIBRARIES


def training_memory(settings: Settings) -> int:
    """Bytes of this machine's memory that are for jobs.

    A sampler that answers while a job trains keeps what it may take. Otherwise it gives it back.
    """
    taken = sampler_memory(settings) if settings.sampling == "shared" else 0
    return max(1, measure_memory().total - taken)


def warn_of_sampler(settings: Settings) -> str | None:
    """What the operator should know if the sampler leaves jobs less than half of the memory."""
    left, total = training_memory(settings), measure_memory().total
    if 2 * left >= total:
        return None
    return (
        f"with TUNERY_SAMPLING=shared, the sampler leaves jobs {left / 1e9:.1f} GB of "
        f"{total / 1e9:.1f} GB of memory; lower TUNERY_SAMPLING_MEMORY_BYTES if they need more"
    )
