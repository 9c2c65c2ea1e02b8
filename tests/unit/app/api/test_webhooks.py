"""Webhook endpoints, as the stock client manages them in its strict mode."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
from anyio import to_thread
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.repositories.projects.audit import AuditLog
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.webhooks.events import WebhookEventType
from app.main import create_app
from app.services.webhooks import MAX_ENDPOINTS
from app.webhooks.client import MAX_TESTS, TOTAL_S, WebhookClient
from app.webhooks.targets import TargetPolicy
from tests.builders import NOW
from tests.waiting import wait_until
from tests.webhooks import (
    Receiver,
    SlowResolver,
    add_endpoint,
    end_job,
    list_deliveries,
    receiving,
)

SUCCEEDED = "fine_tuning.job.succeeded"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings, receiver: Receiver) -> Settings:
    """What allows the receiver."""
    allowed = {
        "webhook_targets": receiver.origin,
        "webhook_private_networks": "127.0.0.0/8",
    }
    return settings.model_copy(update=allowed)


def verify(receiver: Receiver, secret: str) -> None:
    """Raise InvalidWebhookSignatureError unless the last message is signed with this secret."""
    request = receiver.requests[-1]
    client = openai.OpenAI(api_key="unused", webhook_secret=secret)
    client.webhooks.unwrap(request.body, request.headers)


def test_an_endpoint_is_created_shown_changed_and_deleted(
    strict: openai.OpenAI, receiver: Receiver
) -> None:
    created = strict.webhooks.create(
        name="first", url=receiver.origin, event_types=[SUCCEEDED, SUCCEEDED]
    )

    assert created.signing_secret.startswith("whsec_")
    assert created.signing_secret_hint == f"whsec_...{created.signing_secret[-4:]}"
    assert created.event_types == [SUCCEEDED]
    shown = strict.webhooks.retrieve(created.id)
    assert "signing_secret" not in shown.to_dict()
    assert shown.to_dict() == {
        name: value for name, value in created.to_dict().items() if name != "signing_secret"
    }

    changed = strict.webhooks.update(created.id, event_types=["fine_tuning.job.failed"])
    assert (changed.name, changed.url) == ("first", shown.url)
    assert changed.event_types == ["fine_tuning.job.failed"]
    assert strict.webhooks.list().data == [changed]

    assert strict.webhooks.delete(created.id).deleted
    with pytest.raises(openai.NotFoundError) as error:
        strict.webhooks.retrieve(created.id)
    assert error.value.code == "webhook_endpoint_not_found"


def test_what_is_done_to_an_endpoint_is_in_the_audit_trail(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    created = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])
    strict.webhooks.update(created.id, name="a")  # which changes nothing
    strict.webhooks.update(created.id, name="b")
    strict.webhooks.rotate_secret(created.id)
    strict.webhooks.delete(created.id)

    with database.reading() as session:
        trail = AuditLog(session).list_page(project_id=None, after=None, limit=9).rows
    assert [(event.action, event.object_id) for event in reversed(trail)] == [
        (f"webhook_endpoint.{what}", created.id)
        for what in ("created", "updated", "secret_rotated", "deleted")
    ]


def test_endpoints_are_listed_newest_first_page_by_page(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    ids = [add_endpoint(database, f"{receiver.origin}/{n}").id for n in range(5)]

    assert [one.id for one in strict.webhooks.list(limit=2)] == ids[::-1]


def test_the_types_of_events_are_listed(strict: openai.OpenAI) -> None:
    assert strict.webhooks.event_types.list().data == [*WebhookEventType]


def test_a_job_that_ends_is_told_by_the_running_service(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    secret = strict.webhooks.create(
        name="all", url=receiver.origin, event_types=["fine_tuning.job.cancelled"]
    ).signing_secret
    job_id = end_job(database, now=utc_now())

    wait_until(lambda: receiver.requests, within_s=30)

    request = receiver.requests[0]
    client = openai.OpenAI(api_key="unused", webhook_secret=secret)
    event = client.webhooks.unwrap(request.body, request.headers)
    assert event.type == "fine_tuning.job.cancelled"
    assert event.data.id == job_id


def test_a_test_sends_a_sample_and_shows_the_answer(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    created = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])
    receiver.status = 418

    result = strict.webhooks.test(created.id, event_type="fine_tuning.job.failed")

    assert (result.status_code, result.event_type) == (418, "fine_tuning.job.failed")
    verify(receiver, created.signing_secret)
    assert list_deliveries(database) == []


def test_a_test_without_an_answer_says_why(strict: openai.OpenAI, receiver: Receiver) -> None:
    created = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])
    receiver.stop()

    with pytest.raises(openai.BadRequestError, match="No connection") as error:
        strict.webhooks.test(created.id, event_type=SUCCEEDED)

    assert error.value.code == "webhook_unreachable"


def with_slow_resolver(app: FastAPI) -> SlowResolver:
    """Make the application ask a resolver that waits for the test, also in its sender."""
    slow = SlowResolver()
    webhooks = WebhookClient(TargetPolicy("public"), resolve=slow)
    app.state.resources = replace(app.state.resources, webhooks=webhooks)
    return slow


def test_a_test_too_many_is_told_to_come_back(
    app: FastAPI, client: TestClient, database: Database
) -> None:
    slow = with_slow_resolver(app)
    path = f"/v1/webhook_endpoints/{add_endpoint(database, 'https://slow.test/').id}/test"
    with ThreadPoolExecutor(MAX_TESTS) as threads:
        body = {"event_type": SUCCEEDED}
        waiting = [threads.submit(client.post, path, json=body) for _ in range(MAX_TESTS)]
        wait_until(lambda: len(slow.asked) == MAX_TESTS, within_s=30)

        refused = client.post(path, json=body)

        slow.released.set()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["error"]["code"] == "webhook_tests_busy"
    assert {one.result().json()["error"]["code"] for one in waiting} == {"webhook_target_refused"}


def test_others_are_served_while_the_sender_ends(app: FastAPI, database: Database) -> None:
    """Its end waits for an attempt, which here waits for the event loop."""
    slow = with_slow_resolver(app)
    add_endpoint(database, "https://slow.test/", now=utc_now())
    end_job(database, now=utc_now())

    async def start_and_stop() -> None:
        async with app.router.lifespan_context(app):
            await to_thread.run_sync(lambda: wait_until(lambda: slow.asked, within_s=30))
            asyncio.get_running_loop().call_soon(slow.released.set)

    began_s = time.monotonic()
    asyncio.run(start_and_stop())

    assert time.monotonic() - began_s < TOTAL_S
    assert slow.asked == ["slow.test"]


def test_a_message_that_is_replayed_or_altered_is_not_believed(
    strict: openai.OpenAI, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])
    strict.webhooks.test(created.id, event_type=SUCCEEDED)
    request = receiver.requests[0]
    receiver.requests.append(
        type(request)(request.path, request.headers, request.body.replace(b"succeeded", b"failed"))
    )
    with pytest.raises(openai.InvalidWebhookSignatureError):
        verify(receiver, created.signing_secret)

    receiver.requests.append(request)
    verify(receiver, created.signing_secret)
    in_six_minutes = time.time() + 360
    monkeypatch.setattr("openai.lib._webhooks.time.time", lambda: in_six_minutes)
    with pytest.raises(openai.InvalidWebhookSignatureError, match="too old"):
        verify(receiver, created.signing_secret)


def test_a_rotated_secret_signs_from_now_on(strict: openai.OpenAI, receiver: Receiver) -> None:
    old = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])

    new = strict.webhooks.rotate_secret(old.id)
    strict.webhooks.test(old.id, event_type=SUCCEEDED)

    verify(receiver, new.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        verify(receiver, old.signing_secret)


def test_the_old_secret_can_sign_as_well(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    old = strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])

    new = strict.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
    strict.webhooks.test(old.id, event_type=SUCCEEDED)

    verify(receiver, new.signing_secret)
    verify(receiver, old.signing_secret)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"url": "https://127.0.0.1/"}, "url", "webhook_target_refused"),
        ({"url": "http://169.254.169.254/latest"}, "url", "webhook_target_refused"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"event_types": ["batch.completed"]}, "event_types[0]", "invalid_value"),
        ({"name": ""}, "name", "invalid_value"),
        ({"secret": "mine"}, "secret", "unknown_parameter"),
    ],
)
def test_a_bad_endpoint_is_refused(
    client: TestClient, receiver: Receiver, body: dict[str, object], param: str, code: str
) -> None:
    good = {"name": "a", "url": receiver.origin, "event_types": [SUCCEEDED]}
    created = client.post("/v1/webhook_endpoints", json=good).json()

    for path in ("/v1/webhook_endpoints", f"/v1/webhook_endpoints/{created['id']}"):
        answer = client.post(path, json={**good, **body})
        assert answer.status_code == 400
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_a_project_has_a_limited_number_of_endpoints(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    for _ in range(MAX_ENDPOINTS):
        add_endpoint(database, receiver.origin)

    with pytest.raises(openai.BadRequestError) as error:
        strict.webhooks.create(name="a", url=receiver.origin, event_types=[SUCCEEDED])

    assert error.value.code == "too_many_webhook_endpoints"


def test_an_endpoint_shows_how_it_goes(
    strict: openai.OpenAI, receiver: Receiver, database: Database
) -> None:
    receiver.status = 503
    endpoint = add_endpoint(database, receiver.origin, now=utc_now())
    end_job(database)

    def fails() -> bool:
        return (strict.webhooks.retrieve(endpoint.id).to_dict()["last_error"]) is not None

    wait_until(fails, within_s=30)
    shown = strict.webhooks.retrieve(endpoint.id).to_dict()
    assert shown["deliveries"] == {"pending": 1, "delivered": 0, "failed": 0}
    assert "503" in str(shown["last_error"])


def test_no_endpoint_of_another_project_is_found(
    client: TestClient, receiver: Receiver, database: Database
) -> None:
    with database.writing() as session:
        session.add(Project(id="proj-other", name="other", created_at=NOW))
    foreign = add_endpoint(database, receiver.origin, project_id="proj-other")
    path = f"/v1/webhook_endpoints/{foreign.id}"

    answers = [
        client.get(path),
        client.post(path, json={"name": "mine"}),
        client.delete(path),
        client.post(f"{path}/rotate_secret", json={}),
        client.post(f"{path}/test", json={"event_type": SUCCEEDED}),
    ]

    assert [answer.status_code for answer in answers] == [404] * 5
    assert client.get("/v1/webhook_endpoints").json()["data"] == []
    end_job(database)
    assert list_deliveries(database) == []


def test_webhooks_are_off_until_the_operator_allows_targets(
    settings: Settings, database: Database
) -> None:

    app = create_app(settings.model_copy(update={"webhook_targets": ""}))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post(
            "/v1/webhook_endpoints",
            json={"name": "a", "url": "https://example.com", "event_types": [SUCCEEDED]},
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "webhooks_disabled"
    assert "TUNERY_WEBHOOK_TARGETS" in answer.json()["error"]["message"]
