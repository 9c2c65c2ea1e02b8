"""Prompts for the report of a job, in the request for the job."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.builders import TEXT_LINE

JOBS = "/v1/fine_tuning/jobs"


def create(client: TestClient, **changes: Any) -> dict[str, Any]:
    files = {"file": ("train.jsonl", TEXT_LINE)}
    file = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()
    body = {"model": "tiny", "training_file": file["id"], **changes}
    return client.post(JOBS, json=body).json()


def test_a_job_and_its_rerun_show_their_prompts(client: TestClient) -> None:
    prompts = ["Hé?", "two\nlines"]

    job = create(client, eval_prompts=prompts)
    again = client.post(f"{JOBS}/{job['id']}/rerun", json={}).json()

    assert job["eval_prompts"] == again["eval_prompts"] == prompts
    assert client.get(f"{JOBS}/{job['id']}").json()["eval_prompts"] == prompts
    assert create(client)["eval_prompts"] is None


def test_a_job_and_its_rerun_say_whether_checkpoints_answer(client: TestClient) -> None:
    job = create(client, eval_prompts=["Hi"], eval_prompts_at_checkpoints=True)
    again = client.post(f"{JOBS}/{job['id']}/rerun", json={}).json()

    assert job["eval_prompts_at_checkpoints"] is again["eval_prompts_at_checkpoints"] is True
    assert create(client, eval_prompts=["Hi"])["eval_prompts_at_checkpoints"] is False
    assert create(client, eval_prompts_at_checkpoints=False)["object"] == "fine_tuning.job"


@pytest.mark.only_sqlite
def test_checkpoints_have_nothing_to_answer_without_prompts(client: TestClient) -> None:
    error = create(client, eval_prompts_at_checkpoints=True)["error"]

    assert error["param"] == "eval_prompts_at_checkpoints"
    assert "needs 'eval_prompts'" in error["message"]


@pytest.mark.only_sqlite
@pytest.mark.parametrize(
    ("prompts", "param", "said"),
    [
        ([], "eval_prompts", "at least 1 item"),
        (["Hi"] * 6, "eval_prompts", "at most 5 items"),
        ("Hi", "eval_prompts", "valid list"),
        (["Hi", ""], "eval_prompts[1]", "at least 1 character"),
        (["x" * 4001], "eval_prompts[0]", "at most 4000 characters"),
        ([7], "eval_prompts[0]", "valid string"),
    ],
)
def test_bad_prompts_are_refused(client: TestClient, prompts: Any, param: str, said: str) -> None:
    error = create(client, eval_prompts=prompts)["error"]

    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]
