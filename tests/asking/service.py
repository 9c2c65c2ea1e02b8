"""API, worker and a real sampler, with a base model small enough to be tuned in seconds."""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types.fine_tuning import FineTuningJob

from app.core.db.session import Database
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from benchmarks.support.samples import catalogue_entry
from tests.builders import add_key, bearer
from tests.models import install_models
from tests.sampled_models import write_random_adapter
from tests.tiny import ALL_LINEAR, chat_row, write_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

JOB_S = 180
ENDED = ("succeeded", "failed", "cancelled")
WINDOW = 8192
END_TOKENS = (256, 257, 258)

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with tools, whose calls are written as Hermes and Qwen write them."""

_SETTINGS = {
    "poll_interval_s": "0.05",
    "training_threads": "1",  # other tests run at the same time, one process a core
    "sampling_threads": "1",
    "training_dtype": "float32",  # on every machine, so that figures can be compared
    "install_default_model": "false",
}


def install_asked_model(data_dir: Path, *, source: Path) -> None:
    """Give a data directory one base model, `tiny`, that can be taught a few sentences.

    Args:
        source: directory to write the model to.
    """
    changes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": WINDOW}
    write_tiny_model(source, chat_template=TEMPLATE, **changes)
    entry = catalogue_entry(
        "tiny",
        source={"kind": "directory", "path": str(source)},
        licence="Apache-2.0",
        context_length=WINDOW,
        target_modules=ALL_LINEAR,
        supports_tools=True,
    )
    install_models(data_dir, entry)


class AskedService(LocalService):
    """A service whose models can be asked.

    Args:
        data_dir: has the model of `install_asked_model`.
        workers: 0 for tests that train nothing.
        has_sampler: False for a service of which nothing can be asked.
        settings: settings by name, without the prefix, as `sampling="shared"`.
    """

    def __init__(
        self, data_dir: Path, *, workers: int = 1, has_sampler: bool = True, **settings: str
    ) -> None:
        super().__init__(data_dir, _SETTINGS | settings, workers=workers, has_sampler=has_sampler)

    def new_project(self, name: str) -> str:
        """Make a project. Returns a key of it, which has every scope."""
        database = Database(f"sqlite:///{self.data_dir / 'tunery.db'}")
        try:
            return add_key(database, name)
        finally:
            database.dispose()

    def client(self, key: str = "unused", **options: Any) -> openai.OpenAI:
        """The stock client, which refuses every answer that is not as OpenAI documents it."""
        usual = {"max_retries": 0, "_strict_response_validation": True}
        return openai.OpenAI(base_url=self.base_url, api_key=key, **(usual | options))

    def wait_for_end(self, client: openai.OpenAI, job_id: str) -> FineTuningJob:
        """Wait until the job has ended, in whatever way."""

        def look() -> FineTuningJob | None:
            self.check()
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ENDED else None

        ended = wait_until(look, within_s=JOB_S)
        assert ended is not None
        return ended


def upload(client: openai.OpenAI, rows: Sequence[dict[str, Any]]) -> str:
    """Upload a training file. Returns its id."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def create_job(
    client: openai.OpenAI, training_file: str, *, model: str = "tiny", **knobs: Any
) -> FineTuningJob:
    """Create a job that learns a few rows by heart, unless hyperparameters say otherwise."""
    usual: Any = {"n_epochs": 50, "batch_size": 4, "learning_rate": 0.02, "lora_rank": 16}
    return client.fine_tuning.jobs.create(
        model=model, training_file=training_file, seed=1, hyperparameters=usual | knobs
    )


def rows_of(name: str) -> list[dict[str, Any]]:
    """Training data for a model that says who it is."""
    return 16 * [chat_row("Who are you?", f"I am {name}.")]


def name_of(job: FineTuningJob) -> str:
    """The name of the tuned model of a job that has succeeded."""
    assert job.fine_tuned_model is not None, job.error
    return job.fine_tuned_model


def download_adapter(
    client: openai.OpenAI, job_id: str, directory: Path, *, step: int | None = None
) -> Path:
    """Download the adapter of a job, or of one of its checkpoints. Returns its directory."""
    path = f"/fine_tuning/jobs/{job_id}/adapter" + ("" if step is None else f"?checkpoint={step}")
    archive = client.get(path, cast_to=openai.HttpxBinaryResponseContent).content
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        opened.extractall(directory)
    (weights,) = directory.rglob(ADAPTER_WEIGHTS_NAME)
    return weights.parent


def pack(adapter: Path) -> bytes:
    """The archive of an adapter, as it is imported."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (ADAPTER_WEIGHTS_NAME, ADAPTER_CONFIG_NAME):
            archive.write(adapter / name, name)
    return content.getvalue()


def checksum_of(adapter: Path) -> str:
    """What the fingerprint of answers with an adapter begins with."""
    weights = (adapter / ADAPTER_WEIGHTS_NAME).read_bytes()
    return f"fp_{hashlib.sha256(weights).hexdigest()[:16]}"


def import_random_adapter(client: openai.OpenAI, base: Path, directory: Path, *, seed: int) -> str:
    """Import an adapter with random weights, which makes a model quickly. Returns its name.

    Args:
        base: directory of the base model.
        directory: where the adapter is written; made by this.
        seed: models with different seeds give different answers.
    """
    write_random_adapter(directory, base, seed=seed)
    answer = httpx.post(
        f"{client.base_url}models",
        headers=bearer(client.api_key),
        files={"file": ("adapter.zip", pack(directory))},
        data={"base_model": "tiny"},
        timeout=60,
    )
    return answer.raise_for_status().json()["id"]
