"""Training children that attack their worker: it goes on, and nothing leaks, grows or hangs."""

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.clock import steady_s
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_file, add_job, build_config, dump_tables, get_job, list_blobs
from tests.effort import effort
from tests.waiting import wait_until
from worker.attempt.lease_keeper import Resources
from worker.attempt.report_check import MAX_NOTES
from worker.launch.supervision import LocalLauncher
from worker.loop import Worker

PROTOCOL = "training_protocol_violated"
CONTENT = "root:x:0:0:of the machine"
END_S = 30.0
"""Longest time that an attack may take; generous, because machines that test are busy."""


class Victim:
    """A worker whose children are hostile."""

    def __init__(
        self, settings: Settings, database: Database, store: LocalBlobStore, catalogue: Catalogue
    ) -> None:
        self.database = database
        self.store = store
        launcher = LocalLauncher("tests.hostile_child")
        resources = Resources(settings, database, store, catalogue, launcher)
        self.worker = Worker("worker-1", resources, lambda: None)

    def add_job(self, attack: str, *arguments: object) -> Job:
        rows = (json.dumps({"text": str(text)}) + "\n" for text in (attack, *arguments))
        file = add_file(self.database, self.store, "".join(rows).encode())
        config = build_config(max_steps=100).model_dump(mode="json")
        return add_job(self.database, training_file_id=file.id, config=config)

    def suffer(self, attack: str, *arguments: object, attempts: int = 1) -> Job:
        """Let a child attack, in one job. Returns the job afterwards."""
        job = self.add_job(attack, *arguments)
        began_s = steady_s()
        for _ in range(attempts):
            self.worker.run_once()
        assert steady_s() - began_s < END_S
        return get_job(self.database, job.id)

    def everything(self) -> str:
        """All that the attack has brought into the database and the blob store."""
        blobs = [self.read(key) for key in list_blobs(self.store)]
        return f"{dump_tables(self.database)} {blobs}"

    def read(self, key: str) -> bytes:
        with self.store.open(key) as blob:
            return blob.read()


@pytest.fixture
def victim(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    monkeypatch: pytest.MonkeyPatch,
) -> Victim:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return Victim(settings, database, store, catalogue)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine that no job may read or change."""
    path = tmp_path / "secret"
    path.write_text(CONTENT)
    return path


def code_of(job: Job) -> str | None:
    return job.error and job.error["code"]


@pytest.mark.only_sqlite
@pytest.mark.parametrize("attack", ["link manifest", "link output", "hard link"])
def test_no_link_leads_out_of_the_job_directory(victim: Victim, secret: Path, attack: str) -> None:
    job = victim.suffer(attack, secret.parent if attack == "link output" else secret)

    assert (job.status, code_of(job)) == (JobStatus.FAILED, PROTOCOL)
    assert CONTENT not in victim.everything()


@pytest.mark.only_sqlite
def test_the_log_is_not_read_through_a_link(victim: Victim, secret: Path) -> None:
    job = victim.suffer("link log", secret, attempts=2)

    assert code_of(job) == "training_crashed"
    assert CONTENT not in victim.everything()


@pytest.mark.only_sqlite
def test_the_result_is_not_written_through_a_link(victim: Victim, secret: Path) -> None:
    job = victim.suffer("link result", secret)

    assert job.status is JobStatus.SUCCEEDED
    assert secret.read_text() == CONTENT


@pytest.mark.only_sqlite
@pytest.mark.parametrize("attack", ["pipe as weights", "pipe as manifest", "sparse"])
def test_a_checkpoint_that_cannot_be_read_is_refused_at_once(victim: Victim, attack: str) -> None:
    job = victim.suffer(attack)

    assert (job.status, code_of(job)) == (JobStatus.FAILED, PROTOCOL)
    assert sum(blob.bytes for blob in victim.store.list_all()) < 64 * 1024


@pytest.mark.parametrize(
    "attack", ["step 0", "step 2**70", "no event", "not a number", "large line"]
)
def test_a_report_that_cannot_be_true_ends_the_job_with_a_reason(
    victim: Victim, attack: str
) -> None:
    job = victim.suffer(attack)

    assert (job.status, code_of(job)) == (JobStatus.FAILED, PROTOCOL)
    assert job.error is not None
    assert "It wrote a line" in job.error["message"]


@pytest.mark.only_sqlite
def test_a_job_succeeds_although_its_child_has_left_a_process(victim: Victim) -> None:
    assert victim.suffer("escape").status is JobStatus.SUCCEEDED


@pytest.mark.only_sqlite
def test_a_log_of_any_size_costs_little_memory_and_no_disk(victim: Victim) -> None:
    tracemalloc.start()
    job = victim.suffer("fill log", effort(20, long=200), attempts=2)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert code_of(job) == "training_crashed"
    assert peak_bytes < 16 * 1024 * 1024
    assert len(victim.everything()) < 64 * 1024


def test_messages_are_bounded_in_number(victim: Victim) -> None:
    job = victim.suffer("flood with notes")

    assert (job.status, code_of(job)) == (JobStatus.FAILED, PROTOCOL)
    assert len(dump_tables(victim.database)["events"]) < MAX_NOTES + 20


@pytest.mark.only_sqlite
def test_steps_are_bounded_in_number(victim: Victim) -> None:
    job = victim.suffer("flood with steps")

    assert (job.status, code_of(job)) == (JobStatus.FAILED, PROTOCOL)
    assert len(dump_tables(victim.database)["steps"]) == 1


def test_a_failure_is_shown_cleaned_and_cut(victim: Victim, client: TestClient) -> None:
    job = victim.suffer("fail")

    assert (job.status, code_of(job)) == (JobStatus.FAILED, "c")
    answer = client.get("/v1/fine_tuning/jobs?limit=5")
    assert len(answer.content) < 64 * 1024
    error = answer.json()["data"][0]["error"]
    assert not {"\0", "\x1b"} & set(error["message"] + error["errors"][0]["message"])


@pytest.mark.only_sqlite
def test_clients_are_shown_no_directory_of_the_machine(
    victim: Victim, settings: Settings, client: TestClient
) -> None:
    job = victim.suffer("crash", attempts=2)

    assert code_of(job) == "training_crashed"
    url = f"/v1/fine_tuning/jobs/{job.id}"
    shown = client.get(url).text + client.get(f"{url}/events?limit=100").text
    assert "RuntimeError: [path] is broken" in shown
    assert str(settings.data_dir) not in shown
    assert "Traceback" not in shown


@pytest.mark.only_sqlite
def test_a_child_that_stops_unasked_again_and_again_ends_its_job(victim: Victim) -> None:
    job = victim.suffer("stop", attempts=2)

    assert code_of(job) == "training_crashed"
    assert job.error is not None
    assert "stopped without being asked to" in job.error["message"]


@pytest.fixture
def in_background(victim: Victim) -> Iterator[Callable[[Job], None]]:
    """Let the worker run, and wait until the child of this job has said something."""
    running = threading.Thread(target=victim.worker.run)

    def run(job: Job) -> None:
        running.start()
        wait_until(lambda: get_job(victim.database, job.id).total_steps, within_s=END_S)

    yield run
    victim.worker.stop(at_once=True)
    running.join(END_S)
    assert not running.is_alive()


@pytest.mark.only_sqlite
def test_a_child_that_does_not_move_is_cancelled(
    victim: Victim, in_background: Callable[[Job], None]
) -> None:
    job = victim.add_job("freeze")
    in_background(job)

    with victim.database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=NOW)

    wait_until(
        lambda: get_job(victim.database, job.id).status is JobStatus.CANCELLED, within_s=END_S
    )


@pytest.mark.only_sqlite
def test_a_worker_that_is_told_to_stop_leaves_a_child_that_does_not_move(
    victim: Victim, in_background: Callable[[Job], None]
) -> None:
    job = victim.add_job("freeze")
    in_background(job)

    victim.worker.stop(at_once=True)

    wait_until(lambda: get_job(victim.database, job.id).status is JobStatus.QUEUED, within_s=END_S)
