"""A worker whose blob store does not answer: no job fails, and no checkpoint is lost."""

import threading
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from app.core.base_models import Catalogue
from app.core.db.session import Database
from app.core.errors import StoreAwayError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_job, build_lease, get_job
from tests.fakes import FakeLauncher, FrozenClock
from tests.waiting import wait_until
from worker.attempt import attempt_store
from worker.attempt.attempt_store import AttemptStore
from worker.attempt.endings import Released, end_of_error
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Signal
from worker.loop import Worker
from worker.stored_file import READS, DataDamagedError, copy_data


class AwayStore(LocalBlobStore):
    """Is away for as long as it is told."""

    is_away = True
    asked = 0

    def put(self, key: str, scratch: Path) -> None:
        self._answer()
        super().put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        self._answer()
        return super().open(key)

    def _answer(self) -> None:
        self.asked += 1
        if self.is_away:
            raise StoreAwayError(for_operator="The blob store s3://b/p cannot be used: reset.")


@pytest.fixture
def away(settings: Settings) -> AwayStore:
    return AwayStore(settings.blobs_dir)


class Keeper:
    """Wants what it is told to."""

    signal = Signal.CONTINUE

    def requested_signal(self) -> Signal:
        return self.signal


@pytest.fixture
def patient(
    away: AwayStore, monkeypatch: pytest.MonkeyPatch
) -> tuple[AttemptStore, Keeper, Callable[[], Path]]:
    monkeypatch.setattr(attempt_store, "PAUSE_S", 0.01)
    keeper = Keeper()

    def scratch() -> Path:
        path = away.scratch_file()
        path.write_bytes(b"bytes")
        return path

    return AttemptStore(away, keeper), keeper, scratch  # pyright: ignore[reportArgumentType]


def test_a_checkpoint_is_stored_as_soon_as_the_store_answers(
    away: AwayStore, patient: tuple[AttemptStore, Keeper, Callable[[], Path]]
) -> None:
    store, _, scratch = patient
    waiting = threading.Thread(target=store.put, args=("jobs/j/log", scratch()), daemon=True)

    waiting.start()
    wait_until(lambda: away.asked > 2, within_s=30)
    away.is_away = False
    waiting.join(30)

    with away.open("jobs/j/log") as blob:
        assert blob.read() == b"bytes"


@pytest.mark.parametrize("signal", [Signal.SAVE_AND_STOP, Signal.KILL])
def test_a_job_that_is_wanted_back_waits_no_longer(
    patient: tuple[AttemptStore, Keeper, Callable[[], Path]], signal: Signal
) -> None:
    store, keeper, scratch = patient
    keeper.signal = signal

    with pytest.raises(StoreAwayError):
        store.put("jobs/j/log", scratch())


def test_an_attempt_that_cannot_read_its_data_gives_the_job_back_uncounted(
    database: Database,
    settings: Settings,
    away: AwayStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> None:
    away.is_away = False
    file = add_file(database, away)
    job = add_job(database, training_file_id=file.id)
    away.is_away = True
    resources = Resources(settings, database, away, catalogue, FakeLauncher(), clock)
    worker = Worker("worker-1", resources, lambda: None)

    for _ in range(15):  # more than the interruptions that a job may have
        try:
            worker.run_once()
        except StoreAwayError:
            continue

    waiting = get_job(database, job.id)
    assert (waiting.status, waiting.crashes, waiting.interruptions) == (JobStatus.QUEUED, 0, 0)
    assert waiting.attempt == 1  # nothing was claimed again before the store answered


def test_it_is_no_failure_of_the_job(database: Database) -> None:
    lease = build_lease(add_job(database))

    end = end_of_error(StoreAwayError(for_operator="It is away."), lease)

    assert end == Released("The blob store does not answer")


def test_data_with_other_bytes_is_read_twice_and_then_refused(
    database: Database, store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = add_file(database, store, b'{"text": "right"}\n')
    copy_data(store, file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b'{"text": "right"}\n'

    scratch = store.scratch_file()
    scratch.write_bytes(b'{"text": "wrong"}\n')
    store.put(file.blob_key, scratch)
    opened: list[str] = []
    open_blob = store.open

    def counting(key: str) -> BufferedReader:
        opened.append(key)
        return open_blob(key)

    monkeypatch.setattr(store, "open", counting)
    with pytest.raises(DataDamagedError) as damaged:
        copy_data(store, file, tmp_path / "other")

    assert len(opened) == READS
    error = end_of_error(damaged.value, build_lease(add_job(database), training_file_id=file.id))
    assert (getattr(error, "code", None), getattr(error, "param", None)) == (
        "data_damaged",
        "training_file",
    )
