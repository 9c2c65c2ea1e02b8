import shutil

import openai
import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import CATALOGUE_NAME
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from tests.asgi import stock_client
from tests.builders import (
    add_file,
    add_job,
    add_succeeded_job,
    build_checkpoint,
    list_checkpoints,
)


@pytest.fixture
def stopped_early(database: Database, store: LocalBlobStore) -> Job:
    """A job with checkpoints at the steps 2, 4 and 6, of which the second is its result."""
    return add_succeeded_job(database, store, steps=(2, 4, 6), best=1)


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
        "checkpoint_id": None,
        "step_number": None,
        "parent": None,
        "imported": None,
        "aliases": [],
        "repo": "us/hub-tiny",
        "revision": "1" * 40,
        "licence": "MIT",
        "limits": {
            "context_length": 32768,
            "max_lora_rank": 256,
            "target_modules": ["q_proj", "v_proj"],
            "supports_tools": True,
        },
        "commands": None,
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


def test_a_tool_that_names_openais_model_trains_the_one_that_has_it_as_an_alias(
    settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    training_file = add_file(database, store).id
    catalogue = settings.data_dir / CATALOGUE_NAME
    text = catalogue.read_text("utf-8")
    alias = "gpt-4o-mini-2024-07-18"
    catalogue.write_text(text.replace('name = "Tiny"', f'name = "Tiny"\naliases = ["{alias}"]'))

    with (
        TestClient(create_app(settings), base_url="http://127.0.0.1") as client,
        stock_client(client, is_strict=True) as strict,
    ):
        listed = {model.id: model.model_extra or {} for model in strict.models.list()}
        retrieved = strict.models.retrieve(alias)
        job = strict.fine_tuning.jobs.create(model=alias, training_file=training_file)
        with pytest.raises(openai.BadRequestError, match="base model"):
            strict.models.delete(alias)

    assert {name: extra["aliases"] for name, extra in listed.items()} == {
        "tiny": [alias],
        "hub-tiny": [],
    }
    assert (retrieved.id, job.model) == ("tiny", "tiny")


def test_no_model_has_a_date_on_which_it_is_switched_off(
    strict: openai.OpenAI, stopped_early: Job
) -> None:
    listed = list(strict.models.list())
    retrieved = [strict.models.retrieve(model.id) for model in listed]

    assert stopped_early.fine_tuned_model in [model.id for model in listed]
    for model in [*listed, *retrieved]:
        assert "shutdown_date" in model.model_fields_set
        assert model.shutdown_date is None


def test_a_tuned_model_says_how_other_programs_serve_it(
    client: TestClient, database: Database, stopped_early: Job
) -> None:
    name = stopped_early.fine_tuned_model
    lora = {"rank": 20, "target_modules": ["q_proj"]}
    commands: list[dict[str, str | None]] = []
    for base_model, shape in (
        ("tiny", lora),
        ("hub-tiny", lora),
        ("hub-tiny", lora | {"use_dora": True}),
    ):
        with database.writing() as session:
            job = session.get_one(Job, stopped_early.id)
            job.base_model, job.config = base_model, job.config | {"lora": shape}
        commands.append(client.get(f"/v1/models/{name}").json()["commands"])

    options = f"--enable-lora --max-lora-rank 32 --lora-modules {name}=DIR"
    llama_server = "llama-server -m BASE.gguf --lora FILE.gguf"
    assert commands == [
        {"vllm": f"vllm serve BASE {options}", "llama_server": llama_server},
        {
            "vllm": f"vllm serve us/hub-tiny --revision {'1' * 40} {options}",
            "llama_server": llama_server,
        },
        {"vllm": f"vllm serve DIR --served-model-name {name}", "llama_server": None},
    ]


def test_each_checkpoint_is_a_model_under_its_own_name(
    strict: openai.OpenAI, database: Database, stopped_early: Job
) -> None:
    name = stopped_early.fine_tuned_model

    for checkpoint in list_checkpoints(database, stopped_early.id):
        model = strict.models.retrieve(f"{name}:ckpt-step-{checkpoint.step}")
        assert model.model_dump(exclude_none=True, exclude={"created", "object", "commands"}) == {
            "id": f"{name}:ckpt-step-{checkpoint.step}",
            "owned_by": "tunery",
            "base_model": "tiny",
            "fine_tuning_job_id": stopped_early.id,
            "checkpoint_id": checkpoint.id,
            "step_number": checkpoint.step,
            "aliases": [],
        }
    assert getattr(strict.models.retrieve(name), "step_number", None) == 4


def test_a_checkpoint_is_a_model_before_its_job_has_ended(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    with database.writing() as session:
        CheckpointRepository(session, DEFAULT_PROJECT_ID).add(build_checkpoint(job, 5))

    answer = client.get(f"/v1/models/{job.fine_tuned_model}:ckpt-step-5")

    assert (answer.status_code, answer.json()["fine_tuning_job_id"]) == (200, job.id)


@pytest.mark.parametrize("step", ["3", "02", "٤", "9" * 30, "", "-2", "2:ckpt-step-2"])
def test_a_checkpoint_that_does_not_exist_is_no_model(
    client: TestClient, stopped_early: Job, step: str
) -> None:
    url = f"/v1/models/{stopped_early.fine_tuned_model}:ckpt-step-{step}"

    for answer in (client.get(url), client.delete(url)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_deleted_model_is_gone_under_its_checkpoints_name_too(
    client: TestClient, stopped_early: Job
) -> None:
    url = f"/v1/models/{stopped_early.fine_tuned_model}"

    client.delete(url)

    assert client.get(f"{url}:ckpt-step-4").status_code == 404
    assert client.get(f"{url}:ckpt-step-2").status_code == 200


def test_a_checkpoint_is_not_deleted_by_its_name(client: TestClient, stopped_early: Job) -> None:
    name = f"{stopped_early.fine_tuned_model}:ckpt-step-2"

    answer = client.delete(f"/v1/models/{name}")

    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"{name} is a checkpoint of the job {stopped_early.id} and cannot be deleted "
        f"alone. Delete the model {stopped_early.fine_tuned_model} to delete the job's result, or "
        "the job to delete all of its checkpoints.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_deletable",
    }
    assert client.get(f"/v1/models/{name}").status_code == 200
