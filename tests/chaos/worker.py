"""`python -m tests.chaos.worker`: the real worker, with a child that learns nothing, but fast.

With TUNERY_TEST_MUTATION=no-fence in its environment its writes name no attempt any more: what
the harness must notice. With TUNERY_TEST_HOST it takes itself for a worker on a machine of that
name, and TUNERY_TEST_LOCKS is where the children of all these machines find out if they are alone.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.core.db.repositories import leases
from app.core.db.tables import Job
from tests.builders import build_data_report
from tests.chaos.stand_in_trainer import LOCK_NAME, REPORT_NAME, lock_of
from worker import janitor, presence
from worker.__main__ import main
from worker.attempt.lease_keeper import LeaseKeeper
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import Sandbox


def remove_fence() -> None:
    leases._is_held = lambda lease: (Job.id == lease.job_id,)
    LeaseKeeper.is_lost = property(lambda _self: False)


def let_children_lock() -> None:
    """Let the children of a job see a directory that they lock, to find out if they are alone."""
    confine = Sandbox.confine

    @contextmanager
    def confine_with_lock(
        self: Sandbox, directory: Path, module: str
    ) -> Generator[Confinement | None]:
        lock = lock_of(directory)
        lock.mkdir(exist_ok=True)
        lock.chmod(0o755)
        share_lock(lock, Path(os.environ.get("TUNERY_TEST_LOCKS", lock)))
        report = lock / REPORT_NAME
        if not report.exists():
            report.write_text(build_data_report().model_dump_json())
            report.chmod(0o644)
        with confine(self, directory, module) as it:
            more = () if it is None else (*it.readable, lock.resolve())
            yield it and it.model_copy(update={"readable": more})

    Sandbox.confine = confine_with_lock


def share_lock(lock: Path, locks: Path) -> None:
    """Make a name for one file in all machines' directories: they share a kernel, so its lock."""
    file = locks / f"{lock.name}.lock"
    file.touch()
    file.chmod(0o644)
    with suppress(FileExistsError):
        (lock / LOCK_NAME).hardlink_to(file)


def move_to(host: str) -> None:
    """Let other machines not look for this process among theirs."""
    presence.this_host = janitor.this_host = lambda: host


if __name__ == "__main__":
    let_children_lock()
    if "TUNERY_TEST_HOST" in os.environ:
        move_to(os.environ["TUNERY_TEST_HOST"])
    if os.environ.get("TUNERY_TEST_MUTATION") == "no-fence":
        remove_fence()
    sys.exit(main("tests.chaos.stand_in_trainer"))
