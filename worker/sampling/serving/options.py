"""What the keeper tells the process that samples. It crosses to it as JSON."""

from pathlib import Path
from typing import Literal

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.frozen import Frozen


class ServingOptions(Frozen):
    mode: Literal["idle", "shared"]
    """`idle`: requests are refused while a job trains. `shared`: they are answered slowly."""
    memory_bytes: int
    """Maximum memory of base models, adapters and all that was read."""
    queue: int
    """Maximum number of requests that wait."""
    threads: int
    """CPU threads while no job trains."""
    models: Path
    """Directory of all base models."""
    speeds: Path
    """Directory in which jobs have stored the speeds of the processor. It may be missing."""
    compute: ComputeSettings
    """Choices of the operator."""


TRAINS, RESTS = b"T", b"R"
"""What the keeper says through the control pipe: whether a job trains on this machine."""

READY = "ready"
"""Line with which the process says that it takes requests."""

ALIVE = "alive"
"""Line that the process writes every `ALIVE_INTERVAL_S` while none of its threads hangs."""

GRACE_S = 30.0
"""Time in which answers in the making may finish when a job begins to train, in seconds."""
