"""Jobs whose hyperparameters the recipe `auto` chooses, all of them or some."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from tests.builders import add_file

WHOLE = ["q_proj", "k_proj", "v_proj", "o_proj"]
SMALL_BYTES = 270_000_000
"""Size of the weights of a base model of 135 million parameters."""

AUTO = {
    "n_epochs": 3,
    "learning_rate": 4e-4,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": WHOLE,
}
REFERENCE = {
    "n_epochs": 3,
    "learning_rate": 2e-4,
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj", "v_proj"],
}


@pytest.fixture(autouse=True)
def small_model(data_dir: Path) -> None:
    with (data_dir / "models" / "tiny" / "model.safetensors").open("wb") as weights:
        weights.truncate(SMALL_BYTES)


@pytest.fixture
def training_file(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store, examples=100).id


@pytest.fixture
def client_of_auto(settings: Settings, database: Database) -> Iterator[TestClient]:
    app = create_app(settings.model_copy(update={"default_recipe": "auto"}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def create(client: TestClient, training_file: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "training_file": training_file} | more
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chosen(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job["hyperparameters"][name] for name in AUTO}


def advice(client: TestClient, job: dict[str, Any]) -> list[str]:
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    return [event["message"] for event in events if '"recipe": "auto"' in event["message"]]


def test_what_is_absent_is_the_references(client: TestClient, training_file: str) -> None:
    job = create(client, training_file)

    assert (job["recipe"], chosen(job)) == ("reference", REFERENCE)


def test_the_recipe_chooses_what_is_absent(client: TestClient, training_file: str) -> None:
    job = create(client, training_file, recipe="auto")

    assert (job["recipe"], chosen(job)) == ("auto", AUTO)
    assert job["hyperparameters"]["learning_rate_multiplier"] == 2.0


def test_the_recipe_chooses_nothing_that_is_given(client: TestClient, training_file: str) -> None:
    knobs = {"n_epochs": 1, "lora_r": 4, "lora_target_modules": ["q_proj"]}

    job = create(client, training_file, recipe="auto", hyperparameters=knobs)
    slow = create(
        client, training_file, recipe="auto", hyperparameters={"learning_rate_multiplier": 0.5}
    )

    assert chosen(job) == AUTO | knobs
    assert chosen(slow) == AUTO | {"learning_rate": 1e-4}


def test_the_rate_fits_the_adapter_that_was_asked_for(
    client: TestClient, training_file: str
) -> None:
    job = create(client, training_file, recipe="auto", hyperparameters={"lora_alpha": 16})

    assert chosen(job) == AUTO | {"lora_alpha": 16, "learning_rate": 8e-4}


def test_what_openais_clients_send_gets_a_rate_for_the_default_adapter(
    client: TestClient, training_file: str
) -> None:
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    knobs = dict.fromkeys(names, "auto")

    job = create(client, training_file, hyperparameters=knobs)

    assert (job["recipe"], job["hyperparameters"]["batch_size"]) == ("reference", 4)
    assert chosen(job) == REFERENCE | {"learning_rate": 8e-4}


@pytest.mark.parametrize("name", ["lora_r", "lora_alpha", "lora_target_modules"])
def test_auto_chooses_only_the_hyperparameter_that_has_it(
    client: TestClient, training_file: str, name: str
) -> None:
    job = create(client, training_file, hyperparameters={name: "auto"})

    assert chosen(job) == REFERENCE | {name: AUTO[name]}


def test_a_value_counts_more_than_auto_in_another_place(
    client: TestClient, training_file: str
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}}
    knobs = {"n_epochs": 7, "learning_rate": 3e-4, "learning_rate_multiplier": "auto"}

    job = create(client, training_file, method=method, hyperparameters=knobs)

    assert chosen(job) == REFERENCE | {"n_epochs": 7, "learning_rate": 3e-4}


def test_a_small_file_is_repeated_more_often(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    few = add_file(database, store, examples=20).id

    job = create(client, few, recipe="auto")
    split = create(client, few, recipe="auto", hyperparameters={"validation_split": 0.5})

    assert job["hyperparameters"]["n_epochs"] == 10
    assert split["hyperparameters"]["n_epochs"] == 10


def test_the_operator_may_make_auto_the_default(
    client_of_auto: TestClient, training_file: str
) -> None:
    job = create(client_of_auto, training_file)
    other = create(client_of_auto, training_file, recipe="reference")

    assert (job["recipe"], chosen(job)) == ("auto", AUTO)
    assert (other["recipe"], chosen(other)) == ("reference", REFERENCE)


def test_the_rank_is_one_that_the_base_model_allows(
    client: TestClient, training_file: str, store: LocalBlobStore, database: Database
) -> None:
    large = add_file(database, store, examples=100, bytes=4 * 10**8).id

    assert create(client, large, recipe="auto")["hyperparameters"]["lora_r"] == 64
    assert create(client, training_file, recipe="auto")["hyperparameters"]["lora_r"] == 16


@pytest.mark.parametrize("recipe", ["best", "", 1, ["auto"]])
def test_a_recipe_that_is_none_is_refused(
    client: TestClient, training_file: str, recipe: object
) -> None:
    body = {"model": "tiny", "training_file": training_file, "recipe": recipe}

    answer = client.post("/v1/fine_tuning/jobs", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "recipe")
    assert "'reference' or 'auto'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", sorted(AUTO))
def test_auto_is_the_only_word_that_stands_for_a_value(
    client: TestClient, training_file: str, name: str
) -> None:
    knobs = {name: "automatic"}
    body = {"model": "tiny", "training_file": training_file, "hyperparameters": knobs}

    answer = client.post("/v1/fine_tuning/jobs", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(f"hyperparameters.{name}")


def test_an_event_says_what_auto_would_choose(client: TestClient, training_file: str) -> None:
    knobs = {"lora_target_modules": "all-linear", "n_epochs": 1}

    job = create(client, training_file, hyperparameters=knobs)

    (message,) = advice(client, job)
    assert message == (
        '"recipe": "auto" would choose lora_r 16 (here 64), lora_alpha 32 (here 16), '
        "learning_rate 0.0004 (here 0.0002), n_epochs 3 (here 1)."
    )


def test_no_event_advises_what_is_chosen_already(client: TestClient, training_file: str) -> None:
    job = create(client, training_file, recipe="auto")
    same = create(client, training_file, hyperparameters=AUTO | {"max_steps": 10, "n_epochs": 1})

    assert advice(client, job) == advice(client, same) == []


def test_a_rerun_keeps_what_was_chosen(
    client: TestClient, training_file: str, data_dir: Path
) -> None:
    job = create(client, training_file, recipe="auto", hyperparameters={"lora_r": 8})
    (data_dir / "models" / "tiny" / "model.safetensors").unlink()

    rerun = client.post(f"/v1/fine_tuning/jobs/{job['id']}/rerun").json()

    assert (rerun["recipe"], rerun["hyperparameters"]) == ("auto", job["hyperparameters"])
