"""What the operator has chosen of how jobs are computed."""

from app.core.job.training_config import ComputeSettings
from app.core.settings import Settings

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
