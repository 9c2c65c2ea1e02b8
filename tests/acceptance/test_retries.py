"""The stock client sends a request again by itself, and there is one job all the same."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from app.core.db.session import Database
from tests.acceptance.lab import Lab, open_lab
from tests.builders import TEXT_LINE, write_catalogue
from tests.effort import effort
from tests.waiting import wait_until
from tunery.local_service import LocalService

KILLS = effort(3, long=100)
"""With 320 requests between two."""
THREADS = 16
START_S = 60


class LossyTransport(httpx2.BaseTransport):
    """Delivers every request, and loses the answers to the first `losses` POSTs."""

    def __init__(self, inner: httpx2.BaseTransport, losses: int) -> None:
        self._inner = inner
        self._losses = losses
        self.seen: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        answer = self._inner.handle_request(request)
        if len(self.seen) <= self._losses:
            answer.close()
            raise httpx2.ReadTimeout("the answer was lost", request=request)
        return answer


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as lab:
        yield lab


def lossy_client(lab: Lab, losses: int) -> tuple[openai.OpenAI, LossyTransport]:
    """The stock client in its strict mode, with its own retries, on a bad line to the lab."""
    transport = LossyTransport(lab.client._transport, losses)
    client = openai.OpenAI(
        base_url="http://127.0.0.1/v1",
        api_key="unused",
        http_client=httpx2.Client(transport=transport),
        _strict_response_validation=True,
    )
    return client, transport


def count_jobs(lab: Lab) -> int:
    return len(lab.get("/fine_tuning/jobs?limit=1000").json()["data"])


@pytest.mark.parametrize("losses", [0, 1, 2])
def test_a_lost_answer_makes_no_second_job(lab: Lab, losses: int) -> None:
    before = count_jobs(lab)
    client, transport = lossy_client(lab, losses)

    job = client.fine_tuning.jobs.create(model="tiny", training_file=lab.text_file, seed=1)

    assert count_jobs(lab) == before + 1
    assert lab.get(f"/fine_tuning/jobs/{job.id}").json()["seed"] == 1
    counts = [request.headers["x-stainless-retry-count"] for request in transport.seen]
    assert counts == [str(count) for count in range(losses + 1)]
    assert all("idempotency-key" not in request.headers for request in transport.seen)


def test_equal_jobs_that_are_wanted_are_made(lab: Lab) -> None:
    client, _ = lossy_client(lab, 0)

    jobs = [
        client.fine_tuning.jobs.create(model="tiny", training_file=lab.text_file) for _ in range(3)
    ]

    assert len({job.id for job in jobs}) == 3


def test_a_key_tells_an_equal_job_whose_request_was_lost_from_the_first(lab: Lab) -> None:
    client, transport = lossy_client(lab, 0)

    def create(key: str) -> str:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=lab.text_file, extra_headers={"Idempotency-Key": key}
        ).id

    first = create("a")
    transport.seen.clear()
    transport._losses = 1
    second = create("b")

    assert len(transport.seen) == 2
    assert second != first
    assert create("b") == second


def test_a_rerun_whose_answer_was_lost_makes_one_job(lab: Lab) -> None:
    before = count_jobs(lab)
    client, transport = lossy_client(lab, 1)

    job: Any = client.post(f"/fine_tuning/jobs/{lab.cancelled_job}/rerun", cast_to=object)

    assert len(transport.seen) == 2
    assert job["rerun_of"] == lab.cancelled_job
    assert count_jobs(lab) == before + 1


def test_pause_and_resume_may_be_lost_as_well(lab: Lab) -> None:
    client, transport = lossy_client(lab, 1)
    lenient = client.with_options(max_retries=2)
    lenient._strict_response_validation = False

    paused = lenient.fine_tuning.jobs.pause(lab.queued_job)
    transport.seen.clear()
    resumed = client.fine_tuning.jobs.resume(lab.queued_job)

    assert (paused.status, resumed.status) == ("paused", "queued")
    assert len(transport.seen) == 2


def test_a_strict_client_meets_paused_only_where_it_was_asked_for(lab: Lab) -> None:
    client, _ = lossy_client(lab, 0)

    with pytest.raises(openai.APIResponseValidationError):
        client.fine_tuning.jobs.pause(lab.queued_job)
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=lab.text_file, extra_body={"priority": 7}
    )

    assert job.status == "validating_files"
    assert (job.model_extra or {})["priority"] == 7


def test_a_deletion_is_sent_by_the_stock_client_too(lab: Lab) -> None:
    client, _ = lossy_client(lab, 0)

    gone: Any = client.delete(f"/fine_tuning/jobs/{lab.cancelled_job}", cast_to=object)

    assert gone == {"id": lab.cancelled_job, "object": "fine_tuning.job", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(lab.cancelled_job)


def test_while_another_process_holds_the_database_nobody_is_told_that_the_server_failed(
    lab: Lab, tmp_path: Path
) -> None:
    """The lock outlasts the busy timeout; then the clients' own retries make one job for each."""
    app: Any = lab.client.app
    url = app.state.resources.settings.resolved_database_url
    impatient, foreign = Database(url, busy_timeout_s=0.05), Database(url)
    app.state.resources = replace(app.state.resources, database=impatient)
    before = count_jobs(lab)
    body = {"model": "tiny", "training_file": lab.text_file}

    def send(number: int) -> Any:
        headers = {"Idempotency-Key": f"{number}"}
        return lab.post("/fine_tuning/jobs", json=body, headers=headers)

    with ThreadPoolExecutor(THREADS) as threads:
        with foreign.writing() as session:
            session.connection()
            refused = list(threads.map(send, range(THREADS)))
        patient = Database(url)
        app.state.resources = replace(app.state.resources, database=patient)
        made = list(threads.map(send, list(range(THREADS)) * 2))
    for database in (impatient, foreign, patient):
        database.dispose()

    assert {answer.status_code for answer in refused} == {503}
    assert {answer.json()["error"]["code"] for answer in refused} == {"database_busy"}
    assert all(0 < int(answer.headers["retry-after"]) <= 120 for answer in refused)
    assert {answer.status_code for answer in made} == {200}
    assert count_jobs(lab) == before + THREADS


def list_all_jobs(http: httpx2.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = http.get("/fine_tuning/jobs", params={"limit": 1000} | after).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def test_a_key_is_one_job_however_often_the_service_is_killed_half_way(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    confirmed: dict[str, set[str]] = {}

    def send(key: str) -> None:
        """One try; whether it was served, nobody knows."""
        try:
            answer = http.post("/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key})
        except httpx2.TransportError:
            return
        assert answer.status_code == 200, answer.text
        confirmed.setdefault(key, set()).add(answer.json()["id"])

    with LocalService(tmp_path, workers=0) as service:
        with httpx2.Client(base_url=service.base_url) as http:
            files = {"file": ("a.jsonl", TEXT_LINE)}
            file = http.post("/files", files=files, data={"purpose": "fine-tune"}).json()
        body = {"model": "tiny", "training_file": file["id"]}
        for kill in range(KILLS):
            keys = [f"{kill}-{number}" for number in range(20)]
            with (
                httpx2.Client(base_url=service.base_url) as http,
                ThreadPoolExecutor(THREADS) as pool,
            ):
                sent = [pool.submit(send, key) for key in keys * THREADS]
                wait_until(lambda key=keys[3]: confirmed.get(key), within_s=START_S)
                service.processes["api"].stop(signal.SIGKILL)
                for one in sent:
                    one.result()
            service.start("api")
            with httpx2.Client(base_url=service.base_url) as http:
                for key in keys:
                    send(key)
                jobs = list_all_jobs(http)
            assert len(jobs) == len(confirmed) == 20 * (kill + 1)
    assert all(len(ids) == 1 for ids in confirmed.values())
    assert {job["id"] for job in jobs} == set.union(*confirmed.values())
