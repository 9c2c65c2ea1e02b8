"""A cluster without nodes gets one while a job waits, and none is left afterwards."""

import json
from pathlib import Path

import httpx
import pytest

from app.core.signing.keys import SigningKeys
from tests.builders import write_catalogue
from tests.cluster.ray_cluster import RayCluster, require_ray
from tests.waiting import wait_until
from tunery.local_service import LocalService
from worker.dispatch.connection import RayConnection

WITHIN_S = 180


@pytest.mark.timeout(600)
def test_a_cluster_grows_from_nothing_and_shrinks_again(tmp_path: Path) -> None:
    require_ray()
    api_dir = tmp_path / "api"
    write_catalogue(api_dir)
    SigningKeys(api_dir / "signing").ensure()
    database_url = f"sqlite:///{api_dir / 'tunery.db'}"
    node = {  # started on this machine, so it may have the same data directory
        "TUNERY_DATA_DIR": str(api_dir),
        "TUNERY_DATABASE_URL": database_url,
        "TUNERY_TRAINING_THREADS": "1",
    }
    with RayCluster({"head": node}, log_dir=tmp_path, max_nodes=1) as cluster:
        settings = {
            "launcher": "ray",
            "ray_address": cluster.address,
            "training_threads": "1",
            "install_default_model": "false",
        }
        connection = RayConnection(cluster.address, "tests.cluster.node")
        with (
            LocalService(api_dir, settings, worker_module="tests.cluster.dispatcher") as service,
            httpx.Client(base_url=service.base_url, timeout=30) as http,
        ):
            assert connection.ask("nodes") == []

            data = ("train.jsonl", json.dumps({"text": "grow"}).encode() + b"\n")
            file = http.post("/files", files={"file": data}, data={"purpose": "fine-tune"}).json()
            body = {"model": "tiny", "training_file": file["id"]}
            job = http.post("/fine_tuning/jobs", json=body).raise_for_status().json()

            def status() -> str:
                return http.get(f"/fine_tuning/jobs/{job['id']}").json()["status"]

            wait_until(lambda: status() == "succeeded", within_s=WITHIN_S)
            wait_until(lambda: connection.ask("nodes") == [], within_s=WITHIN_S)
        connection.close()
