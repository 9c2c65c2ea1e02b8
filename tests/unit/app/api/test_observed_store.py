"""A store that is away keeps one request of the API waiting, and not all of its threads."""

import threading
from datetime import timedelta
from io import BufferedReader
from pathlib import Path

import pytest

from app.api.metrics import RequestMetrics
from app.api.observed_store import ObservedStore
from app.core.db.session import Database
from app.core.errors import StoreAwayError
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.doctor import Checkups
from tests.builders import NOW


class HangingStore(LocalBlobStore):
    """Is away, and says so when it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = threading.Semaphore(0)
        self.may_fail = threading.Event()

    def open(self, key: str) -> BufferedReader:
        self.asked.release()
        assert self.may_fail.wait(30), key
        raise StoreAwayError(for_operator="The blob store s3://b/p cannot be used: reset.")


@pytest.fixture
def hanging(settings: Settings) -> HangingStore:
    return HangingStore(settings.blobs_dir)


def test_one_download_at_a_time_tries_a_store_that_is_away(hanging: HangingStore) -> None:
    store = ObservedStore(hanging, RequestMetrics())
    hanging.may_fail.set()
    with pytest.raises(StoreAwayError):
        store.open("files/a")
    hanging.may_fail.clear()

    def fail() -> None:
        with pytest.raises(StoreAwayError):
            store.open("files/a")

    trying = threading.Thread(target=fail)
    trying.start()
    assert hanging.asked.acquire(timeout=30)
    assert hanging.asked.acquire(timeout=30), "the other one tries it again"
    fail()  # at once: the store was not told to answer
    assert not hanging.asked.acquire(blocking=False)
    hanging.may_fail.set()
    trying.join()

    fail()
    assert hanging.asked.acquire(blocking=False), "the next one tries it"


def test_a_checkup_that_waits_for_the_store_keeps_only_one_request_waiting(
    hanging: HangingStore, settings: Settings, database: Database
) -> None:
    checkups = Checkups(settings, database, hanging)
    hanging.may_fail.set()
    first = checkups.make(now=NOW)
    hanging.may_fail.clear()
    later = NOW + timedelta(minutes=1)
    waiting = threading.Thread(target=lambda: checkups.make(now=later))
    waiting.start()
    try:
        assert hanging.asked.acquire(timeout=30)
        assert hanging.asked.acquire(timeout=30), "the second checkup has begun"
        assert checkups.make(now=later) is first
    finally:
        hanging.may_fail.set()
        waiting.join()
    assert checkups.make(now=later).made_at == later
