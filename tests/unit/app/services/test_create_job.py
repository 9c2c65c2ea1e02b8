"""How a request becomes a job with every setting resolved."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.base_models import Catalogue, CatalogueEntry, HubSource
from app.core.db.session import Database
from app.core.errors import InvalidRequestError
from app.core.storage.local import LocalBlobStore
from app.core.stored_models.lookup import read_files
from app.services.job_settings import check_layers, resolve_config
from tests.builders import add_file, build_config, get_job

TODAY = date(2026, 1, 31)


@pytest.fixture
def training_file(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store).id


@pytest.fixture
def entry(catalogue: Catalogue) -> CatalogueEntry:
    found = catalogue.find("tiny")
    assert found is not None
    return found


def create(client: TestClient, training_file: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "training_file": training_file} | more
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def warnings(client: TestClient, job: dict[str, Any]) -> list[str]:
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    return [event["message"] for event in events if event["level"] == "warn"]


def test_the_defaults_are_those_of_the_reference_script(entry: CatalogueEntry) -> None:
    config = resolve_config({}, entry, seed=7, today=TODAY)

    assert config == build_config(template_date=TODAY, checkpoint_choice="final")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 16.0, 0.05)
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 4, 2e-4)
    assert (config.lr_scheduler, config.max_sequence_tokens) == ("linear", 512)
    assert (config.logging_steps, config.checkpoint_steps) == (10, 500)


def test_the_defaults_fit_a_base_model_that_allows_less() -> None:
    small = CatalogueEntry(
        id="small",
        name="Small",
        source=HubSource(kind="hub", repo="us/small"),
        licence="MIT",
        context_length=256,
        target_modules=("c_attn", "c_proj"),
        max_lora_rank=16,
    )

    config = resolve_config({}, small, seed=1, today=TODAY)

    assert (config.max_sequence_tokens, config.lora.rank) == (256, 16)
    assert config.lora.target_modules == ("c_attn", "c_proj")


@pytest.mark.parametrize(
    ("asked", "targets"),
    [
        ("all-linear", ("q_proj", "k_proj", "v_proj", "o_proj")),
        (["o_proj", "q_proj", "o_proj"], ("o_proj", "q_proj")),
        ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        (["v_proj", "attention"], ("v_proj", "q_proj", "k_proj", "o_proj")),
    ],
)
def test_the_target_modules_are_those_asked_for(
    entry: CatalogueEntry, asked: Any, targets: tuple[str, ...]
) -> None:
    assert (
        resolve_config(
            {"lora_target_modules": asked}, entry, seed=1, today=TODAY
        ).lora.target_modules
        == targets
    )


def test_embeddings_are_named_in_a_list(client: TestClient, training_file: str) -> None:
    job = create(client, training_file, hyperparameters={"modules_to_save": ["lm_head"]})

    shown = job["method"]["supervised"]["hyperparameters"]
    assert shown["modules_to_save"] == ["lm_head"]


@pytest.mark.parametrize(("asked", "shown"), [([3, 1, 3], [1, 3]), (2, 2), ("auto", None)])
def test_layers_are_a_number_or_a_list(
    client: TestClient, training_file: str, asked: object, shown: object
) -> None:
    job = create(client, training_file, hyperparameters={"lora_layers": asked})

    assert job["hyperparameters"]["lora_layers"] == shown


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (31, "'lora_layers' is 31, and the base model has only 30 layers."),
        ([2, 30], "'lora_layers' has 30, and the base model's layers are 0 to 29."),
    ],
)
def test_layers_that_the_base_model_has_not_are_refused(
    entry: CatalogueEntry, tmp_path: Path, asked: object, message: str
) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 30}')
    config = resolve_config({"lora_layers": asked}, entry, seed=1, today=TODAY)

    with pytest.raises(InvalidRequestError, match=message) as refused:
        check_layers(config, read_files(tmp_path).layers)

    assert refused.value.param == "hyperparameters.lora_layers"
    check_layers(config, None)


def test_the_modules_of_a_half_are_those_that_the_base_model_offers(entry: CatalogueEntry) -> None:
    whole = entry.model_copy(update={"target_modules": ("q_proj", "o_proj", "up_proj", "fc2")})

    halves = [
        resolve_config(
            {"lora_target_modules": half}, whole, seed=1, today=TODAY
        ).lora.target_modules
        for half in ("attention", "mlp", ["mlp", "q_proj"])
    ]

    assert halves == [("q_proj", "o_proj"), ("up_proj", "fc2"), ("up_proj", "fc2", "q_proj")]


def test_a_half_that_the_base_model_does_not_offer_is_refused(entry: CatalogueEntry) -> None:
    with pytest.raises(InvalidRequestError, match="'mlp' is not a module that LoRA can target"):
        resolve_config({"lora_target_modules": "mlp"}, entry, seed=1, today=TODAY)


@pytest.mark.parametrize(
    ("knobs", "batch_size"),
    [
        ({"batch_size": 2}, 2),
        ({"gradient_accumulation_steps": 4}, 4),
        ({"batch_size": 2, "gradient_accumulation_steps": 4}, 8),
    ],
)
def test_the_batch_is_what_one_step_learns_from_however_it_is_counted(
    entry: CatalogueEntry, knobs: dict[str, int], batch_size: int
) -> None:
    assert resolve_config(knobs, entry, seed=1, today=TODAY).batch_size == batch_size


def test_a_seed_is_chosen_when_none_is_given(entry: CatalogueEntry) -> None:
    seeds = {resolve_config({}, entry, seed=None, today=TODAY).seed for _ in range(5)}

    assert len(seeds) > 1
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("multiplier", [0.01, 0.1, 0.22, 0.37, 1.8, 2])
def test_a_multiplier_is_shown_as_it_was_given(
    client: TestClient, training_file: str, multiplier: float
) -> None:
    job = create(client, training_file, hyperparameters={"learning_rate_multiplier": multiplier})

    assert job["hyperparameters"]["learning_rate_multiplier"] == multiplier
    assert job["hyperparameters"]["learning_rate"] == pytest.approx(2e-4 * multiplier)
    assert warnings(client, job) == []


def test_a_learning_rate_is_also_shown_as_a_multiplier(
    client: TestClient, training_file: str
) -> None:
    job = create(client, training_file, hyperparameters={"learning_rate": 4e-4})

    assert job["hyperparameters"]["learning_rate"] == 4e-4
    assert job["hyperparameters"]["learning_rate_multiplier"] == 2.0


def test_a_multiplier_that_looks_like_a_learning_rate_is_warned_about(
    client: TestClient, training_file: str
) -> None:
    job = create(client, training_file, hyperparameters={"learning_rate_multiplier": 2e-5})

    (warning,) = warnings(client, job)
    assert warning == (
        "learning_rate_multiplier=2e-05 is a factor on 0.0002, so the learning rate is only 4e-09. "
        "To set the learning rate itself, use 'learning_rate'."
    )


def test_settings_are_taken_from_both_places(client: TestClient, training_file: str) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}}

    job = create(
        client, training_file, method=method, hyperparameters={"n_epochs": 5, "batch_size": 9}
    )

    assert (job["hyperparameters"]["n_epochs"], job["hyperparameters"]["batch_size"]) == (5, 9)
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]


def test_a_method_that_is_not_offered_is_never_ignored(
    client: TestClient, training_file: str
) -> None:
    method = {"type": "supervised", "reinforcement": {"grader": {}}}
    body = {"model": "tiny", "training_file": training_file, "method": method}

    error = client.post("/v1/fine_tuning/jobs", json=body).json()["error"]

    assert (error["code"], error["param"]) == ("unsupported_method", "method.reinforcement")


@pytest.mark.parametrize("value", ["auto", None])
def test_a_setting_may_be_left_to_the_service(
    client: TestClient, training_file: str, value: str | None
) -> None:
    knobs = dict.fromkeys(["batch_size", "lora_dropout", "packing", "train_on_inputs"], value)

    shown = create(client, training_file, hyperparameters=knobs)["hyperparameters"]

    assert (shown["batch_size"], shown["lora_dropout"], shown["train_on_inputs"]) == (
        4,
        0.05,
        False,
    )


@pytest.mark.parametrize(
    ("knobs", "train_on", "with_inputs"),
    [
        ({}, "all_assistant", False),
        ({"train_on": "last_assistant"}, "last_assistant", False),
        ({"train_on": "everything"}, "everything", True),
        ({"train_on_inputs": True}, "everything", True),
        ({"train_on_inputs": False, "train_on": "last_assistant"}, "last_assistant", False),
    ],
)
def test_what_is_learned_has_two_names_that_agree(
    client: TestClient,
    training_file: str,
    knobs: dict[str, Any],
    train_on: str,
    with_inputs: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    shown = create(client, training_file, hyperparameters=knobs)["hyperparameters"]

    assert (shown["train_on"], shown["train_on_inputs"]) == (train_on, with_inputs)


def test_two_names_that_say_what_is_learned_may_not_differ(
    client: TestClient, training_file: str
) -> None:
    knobs = {"train_on": "last_assistant", "train_on_inputs": True}
    body = {"model": "tiny", "training_file": training_file, "hyperparameters": knobs}

    error = client.post("/v1/fine_tuning/jobs", json=body).json()["error"]

    assert error["param"] == "hyperparameters.train_on_inputs"
    assert "'train_on_inputs' is true, and 'train_on' is 'last_assistant'" in error["message"]


def test_the_date_of_chat_templates_is_that_of_the_job_and_can_be_chosen(
    client: TestClient, training_file: str
) -> None:
    usual = create(client, training_file)
    chosen = create(client, training_file, hyperparameters={"template_date": "2024-07-26"})

    created = datetime.fromtimestamp(usual["created_at"], UTC).date()
    assert usual["hyperparameters"]["template_date"] == created.isoformat()
    assert chosen["hyperparameters"]["template_date"] == "2024-07-26"


@pytest.mark.parametrize("value", ["yesterday", 0, "2026-02-30"])
def test_a_date_that_is_none_is_refused(
    client: TestClient, training_file: str, value: object
) -> None:
    knobs = {"template_date": value}
    body = {"model": "tiny", "training_file": training_file, "hyperparameters": knobs}

    answer = client.post("/v1/fine_tuning/jobs", json=body)

    assert answer.status_code == 400
    assert "template_date" in answer.json()["error"]["param"]


def test_each_alias_sets_what_it_stands_for(client: TestClient, training_file: str) -> None:
    knobs = {"lora_rank": 8, "max_seq_length": 64}

    shown = create(client, training_file, hyperparameters=knobs)["hyperparameters"]

    assert (shown["lora_r"], shown["context_length"]) == (8, 64)


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        (None, ""),
        ("My Model!", "my-model"),
        ("über/../1", "ber-..-1"),
        ("v1.2_final", "v1.2_final"),
        ("日本", ""),
    ],
)
def test_the_models_name_has_the_suffix_and_never_a_slash(
    client: TestClient, training_file: str, database: Database, suffix: str | None, part: str
) -> None:
    job = create(client, training_file, suffix=suffix)

    name = get_job(database, job["id"]).fine_tuned_model
    assert name == f"ft:tiny:tunery:{part}:{job['id'][-12:]}"
    assert job["user_provided_suffix"] == suffix


def test_a_base_model_may_be_named_by_its_repository(
    client: TestClient, training_file: str
) -> None:
    assert create(client, training_file, model="us/hub-tiny")["model"] == "hub-tiny"


def test_labels_come_back_as_they_were_given(client: TestClient, training_file: str) -> None:
    assert create(client, training_file, metadata={"a": "1", "b": ""})["metadata"] == {
        "a": "1",
        "b": "",
    }
    assert create(client, training_file, metadata={})["metadata"] is None


def test_validation_data_comes_from_one_place(
    client: TestClient, training_file: str, database: Database, store: LocalBlobStore
) -> None:
    validation_file = add_file(database, store).id
    knobs = {"validation_split": 0.1, "n_evals": 2, "checkpoint_choice": "best"}

    shown = create(client, training_file, hyperparameters=knobs)["hyperparameters"]
    body = {"model": "tiny", "training_file": training_file, "hyperparameters": knobs}
    answer = client.post("/v1/fine_tuning/jobs", json=body | {"validation_file": validation_file})

    assert knobs.items() <= shown.items()
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "hyperparameters.validation_split")
    assert error["message"] == "Give either 'validation_split' or a validation_file, not both."
