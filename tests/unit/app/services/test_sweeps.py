"""One request, many jobs: what a sweep makes, what it refuses by name, and how it is read."""

import json
from typing import Any

import openai
import pytest
from httpx2 import Response
from openai.types.fine_tuning import FineTuningJob
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Project
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.sweeps.shared_checks import list_sharers
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_file, add_job, build_checkpoint, dump_tables

SWEEPS = "/v1/fine_tuning/sweeps"
GRID = {"learning_rate": [1e-4, 2e-4], "lora_r": [8, 16]}


@pytest.fixture
def body(database: Database, store: LocalBlobStore) -> dict[str, Any]:
    training, validation = add_file(database, store), add_file(database, store)
    return {"model": "tiny", "training_file": training.id, "validation_file": validation.id}


def send(client: TestClient, body: Any, sweep: Any, **headers: str) -> Response:
    content = json.dumps(body | {"sweep": sweep})  # escapes what is no Unicode
    return client.post(
        SWEEPS, content=content, headers={"content-type": "application/json"} | headers
    )


def create(client: TestClient, body: Any, sweep: Any = None) -> dict[str, Any]:
    answer = send(client, body, sweep or {"grid": GRID})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refuse(client: TestClient, database: Database, body: Any, sweep: Any) -> dict[str, Any]:
    """The error of a sweep that makes nothing at all."""
    before = dump_tables(database)
    answer = send(client, body, sweep)
    assert answer.status_code == 400, answer.text
    assert dump_tables(database) == before
    return answer.json()["error"]


def list_jobs(client: TestClient) -> list[dict[str, Any]]:
    return client.get("/v1/fine_tuning/jobs", params={"order": "asc"}).json()["data"]


def test_a_grid_makes_a_job_of_each_combination_with_one_seed(
    client: TestClient, body: dict[str, Any]
) -> None:
    more = {"suffix": "mine", "metadata": {"team": "a"}, "hyperparameters": {"n_epochs": 2}}

    sweep = create(client, body | more)

    jobs = list_jobs(client)
    varied = [(1e-4, 8), (1e-4, 16), (2e-4, 8), (2e-4, 16)]
    shown = [job["hyperparameters"] for job in jobs]
    assert [(each["learning_rate"], each["lora_r"]) for each in shown] == varied
    assert [point["job_id"] for point in sweep["points"]] == [job["id"] for job in jobs]
    assert sweep["points"][0]["hyperparameters"] == {"learning_rate": 1e-4, "lora_r": 8}
    assert {job["sweep_id"] for job in jobs} == {sweep["id"]}
    assert {(job["suffix"], job["seed"]) for job in [*map(_flat, jobs)]} == {
        ("mine", jobs[0]["seed"])
    }
    assert all(each["n_epochs"] == 2 for each in shown)
    assert (sweep["status"], sweep["best"], sweep["finished_at"]) == (
        "validating_files",
        None,
        None,
    )
    assert client.get(f"{SWEEPS}/{sweep['id']}").json() == sweep


def _flat(job: dict[str, Any]) -> dict[str, Any]:
    return {"suffix": job["user_provided_suffix"], "seed": job["seed"]}


def test_a_list_names_the_hyperparameters_of_each_job(
    client: TestClient, body: dict[str, Any]
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}}
    points = [{"lora_rank": 8, "learning_rate_multiplier": 0.5}, {"lora_r": "auto"}]

    sweep = create(client, body | {"method": method}, {"list": points})

    first, second = (job["hyperparameters"] for job in list_jobs(client))
    assert (first["lora_r"], first["learning_rate"], first["batch_size"]) == (8, 1e-4, 2)
    assert second["batch_size"] == 2
    assert [point["hyperparameters"] for point in sweep["points"]] == [
        {"lora_r": 8, "learning_rate_multiplier": 0.5},
        {"lora_r": second["lora_r"]},
    ]


def test_the_stock_client_makes_a_sweep_and_reads_its_jobs(
    strict: openai.OpenAI, body: dict[str, Any]
) -> None:
    sweep: Any = strict.post(
        "/fine_tuning/sweeps", cast_to=object, body=body | {"sweep": {"grid": GRID}}
    )

    jobs = strict.fine_tuning.jobs.list().data
    assert {job.id for job in jobs} == {point["job_id"] for point in sweep["points"]}
    assert all(isinstance(job, FineTuningJob) for job in jobs)


@pytest.mark.parametrize(
    "case",
    [
        ({"grid": {"learning_rate": [1e-4, 2.0]}}, "sweep.grid.learning_rate[1]", "less than"),
        ({"grid": {"lora_r": [8, "many"]}}, "sweep.grid.lora_r[1]", "integer"),
        ({"grid": {"lora_r": [8, None]}}, "sweep.grid.lora_r[1]", "null"),
        ({"grid": {"lora_r": [8, 200]}}, "sweep.grid.lora_r[1]", "With lora_r=200: "),
        ({"grid": {"lora_rr": [8]}}, "sweep.grid.lora_rr[0]", "Did you mean 'lora_r'"),
        ({"grid": {"lora_r": [8], "lora_rank": [9]}}, "sweep.grid.lora_rank[0]", "given twice"),
        ({"grid": {"lora_r": [8, 16, 8]}}, "sweep.grid.lora_r[2]", "would be the same"),
        ({"grid": {"n_epochs": [1, 2]}}, "sweep.grid.n_epochs[0]", "Give it in one place"),
        ({"grid": {"validation_split": [0.1]}}, "sweep.grid.validation_split[0]", "other rows"),
        ({"grid": {"train_on": ["everything"]}}, "sweep.grid.train_on[0]", "other tokens"),
        ({"grid": {"lora_r": []}}, "sweep.grid.lora_r", "at least 1"),
        ({"grid": {}}, "sweep.grid", "at least 1"),
        ({"grid": {"lora_r": 8}}, "sweep.grid.lora_r", "list"),
        (
            {"grid": {"lora_r": list(range(1, 10)), "batch_size": list(range(1, 9))}},
            "sweep.grid",
            "9 x 8 = 72",
        ),
        ({"list": [{"lora_r": 8}, {"lora_r": 0}]}, "sweep.list[1].lora_r", "greater than"),
        ({"list": [{"lora_r": 8}, {"lora_r": 8}]}, "sweep.list[1].lora_r", "would be the same"),
        ({"list": [{"lora_r": 8}, {}]}, "sweep.list[1]", "at least 1"),
        ({"list": [{"lora_r": 8}] * 65}, "sweep.list", "at most 64"),
        (
            {"list": [{"warmup_steps": 1, "warmup_ratio": 0.1}]},
            "sweep.list[0].warmup_steps",
            "both",
        ),
        ({"grid": GRID, "list": [{"lora_r": 8}]}, "sweep", "Give either"),
        ({}, "sweep", "Give either"),
        (None, "sweep", "object"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_made(
    client: TestClient,
    database: Database,
    body: dict[str, Any],
    case: tuple[Any, str, str],
) -> None:
    sweep, param, says = case
    body["hyperparameters"] = {"n_epochs": 3}

    error = refuse(client, database, body, sweep)

    assert error["param"] == param, error
    assert says in error["message"], error


@pytest.mark.parametrize(
    "value", ["x" * 10_000, "\ud800", 2**70, [], {}, True, "[" * 90 + "]" * 90]
)
def test_odd_values_are_refused(
    client: TestClient, database: Database, body: dict[str, Any], value: Any
) -> None:
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)

    error = refuse(client, database, body, {"grid": {"lora_r": [value]}})
    unknown = refuse(client, database, body, {"list": [{"y" * 10_000: value}]})

    assert len(error["message"] + unknown["message"]) < 1000


def test_a_sweep_needs_validation_data(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    del body["validation_file"]

    error = refuse(client, database, body, {"grid": GRID})

    assert error["code"] == "validation_data_required"
    split = create(client, body | {"hyperparameters": {"validation_split": 0.5}})
    assert len(split["points"]) == 4


def test_an_error_of_the_whole_request_is_that_of_a_job(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    error = refuse(client, database, body | {"model": "none"}, {"grid": GRID})

    assert (error["param"], error["code"]) == ("model", "model_not_available")


def test_a_quota_admits_all_jobs_of_a_sweep_or_none(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    add_job(database)
    with database.writing() as session:
        session.get_one(Project, DEFAULT_PROJECT_ID).max_queued_jobs = 4
    before = dump_tables(database)

    refused = send(client, body, {"grid": GRID})

    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "has 4 jobs. The project may have 4 " in refused.json()["error"]["message"]
    assert "and has 1" in refused.json()["error"]["message"]
    assert dump_tables(database) == before
    assert len(create(client, body, {"grid": {"lora_r": [1, 2, 3]}})["points"]) == 3


def test_the_same_key_makes_one_sweep(client: TestClient, body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k"}
    first = send(client, body, {"grid": GRID}, **key)

    again = send(client, body, {"grid": GRID}, **key)
    other = send(client, body, {"grid": {"lora_r": [8]}}, **key)

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert len(list_jobs(client)) == 4


def test_jobs_share_a_check_if_it_depends_on_the_same(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    body["hyperparameters"] = {"n_epochs": 1}
    create(client, body, {"grid": {"lora_r": [8, 16], "context_length": [16, 32]}})
    create(client, body, {"grid": {"lora_r": [8, 16]}})
    short, long, *_, alone = (job["id"] for job in list_jobs(client))

    with database.reading() as session:
        shared = [session.get_one(DataCheck, each).shared for each in (short, long, alone)]
        sharers = [job.config["max_sequence_tokens"] for job in list_sharers(session, short)]

    assert len(set(shared)) == 3
    assert sharers == [16]


def _end(database: Database, job_id: str, loss: float | None, status: JobStatus) -> None:
    with database.writing() as session:
        job = session.get_one(Job, job_id)
        job.status, job.finished_at = status, NOW
        job.error = {"code": "a", "message": "b", "param": None} if loss is None else None
        if loss is not None:
            checkpoint = build_checkpoint(job, 4)
            checkpoint.metrics = checkpoint.metrics | {"valid_loss": loss}
            session.add(checkpoint)
            job.result_checkpoint_id, job.valid_loss = checkpoint.id, loss + 1


def test_the_job_with_the_lowest_validation_loss_of_its_adapter_is_the_best(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    sweep = create(client, body, {"grid": {"lora_r": [1, 2, 3, 4]}})
    one, two, three, four = (point["job_id"] for point in sweep["points"])
    _end(database, one, None, JobStatus.FAILED)
    _end(database, two, 0.5, JobStatus.SUCCEEDED)
    _end(database, three, 0.25, JobStatus.SUCCEEDED)

    running = client.get(f"{SWEEPS}/{sweep['id']}").json()
    _end(database, four, 0.75, JobStatus.SUCCEEDED)
    ended = client.get(f"{SWEEPS}/{sweep['id']}").json()

    assert [point["job_id"] for point in running["points"]] == [three, two, one, four]
    assert (running["status"], running["finished_at"]) == ("validating_files", None)
    assert running["best"]["hyperparameters"] == {"lora_r": 3}
    assert (running["best"]["result_valid_loss"], running["best"]["valid_loss"]) == (0.25, 1.25)
    assert (ended["status"], ended["finished_at"]) == ("succeeded", int(NOW.timestamp()))
    with database.writing() as session:
        session.query(Checkpoint).filter_by(job_id=three).delete()
    assert client.get(f"{SWEEPS}/{sweep['id']}").json()["best"]["job_id"] == two


def test_sweeps_are_listed_newest_first(client: TestClient, body: dict[str, Any]) -> None:
    made = [create(client, body, {"grid": {"lora_r": [rank]}})["id"] for rank in (1, 2, 3)]

    first = client.get(SWEEPS, params={"limit": 2}).json()
    second = client.get(SWEEPS, params={"limit": 2, "after": first["last_id"]}).json()

    assert [each["id"] for each in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [len(each["points"]) for each in first["data"]] == [1, 1]
    assert client.get(f"{SWEEPS}/ftsweep-none").json()["error"]["code"] == "sweep_not_found"


def test_cancelling_a_sweep_stops_what_has_not_ended(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    sweep = create(client, body, {"grid": {"lora_r": [1, 2, 3]}})
    done, *rest = (point["job_id"] for point in sweep["points"])
    _end(database, done, 0.5, JobStatus.SUCCEEDED)

    cancelled = client.post(f"{SWEEPS}/{sweep['id']}/cancel").json()

    statuses = {point["job_id"]: point["status"] for point in cancelled["points"]}
    assert statuses == {done: "succeeded"} | dict.fromkeys(rest, "cancelled")
    assert cancelled["status"] == "succeeded"
    before = dump_tables(database)
    assert client.post(f"{SWEEPS}/{sweep['id']}/cancel").json() == cancelled
    assert dump_tables(database) == before


def test_a_sweep_is_deleted_with_its_last_job(client: TestClient, body: dict[str, Any]) -> None:
    sweep = create(client, body, {"grid": {"lora_r": [1, 2]}})
    client.post(f"{SWEEPS}/{sweep['id']}/cancel")
    one, two = (f"/v1/fine_tuning/jobs/{point['job_id']}" for point in sweep["points"])

    client.delete(one)
    left = client.get(f"{SWEEPS}/{sweep['id']}").json()
    client.delete(two)

    assert [point["hyperparameters"] for point in left["points"]] == [{"lora_r": 2}]
    assert client.get(f"{SWEEPS}/{sweep['id']}").status_code == 404
    assert client.get(SWEEPS).json()["data"] == []
