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
@pytest.mark.parametrize("version", ["2", pytest.param("1", marks=pytest.mark.long)])
def test_a_cluster_grows_from_nothing_and_shrinks_again(tmp_path: Path, version: str) -> None:
    require_ray()
    data_dir = tmp_path / "data"
    write_catalogue(data_dir)
    SigningKeys(data_dir / "signing").ensure()
    node = {  # on this machine, so it may have the same data directory
        "TUNERY_DATA_DIR": str(data_dir),
        "TUNERY_DATABASE_URL": f"sqlite:///{data_dir / 'tunery.db'}",
        "TUNERY_TRAINING_THREADS": "1",
    }
    with RayCluster({}, log_dir=tmp_path, autoscaled=node, is_v2=version == "2") as cluster:
        settings = {
            "launcher": "ray",
            "ray_address": cluster.address,
            "training_threads": "1",
            "install_default_model": "false",
        }
        connection = RayConnection(cluster.address, "tests.cluster.node")
        with (
            LocalService(data_dir, settings, worker_module="tests.cluster.dispatcher") as service,
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
