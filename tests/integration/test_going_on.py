"""From a trained adapter over its archive to an imported one, and on from both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.base_models import Catalogue
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.adapters import WEIGHTS
from tests.builders import claim
from tests.fakes import FrozenClock
from tests.tiny import chat_row, install_tiny_model
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending, Watcher
from worker.training.recipe import run_job

pytestmark = pytest.mark.only_sqlite

JOBS = "/v1/fine_tuning/jobs"
ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    install_tiny_model(directory, source=tmp_path / "tiny")
    return directory


class InThisProcess:
    """A `Launcher` that trains where it is called."""

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        del lock, is_busy

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        run_job(directory, watcher.on_event)
        return Ending(0, was_asked=False, was_killed=False, log_tail="")


@pytest.fixture
def train(
    client: TestClient,
    database: Database,
    settings: Settings,
    *,
    store: LocalBlobStore,
    catalogue: Catalogue,
) -> Callable[..., dict[str, Any]]:
    """Creates a job with a fixed seed and trains it. Returns the job."""
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    form = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    file_id = client.post("/v1/files", **form).json()["id"]
    resources = Resources(settings, database, store, catalogue, InThisProcess(), FrozenClock())

    def train(model: str, **hyperparameters: Any) -> dict[str, Any]:
        body = {
            "model": model,
            "training_file": file_id,
            "seed": 1,
            "hyperparameters": {"n_epochs": 1, "learning_rate": 0.01} | hyperparameters,
        }
        job = client.post(JOBS, json=body).json()
        Attempt(claim(database), resources).run()
        ended = client.get(f"{JOBS}/{job['id']}").json()
        assert ended["status"] == "succeeded", ended
        return ended

    return train


def read(client: TestClient, job: dict[str, Any], name: str) -> bytes:
    """A file of the result of a job."""
    files = client.get(
        "/v1/files",
        params={"checkpoint": job["result_checkpoint"], "purpose": "fine-tune-results"},
    ).json()["data"]
    (file_id,) = (file["id"] for file in files if file["filename"] == name)
    return client.get(f"/v1/files/{file_id}/content").content


def test_a_trained_and_an_imported_adapter_are_continued_to_the_same_bits(
    client: TestClient, train: Callable[..., dict[str, Any]]
) -> None:
    first = train("tiny", lora_r=4, use_rslora=True, lora_target_modules="all-linear")
    archive = client.get(f"{JOBS}/{first['id']}/adapter").content
    form = {"files": {"file": ("a.zip", archive)}, "data": {"base_model": "tiny"}}
    imported = client.post("/v1/models", **form).json()
    starts = {
        "model": first["fine_tuned_model"],
        "checkpoint": f"{first['fine_tuned_model']}:ckpt-step-2",
        "import": imported["id"],
    }

    second = {name: train(model, lora_dropout=0.1) for name, model in starts.items()}

    weights = read(client, first, WEIGHTS)
    assert len({job["parent"]["sha256"] for job in second.values()}) == 1
    results = {read(client, job, WEIGHTS) for job in second.values()}
    assert len(results) == 1
    assert weights not in results
    card = read(client, second["model"], "README.md").decode()
    assert f"It continues the adapter of `{first['fine_tuned_model']}`" in card
    rerun = client.post(f"{JOBS}/{second['model']['id']}/rerun").json()
    assert rerun["parent"] == second["model"]["parent"]
