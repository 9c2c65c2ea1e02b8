import shutil

from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_succeeded_job


def ids(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_installed_base_models_come_first_then_tuned_ones(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store)

    assert ids(client) == ["tiny", "hub-tiny", job.fine_tuned_model]


def test_a_base_model_is_found_by_its_id_and_by_its_repository(client: TestClient) -> None:
    by_id = client.get("/v1/models/hub-tiny").json()

    assert client.get("/v1/models/us/hub-tiny").json() == by_id
    assert client.get("/v1/models/us%2Fhub-tiny").json() == by_id
    assert by_id == {
        "id": "hub-tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "us",
        "shutdown_date": None,
        "base_model": None,
        "fine_tuning_job_id": None,
        "repo": "us/hub-tiny",
        "revision": "1" * 40,
        "licence": "MIT",
        "limits": {
            "context_length": 32768,
            "max_lora_rank": 256,
            "target_modules": ["q_proj", "v_proj"],
            "supports_tools": True,
        },
    }


def test_a_base_model_can_be_used_as_soon_as_it_is_installed_and_no_longer(
    client: TestClient, settings: Settings
) -> None:
    models = settings.data_dir / "models"
    assert ids(client) == ["tiny", "hub-tiny"]

    shutil.move(models / "tiny", models / "elsewhere")
    without = ids(client)
    shutil.move(models / "elsewhere", models / "tiny")

    assert without == ["hub-tiny"]
    assert ids(client) == ["tiny", "hub-tiny"]
