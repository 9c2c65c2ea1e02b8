"""Integrations of a job: what a request may name, and what the job keeps of it."""

from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.core.settings import Settings
from tests.builders import TEXT_LINE

JOBS = "/v1/fine_tuning/jobs"

WANDB = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"], "name": None}}
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "e", "name": "n"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Those of an operator who has set up Weights & Biases, and not MLflow."""
    return settings.model_copy(update={"wandb_api_key": SecretStr("key")})


def create(client: TestClient, integrations: list[Any], path: str = JOBS) -> dict[str, Any]:
    files = {"file": ("train.jsonl", TEXT_LINE)}
    file = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()
    body = {"model": "tiny", "training_file": file["id"], "integrations": integrations}
    return client.post(path, json=body).json()


def test_a_job_and_its_rerun_show_their_integrations(client: TestClient) -> None:
    job = create(client, [WANDB])
    again = client.post(f"{JOBS}/{job['id']}/rerun", json={}).json()

    kept = [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}]
    assert job["integrations"] == again["integrations"] == kept
    assert client.get(f"{JOBS}/{job['id']}").json()["integrations"] == kept


@pytest.mark.only_sqlite
@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/estimate"])
def test_what_the_operator_has_not_set_up_is_refused(client: TestClient, path: str) -> None:
    error = create(client, [WANDB, MLFLOW], path)["error"]

    assert (error["code"], error["param"]) == ("unsupported_integration", "integrations")
    assert error["message"].startswith("MLflow is not set up on this service.")
    assert client.get(JOBS).json()["data"] == []


@pytest.mark.only_sqlite
@pytest.mark.parametrize(
    ("integration", "path", "code"),
    [
        ({"type": "comet", "comet": {}}, "integrations[0].type", "unsupported_integration"),
        ({"type": "wandb"}, "integrations[0]", "invalid_value"),
        ({**WANDB, **MLFLOW, "type": "wandb"}, "integrations[0]", "invalid_value"),
        ({"type": "mlflow", "wandb": {"project": "p"}}, "integrations[0]", "invalid_value"),
        ({}, "integrations[0].type", "missing_required_parameter"),
        (
            {"type": "wandb", "wandb": {}},
            "integrations[0].wandb.project",
            "missing_required_parameter",
        ),
        (
            {"type": "wandb", "wandb": {"project": "p", "api_key": "k"}},
            "integrations[0].wandb.api_key",
            "unknown_parameter",
        ),
        (
            {"type": "wandb", "wandb": {"project": "p" * 129}},
            "integrations[0].wandb.project",
            "invalid_value",
        ),
        ("wandb", "integrations[0]", "invalid_value"),
    ],
)
def test_a_malformed_integration_is_refused(
    client: TestClient, integration: Any, path: str, code: str
) -> None:
    error = create(client, [integration])["error"]

    assert (error["param"], error["code"]) == (path, code)


@pytest.mark.only_sqlite
def test_a_type_can_be_given_once(client: TestClient) -> None:
    error = create(client, [WANDB, WANDB])["error"]

    assert error["message"] == "Invalid value for 'integrations': Each type can be given once."
