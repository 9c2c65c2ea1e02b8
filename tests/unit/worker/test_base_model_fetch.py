"""A worker whose machine lacks the base model of its work, and a store that has it."""

import errno
import hashlib
import io
import math
import os
import re
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import InstalledModel, digest_of_files, load_catalogue
from app.core.db.repositories.base_models.stored import FETCH_PAUSE, StoredModels
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.job.child.job_spec import BASE_MODEL_NAME
from app.core.job.child.training_events import Failed, TrainingEvent
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.core.stored_models import fetching
from app.core.stored_models.reach import list_failed, list_reachable
from benchmarks.support.samples import catalogue_entry, write_entries
from tests.builders import NOW, TEXT_LINE, add_file, add_job, claim, get_job
from tests.fakes import FakeLauncher, FrozenClock
from tests.hub_stand_in import HubStandIn, StandInRepo
from tests.models import install_models, tiny_model_files, write_files
from tests.waiting import wait_until
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.data_check.loop import DataChecker
from worker.launch.launcher import Signal
from worker.model_store.shared import keep_in_store

ENDS_BADLY = Failed(code="diverged", message="It is over.")


class Bench:
    """A store with the base model `shared`, and a worker whose machine has none."""

    def __init__(
        self, root: Path, settings: Settings, database: Database, clock: FrozenClock
    ) -> None:
        self.settings = settings.model_copy(update={"store_url": "s3://not-asked"})
        self.database = database
        self.clock = clock
        self.store = LocalBlobStore(root / "bucket")
        self.catalogue = load_catalogue(settings.data_dir)
        self.root = root
        self.launcher = FakeLauncher()
        self.seen: list[Path] = []

    def publish(self, name: str = "source", *, weight_bytes: int = 4096) -> InstalledModel:
        """Install a version of `shared` on another machine, which stores it."""
        files = tiny_model_files(weight_bytes=weight_bytes)
        source = write_files(self.root / name, files)
        data_dir = self.root / f"{name}-machine"
        install_models(
            data_dir, catalogue_entry("shared", source={"kind": "directory", "path": str(source)})
        )
        other = load_catalogue(data_dir)
        installed = other.find_installed("shared")
        assert installed is not None
        keep_in_store(installed, other.directory("shared"), self.database, self.store, now=NOW)
        return installed

    def add_job(self, base_model: InstalledModel | str, sha256: str = "", **changes: object) -> Job:
        if isinstance(base_model, InstalledModel):
            base_model, sha256 = base_model.id, base_model.sha256
        file = add_file(self.database, self.store, TEXT_LINE * 3)
        return add_job(
            self.database,
            base_model=base_model,
            base_model_sha256=sha256,
            training_file_id=file.id,
            **changes,
        )

    def attempt(self, **options: Any) -> Attempt:
        self.launcher.acts = (self.look,)
        resources = Resources(
            self.settings,
            self.database,
            self.store,
            self.catalogue,
            self.launcher,
            self.clock,
            cancel_poll_interval_s=0.01,
        )
        return Attempt(claim(self.database, now=self.clock()), resources, **options)

    def look(self, directory: Path) -> TrainingEvent:
        self.seen.append((directory / BASE_MODEL_NAME).resolve())
        return ENDS_BADLY

    def messages(self, job: Job) -> list[str]:
        with self.database.reading() as session:
            events = EventRepository(session, DEFAULT_PROJECT_ID)
            return [event.message for event in events.list_page(job.id, after=None, limit=100).rows]


@pytest.fixture
def bench(tmp_path: Path, settings: Settings, database: Database, clock: FrozenClock) -> Bench:
    return Bench(tmp_path, settings, database, clock)


def test_a_missing_base_model_is_fetched_and_the_user_is_told(bench: Bench) -> None:
    job = bench.add_job(bench.publish())

    bench.attempt().run()

    assert bench.seen == [bench.catalogue.directory("shared").resolve()]
    assert get_job(bench.database, job.id).error["code"] == "diverged"
    told = "\n".join(bench.messages(job))
    assert "Fetching base model shared from the store to the worker's machine: 0.00 GB" in told
    assert re.search(r"Base model shared is on the worker's machine after \d+ s", told)


def test_a_job_gets_its_own_version_while_another_one_is_installed(bench: Bench) -> None:
    old, new = bench.publish("old"), bench.publish("new", weight_bytes=8192)
    bench.add_job(new)
    bench.attempt().run()
    bench.add_job(old)

    bench.attempt().run()

    directory = bench.catalogue.directory("shared")
    assert bench.seen == [directory, directory.with_name(f"shared@{old.sha256}")]
    assert (directory / "model.safetensors").stat().st_size > 8192
    assert 8192 > (bench.seen[1] / "model.safetensors").stat().st_size > 4096


def test_a_job_waits_however_often_its_base_model_cannot_be_fetched(bench: Bench) -> None:
    installed = bench.publish()
    job = bench.add_job(installed)
    with bench.database.reading() as session:
        copy = StoredModels(session).find("shared")
    assert copy is not None
    weights = copy.files["model.safetensors"].key
    with bench.store.open(weights) as source:
        content = source.read()
    bench.store.delete(weights)

    for _ in range(12):
        attempt = bench.attempt()
        attempt.run()
        assert attempt.must_wait
        bench.clock.advance(FETCH_PAUSE)

    waiting = get_job(bench.database, job.id)
    assert (waiting.status, waiting.interruptions) == (JobStatus.QUEUED, 0)
    assert waiting.waiting_reason is not None
    assert waiting.waiting_reason.startswith(
        "The file model.safetensors of the base model shared is missing in the store"
    )
    assert sum("could not be fetched" in message for message in bench.messages(job)) == 1
    assert not bench.seen
    scratch = bench.store.scratch_file()
    scratch.write_bytes(content)
    bench.store.put(weights, scratch)
    bench.attempt().run()
    assert len(bench.seen) == 1


def test_a_machine_leaves_a_model_that_it_could_not_fetch_to_others(bench: Bench) -> None:
    def reachable(*, is_shared: bool = True) -> set[str]:
        with bench.database.reading() as session:
            return set(list_reachable(session, bench.catalogue, is_shared=is_shared))

    installed = bench.publish()
    assert reachable() > {"tiny", "hub-tiny", "shared"}  # and what the hub has at a pinned commit
    assert reachable(is_shared=False) == {"tiny", "hub-tiny"}
    bench.add_job(installed)
    with bench.database.reading() as session:
        copy = StoredModels(session).find("shared")
    assert copy is not None
    bench.store.delete(copy.files["config.json"].key)

    bench.attempt().run()

    assert "shared" not in reachable()
    assert list_failed(bench.catalogue) == ["shared"]
    marker = bench.catalogue.directory(".shared.away")
    ago_s = time.time() - FETCH_PAUSE.total_seconds()
    os.utime(marker, (ago_s, ago_s))
    assert list_failed(bench.catalogue) == ["shared"], "other machines come first"
    os.utime(marker, (ago_s - 60, ago_s - 60))
    assert (list_failed(bench.catalogue), "shared" in reachable()) == ([], True)


def test_without_a_copy_in_the_store_the_job_waits_and_says_what_to_do(bench: Bench) -> None:
    installed = bench.publish()
    job = bench.add_job(installed)
    with bench.database.writing() as session:
        StoredModels(session).remove("shared")

    bench.attempt().run()

    waiting = get_job(bench.database, job.id)
    assert waiting.status is JobStatus.QUEUED
    assert "tunery models install shared" in (waiting.waiting_reason or "")


@pytest.mark.parametrize("copied", ["weights", "data"])
@pytest.mark.parametrize(
    ("wanted", "then"),
    [
        ("cancel", JobStatus.CANCELLED),
        ("pause", JobStatus.PAUSED),
        ("drain", JobStatus.QUEUED),
    ],
)
def test_a_job_that_is_not_to_go_on_waits_for_no_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, wanted: str, then: JobStatus, copied: str
) -> None:
    job = bench.add_job(bench.publish())
    with bench.database.reading() as session:
        data = session.get_one(File, job.training_file_id).blob_key
    drained_s: list[float] = []
    attempt = bench.attempt(stop_at_s=lambda: math.inf if drained_s else None)
    open_blob = bench.store.open

    def open_after_wish(key: str) -> object:
        if key.endswith("model.safetensors") if copied == "weights" else key == data:
            with bench.database.writing() as session:
                running = JobRepository(session, DEFAULT_PROJECT_ID).get(job.id)
                if wanted == "cancel":
                    running.cancel_requested_at = bench.clock()
                elif wanted == "pause":
                    running.pause_requested_at = bench.clock()
                else:
                    drained_s.append(0.0)
            wait_until(lambda: attempt.requested_signal() is not Signal.CONTINUE, within_s=10)
        return io.BytesIO() if key == data else open_blob(key)  # no byte of it is asked for

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "open", open_after_wish)
        attempt.run()

    ended = get_job(bench.database, job.id)
    assert (ended.status, ended.interruptions, ended.crashes) == (then, 0, 0)
    assert not bench.seen, "no child was started"
    assert (bench.catalogue.find_installed("shared") is None) == (copied == "weights")
    partial = bench.catalogue.hidden_directory("shared", job.base_model_sha256 or "", "partial")
    assert (partial / "config.json").exists() == (copied == "weights")
    if then is JobStatus.QUEUED:
        bench.attempt().run()
        assert len(bench.seen) == 1


def test_a_disk_without_room_makes_the_job_wait_and_says_what_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.add_job(bench.publish())

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "free_bytes", lambda _: bench.settings.min_free_bytes + 1000)
        bench.attempt().run()

    waiting = get_job(bench.database, job.id)
    assert (waiting.status, waiting.interruptions) == (JobStatus.QUEUED, 0)
    assert "more on the disk of the worker's data directory" in (waiting.waiting_reason or "")
    assert "tunery models remove" in (waiting.waiting_reason or "")
    assert list_failed(bench.catalogue) == ["shared"]
    bench.clock.advance(FETCH_PAUSE)
    bench.attempt().run()
    assert len(bench.seen) == 1
    assert list_failed(bench.catalogue) == [], "it is here, so its checks need not wait"


def test_a_disk_that_fills_up_during_a_fetch_leaves_no_half_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = bench.publish(weight_bytes=3 * 1024 * 1024)
    job = bench.add_job(installed)
    open_file, room = Path.open, 1024 * 1024

    def open_on_small_disk(path: Path, *args: Any, **options: Any) -> Any:
        if path.name != "model.safetensors.incomplete":
            return open_file(path, *args, **options)
        file = open_file(path, *args, **options)
        write = file.write

        def write_if_room(content: bytes) -> int:
            if file.tell() + len(content) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(content)

        small = MagicMock(wraps=file)
        small.write = write_if_room
        small.__enter__.return_value = small
        small.__exit__.side_effect = lambda *_: file.close()
        return small

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_small_disk)
        bench.attempt().run()

    waiting = get_job(bench.database, job.id)
    assert (waiting.status, waiting.interruptions) == (JobStatus.QUEUED, 0)
    assert "No space left on device" in (waiting.waiting_reason or "")
    assert bench.catalogue.find_version("shared", installed.sha256) is None
    partial = bench.catalogue.hidden_directory("shared", installed.sha256, "partial")
    assert (partial / "model.safetensors.incomplete").stat().st_size == room
    assert not (partial / "model.safetensors").exists()
    bench.clock.advance(FETCH_PAUSE)
    bench.attempt().run()
    assert len(bench.seen) == 1


def test_a_model_that_the_store_lacks_comes_from_the_hub_at_its_pinned_commit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_model_files()
    source = {"kind": "hub", "repo": "us/pinned", "revision": "1" * 40}
    write_entries(bench.settings.data_dir, catalogue_entry("pinned", source=source))
    bench.catalogue = load_catalogue(bench.settings.data_dir)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    sha256 = digest_of_files(digests)
    changed = bench.add_job("pinned", "f" * 64)
    job = bench.add_job("pinned", sha256, priority=1)  # it is first

    with HubStandIn().running() as hub:
        hub.repos["us/pinned"] = StandInRepo({"1" * 40: files}, "1" * 40)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        bench.attempt().run()
        bench.clock.advance(FETCH_PAUSE)
        bench.attempt().run()

    assert get_job(bench.database, job.id).error["code"] == "diverged"  # as its child ended it
    assert bench.seen == [bench.catalogue.directory("pinned").resolve()]
    assert "Fetching base model pinned from the model hub" in "\n".join(bench.messages(job))
    waiting = get_job(bench.database, changed.id)
    assert waiting.status is JobStatus.QUEUED
    assert "as it was when the job was created, is neither" in (waiting.waiting_reason or "")


def test_the_lease_is_renewed_during_a_fetch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.settings = bench.settings.model_copy(update={"lease_s": 0.6})
    job = bench.add_job(bench.publish())
    attempt = bench.attempt()
    open_blob = bench.store.open

    def open_late(key: str) -> object:
        time.sleep(0.4)
        return open_blob(key)

    monkeypatch.setattr(bench.store, "open", open_late)

    attempt.run()

    assert len(bench.seen) == 1  # after seven files of 0.4 s each, with a lease of 0.6 s
    assert get_job(bench.database, job.id).status is JobStatus.FAILED  # as its child ended it


def test_a_check_of_data_fetches_no_weights(bench: Bench) -> None:
    installed = bench.publish(weight_bytes=1024 * 1024)
    bench.add_job(installed, status=JobStatus.VALIDATING_FILES)
    bench.launcher.acts = (bench.look,)
    resources = Resources(
        bench.settings,
        bench.database,
        bench.store,
        bench.catalogue,
        bench.launcher,
        bench.clock,
    )

    DataChecker("worker-1", resources, bench.launcher).check_small(lambda: None)

    outline = bench.catalogue.hidden_directory("shared", installed.sha256, "outline")
    assert bench.seen == [outline.resolve()]
    assert bench.catalogue.find_version("shared", installed.sha256) is None
    weights = outline / "model.safetensors"
    assert weights.stat().st_blocks * 512 < 100_000 < weights.stat().st_size
