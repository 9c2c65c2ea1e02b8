"""Reports over HTTP: begun by a worker or a request, told in the making, kept with the job."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.db.check_tables import Task
from app.core.db.repositories.tasks.leases import ClaimedTask, TaskLeases
from app.core.db.repositories.tasks.reports import begin_checkpoint_report
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.job.child.training_events import JobError
from app.core.job.scores.report import AnswerPair, AnswerReport, ModelAnswer
from app.core.manifest import MANIFEST_NAME
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    CHAT_LINE,
    NOW,
    add_file,
    add_job,
    add_succeeded_job,
    list_checkpoints,
)
from tests.exports import add_finished_export, claim_task
from tests.reports import REPORT_MADE

PROMPTS = {"eval_prompts": ["Hi", "And then?"]}


@pytest.fixture
def job(database: Database, store: LocalBlobStore) -> Job:
    """A job without validation data."""
    return add_succeeded_job(database, store)


@pytest.fixture
def address(job: Job) -> str:
    return f"/v1/fine_tuning/jobs/{job.id}/report"


def set_validation_file(database: Database, job: Job, file_id: str) -> None:
    with database.writing() as session:
        session.get_one(Job, job.id).validation_file_id = file_id


def error_of(answer: Any, status: int) -> Mapping[str, Any]:
    assert answer.status_code == status
    return answer.json()["error"]


def finish(database: Database, task: ClaimedTask, report: AnswerReport) -> None:
    with database.writing() as session:
        result = report.model_dump(mode="json")
        TaskLeases(session, task.id).finish(task.lease, result, None, now=NOW)


def test_a_report_is_told_from_its_request_to_its_end(
    client: TestClient, database: Database, job: Job, address: str
) -> None:
    asked = client.post(address, json=PROMPTS)
    task = claim_task(database)
    with database.writing() as session:
        TaskLeases(session, task.id).progress(task.lease, 0.4)
    running = client.get(address).json()
    finish(database, task, REPORT_MADE)
    done = client.get(address).json()

    assert asked.status_code == 202
    assert task.request == {"prompts": PROMPTS["eval_prompts"], "are_chats": True}
    shown = asked.json()
    assert (shown["object"], shown["status"], shown["retry_after"], shown["report"]) == (
        "fine_tuning.job.report",
        "queued",
        2,
        None,
    )
    assert (shown["base_model"], shown["fine_tuned_model"]) == ("tiny", job.fine_tuned_model)
    assert (running["status"], running["progress"]) == ("running", 0.4)
    assert (done["status"], done["retry_after"], done["error"]) == ("succeeded", None, None)
    assert done["report"] == REPORT_MADE.model_dump(mode="json")
    assert done["finished_at"] == int(NOW.timestamp())


def test_a_report_that_has_failed_says_why(
    client: TestClient, database: Database, address: str
) -> None:
    client.post(address, json=PROMPTS)
    task = claim_task(database)
    error = JobError(code="not_enough_memory", message="It needs 14 GB.")
    with database.writing() as session:
        TaskLeases(session, task.id).fail(task.lease, error, now=NOW)

    shown = client.get(address).json()

    assert (shown["status"], shown["report"]) == ("failed", None)
    assert shown["error"] == {"code": "not_enough_memory", "message": "It needs 14 GB."}


def test_a_job_without_a_report_says_how_to_get_one(
    client: TestClient, job: Job, address: str
) -> None:
    attempts = f"/v1/fine_tuning/jobs/{job.id}/attempts"
    error = error_of(client.get(address), 404)
    before = client.get(attempts).json()["has_report"]
    client.post(address, json=PROMPTS)

    assert (before, client.get(attempts).json()["has_report"]) == (False, True)
    assert error["code"] == "report_not_found"
    assert "eval_prompts" in error["message"]


def test_prompts_of_the_job_are_answered_unless_the_request_has_others(
    client: TestClient, database: Database, job: Job, address: str
) -> None:
    with database.writing() as session:
        session.get_one(Job, job.id).eval_prompts = ["Mine"]

    asked = []
    for body in ({}, PROMPTS):
        assert client.post(address, json=body).status_code == 202
        task = claim_task(database)
        asked.append(task.request and task.request["prompts"])

    assert asked == [["Mine"], PROMPTS["eval_prompts"]]


def test_a_job_without_validation_data_needs_prompts(client: TestClient, address: str) -> None:
    error = error_of(client.post(address), 400)

    assert (error["code"], error["param"]) == ("missing_required_parameter", "eval_prompts")


def test_a_validation_file_is_scored_without_prompts_unless_it_has_only_texts(
    client: TestClient, database: Database, store: LocalBlobStore, job: Job, address: str
) -> None:
    chats = add_file(database, store, CHAT_LINE, format="messages")
    set_validation_file(database, job, add_file(database, store).id)
    refused = client.post(address, json={})
    set_validation_file(database, job, chats.id)
    taken = client.post(address, json={})

    assert (refused.status_code, taken.status_code) == (400, 202)


def test_a_new_report_takes_the_place_of_the_earlier_one(
    client: TestClient, database: Database, address: str
) -> None:
    first = client.post(address, json={"eval_prompts": ["One"]}).json()
    claim_task(database)
    second = client.post(address, json={"eval_prompts": ["Two"]}).json()

    assert second["id"] != first["id"]
    assert client.get(address).json()["id"] == second["id"]
    with database.reading() as session:
        assert session.query(Task).count() == 1


def test_a_job_that_has_not_succeeded_has_nothing_to_report(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)

    error = error_of(client.post(f"/v1/fine_tuning/jobs/{job.id}/report", json=PROMPTS), 400)

    assert error["code"] == "adapter_not_ready"


def test_a_checkpoint_has_a_report_of_its_own(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store, steps=(2, 4))
    first, result = list_checkpoints(database, job.id)
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        row.eval_prompts, row.eval_prompts_at_checkpoints = ["Mine"], True
        begin_checkpoint_report(session, row, first.id, now=NOW)
    task, address = claim_task(database), f"/v1/fine_tuning/jobs/{job.id}"
    finish(database, task, REPORT_MADE)

    by_step, by_id = (
        client.get(f"{address}/report?checkpoint={name}").json() for name in (2, first.id)
    )

    assert task.request == {"prompts": ["Mine"], "are_chats": True}
    assert by_step == by_id
    assert by_step["report"] == REPORT_MADE.model_dump(mode="json")
    assert by_step["fine_tuned_model"] == f"{job.fine_tuned_model}:ckpt-step-2"
    for missing in ("report", "report?checkpoint=4", f"report?checkpoint={result.id}"):
        assert error_of(client.get(f"{address}/{missing}"), 404)["code"] == "report_not_found"
    unknown = error_of(client.get(f"{address}/report?checkpoint=3"), 404)
    assert unknown["code"] == "checkpoint_not_found"
    assert client.get(f"{address}/attempts").json()["has_report"] is False
    listed = client.get(f"{address}/checkpoints").json()["data"]
    assert {each["id"]: each["has_report"] for each in listed} == {first.id: True, result.id: False}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"eval_prompts": []}, "invalid_value"),
        ({"eval_prompts": ["a"] * 6}, "invalid_value"),
        ({"eval_prompts": [""]}, "invalid_value"),
        ({"eval_prompts": ["a" * 4001]}, "invalid_value"),
        ({"eval_prompts": "a"}, "invalid_value"),
        ({"prompts": ["a"]}, "unknown_parameter"),
    ],
    ids=["none", "six", "empty", "long", "no-list", "unknown"],
)
def test_bad_prompts_are_refused(
    client: TestClient, address: str, body: dict[str, Any], code: str
) -> None:
    assert error_of(client.post(address, json=body), 400)["code"] == code


def test_a_report_goes_with_its_job(client: TestClient, database: Database, job: Job) -> None:
    address = f"/v1/fine_tuning/jobs/{job.id}"
    client.post(f"{address}/report", json=PROMPTS)

    assert client.delete(address).status_code == 200

    assert error_of(client.get(f"{address}/report"), 404)["code"] == "job_not_found"
    with database.reading() as session:
        assert session.query(Task).count() == 0


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_an_archive_has_the_report_on_its_adapter_and_another_etag(
    client: TestClient, database: Database, store: LocalBlobStore, form: str
) -> None:
    job = add_succeeded_job(database, store, steps=(2, 4))
    first, result = list_checkpoints(database, job.id)
    for checkpoint in (first, result):
        add_merged(database, store, checkpoint)
    address = f"/v1/fine_tuning/jobs/{job.id}/adapter?format={form}"
    client.post(f"/v1/fine_tuning/jobs/{job.id}/report", json=PROMPTS)
    before = client.get(address)

    finish(database, claim_task(database), REPORT_MADE)
    after = client.get(address)
    rest = client.get(address, headers={"range": "bytes=10-", "if-range": after.headers["etag"]})
    stale = client.get(address, headers={"range": "bytes=10-", "if-range": before.headers["etag"]})

    assert read_card(before.content) is None
    card = read_card(after.content) or ""
    assert "| exact match | 0.0% | 50.0% |" in card
    assert "48 of the 80 examples of the validation file" in card
    assert "```text\nHello there\n```" in card
    assert (rest.status_code, rest.content) == (206, after.content[10:])
    assert (stale.status_code, stale.content) == (200, after.content)
    assert read_card(client.get(f"{address}&checkpoint=2").content) is None


def test_an_answer_that_is_markdown_stays_in_its_block(
    client: TestClient, database: Database, job: Job, address: str
) -> None:
    answer = ModelAnswer(text="```python\n1\n```\n# Not a heading", finish_reason="stop")
    pair = AnswerPair(prompt="Hi", reference=None, base=answer, tuned=answer)
    refused = pair.model_copy(update={"refusal": "Too long."})
    alone = {"source": None, "base": None, "tuned": None, "answers": (pair, refused)}
    client.post(address, json=PROMPTS)
    finish(database, claim_task(database), REPORT_MADE.model_copy(update=alone))

    card = read_card(client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter").content) or ""

    assert card.count(f"````text\n{answer.text}\n````") == 2
    assert card.endswith("Not answered:\n\n```text\nToo long.\n```\n")
    assert "## Scores" not in card


def add_merged(database: Database, store: LocalBlobStore, checkpoint: Checkpoint) -> None:
    files = {"config.json": b"{}", MANIFEST_NAME: b"[]"}
    add_finished_export(database, store, checkpoint, files, variant="merged")


def read_card(archive: bytes) -> str | None:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return opened.read("report.md").decode() if "report.md" in opened.namelist() else None
