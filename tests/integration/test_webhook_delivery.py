"""Webhooks and real processes: what is killed loses no event, and what runs at once shares them."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import openai
import pytest

from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.settings import Settings
from app.webhooks.client import WebhookClient
from app.webhooks.sender import LEASE, LONGEST_PAUSE_S, Sender
from tests.acceptance.documents import block_of
from tests.builders import MINUTE, TEXT_LINE
from tests.fakes import FrozenClock
from tests.programs import require_programs
from tests.waiting import wait_until
from tests.webhook_sending import send_all
from tests.webhooks import (
    Receiver,
    add_endpoint,
    allow,
    end_job,
    list_deliveries,
    queue_event,
    receiving,
    unwrap,
)
from tunery.local_service import LocalService

SENDERS = 3
ENDPOINTS = 3
EVENTS = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_processes_that_send_at_once_send_each_event_once(
    database: Database, settings: Settings, receiver: Receiver
) -> None:
    """They may end early, when every endpoint is taken; one more look sends the rest."""
    now = utc_now()
    for number in range(ENDPOINTS):
        add_endpoint(database, f"{receiver.origin}/{number}", now=now)
    for _ in range(EVENTS):
        queue_event(database, now=now)
    database.dispose()
    arguments = (settings.resolved_database_url, receiver.origin, now)

    with multiprocessing.get_context("spawn").Pool(SENDERS) as pool:
        attempts = sum(pool.starmap(send_all, [arguments] * SENDERS))
    attempts += send_all(*arguments)

    sent = Counter((request.path, request.event_id) for request in receiver.requests)
    assert attempts == len(sent) == ENDPOINTS * EVENTS
    assert set(sent.values()) == {1}
    assert receiver.most_at_once == 1


def cancel_jobs(service: LocalService, count: int) -> list[str]:
    """Create jobs through the API and cancel them, which ends them without a worker."""
    client = openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0)
    file = client.files.create(file=("train.jsonl", TEXT_LINE * 10), purpose="fine-tune")
    jobs = [
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=seed)
        for seed in range(count)
    ]
    return [client.fine_tuning.jobs.cancel(job.id).id for job in jobs]


def test_a_receiver_that_was_down_for_an_hour_gets_every_event_although_senders_were_killed(
    database: Database,
    settings: Settings,
    data_dir: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = {"webhook_targets": receiver.origin, "webhook_private_networks": "127.0.0.0/8"}
    url = settings.resolved_database_url
    receiver.holds_from = 2
    with LocalService(data_dir, {"database_url": url, **allowed}, workers=0) as service:
        client = openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0)
        endpoint = client.webhooks.create(
            name="a", url=receiver.origin, event_types=["fine_tuning.job.cancelled"]
        )
        jobs = cancel_jobs(service, 3)
        wait_until(lambda: len(receiver.requests) == 2, within_s=30)
        service.processes["api"].send(signal.SIGKILL)  # while it waits for an answer
        service.processes["api"].wait()
    receiver.stop()

    clock = FrozenClock(utc_now())
    sender = Sender(database, WebhookClient(allow(receiver)), clock=clock)
    for _ in range(60):
        jobs.append(end_job(database, now=clock()))
        clock.advance(MINUTE)
        while sender.send_next():
            pass
    before = len(receiver.requests)

    receiver.holds_from = before + 10
    receiver.start()
    clock.advance(timedelta(seconds=LONGEST_PAUSE_S))
    arguments = (url, receiver.origin, clock())
    process = multiprocessing.get_context("spawn").Process(target=send_all, args=arguments)
    process.start()
    wait_until(lambda: len(receiver.requests) == before + 10, within_s=60)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    receiver.holds_from = None
    clock.advance(LEASE)
    while sender.send_next():
        pass

    assert {one.status for one in list_deliveries(database)} == {"delivered"}
    received = {
        unwrap(
            request, endpoint.signing_secret, at=_sent_at(request.headers), patch=monkeypatch
        ).data.id
        for request in receiver.requests
    }
    assert received == set(jobs)
    repeated = Counter(request.event_id for request in receiver.requests)
    assert sum(count - 1 for count in repeated.values()) == 2  # those whose sender was killed


def _sent_at(headers: dict[str, str]) -> datetime:
    sent_at = int(headers["webhook-timestamp"])
    return datetime.fromtimestamp(sent_at, tz=utc_now().tzinfo)


@pytest.mark.only_sqlite
def test_the_examples_of_the_page_work_as_they_stand(data_dir: Path, receiver: Receiver) -> None:
    """Except for the addresses: the receiver has another port."""
    require_programs("curl")
    receiver.stop()
    allowed = {"webhook_targets": receiver.origin, "webhook_private_networks": "127.0.0.0/8"}
    create = block_of("docs/webhooks.md", "webhooks: curl")
    receive = block_of("docs/webhooks.md", "webhooks: receiver")
    with LocalService(data_dir, allowed, workers=0) as service:
        created = subprocess.run(
            ["bash", "-c", create.replace("https://hooks.example.com/tunery", receiver.origin)],
            env=os.environ | {"TUNERY_URL": service.base_url},
            check=True,
            capture_output=True,
        )
        endpoint = json.loads(created.stdout)
        example = subprocess.Popen(
            [sys.executable, "-c", receive.replace("8080", str(receiver.port))],
            env=os.environ | {"OPENAI_WEBHOOK_SECRET": endpoint["signing_secret"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with example:
            try:
                wait_until(lambda: is_listening(receiver.port), within_s=60)
                client = openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0)
                result = client.webhooks.test(endpoint["id"], event_type="fine_tuning.job.failed")
                assert example.stdout is not None
                printed = example.stdout.readline()
            finally:
                example.kill()

    assert result.status_code == 204
    assert printed.startswith("fine_tuning.job.failed ftjob-")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
