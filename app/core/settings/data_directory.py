"""Where a process keeps what: the paths below the data directory, and the blob store."""

import platform
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.job.child.job_spec import MACHINE_CACHE_NAME, PROJECT_CACHE_NAME
from app.core.settings.store_urls import StoreUrl


class DataDirectory(BaseSettings):
    """The data directory, the places in it, and the store of files."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Directory that holds everything the service keeps: database, uploads, results, base
    models."""

    machine: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Name of the machine, under which the service page shows its workers and `tunery drain` finds
    them. Each machine needs its own. Empty means its host name."""

    store_url: StoreUrl = ""
    """Where files are stored: `s3://BUCKET/PREFIX`, or a directory as `file:///DIRECTORY`. Empty
    means `blobs` in the data directory. Keys and endpoint of S3 come from the variables of AWS."""

    store_previous_url: StoreUrl = ""
    """Where files were stored before, while they are moved to `TUNERY_STORE_URL`. What the new
    store lacks is read from here. Empty means that nothing is being moved."""

    store_redirects: bool = False
    """Whether downloads are answered with a redirect to a signed URL of S3, so that their bytes do
    not pass through the API. Clients must then be able to reach the endpoint of S3."""

    @property
    def resolved_machine(self) -> str:
        return self.machine or platform.node() or "localhost"

    @property
    def cache_dir(self) -> Path:
        """What training jobs keep for later ones. Deleting it costs only time."""
        return self.data_dir / "cache"

    @property
    def machine_cache_dir(self) -> Path:
        """What the jobs of all projects keep for later ones: the speeds of the processor."""
        return self.cache_dir / "machine"

    @property
    def project_caches_dir(self) -> Path:
        """What the jobs of each project keep for its later ones, in a directory with its id."""
        return self.cache_dir / "projects"

    def caches_of(self, project_id: str) -> dict[str, Path]:
        """Caches of a project's training jobs, by their names in a job directory."""
        own = self.project_caches_dir / project_id
        return {MACHINE_CACHE_NAME: self.machine_cache_dir, PROJECT_CACHE_NAME: own}

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def copies_dir(self) -> Path:
        """Copies of blobs that the store has elsewhere. Deleting them costs only time."""
        return self.data_dir / "copies"

    @property
    def signing_dir(self) -> Path:
        """Directory of the key that signs manifests. No training child may read it."""
        return self.data_dir / "signing"

    @property
    def sampler_dir(self) -> Path:
        """Directory of the socket at which the sampler listens."""
        return self.data_dir / "sampler"

    @property
    def work_dir(self) -> Path:
        """Directory of the job directories of running attempts."""
        return self.data_dir / "work"

    @property
    def workers_dir(self) -> Path:
        """Directory in which the workers of this machine keep their locks."""
        return self.data_dir / "workers"
