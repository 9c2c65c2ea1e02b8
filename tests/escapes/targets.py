"""What a training process must not reach. The worker of the test makes it, and writes it down."""

from pathlib import Path

from pydantic import BaseModel

TARGETS_NAME = "targets.json"
RESULTS_NAME = "results.json"


class Targets(BaseModel):
    worker: int
    """Process id of the worker, as the machine knows it."""
    api_port: int
    abstract_socket: str
    database: Path
    blob: Path
    signing_key: Path
    base_model: Path
    other_job: Path
    """A file in the job directory of another job."""
    machine_cache: Path
    other_cache: Path
    """Compiled code of another project."""
    job_lock: Path
    code: Path
    """Directory with code of the service."""
    libraries: Path
    memory_bytes: int
    """More memory than the machine has left."""
