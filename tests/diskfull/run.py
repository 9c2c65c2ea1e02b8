"""`make diskfull`: tests a real API on a full disk.

Its data directory is a small tmpfs. A filler file leaves 0, 4, 8, ... KiB free, so that every write
of an upload, a new job, a cancel and a deletion fails once for lack of space. Mounting needs root,
or `unshare --map-root-user --mount`.

    python -m tests.diskfull.run [--points N] [--seconds S]
"""

import argparse
import collections
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.doctor import examine
from app.maintenance.findings import Level
from tests.builders import build_chat_file, write_catalogue
from tunery.local_service import LocalService
from tunery.logged_process import ServiceError
from worker.janitor import Janitor

PAGE = 4096
DISK_BYTES = 48 * 1024 * 1024
BALLAST_BYTES = 1024 * 1024
SMALL, LARGE = build_chat_file(30), build_chat_file(3000)
ALLOWED = {200, 503, 507}
RECOVERY_S = 60


class Disk:
    """A tmpfs of a fixed size, with a filler file that sets how much of it is free."""

    def __init__(self, mount_point: Path) -> None:
        self.path = mount_point
        self._filler = mount_point / "filler"

    def leave(self, free: int) -> None:
        self.release()
        with self._filler.open("wb") as filler:
            disk = os.statvfs(self.path)
            size = disk.f_bavail * disk.f_frsize - free
            if size > 0:
                os.posix_fallocate(filler.fileno(), 0, size)

    def release(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted() -> Iterator[Disk]:
    with tempfile.TemporaryDirectory(prefix="tunery-diskfull-") as directory:
        options = f"size={DISK_BYTES},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
        try:
            yield Disk(Path(directory))
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


class Service:
    """An API process on the disk, and a client that counts the answers."""

    def __init__(self, disk: Disk, log_dir: Path, **settings: int) -> None:
        self.settings = Settings(_env_file=None, data_dir=disk.path / "data", **settings)
        self.answers: collections.Counter[tuple[str, int]] = collections.Counter()
        self.problems: list[str] = []
        self._service = LocalService(
            self.settings.data_dir,
            {name: str(value) for name, value in settings.items()},
            workers=0,
            cwd=log_dir,
            log_dir=log_dir,
        )
        self._api = self._service.processes["api"]
        self._client = httpx.Client(timeout=60)
        self._seeds = itertools.count()

    def start(self) -> bool:
        """Start the API. Returns whether it is ready."""
        try:
            self._service.start("api")
        except ServiceError:
            if self._api.is_running:
                raise
            return False
        return True

    def stop(self) -> None:
        self._api.stop(within_s=20)

    def check_alive(self) -> None:
        try:
            self._api.check()
        except ServiceError as error:
            self.problems.append(str(error))

    def ask(self, name: str, method: str, path: str, **body: object) -> httpx.Response:
        answer = self._client.request(method, f"{self._service.url}{path}", **body)
        self.answers[name, answer.status_code] += 1
        if answer.status_code not in ALLOWED:
            self.problems.append(f"{name}: {answer.status_code} {answer.text[:200]}")
        return answer

    def read(self, name: str, path: str) -> None:
        answer = self.ask(name, "GET", path)
        if answer.status_code != 200:
            self.problems.append(f"{name}: {answer.status_code}, but reads must succeed")

    def upload(self, name: str, content: bytes) -> str | None:
        """Upload a file. Returns its id, or None if it was refused."""
        answer = self.ask(
            name,
            "POST",
            "/v1/files",
            data={"purpose": "fine-tune"},
            files={"file": ("a.jsonl", content)},
        )
        return answer.json()["id"] if answer.status_code == 200 else None

    def create_job(self, file_id: str) -> str | None:
        seed = next(self._seeds)  # so that no two requests are the same
        body = {"model": "tiny", "training_file": file_id, "seed": seed}
        answer = self.ask("create job", "POST", "/v1/fine_tuning/jobs", json=body)
        return answer.json()["id"] if answer.status_code == 200 else None


def examine_service(service: Service) -> None:
    """Run all checks of the doctor: nothing may be corrupt, and every row must have its bytes."""
    for finding in examine(service.settings, is_deep=True, may_repair=False):
        expected = finding.check in ("space", "file system", "ballast", "workers")
        if finding.level is Level.BAD and not expected:
            service.problems.append(f"doctor: {finding.check}: {finding.message}")


def do_chores(service: Service) -> None:
    """Do what a worker does every few seconds."""
    database = Database(service.settings.resolved_database_url)
    with database.engine.connect() as connection:  # so that the write-ahead log is empty
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    store = LocalBlobStore(service.settings.blobs_dir)
    Janitor(service.settings, database=database, store=store, clock=utc_now).run_if_due()
    database.dispose()


def sweep(service: Service, disk: Disk, points: int, *, must_delete: bool) -> float:
    """Do everything once at each fill level. Returns the longest time a recovery took."""
    slowest_s = 0.0
    for point in range(points):
        kept = service.upload("upload", SMALL)
        victim = service.upload("upload", SMALL)
        waiting = service.create_job(kept)
        do_chores(service)
        disk.leave(point * PAGE)

        added = [service.upload("upload (full)", SMALL), service.upload("upload (full)", LARGE)]
        service.create_job(kept)
        service.read("list files", "/v1/files?limit=20")
        service.read("read file", f"/v1/files/{kept}/content")
        service.read("read job", f"/v1/fine_tuning/jobs/{waiting}")
        service.read("readyz", "/readyz")
        cancelled = service.ask("cancel", "POST", f"/v1/fine_tuning/jobs/{waiting}/cancel")
        deleted = service.ask("delete", "DELETE", f"/v1/files/{victim}")
        if must_delete and (cancelled.status_code, deleted.status_code) != (200, 200):
            service.problems.append(f"with {point} pages free, a cancel or a deletion failed")
        for file_id in filter(None, added):  # acknowledged files must be intact
            service.read("read file", f"/v1/files/{file_id}/content")
        service.check_alive()
        disk.release()
        slowest_s = max(slowest_s, recover(service))
        examine_service(service)
    return slowest_s


def recover(service: Service) -> float:
    """Delete everything. Returns the seconds until uploads were accepted again."""
    began_s = time.monotonic()
    while (file_id := service.upload("upload (recovery)", SMALL)) is None:
        if time.monotonic() - began_s > RECOVERY_S:
            service.problems.append(
                f"no upload was accepted within {RECOVERY_S} s after space was freed"
            )
            return RECOVERY_S
        time.sleep(0.1)
    for job in service.ask("list jobs", "GET", "/v1/fine_tuning/jobs?limit=1000").json()["data"]:
        if job["finished_at"] is None:
            service.ask("cancel", "POST", f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    for file in service.ask("list files", "GET", "/v1/files").json()["data"]:
        service.ask("delete", "DELETE", f"/v1/files/{file['id']}")
    assert file_id
    return time.monotonic() - began_s


def storm(service: Service, disk: Disk, seconds: float) -> None:
    """Run five clients at once while the disk fills up and empties repeatedly."""
    kept = service.upload("upload", SMALL)
    ends_s = time.monotonic() + seconds

    def read() -> None:
        while time.monotonic() < ends_s:
            service.read("read file (storm)", f"/v1/files/{kept}/content")
            service.read("list jobs (storm)", "/v1/fine_tuning/jobs")

    def write() -> None:
        while time.monotonic() < ends_s:
            upload_and_delete(service)

    threads = [threading.Thread(target=act) for act in (read, write, write, write, write)]
    for thread in threads:
        thread.start()
    fill_and_empty(disk, ends_s)
    for thread in threads:
        thread.join()
    service.check_alive()
    recover(service)
    examine_service(service)


def fill_and_empty(disk: Disk, until_s: float) -> None:
    for pages in itertools.cycle((0, 3, 17, 50, 100, 300)):
        if time.monotonic() >= until_s:
            return
        with contextlib.suppress(OSError):  # others were faster
            disk.leave(pages * PAGE)
        time.sleep(0.1)
        disk.release()
        time.sleep(0.05)


def upload_and_delete(service: Service) -> None:
    file_id = service.upload("upload (storm)", LARGE)
    if file_id is None:
        return
    job_id = service.create_job(file_id)
    if job_id is not None:
        path = f"/v1/fine_tuning/jobs/{job_id}/cancel"
        if service.ask("cancel (storm)", "POST", path).status_code != 200:
            return  # the job still needs its file
    service.ask("delete (storm)", "DELETE", f"/v1/files/{file_id}")


def start_when_full(service: Service, disk: Disk) -> None:
    """Start the service on a full disk. Without ballast, it may fail until there is space."""
    service.stop()
    do_chores(service)
    disk.leave(0)
    came_up = service.start()
    service.answers["start (full)", 200 if came_up else 503] += 1
    if service.settings.ballast_bytes and not came_up:
        service.problems.append("the service with ballast does not start on a full disk")
    if came_up:
        service.read("readyz", "/readyz")
    disk.release()
    if not came_up and not service.start():
        service.problems.append("the service does not start after space was freed")
    recover(service)


def watermark(service: Service, disk: Disk) -> None:
    """Check that only uploads are refused once less than `min_free_bytes` is free."""
    kept = service.upload("upload", SMALL)
    disk.leave(service.settings.min_free_bytes - PAGE)
    if service.upload("upload (full)", SMALL) is not None:
        service.problems.append("an upload was accepted below min_free_bytes")
    service.read("read file", f"/v1/files/{kept}/content")
    service.ask("delete", "DELETE", f"/v1/files/{kept}")
    disk.release()
    recover(service)


def run(name: str, points: int, seconds: float, **settings: int) -> list[str]:
    with mounted() as disk, tempfile.TemporaryDirectory() as directory:
        service = Service(disk, Path(directory), **settings)
        write_catalogue(service.settings.data_dir)
        assert service.start()
        try:
            if service.settings.min_free_bytes:
                watermark(service, disk)
            must_delete = service.settings.ballast_bytes > 0
            slowest_s = sweep(service, disk, points, must_delete=must_delete)
            storm(service, disk, seconds)
            start_when_full(service, disk)
            examine_service(service)
        finally:
            service.stop()
    print(f"\n{name}: {points} fill levels, slowest recovery {slowest_s:.1f} s")
    print_table(service.answers)
    for problem, times in collections.Counter(service.problems).most_common(20):
        print(f"  PROBLEM ({times}x) {problem}")
    return service.problems


def print_table(answers: "collections.Counter[tuple[str, int]]") -> None:
    statuses = sorted({status for _, status in answers})
    names = sorted({name for name, _ in answers})
    print(f"  {'':20}" + "".join(f"{status:>8}" for status in statuses))
    for name in names:
        print(f"  {name:20}" + "".join(f"{answers[name, status]:>8}" for status in statuses))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--points", type=int, default=64, help="number of fill levels, one page apart"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="duration of the run with five clients at once"
    )
    parsed = parser.parse_args()
    size = {"points": parsed.points, "seconds": parsed.seconds}
    problems = run("with ballast", **size, min_free_bytes=0, ballast_bytes=BALLAST_BYTES)
    problems += run("without ballast", **size, min_free_bytes=0, ballast_bytes=0)
    problems += run(
        "with min_free_bytes",
        points=parsed.points // 4,
        seconds=parsed.seconds,
        min_free_bytes=4 * BALLAST_BYTES,
        ballast_bytes=BALLAST_BYTES,
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
