"""An API whose own machine has no copy of a base model that is in the store."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.base_models import InstalledModel, load_catalogue
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.errors import BaseModelNotHereError
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.core.stored_models import local_models
from app.core.stored_models.lock import exclusive
from benchmarks.support.samples import catalogue_entry
from tests.builders import NOW, TEXT_LINE
from tests.models import install_models
from tests.tiny import write_tiny_model
from worker.model_store.shared import keep_in_store


@pytest.fixture
def stored(
    tmp_path: Path, settings: Settings, database: Database, store: LocalBlobStore
) -> InstalledModel:
    """The base model `absent`, which another machine has put into the store."""
    source = tmp_path / "source"
    write_tiny_model(source)
    data_dir = tmp_path / "other-machine"
    entry = catalogue_entry(
        "absent", source={"kind": "directory", "path": str(source)}, target_modules=["q_proj"]
    )
    install_models(data_dir, entry)
    catalogue = load_catalogue(data_dir)
    installed = catalogue.find_installed("absent")
    assert installed is not None
    keep_in_store(installed, catalogue.directory("absent"), database, store, now=NOW)
    assert not (settings.data_dir / "models" / "absent").exists()
    return installed


def upload(client: TestClient) -> str:
    answer = client.post(
        "/v1/files",
        data={"purpose": "fine-tune"},
        files={"file": ("a.jsonl", TEXT_LINE * 3)},
    )
    return answer.json()["id"]


@pytest.mark.usefixtures("stored")
def test_it_is_listed_and_can_be_tuned(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    one = client.get("/v1/models/absent").json()
    job = client.post(
        "/v1/fine_tuning/jobs", json={"model": "absent", "training_file": upload(client)}
    )

    assert "absent" in [model["id"] for model in listed]
    assert one["id"] == "absent"
    assert (job.status_code, job.json()["model"]) == (200, "absent")


def test_a_job_names_the_files_in_the_store(
    client: TestClient, stored: InstalledModel, database: Database
) -> None:
    body = {"model": "absent", "training_file": upload(client)}
    job_id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]

    with database.reading() as session:
        job = session.get(Job, job_id)
        assert job is not None
        assert job.base_model_sha256 == stored.sha256


def test_a_preview_fetches_the_tokenizer_and_no_weights(
    client: TestClient, stored: InstalledModel, settings: Settings
) -> None:
    shown = client.get(f"/v1/files/{upload(client)}/preview", params={"model": "absent"})

    assert shown.status_code == 200, shown.text
    assert json.loads(shown.text)["rows"]
    catalogue = load_catalogue(settings.data_dir)
    assert catalogue.find_version("absent", stored.sha256) is None
    assert catalogue.find_version("absent", stored.sha256, needs_weights=False) is not None


def ask(app: FastAPI, model: InstalledModel) -> Path:
    models: local_models.LocalModels = app.state.resources.models
    return models.find(model, needs_weights=True)


def test_a_question_fetches_the_model(
    app: FastAPI, stored: InstalledModel, settings: Settings
) -> None:
    assert ask(app, stored) == settings.data_dir / "models" / "absent"


def test_a_model_that_takes_long_is_fetched_by_several_questions(
    app: FastAPI, stored: InstalledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = app.state.resources.models.catalogue
    directory = catalogue.hidden_directory("absent", stored.sha256, "partial")

    with monkeypatch.context() as patch:
        patch.setattr(local_models, "MAX_FETCH_S", 0.0)
        with pytest.raises(BaseModelNotHereError, match=r"0\.00 of 0\.00 GB are there"):
            ask(app, stored)
    assert list(directory.iterdir())
    with exclusive(catalogue, "absent"), pytest.raises(BaseModelNotHereError, match="another"):
        ask(app, stored)

    assert (ask(app, stored) / "model.safetensors").stat().st_size > 0


def test_a_fetch_that_failed_says_why(
    app: FastAPI, stored: InstalledModel, store: LocalBlobStore
) -> None:
    for blob in list(store.list_all()):
        if blob.key.endswith("model.safetensors"):
            store.delete(blob.key)

    with pytest.raises(BaseModelNotHereError, match=r"safetensors of the base model absent is mis"):
        ask(app, stored)


@pytest.mark.usefixtures("stored")
def test_a_base_model_in_no_store_is_still_refused(client: TestClient) -> None:
    answer = client.post(
        "/v1/fine_tuning/jobs", json={"model": "hub-tiny-2", "training_file": upload(client)}
    )

    assert answer.json()["error"]["code"] == "model_not_available"
    assert "absent" in answer.json()["error"]["message"]
