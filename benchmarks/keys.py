"""What an API key costs a status poll: the same polls with a key and without, in turn.

python benchmarks/api.py keys
"""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.clock import utc_now
from app.core.db.session import Database
from app.maintenance.keys import create_key
from benchmarks.polls import poll
from benchmarks.support.samples import build_chat_file, write_catalogue
from benchmarks.uploads import cpu_s
from tunery.local_service import LocalService

SETTINGS = {"min_free_bytes": "0", "install_default_model": "false"}


def measure(*, polls: int, rate: float, rounds: int) -> None:
    """Print processor time and latency of polls, and their ratio with a key to without."""
    costs_ms: dict[str, list[float]] = {"without a key": [], "with a key": []}
    latencies_ms: dict[str, list[float]] = {kind: [] for kind in costs_ms}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        services: dict[str, tuple[LocalService, str, str]] = {}
        for number, kind in enumerate(costs_ms):
            data_dir = Path(name) / str(number)
            write_catalogue(data_dir)
            service = stack.enter_context(LocalService(data_dir, SETTINGS, workers=0))
            job_id = create_job(service)
            key = create_read_key(data_dir) if kind == "with a key" else ""
            services[kind] = service, job_id, key
        for _ in range(rounds):
            for kind, (service, job_id, key) in services.items():
                pid = service.processes["api"].pid
                before_s = cpu_s(pid)
                load = poll(service.url, job_id, rate=rate, seconds=polls / rate, key=key)
                assert not load["errors"], load
                costs_ms[kind].append(1000 * (cpu_s(pid) - before_s) / load["requests"])
                latencies_ms[kind].append(load["p50_ms"])
    for kind, costs in costs_ms.items():
        print(
            f"{kind}: {statistics.median(costs):.3f} ms of processor time a poll, "
            f"p50 {statistics.median(latencies_ms[kind]):.2f} ms; "
            f"rounds {[round(each, 3) for each in costs]}"
        )
    without, with_key = (statistics.median(costs) for costs in costs_ms.values())
    print(f"a key costs {100 * (with_key / without - 1):+.1f} %")


def create_job(service: LocalService) -> str:
    """Create a job, which nobody runs. Returns its id."""
    with httpx.Client(base_url=service.base_url, timeout=30) as client:
        files = {"file": ("train.jsonl", build_chat_file(10))}
        file = client.post("/files", data={"purpose": "fine-tune"}, files=files)
        body = {"model": "tiny", "training_file": file.raise_for_status().json()["id"]}
        return client.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]


def create_read_key(data_dir: Path) -> str:
    database = Database(f"sqlite:///{data_dir / 'tunery.db'}")
    with database.writing() as session:
        return create_key(
            session, DEFAULT_PROJECT_ID, [Scope.READ], expires_at=None, now=utc_now()
        ).key
