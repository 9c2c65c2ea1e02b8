"""An export by a worker: what becomes of the task, for every way its child can end."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.compute_choices import training_memory
from app.core.db.check_tables import Task
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import MEMORY_PAUSE, RecoveryRepository
from app.core.db.repositories.tasks.leases import MAX_CRASHES
from app.core.db.session import Database
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.artifacts import GGUF_ADAPTER_NAME
from app.core.job.child.job_spec import BASE_MODEL_NAME, JOB_SPEC_NAME, JobSpec
from app.core.job.child.training_events import (
    Checked,
    Exported,
    Failed,
    MemoryShort,
    OutOfSpace,
    Progressed,
    Started,
)
from app.core.manifest import MANIFEST_NAME, atomic_directory
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_job, add_worker, build_data_report, list_blobs
from tests.exports import VERIFICATION, read_task
from tests.fakes import Act, FakeLauncher, FrozenClock, Waiting
from tests.task_bench import Bench, doing
from worker.beside import PAUSE_AFTER_FAILURE_S, BesideTraining
from worker.tasks.loop import TaskDoer

EXPORTED = Exported(verification=VERIFICATION)
SHORT = MemoryShort(message="Short.", device="cpu", needed_bytes=6, total_bytes=16)


@pytest.fixture
def bench(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Bench:
    return Bench(settings, database, store, catalogue, clock)


def export_made(directory: Path) -> Exported:
    """Write an export as a child does, and report it."""
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    with atomic_directory(directory / "out/export", 1, spec) as target:
        (target / GGUF_ADAPTER_NAME).write_bytes(b"GGUF")
    return EXPORTED


def test_an_export_is_published_with_its_files_and_how_it_was_verified(bench: Bench) -> None:
    assert bench.do(Progressed(fraction=0.5), export_made) == 0.0

    task = bench.task()
    assert (task.status, task.result) == ("succeeded", VERIFICATION.model_dump(mode="json"))
    assert task.files is not None
    assert task.files.keys() == {GGUF_ADAPTER_NAME, MANIFEST_NAME}
    with bench.store.open(task.files[GGUF_ADAPTER_NAME]["key"]) as blob:
        assert blob.read() == b"GGUF"
    assert not bench.launcher.directories[0].exists()
    assert bench.do() is None


def test_the_child_is_given_the_checkpoint_and_its_base_model(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    def look(directory: Path) -> None:
        seen["spec"] = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
        seen["adapter"] = {path.name for path in (directory / ADAPTER_DIRECTORY_NAME).iterdir()}
        seen["base"] = (directory / BASE_MODEL_NAME).is_dir()

    bench.do(look, export_made)

    assert (seen["spec"].task, seen["spec"].threads) == ("export_gguf", 1)
    assert seen["spec"].fine_tuned_model == bench.job.fine_tuned_model
    assert seen["adapter"] == {"adapter_model.safetensors", MANIFEST_NAME}
    assert seen["base"]


def test_an_adapter_that_was_imported_is_exported_as_well(bench: Bench) -> None:
    """Its manifest names the archive that it came from, and no data."""
    archive = {"filename": "mine.zip", "sha256": "c" * 64}
    bench.give_manifest(bench.checkpoint, {"imported": archive})
    seen: list[JobSpec] = []

    def look(directory: Path) -> None:
        seen.append(JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes()))

    bench.do(look, export_made)

    assert bench.task().status == "succeeded"
    assert seen[0].training_file.filename == "mine.zip"
    assert seen[0].fine_tuned_model == bench.job.fine_tuned_model


def test_progress_is_written_while_the_child_works(bench: Bench) -> None:
    seen: list[float] = []

    bench.do(
        Progressed(fraction=0.25),
        doing(lambda: seen.append(bench.task().progress)),
        export_made,
    )

    assert seen == [0.25]


def test_what_the_child_refuses_fails_the_task_with_its_reason(bench: Bench) -> None:
    bench.do(Failed(code="not_enough_memory", message="It needs 14 GB."))

    task = bench.task()
    assert task.status == "failed"
    assert task.error is not None
    assert (task.error["code"], task.error["message"]) == ("not_enough_memory", "It needs 14 GB.")


def test_a_child_that_dies_is_started_again_and_in_the_end_the_task_fails(bench: Bench) -> None:
    for _ in range(MAX_CRASHES - 1):
        assert bench.do(exit_code=-11) == PAUSE_AFTER_FAILURE_S
        assert bench.task().status == "queued"

    bench.do(exit_code=-11)

    error = bench.task().error
    assert error is not None
    assert error["code"] == "export_crashed"
    assert "SIGSEGV" in error["message"]


def test_a_full_disk_is_tried_again_and_in_the_end_the_task_fails(bench: Bench) -> None:
    for _ in range(MAX_CRASHES):
        bench.do(OutOfSpace(message="The disk is full."))

    error = bench.task().error
    assert error is not None
    assert error["message"].startswith("The disk is full, 3 times")


@pytest.mark.parametrize(
    "acts",
    [
        [Started(total_steps=1)],
        [Checked(report=build_data_report())],
        [EXPORTED, EXPORTED],
        [*[Progressed(fraction=0.5)] * 1001],
    ],
    ids=["started", "checked", "twice", "progress"],
)
def test_a_child_that_reports_what_no_export_does_fails_the_task(
    bench: Bench, acts: list[Act]
) -> None:
    bench.do(*acts)

    error = bench.task().error
    assert error is not None
    assert error["code"] == "training_protocol_violated"


def test_an_export_larger_than_its_room_is_not_stored(bench: Bench) -> None:
    with bench.database.writing() as session:
        session.get_one(Task, bench.task_id).bytes = 3

    bench.do(export_made)

    error = bench.task().error
    assert error is not None
    assert error["code"] == "training_protocol_violated"
    assert list_blobs(bench.store) == bench.blobs


def test_what_a_deleted_job_was_exported_to_is_freed(bench: Bench) -> None:
    bench.do(doing(bench.delete_job), export_made)

    assert read_task(bench.database, bench.task_id) is None
    assert [key for key in list_blobs(bench.store) if "task_" in key] == []


def test_a_worker_whose_task_was_taken_over_publishes_nothing(bench: Bench) -> None:
    other = TaskDoer("worker-2", bench.resources, FakeLauncher([export_made]))

    def lose() -> None:
        bench.clock.advance(timedelta(hours=1))
        assert other.do_next(lambda: None) == 0.0

    bench.do(doing(lose), export_made)

    task = bench.task()
    assert (task.status, task.number) == ("succeeded", 2)
    assert all("export-2" in file["key"] for file in (task.files or {}).values())
    assert [key for key in list_blobs(bench.store) if "export-1" in key] == []


def test_a_worker_that_is_stopped_gives_its_task_back(bench: Bench) -> None:
    tasks = BesideTraining(bench.doer.do_next)
    bench.launcher.acts = [doing(tasks.stop), export_made]

    tasks.run()

    task = bench.task()
    assert (task.status, task.worker_id, task.crashes) == ("queued", None, 0)
    assert task.not_before is None


def test_a_task_that_finds_too_little_memory_is_tried_later_however_often(bench: Bench) -> None:
    for tries in range(1, MAX_CRASHES + 1):
        assert bench.do(SHORT) == PAUSE_AFTER_FAILURE_S
        task = bench.task()
        assert (task.status, task.crashes, task.releases) == ("queued", 0, tries)
        assert bench.do() is None
        bench.clock.advance(MEMORY_PAUSE)

    bench.do(export_made)
    assert bench.task().status == "succeeded"


def test_the_child_is_told_what_memory_is_for_jobs(bench: Bench, settings: Settings) -> None:
    seen: list[JobSpec] = []

    def look(directory: Path) -> MemoryShort:
        seen.append(JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes()))
        return SHORT

    bench.do(look)

    assert seen[0].memory_bytes == training_memory(settings)


def test_a_task_is_given_back_to_a_job_that_needs_the_memory_and_done_later(bench: Bench) -> None:
    add_worker(bench.database)

    def fall_short() -> None:
        add_job(bench.database)
        bench.clock.advance(timedelta(seconds=1))
        with bench.database.writing() as session:
            lease_for, now = timedelta(minutes=1), bench.clock()
            lease = LeaseRepository(session).claim("worker-1", now=now, lease_for=lease_for)
            assert lease is not None
            RecoveryRepository(session).wait_for_memory(lease, SHORT, now=now)

    assert bench.do(doing(fall_short), Waiting()) == PAUSE_AFTER_FAILURE_S
    task = bench.task()
    assert (task.status, task.crashes, task.releases) == ("queued", 0, 1)

    assert bench.do() is None
    bench.clock.advance(MEMORY_PAUSE)
    bench.do(export_made)
    assert bench.task().status == "succeeded"


def test_the_project_pays_for_the_processor_time_of_the_child(bench: Bench) -> None:
    def spent_s() -> float:
        with bench.database.reading() as session:
            usage = UsageRepository(session, DEFAULT_PROJECT_ID)
            return usage.processor_s(now=bench.clock())

    before_s = spent_s()
    bench.launcher.processor_s = 1.5

    bench.do(doing(lambda: bench.clock.advance(timedelta(seconds=50))), export_made)

    assert spent_s() == before_s + 1.5


def test_a_checkpoint_that_has_changed_fails_the_task(bench: Bench, store: LocalBlobStore) -> None:
    file = next(one for one in bench.checkpoint.files if one.filename.endswith("safetensors"))
    store.delete(file.blob_key)
    scratch = store.scratch_file()
    scratch.write_bytes(b"other")
    store.put(file.blob_key, scratch)

    bench.do(export_made)

    error = bench.task().error
    assert error is not None
    assert "has changed" in error["message"]


def test_a_job_that_trains_has_another_lock_than_its_exports(bench: Bench) -> None:
    bench.do(export_made)

    directory = bench.launcher.directories[0]
    assert directory.parent.name == bench.task_id
