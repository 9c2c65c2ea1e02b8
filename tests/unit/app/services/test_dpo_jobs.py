"""How a request for preference tuning becomes a job, and what is refused."""

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.core.dataset.formats import DatasetFormat
from app.core.db.session import Database
from app.core.job.training_config import DpoSettings, TrainingConfig
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_succeeded_job, get_job

pytestmark = pytest.mark.only_sqlite

JOBS = "/v1/fine_tuning/jobs"
PAIR = b'{"prompt": "Hi", "chosen": "Ho", "rejected": "Go"}\n'


@pytest.fixture
def pairs(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store, PAIR, format=DatasetFormat.PREFERENCE).id


@pytest.fixture
def texts(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store, format=DatasetFormat.TEXT).id


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    """The field `method` of a job with these hyperparameters."""
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def create(client: TestClient, training_file: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "training_file": training_file, "method": dpo()} | more
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def config_of(database: Database, job: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(get_job(database, job["id"]).config)


def test_the_stock_client_creates_a_job_and_reads_its_method(
    strict: openai.OpenAI, pairs: str
) -> None:
    created = strict.fine_tuning.jobs.create(
        model="tiny",
        training_file=pairs,
        method={
            "type": "dpo",
            "dpo": {
                "hyperparameters": {
                    "beta": 0.2,
                    "batch_size": "auto",
                    "learning_rate_multiplier": 0.5,
                    "n_epochs": 2,
                }
            },
        },
    )

    job = strict.fine_tuning.jobs.retrieve(created.id)
    assert job.method is not None
    assert (job.method.type, job.method.supervised) == ("dpo", None)
    assert job.method.dpo is not None
    shown = job.method.dpo.hyperparameters
    assert shown is not None
    assert (shown.beta, shown.batch_size, shown.n_epochs) == (0.2, 4, 2)
    assert shown.learning_rate_multiplier == 0.5
    assert job.hyperparameters.model_dump() == shown.model_dump()


def test_every_setting_reaches_the_job_and_is_shown(
    client: TestClient, database: Database, pairs: str
) -> None:
    settings = {
        "beta": 0.5,
        "label_smoothing": 0.1,
        "reference_free": True,
        "length_normalized": True,
    }

    job = create(client, pairs, method=dpo(**settings))

    assert config_of(database, job).dpo == DpoSettings(**settings)
    assert settings.items() <= job["hyperparameters"].items()
    assert not {"train_on", "train_on_inputs"} & job["hyperparameters"].keys()


@pytest.mark.parametrize("method", [{"type": "dpo"}, {"type": "dpo", "dpo": {}}, dpo(beta="auto")])
def test_what_is_left_out_has_its_default(
    client: TestClient, database: Database, pairs: str, method: dict[str, Any]
) -> None:
    job = create(client, pairs, method=method)

    config = config_of(database, job)
    assert config.dpo == DpoSettings(beta=0.1)
    assert (config.learning_rate, config.epochs) == (2e-5, 3)
    assert job["hyperparameters"]["learning_rate_multiplier"] == 1


def test_a_multiplier_is_a_factor_on_the_lower_default(
    client: TestClient, database: Database, pairs: str
) -> None:
    job = create(client, pairs, method=dpo(learning_rate_multiplier=2))

    assert config_of(database, job).learning_rate == 4e-5
    assert job["hyperparameters"]["learning_rate_multiplier"] == 2


def test_the_recipe_chooses_a_tenth_of_the_rate_of_a_supervised_job(
    client: TestClient, database: Database, pairs: str, texts: str
) -> None:
    rates = [
        config_of(database, job).learning_rate
        for job in (
            create(client, pairs, recipe="auto"),
            create(client, texts, recipe="auto", method=None),
            create(client, pairs, method=dpo(learning_rate="auto", lora_alpha=32)),
        )
    ]

    assert rates[0] == pytest.approx(rates[1] / 10)
    assert rates[2] == rates[0]


def test_the_older_place_still_counts(client: TestClient, pairs: str) -> None:
    job = create(client, pairs, method=dpo(beta=1), hyperparameters={"n_epochs": 2})

    assert (job["hyperparameters"]["n_epochs"], job["hyperparameters"]["beta"]) == (2, 1)


def test_a_supervised_job_does_not_show_settings_of_preferences(
    client: TestClient, texts: str
) -> None:
    job = create(client, texts, method=None)

    assert job["method"].keys() == {"type", "supervised"}
    assert not job["hyperparameters"].keys() & DpoSettings.model_fields


def test_a_tuned_model_is_continued_with_its_shape(
    client: TestClient, database: Database, store: LocalBlobStore, pairs: str
) -> None:
    parent = add_succeeded_job(database, store)

    job = create(client, pairs, model=parent.fine_tuned_model, method=dpo(beta=0.3))

    assert job["parent"]["model"] == parent.fine_tuned_model
    assert config_of(database, job).dpo == DpoSettings(beta=0.3)
    assert config_of(database, job).lora == TrainingConfig.model_validate(parent.config).lora


def test_a_rerun_has_the_same_method(client: TestClient, database: Database, pairs: str) -> None:
    job = create(client, pairs, method=dpo(beta=0.3, label_smoothing=0.2))

    rerun = client.post(f"{JOBS}/{job['id']}/rerun").json()

    assert rerun["method"] == job["method"]
    assert config_of(database, rerun) == config_of(database, job)


def test_the_same_request_makes_one_job(client: TestClient, pairs: str) -> None:
    def send(beta: float) -> Any:
        body = {"model": "tiny", "training_file": pairs, "method": dpo(beta=beta)}
        return client.post(JOBS, json=body, headers={"idempotency-key": "k"})

    first, again, other = send(0.2).json(), send(0.2).json(), send(0.3)

    assert first["id"] == again["id"]
    assert other.json()["error"]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/estimate"])
def test_each_file_must_fit_the_method(
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    *,
    pairs: str,
    texts: str,
    param: str,
    path: str,
) -> None:
    more_pairs = add_file(database, store, PAIR * 2, format=DatasetFormat.PREFERENCE).id
    more_texts = add_file(database, store, format=DatasetFormat.TEXT).id
    good: dict[str, Any] = {"training_file": pairs, "validation_file": more_pairs}
    tuned = {"model": "tiny", "method": dpo()} | good | {param: texts}
    good = {"training_file": texts, "validation_file": more_texts}
    supervised = {"model": "tiny"} | good | {param: pairs}

    for body, needs in ((tuned, "needs preferences"), (supervised, "to 'dpo'")):
        answer = client.post(path, json=body)

        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            400,
            "method_format_mismatch",
            param,
        )
        assert body[param] in error["message"]
        assert needs in error["message"]


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"method": {"type": "ppo"}}, "unsupported_method", "method.type", "'supervised' or 'dpo'"),
        (
            {"method": {"type": "reinforcement", "reinforcement": {}}},
            "unsupported_method",
            "method.type",
            "not offered",
        ),
        (
            {"method": dpo() | {"reinforcement": {}}},
            "unsupported_method",
            "method.reinforcement",
            "not offered",
        ),
        (
            {"method": {"type": "dpo", "supervised": {}}},
            "invalid_value",
            "method.supervised",
            "Move these settings to 'dpo'",
        ),
        (
            {"method": {"type": "supervised", "dpo": {}}},
            "invalid_value",
            "method.dpo",
            "Move these settings to 'supervised'",
        ),
        ({"method": dpo(beta=0)}, "invalid_value", "beta", "greater than 0"),
        ({"method": dpo(beta=2.5)}, "invalid_value", "beta", "less than or equal to 2"),
        ({"method": dpo(beta=True)}, "invalid_value", "beta", "valid number"),
        ({"method": dpo(beta="low")}, "invalid_value", "beta", "valid number"),
        ({"method": dpo(label_smoothing=0.5)}, "invalid_value", "label_smoothing", "less than 0.5"),
        ({"method": dpo(reference_free=1)}, "invalid_value", "reference_free", "valid boolean"),
        ({"method": dpo(betta=1)}, "unknown_parameter", "betta", "Did you mean 'beta'?"),
        ({"method": dpo(train_on="everything")}, "unknown_parameter", "train_on", "Leave it out"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}},
            "unknown_parameter",
            "method.supervised.hyperparameters.beta",
            "'method.dpo.hyperparameters'",
        ),
        (
            {"method": dpo(), "hyperparameters": {"beta": 1}},
            "unknown_parameter",
            "hyperparameters.beta",
            "'method.dpo.hyperparameters'",
        ),
        (
            {"method": dpo(), "hyperparameters": {"train_on_inputs": False}},
            "invalid_value",
            "hyperparameters.train_on_inputs",
            "The method 'dpo' has no 'train_on_inputs'",
        ),
        (
            {"method": dpo(n_epochs=1), "hyperparameters": {"n_epochs": 2}},
            "invalid_value",
            "hyperparameters.n_epochs",
            "'method.dpo.hyperparameters'",
        ),
        (
            {"method": dpo(learning_rate=1e-5, learning_rate_multiplier=1)},
            "invalid_value",
            "hyperparameters.learning_rate_multiplier",
            "not both",
        ),
        (
            {"method": dpo(n_evals=2)},
            "invalid_value",
            "hyperparameters.n_evals",
            "validation_split",
        ),
    ],
)
def test_what_a_method_does_not_have_is_refused_by_name(
    client: TestClient, pairs: str, body: dict[str, Any], code: str, *, param: str, says: str
) -> None:
    answer = client.post(JOBS, json={"model": "tiny", "training_file": pairs} | body)

    error = answer.json()["error"]
    where = param if "." in param else f"method.dpo.hyperparameters.{param}"
    assert (answer.status_code, error["code"], error["param"]) == (400, code, where)
    assert says in error["message"]
