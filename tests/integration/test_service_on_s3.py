"""The real service with its files in a bucket: used, away for a while, and mistaken for another."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from app.core.storage.marker import MARKER_KEY
from tests.children import find_children
from tests.stores.faulty_proxy import Fault, FaultyProxy
from tests.stores.servers import BUCKET, SECRET, StoreServer
from tests.tiny import install_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

JOB_S = 240
ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
SETTINGS = {
    "poll_interval_s": "0.05",
    "training_threads": "1",
    "install_default_model": "false",
    "warm_s": "0",
    "sampling": "off",
    "store_url": f"s3://{BUCKET}/service",
}


@pytest.fixture
def server(own_server: Callable[[str], StoreServer]) -> StoreServer:
    return own_server("localbucket")


@pytest.fixture
def proxy(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the service and the bucket. The variables for it are in the environment."""
    with FaultyProxy(server.port) as proxy:
        for name, text in server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, text)
        yield proxy


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    install_tiny_model(directory, source=tmp_path / "source" / "tiny")
    return directory


def client_of(service: LocalService) -> openai.OpenAI:
    return openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0)


def logs(service: LocalService) -> str:
    return "".join(process.log() for process in service.processes.values())


def test_a_job_from_its_file_to_its_adapter(
    server: StoreServer, proxy: FaultyProxy, data_dir: Path, tmp_path: Path
) -> None:
    with LocalService(data_dir, SETTINGS) as service, client_of(service) as client:
        file = client.files.create(file=("rows.jsonl", ROWS * 12), purpose="fine-tune")
        proxy.choose = lambda seen: Fault.BUSY if seen.number % 5 == 0 else None
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, hyperparameters={"n_epochs": 2}
        )
        children: set[str] = set()

        def has_ended() -> bool:
            service.check()
            for pid in find_children(service.data_dir).values():
                children.add(_environment_of(pid))
            return client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed")

        wait_until(has_ended, within_s=JOB_S)
        ended = client.fine_tuning.jobs.retrieve(job.id)
        assert ended.status == "succeeded", (ended.error, logs(service))

        assert client.files.content(file.id).read() == ROWS * 12
        (result,) = ended.result_files
        assert client.files.content(result).text.startswith("step,")
        archive = httpx.get(f"{service.base_url}/fine_tuning/jobs/{job.id}/adapter", timeout=60)
        with zipfile.ZipFile(io.BytesIO(archive.content)) as adapter:
            assert adapter.testzip() is None
            assert "adapter_model.safetensors" in " ".join(adapter.namelist())

        client.delete(f"/fine_tuning/jobs/{job.id}", cast_to=object)
        client.files.delete(file.id)
        assert SECRET not in logs(service)

    blobs = server.store(tmp_path / "reader", prefix="service")
    assert [blob.key for blob in blobs.list_all()] == []
    assert [path for path in (data_dir / "blobs").rglob("*") if path.is_file()] == []
    assert children  # at least one was looked at
    assert "AWS_" not in "".join(children)


def _environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text("utf-8")
    except OSError:
        return ""


def test_a_store_that_is_away_costs_answers_and_no_job(proxy: FaultyProxy, data_dir: Path) -> None:
    with LocalService(data_dir, SETTINGS) as service, client_of(service) as client:
        file = client.files.create(file=("rows.jsonl", ROWS * 12), purpose="fine-tune")
        proxy.choose = lambda _seen: Fault.RESET
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        with pytest.raises(openai.InternalServerError) as refused:
            client.files.content(file.id)
        assert (refused.value.status_code, refused.value.code) == (503, "store_unavailable")
        assert refused.value.response.headers["retry-after"]
        wait_until(lambda: "given back" in service.processes["worker-1"].log(), within_s=90)

        proxy.choose = lambda _seen: None
        wait_until(
            lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"),
            within_s=JOB_S,
        )

        ended = client.fine_tuning.jobs.retrieve(job.id)
        assert ended.status == "succeeded", (ended.error, logs(service))
        assert hashlib.sha256(client.files.content(file.id).read()).digest() == (
            hashlib.sha256(ROWS * 12).digest()
        )


def test_a_worker_with_another_store_refuses_to_start(
    server: StoreServer, proxy: FaultyProxy, data_dir: Path, tmp_path: Path
) -> None:
    with LocalService(data_dir, SETTINGS, workers=0):
        pass
    blobs = server.store(tmp_path / "reader", prefix="service")
    blobs.open(MARKER_KEY).close()
    database = f"sqlite:///{data_dir / 'tunery.db'}"
    elsewhere = {"TUNERY_DATA_DIR": str(tmp_path / "other"), "TUNERY_DATABASE_URL": database}

    for store_url in ("", f"s3://{BUCKET}/other"):
        done = subprocess.run(
            [sys.executable, "-m", "worker"],
            env=os.environ | elsewhere | {"TUNERY_STORE_URL": store_url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        assert "does not belong to this installation" in done.stderr
        assert "Traceback" not in done.stderr
    assert [blob.key for blob in server.store(tmp_path / "r", prefix="other").list_all()] == []
