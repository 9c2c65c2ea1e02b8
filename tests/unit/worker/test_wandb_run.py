"""What Weights & Biases' own library writes for a job, without a network."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel
from wandb.proto.wandb_internal_pb2 import Record

from app.core.job.integrations import Integration, WandbTarget
from app.core.machine.subprocesses import python_module, with_import_path
from tests.builders import build_metrics
from worker.trackers.messages import REPLIES, Access, CloseRun, Done, Opened, OpenRun, SendRows

OPEN = OpenRun(
    job_id="ftjob-1",
    integration=Integration(
        type="wandb", wandb=WandbTarget(project="support", name="first", tags=["red"])
    ),
    parameters={"base_model": "tiny", "lora.rank": 64},
    access=Access(
        mlflow_tracking_uri="",
        mlflow_tracking_token="",
        wandb_api_key="k" * 40,
        wandb_base_url="http://127.0.0.1:1",
    ),
)


def talk(tmp_path: Path, *requests: BaseModel) -> list[Any]:
    """Have a process of the tracker serve requests, and return its replies."""
    environment = with_import_path({"PATH": os.defpath, "HOME": str(tmp_path)})
    done = subprocess.run(
        python_module("worker.trackers"),
        input=b"".join(request.model_dump_json().encode() + b"\n" for request in requests),
        capture_output=True,
        cwd=tmp_path,
        env=environment | {"WANDB_MODE": "offline"},
        check=True,
    )
    return [REPLIES.validate_json(line) for line in done.stdout.splitlines()]


def read_records(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The records of the one run, which the library keeps in the format of LevelDB's log."""
    (file,) = tmp_path.glob("wandb/offline-run-*/run-ftjob-1.wandb")
    content = file.read_bytes()
    assert content.startswith(b":W&B")
    assert len(content) < 32_768, "a block: longer files have more to parse"
    offset = 7
    while offset < len(content):
        size = int.from_bytes(content[offset + 4 : offset + 6], "little")
        record = Record.FromString(content[offset + 7 : offset + 7 + size])
        yield MessageToDict(record)
        offset += 7 + size


def test_a_run_has_the_id_of_its_job_and_every_step(tmp_path: Path) -> None:
    rows = tuple(build_metrics(step) for step in (1, 2))

    replies = talk(tmp_path, OPEN, SendRows(rows=rows), CloseRun(ending="succeeded"))

    assert replies == [Opened(last_step=-1, run="first in the project support"), Done(), Done()]
    records = list(read_records(tmp_path))
    (run,) = (record["run"] for record in records if "run" in record)
    assert (run["runId"], run["displayName"], run["tags"]) == ("ftjob-1", "first", ["red"])
    config = {item["key"]: item["valueJson"] for item in run["config"]["update"]}
    assert (config["base_model"], config["lora.rank"]) == ('"tiny"', "64")
    history = [record["history"] for record in records if "history" in record]
    assert [step["step"]["num"] for step in history] == ["1", "2"]
    sent = {item["nestedKey"][0]: item["valueJson"] for item in history[0]["item"]}
    assert {"train_loss": "3", "learning_rate": "0.0002"}.items() <= sent.items()


def test_a_run_says_nothing_of_the_machine(tmp_path: Path) -> None:
    talk(tmp_path, OPEN, CloseRun(ending=None))

    records = list(read_records(tmp_path))
    assert [record["run"]["host"] for record in records if "run" in record] == ["tunery"]
    written = json.dumps(records)
    assert str(Path.cwd()) not in written
    assert OPEN.access.wandb_api_key not in written
