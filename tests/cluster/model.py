"""Train the real model in a Ray cluster whose nodes are killed: the adapter must be the same.

python -m tests.cluster.model --kills 3
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from app.core.base_models import DEFAULT_MODEL_ID
from tests.builders import build_chat_file
from tests.chaos.model import ENDED, KNOBS, result_of, wait_for_end
from tests.cluster.installation import Installation, installed
from tests.models import link_embedded_model
from tests.waiting import wait_until

START_WITHIN_S = 240.0


def attack(root: Path, *, kills: int, seed: int = 1) -> list[str]:
    """Run a job twice, the second time with nodes killed. Returns all differences."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    with installed(
        root,
        prepare=link_embedded_model,
        dispatchers=1,
        worker_module="worker",
        settings={"save_interval_s": "1"},
    ) as all_of_it:
        base_url = all_of_it.service.base_url
        with httpx.Client(base_url=base_url, timeout=60) as http:
            first = _create(http)
            job = wait_for_end(http, first)
            if job["status"] != "succeeded":
                return [f"{first}: {job['status']}: {job['error']}"]
            expected = result_of(http, first)
            second = http.post(f"/fine_tuning/jobs/{first}/rerun").raise_for_status().json()["id"]
            killed = _disturb(all_of_it, http, second, kills=kills, chance=chance)
            job = wait_for_end(http, second)
            wrong = all_of_it.find_leaks()
            if killed < kills:
                wrong.append(f"only {killed} of {kills} nodes were killed before the job ended")
            if job["status"] != "succeeded":
                return [*wrong, f"{second}: {job['status']}: {job['error']}"]
            if job["attempt"] < 2:
                wrong.append(f"{second}: it was not interrupted")
            if result_of(http, second) != expected:
                wrong.append(f"{second}: another adapter, or another loss log")
            print(  # noqa: T201 - its report
                f"{killed} nodes killed, {job['attempt']} attempts, {len(expected[1])} steps, "
                f"adapter {expected[0][:16]}, {len(wrong)} problems",
                flush=True,
            )
            return wrong


def _create(http: httpx.Client) -> str:
    data = ("train.jsonl", build_chat_file(24))
    file = http.post("/files", files={"file": data}, data={"purpose": "fine-tune"}).json()
    body: dict[str, Any] = {
        "model": DEFAULT_MODEL_ID,
        "training_file": file["id"],
        "seed": 7,
        "hyperparameters": KNOBS,
    }
    return http.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]


def _disturb(
    all_of_it: Installation, http: httpx.Client, job_id: str, *, kills: int, chance: random.Random
) -> int:
    """Kill the node that trains, each time after the job has made progress. Returns how often."""
    for killed in range(kills):
        step = http.get(f"/fine_tuning/jobs/{job_id}").json()["trained_steps"]

        def has_moved(before: int = step) -> bool:
            job = http.get(f"/fine_tuning/jobs/{job_id}").json()
            return job["status"] in ENDED or job["trained_steps"] > before

        wait_until(has_moved, within_s=START_WITHIN_S)
        time.sleep(chance.uniform(0, 2))
        busy = [
            name
            for name in all_of_it.cluster.node_names
            if all_of_it.cluster.find(name, "ray::AttemptActor")
        ]
        if not busy:
            return killed
        all_of_it.cluster.kill(busy[0])
        all_of_it.cluster.restore()
    return kills


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        wrong = attack(Path(directory), kills=options.kills)
    for line in wrong:
        print(f"PROBLEM {line}")  # noqa: T201 - its report
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
