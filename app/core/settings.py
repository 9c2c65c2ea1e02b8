"""Every setting, its default and its unit; `docs/settings.md` is checked against this file."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from the environment, as `TUNERY_PORT`, or from a file `.env`; the environment wins."""

    model_config = SettingsConfigDict(
        env_prefix="TUNERY_",
        env_file=".env",
        frozen=True,
        extra="ignore",  # `.env` may hold what other programs read
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("data")
    """Where everything is kept: the database, uploaded and made files, base models."""

    database_url: str = ""
    """SQLAlchemy URL of the database; empty for SQLite in `data_dir`."""

    host: str = "127.0.0.1"
    """Address the API listens on. There is no authentication yet: see docs/deployment.md."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port the API listens on."""

    max_upload_bytes: int = Field(default=512 * 1024 * 1024, ge=1)
    """Largest file that may be uploaded, in bytes."""

    min_free_bytes: int = Field(default=512 * 1024 * 1024, ge=0)
    """Bytes of the data directory's disk that uploads and new jobs leave free; 0 lets them fill
    it."""

    ballast_bytes: int = Field(default=32 * 1024 * 1024, ge=0)
    """Size of a file that is kept to be deleted when the disk is full, so that something else can
    be; 0 for none."""

    organization: str = Field(default="tunery", pattern=r"^[a-z0-9-]{1,32}$")
    """The part of a tuned model's name that says whose it is: `ft:BASE:ORGANIZATION:SUFFIX:ID`."""

    result_files_base64: bool = False
    """Whether the loss log of a job, the only entry of its `result_files`, is sent in base64, as
    OpenAI sends it."""

    show_paused_as: Literal["paused", "queued"] = "paused"
    """Status that the API shows for a paused job: `paused`, or `queued` for clients that refuse
    every status that OpenAI's client does not know."""

    poll_interval_s: float = Field(default=0.2, gt=0, le=60)
    """Seconds an idle worker waits before it looks for work again."""

    lease_s: float = Field(default=60.0, ge=1, le=3600)
    """Seconds a claimed job stays claimed without a sign of life from its worker."""

    concurrency: int = Field(default=1, ge=1, le=64)
    """Jobs that train at once on this machine, over all its workers. One more worker than that is
    a stand-by. The same for every worker of a machine."""

    training_threads: int | None = Field(default=None, ge=1, le=1024)
    """Processor threads one training job uses; unless set, the machine's divided by
    `concurrency`. Another number gives an adapter that differs in the last bits."""

    training_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training happens: `auto` takes a GPU of NVIDIA's where there is one and torch was
    installed for it."""

    training_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What base model and activations are computed in: `auto` takes bfloat16 where the processor
    is much faster in it. Adapter and optimizer are always in float32."""

    training_forward: Literal["auto", "fast", "plain"] = "auto"
    """Whose layers read the data: `auto` takes ours, which are faster, for every architecture that
    they know, and else the plain ones of transformers."""

    training_compile: Literal["auto", "always", "never"] = "auto"
    """Whether the layers of a model are compiled, which takes half a minute the first time: `auto`
    compiles for jobs in which that is estimated to save a minute. Needs a C++ compiler."""

    training_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Whether a model's layers are computed a second time instead of being kept in memory, which
    takes a third longer and changes no bit: `auto` does so where a job would not fit otherwise."""

    micro_batch_tokens: int | None = Field(default=None, ge=16, le=1_048_576)
    """Tokens that are read at once, padding included, unless one row alone is longer; unless set,
    at most 1,024, by what they take of memory. Another number gives an adapter that differs in
    the last bits."""

    save_interval_s: float = Field(default=120.0, ge=1, le=86_400)
    """Seconds of training after which a job's state is saved again, besides at every checkpoint:
    what an interruption costs at most."""

    held_state_s: float = Field(default=604_800.0, ge=0, le=31_536_000)
    """Seconds for which the saved state of a job that failed or was cancelled is kept, and its
    training and validation files with it, so that a rerun can resume from it; 0 for not at all."""

    warm_s: float = Field(default=600.0, ge=0, le=86_400)
    """Seconds after a job for which the libraries and its base model stay in memory, so that the
    next job starts at once. A worker that starts loads the libraries and keeps them as long. 0 for
    not at all. For each job that may train at once."""

    stop_grace_s: float = Field(default=30.0, ge=1, le=3600)
    """Seconds a worker that is told to stop may take to save its job and end."""

    install_default_model: bool = True
    """Whether a starting worker installs the embedded base model when it is missing."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""

    log_format: Literal["text", "json"] = "text"
    """How log lines are written to standard error: `text` for people, in colour on a terminal;
    `json` for programs, one object a line."""

    @field_validator("database_url")
    @classmethod
    def _must_be_offered(cls, url: str) -> str:
        scheme = url.partition(":")[0].partition("+")[0]
        if url and scheme not in ("sqlite", "postgresql"):
            raise ValueError("it must begin with postgresql:// or sqlite:///")
        return url

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'tunery.db'}"

    @property
    def resolved_training_threads(self) -> int:
        return self.training_threads or max(1, (os.cpu_count() or 1) // self.concurrency)

    @property
    def cache_dir(self) -> Path:
        """What training jobs of this machine share; losing it costs time and nothing else."""
        return self.data_dir / "cache"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def work_dir(self) -> Path:
        """Where workers keep the job directories of running attempts."""
        return self.data_dir / "work"

    @property
    def workers_dir(self) -> Path:
        """Where the workers of this machine keep their locks."""
        return self.data_dir / "workers"


class SettingsError(Exception):
    """A setting has a value that is not allowed; the message names it."""


def read_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: one has a value that is not allowed.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"TUNERY_{'_'.join(str(part) for part in one['loc']).upper()}: {one['msg']}."
            for one in error.errors(include_url=False)
        ]
        raise SettingsError("\n".join(lines)) from error
