"""Settings, with defaults and units. A test compares `docs/settings.md` with this file."""

import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from app.core.access.host_names import names_of_service, parse_host_names
from app.core.command_line import environment
from app.core.job.training_config import Recipe
from app.core.sampling.engines import parse_engines
from app.core.settings.data_directory import DataDirectory
from app.core.webhooks.allowed_targets import parse_networks, parse_targets

_FILE = Path(".env")


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Refuse a text that `parse` refuses, and keep any other as it is."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _check_engines(secret: SecretStr) -> SecretStr:
    parse_engines(secret.get_secret_value())
    return secret


class Settings(DataDirectory):
    """Settings of a process, from `TUNERY_...` variables or a file `.env`. The variables win."""

    model_config = SettingsConfigDict(
        env_prefix=environment.PREFIX,
        env_file=_FILE,
        frozen=True,
        extra="ignore",  # `.env` may hold what other programs read
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a password
    )

    database_url: str = ""
    """SQLAlchemy URL of the database. Empty means SQLite in the data directory."""

    host: str = "127.0.0.1"
    """Address that the API listens on. On an address that other machines can reach, an
    API key is required."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port that the API listens on."""

    allowed_hosts: Annotated[str, _parsed_by(parse_host_names)] = ""
    """Host names under which clients reach the API, besides those of this machine, separated by
    commas. Requests under any other name are refused, because a web page could be behind them."""

    bootstrap_key_file: str = ""
    """File to which the first start writes an API key with every scope, readable by its owner only.
    Empty means that no key is written."""

    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port on which the API process offers metrics for Prometheus, at `/metrics`. By default it
    offers none."""

    metrics_host: str = "127.0.0.1"
    """Address of the metrics. They need no key: do not open the address to strangers."""

    max_upload_bytes: int = Field(default=512 * 1024 * 1024, ge=1)
    """Maximum size of an uploaded file, in bytes."""

    max_uploads: int = Field(default=16, ge=1, le=1000)
    """Maximum number of files that the API receives at once. Each takes up to 12 MiB of memory. A
    further upload waits up to ten seconds, then gets 503."""

    max_connections: int = Field(default=2000, ge=1, le=100_000)
    """Maximum number of connections to the API. The limit is lower if the system allows the process
    too few open files. When all are in use, a new connection closes the oldest idle one."""

    receive_timeout_s: float = Field(default=20.0, ge=0.1, le=600)
    """Time within which the head of a request, or another 16 KiB of its body, must arrive, in
    seconds. The connection of a slower client is closed."""

    max_receive_s: float = Field(default=3600.0, ge=1, le=86_400)
    """Maximum time that a request may take to arrive, in seconds."""

    send_timeout_s: float = Field(default=60.0, ge=0.1, le=3600)
    """Time within which a client must take more of an answer, in seconds. The connection of a
    slower client is closed."""

    min_free_bytes: int = Field(default=512 * 1024 * 1024, ge=0)
    """Minimum free space on the data directory's disk, in bytes. Uploads and new jobs that would
    leave less are refused. 0 turns the check off."""

    ballast_bytes: int = Field(default=32 * 1024 * 1024, ge=0)
    """Size of the ballast file, in bytes. The service deletes this file when the disk is full, so
    that it can still delete and cancel. 0 turns it off."""

    organization: str = Field(default="tunery", pattern=r"^[a-z0-9-]{1,32}$")
    """Organization in the name of a tuned model, `ft:BASE:ORGANIZATION:SUFFIX:ID`."""

    result_files_base64: bool = False
    """Whether a job's loss log is sent in base64, as OpenAI sends it. The loss log is the only file
    in a job's `result_files`."""

    default_recipe: Recipe = "reference"
    """Recipe of jobs whose request names none. `reference` uses the documented defaults. `auto`
    chooses hyperparameters that fit the size of the base model and of the training file."""

    show_paused_as: Literal["paused", "queued"] = "paused"
    """Status that the API shows for a paused job. `queued` is for clients that reject statuses
    unknown to OpenAI's client."""

    poll_interval_s: float = Field(default=0.2, gt=0, le=60)
    """Interval at which an idle worker asks the database for a job, in seconds."""

    lease_s: float = Field(default=60.0, ge=1, le=3600)
    """Duration of a worker's lease on a running job, in seconds. A job whose worker gives no sign
    of life for this long returns to the queue."""

    concurrency: int = Field(default=1, ge=1, le=64)
    """Maximum number of jobs that train at once on this machine, over all of its workers. Workers
    beyond this number stand by. Every worker of a machine needs the same value."""

    training_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads per training job. The default is the number of CPUs divided by
    `TUNERY_CONCURRENCY`. A different number changes the last bits of an adapter."""

    training_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that trains. `auto` uses an NVIDIA GPU if there is one and the installed torch
    supports it, and the CPU otherwise."""

    training_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the base model and the activations. `auto` uses bfloat16 if the processor
    computes much faster in it. Adapter and optimizer are always in float32."""

    training_forward: Literal["auto", "fast", "plain"] = "auto"
    """Implementation of the model's layers: `fast` is Tunery's own, `plain` is that of
    transformers. `auto` uses the fast one for every architecture that it supports."""

    training_compile: Literal["auto", "always", "never"] = "auto"
    """Whether the layers are compiled, which takes half a minute the first time and needs a C++
    compiler. `auto` compiles if it should save a minute, or ten seconds after the first time."""

    training_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Whether the backward pass recomputes the layers instead of keeping their activations in
    memory. That takes a third longer and changes no bit of the result. `auto` recomputes if the job
    would not fit otherwise."""

    micro_batch_tokens: int | None = Field(default=None, ge=16, le=1_048_576)
    """Maximum number of tokens in a micro-batch, padding included. A longer row has a micro-batch
    of its own. The default depends on the memory of the machine and is at most 1,024. A different
    number changes the last bits of an adapter."""

    save_interval_s: float = Field(default=120.0, ge=1, le=86_400)
    """Interval at which the state of a running job is saved, in seconds. It is also saved at every
    checkpoint. An interruption costs at most this much training."""

    held_state_s: float = Field(default=604_800.0, ge=0, le=31_536_000)
    """Time for which the saved state of a failed or cancelled job is kept, in seconds. Its training
    and validation files are kept as long, so that a rerun can resume from it. 0 deletes the state
    when the job ends."""

    audit_retention_days: int = Field(default=400, ge=1, le=36_500)
    """Days after which an event of the audit trail is deleted."""

    warm_s: float = Field(default=600.0, ge=0, le=86_400)
    """Time for which the libraries and the base model of the last job stay in memory, in seconds,
    so that the next job starts sooner. A worker also loads the libraries when it starts. 0 turns
    this off. With a `TUNERY_CONCURRENCY` above 1, memory holds one copy for each worker."""

    stop_grace_s: float = Field(default=30.0, ge=1, le=3600)
    """Time that a worker has to save its job and exit after it is told to stop, in seconds."""

    launcher: Literal["local", "ray"] = "local"
    """Where a worker runs jobs: `local` on its own machine, `ray` on the nodes of a Ray cluster.
    With `ray`, the worker's own machine only checks data, exports and makes reports."""

    ray_address: str = "auto"
    """Address of the head of the Ray cluster, such as `10.0.0.1:6379`. `auto` is that of the Ray
    node on the worker's own machine, which there must be in any case."""

    sandbox: Literal["auto", "required", "off"] = "auto"
    """Whether training processes, and those that tokenize for previews, are contained. `auto` uses
    all that the kernel allows. The first event of each job lists the layers that hold. `required`
    refuses to start a worker on a machine that cannot filter system calls, restrict file access,
    limit resources or give up privileges. `off` is for debugging."""

    sampling: Literal["off", "idle", "shared"] = "idle"
    """Whether models can be asked, and what happens while a job trains on the same machine. `off`
    means never. `idle` refuses new requests while a job trains. `shared` answers them with one
    thread in a quarter of the time, which slows the job down."""

    sampling_memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    """Maximum memory of the sampler for base models, adapters and the text of requests, in bytes.
    The default is a quarter of the memory of the machine."""

    sampling_queue: int = Field(default=32, ge=0, le=10_000)
    """Maximum number of requests that wait for the sampler. A further one gets 429."""

    sampling_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of the sampler while no job trains. The default is the number of CPUs."""

    install_default_model: bool = True
    """Whether a worker installs the embedded base model at its start if the model is missing."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum severity of the messages that are logged."""

    log_format: Literal["text", "json"] = "text"
    """Format of the log on standard error: `text` for people, in colour on a terminal, or `json`
    for programs, one object per line."""

    webhook_targets: Annotated[str, _parsed_by(parse_targets)] = ""
    """Where webhooks may be sent, separated by commas: `public` for every https URL on the internet
    on port 443 or 8443, or origins such as `https://hooks.example.com`,
    `https://*.example.com:8443` or `http://receiver:8080`. Empty means that webhooks are off."""

    webhook_private_networks: Annotated[str, _parsed_by(parse_networks)] = ""
    """Private networks in which a host may be that `TUNERY_WEBHOOK_TARGETS` names, separated by
    commas, such as `10.0.0.0/8`. Empty means none."""

    mlflow_tracking_uri: str = ""
    """Address of the MLflow server that jobs may send their metrics to, such as
    `https://mlflow.example.com`. Empty means that MLflow is not offered."""

    mlflow_tracking_token: SecretStr = SecretStr("")
    """Bearer token for the MLflow server. Empty sends none."""

    wandb_api_key: SecretStr = SecretStr("")
    """API key with which jobs may send their metrics to Weights & Biases. Empty means that Weights
    & Biases is not offered."""

    wandb_base_url: str = "https://api.wandb.ai"
    """Address of the API of Weights & Biases. A server of your own has another one."""

    sampling_engines: Annotated[SecretStr, AfterValidator(_check_engines)] = SecretStr("")
    """Engines with OpenAI's API, such as vLLM or llama.cpp's server, that answer for some models,
    as a list in JSON: `[{"models": "ft:*", "url": "http://127.0.0.1:8080/v1"}]`. `models` is a
    name or a pattern. `key` can be added for the engine's API key, and `name` for the name under
    which it knows the model. Empty means that the sampler answers for every model."""

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
    def may_be_keyless(self) -> bool:
        """Whether the API needs no key until one is created: only this machine can reach it.

        Another name than those of this machine means that a proxy leads others here.
        """
        if self.bootstrap_key_file or self.allowed_hosts:
            return False
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> frozenset[str]:
        """Names under which the API answers, in lower case, without a port."""
        return names_of_service(self.host, parse_host_names(self.allowed_hosts))

    @property
    def resolved_training_threads(self) -> int:
        return self.training_threads or max(1, (os.cpu_count() or 1) // self.concurrency)

    @property
    def resolved_sampling_threads(self) -> int:
        return self.sampling_threads or os.cpu_count() or 1


def read_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        SettingsError: a setting has an invalid value, or a `TUNERY_...` variable is no setting.
    """
    variables = environment.find_variables(_FILE)
    environment.require_known(variables, known=Settings.model_fields)
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lines = [environment.explain_invalid(one["loc"], one["msg"], variables) for one in problems]
        raise environment.SettingsError("\n".join(lines)) from error
