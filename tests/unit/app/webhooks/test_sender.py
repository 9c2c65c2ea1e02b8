"""Which event is sent when: by senders with a clock of the test, to a receiver of the test."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from app.core.db.repositories.webhooks import GIVE_UP_AFTER
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.webhooks.client import WebhookClient
from app.webhooks.sender import FIRST_PAUSE_S, LEASE, LONGEST_PAUSE_S, Sender
from app.webhooks.targets import TargetPolicy
from tests.builders import MINUTE
from tests.fakes import FrozenClock
from tests.waiting import wait_until
from tests.webhooks import (
    Receiver,
    SlowResolver,
    add_endpoint,
    allow,
    end_job,
    get_endpoint,
    list_deliveries,
    queue_event,
    receiving,
    unwrap,
)
from worker.janitor import Janitor

LONGEST_PAUSE = timedelta(seconds=LONGEST_PAUSE_S)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def sender(database: Database, receiver: Receiver, clock: FrozenClock) -> Sender:
    return Sender(database, WebhookClient(allow(receiver)), clock=clock, jitter=lambda: 1.0)


def send_all(sender: Sender) -> int:
    """Send what is due. Returns the number of attempts."""
    attempts = 0
    while sender.send_next():
        attempts += 1
    return attempts


def test_the_end_of_a_job_is_sent_once_and_the_stock_client_believes_it(
    sender: Sender,
    database: Database,
    receiver: Receiver,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = add_endpoint(database, f"{receiver.origin}/hook")
    job_id = end_job(database, now=clock())
    clock.advance(MINUTE)

    assert send_all(sender) == 1

    request = receiver.requests[0]
    event = unwrap(request, endpoint.secret, at=clock(), patch=monkeypatch)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job_id)
    assert (event.id, event.object) == (request.event_id, "event")
    assert event.created_at == int((clock() - MINUTE).timestamp())
    assert [one.status for one in list_deliveries(database)] == ["delivered"]


def test_every_endpoint_gets_the_event_under_the_same_id(
    sender: Sender, database: Database, receiver: Receiver
) -> None:
    for path in ("a", "b"):
        add_endpoint(database, f"{receiver.origin}/{path}")
    add_endpoint(database, f"{receiver.origin}/c", event_types=["fine_tuning.job.failed"])
    end_job(database)

    send_all(sender)

    assert sorted(request.path for request in receiver.requests) == ["/a", "/b"]
    assert len({request.event_id for request in receiver.requests}) == 1


@pytest.mark.parametrize("status", [302, 400, 404, 410, 500, 503])
def test_only_a_status_of_success_is_taken_for_success(
    sender: Sender, database: Database, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    endpoint = add_endpoint(database, receiver.origin)
    end_job(database)

    assert send_all(sender) == 1

    assert [one.status for one in list_deliveries(database)] == ["pending"]
    assert str(status) in (get_endpoint(database, endpoint.id).last_error or "")


def test_pauses_become_longer_up_to_a_limit(
    sender: Sender, database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    receiver.status = 500
    endpoint = add_endpoint(database, receiver.origin)
    end_job(database)
    pauses: list[float] = []
    for _ in range(9):
        assert send_all(sender) == 1
        pause = get_endpoint(database, endpoint.id).retry_at - clock()
        pauses.append(pause.total_seconds())
        clock.advance(pause)

    assert pauses == [10, 20, 40, 80, 160, 320, 640, 900, 900]
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)


def test_new_events_that_fail_during_a_pause_do_not_make_it_longer(
    sender: Sender, database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    receiver.status = 500
    endpoint = add_endpoint(database, receiver.origin)
    for _ in range(5):
        queue_event(database)

    assert send_all(sender) == 5

    pause = get_endpoint(database, endpoint.id).retry_at - clock()
    assert pause.total_seconds() == FIRST_PAUSE_S


def test_a_receiver_that_is_back_gets_everything_at_once(
    sender: Sender, database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    """While it is down, it costs one attempt for each pause, and one for each new event."""
    add_endpoint(database, receiver.origin)
    receiver.stop()
    attempts = 0
    for _ in range(60):
        queue_event(database, now=clock())
        attempts += send_all(sender)
        clock.advance(MINUTE)
    assert attempts < 60 + 12

    receiver.start()
    clock.advance(LONGEST_PAUSE)

    assert send_all(sender) == 60
    assert len({request.event_id for request in receiver.requests}) == 60
    assert all(one.status == "delivered" for one in list_deliveries(database))


def test_an_event_that_is_never_accepted_keeps_no_other_back(
    database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    """It is the oldest, and the others fail once as well."""
    client = WebhookClient(allow(receiver))
    sender = Sender(database, client, clock=clock, jitter=lambda: 1.0)
    add_endpoint(database, receiver.origin)
    receiver.status = 500
    for _ in range(4):
        queue_event(database)
    poison = list_deliveries(database)[0].event_id
    send_all(sender)

    for _ in range(12):
        clock.advance(LONGEST_PAUSE)
        receiver.status = 200
        receiver.refuses = poison
        send_all(sender)

    statuses = {one.event_id: one.status for one in list_deliveries(database)}
    assert statuses.pop(poison) == "pending"
    assert set(statuses.values()) == {"delivered"}


def test_an_endpoint_that_keeps_waiting_does_not_hold_up_another(
    sender: Sender, database: Database, receiver: Receiver
) -> None:
    with receiving(holds_from=1) as slow:
        client = WebhookClient(allow(receiver, slow))
        both = Sender(database, client, clock=sender._clock, poll_s=0.01)
        add_endpoint(database, slow.origin)
        add_endpoint(database, receiver.origin)
        for _ in range(20):
            queue_event(database)
        with both.running():
            wait_until(lambda: len(receiver.requests) == 20, within_s=30)
            assert len(slow.requests) == 1
            slow.stop()


def test_an_event_whose_sender_died_is_sent_again_when_the_lease_is_over(
    sender: Sender, database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    add_endpoint(database, receiver.origin)
    end_job(database)
    assert sender._claim() is not None  # and never a word about how it went

    assert send_all(sender) == 0
    clock.advance(LEASE)
    assert send_all(sender) == 1


def test_a_sender_that_comes_back_too_late_changes_nothing(
    sender: Sender, database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    add_endpoint(database, receiver.origin)
    end_job(database)
    late = sender._claim()
    clock.advance(LEASE)
    newer = sender._claim()
    assert late is not None
    assert newer is not None
    receiver.status = 500

    sender._send(late)

    assert [(one.status, one.attempts) for one in list_deliveries(database)] == [("pending", 0)]


def test_an_event_is_given_up_after_some_days_and_later_forgotten(  # noqa: PLR0917 - fixtures
    sender: Sender,
    database: Database,
    receiver: Receiver,
    clock: FrozenClock,
    settings: Settings,
    store: LocalBlobStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.status = 500
    add_endpoint(database, receiver.origin)
    end_job(database, now=clock())
    janitor = Janitor(settings, database=database, store=store, clock=clock)
    clock.advance(GIVE_UP_AFTER)
    janitor.give_up_webhooks()
    assert send_all(sender) == 1

    clock.advance(MINUTE)
    janitor.give_up_webhooks()

    assert [one.status for one in list_deliveries(database)] == ["failed"]
    assert "webhook given up" in caplog.text
    assert send_all(sender) == 0
    clock.advance(timedelta(days=8))
    janitor.give_up_webhooks()
    assert list_deliveries(database) == []


def test_a_target_that_is_not_allowed_any_more_gets_nothing(
    database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    with receiving() as allowed:
        endpoint = add_endpoint(database, receiver.origin)
        end_job(database)

        assert send_all(Sender(database, WebhookClient(allow(allowed)), clock=clock)) == 1

    assert receiver.requests == []
    assert "TUNERY_WEBHOOK_TARGETS" in (get_endpoint(database, endpoint.id).last_error or "")


def test_senders_stop_in_time_although_a_name_server_does_not_answer(
    database: Database, clock: FrozenClock
) -> None:
    slow = SlowResolver()
    client = WebhookClient(TargetPolicy("public"), resolve=slow, total_s=0.5)
    endpoint = add_endpoint(database, "https://slow.test/")
    end_job(database)

    with Sender(database, client, clock=clock, poll_s=0.01).running():
        wait_until(lambda: slow.asked, within_s=30)

    assert not slow.released.is_set()
    assert slow.asked == ["slow.test"]
    assert "not resolved in time" in (get_endpoint(database, endpoint.id).last_error or "")
    slow.released.set()


def test_running_senders_stop_when_they_are_told_to(
    database: Database, receiver: Receiver, clock: FrozenClock
) -> None:
    before = threading.active_count()
    sender = Sender(database, WebhookClient(allow(receiver)), clock=clock, poll_s=60)

    with sender.running():
        assert threading.active_count() > before

    assert threading.active_count() == before
