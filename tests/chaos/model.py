"""Kill the real trainer, on the real model, at random: every adapter must be as if undisturbed.

    python -m tests.chaos.model --blows 100

One job is left in peace. Then it is run again and again while its children and workers are killed,
and each of these runs must end with the same adapter, to the bit, and the same loss log.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from app.core.base_models import DEFAULT_MODEL_ID
from app.core.db.session import Database
from tests.builders import build_chat_file
from tests.chaos.attacks import Attacks
from tunery.local_service import LocalService

PAUSE_S = 8.0
"""Mean time between two blows: loading the model takes some of it."""

SETTINGS = {
    "save_interval_s": "1",
    "poll_interval_s": "0.1",
    "lease_s": "10",
    "install_default_model": "false",
}
KNOBS = {"n_epochs": 4, "batch_size": 2, "context_length": 64, "checkpoint_steps": 10}
ENDED = {"succeeded", "failed", "cancelled"}


def wait_for_end(http: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        job = http.get(f"/fine_tuning/jobs/{job_id}").raise_for_status().json()
        if job["status"] in ENDED:
            return job
        time.sleep(0.2)


def result_of(http: httpx.Client, job_id: str) -> tuple[str, list[dict[str, Any]]]:
    """sha256 of the adapter's weights, and the loss log less its times."""
    checkpoint = http.get(f"/fine_tuning/jobs/{job_id}/checkpoints").json()["data"][0]
    files = {
        http.get(f"/files/{one}").json()["filename"]: one for one in checkpoint["result_files"]
    }
    weights = http.get(f"/files/{files['adapter_model.safetensors']}/content").content
    log = http.get(f"/fine_tuning/jobs/{job_id}/metrics").json()["data"]
    rows = [{key: row[key] for key in row if key != "elapsed_s"} for row in log]
    return hashlib.sha256(weights).hexdigest(), rows


def install_model(data_dir: Path) -> None:
    command = [sys.executable, "-m", "worker.commands", "install", DEFAULT_MODEL_ID]
    subprocess.run(command, env=os.environ | {"TUNERY_DATA_DIR": str(data_dir)}, check=True)


def attack(data_dir: Path, *, blows: int, seed: int) -> list[str]:
    install_model(data_dir)
    url = f"sqlite:///{data_dir / 'tunery.db'}"
    database = Database(url)
    wrong: list[str] = []
    attempts = runs = 0
    with LocalService(data_dir, SETTINGS, workers=2) as service:
        attacks = Attacks(
            service,
            database,
            chance=random.Random(seed),  # noqa: S311 - nothing secret
            grace_s=30,
            lease_s=10,
        )
        chance = random.Random(seed + 1)  # noqa: S311 - as above
        with httpx.Client(base_url=service.base_url, timeout=30) as http:
            data = ("train.jsonl", build_chat_file(24))
            file = http.post("/files", files={"file": data}, data={"purpose": "fine-tune"}).json()
            body = {
                "model": DEFAULT_MODEL_ID,
                "training_file": file["id"],
                "seed": 7,
                "hyperparameters": KNOBS,
            }
            first = http.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
            assert wait_for_end(http, first)["status"] == "succeeded"
            expected = result_of(http, first)
            while attacks.blows < blows:
                job_id = http.post(f"/fine_tuning/jobs/{first}/rerun").json()["id"]
                runs += 1
                while True:
                    job = http.get(f"/fine_tuning/jobs/{job_id}").json()
                    if job["status"] in ENDED:
                        break
                    time.sleep(min(chance.expovariate(1 / PAUSE_S), 3 * PAUSE_S))
                    if attacks.blows < blows:
                        attacks.kill_training()
                    service.start_ended()
                attempts += job["attempt"]
                if job["status"] != "succeeded":
                    wrong.append(f"{job_id}: {job['status']}: {job['error']}")
                elif result_of(http, job_id) != expected:
                    wrong.append(f"{job_id}: another adapter, or another loss log")
    report = {
        "seed": seed,
        "blows": attacks.blows,
        **attacks.counts,
        "runs": runs,
        "attempts": attempts,
        "steps of a run": len(expected[1]),
        "wrong": len(wrong),
    }
    print(json.dumps(report, indent=2))  # noqa: T201 - its report
    database.dispose()
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blows", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        wrong = attack(Path(directory), blows=options.blows, seed=options.seed)
    for line in wrong:
        print(f"PROBLEM {line}")  # noqa: T201 - its report
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
