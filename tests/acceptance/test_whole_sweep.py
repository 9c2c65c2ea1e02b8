"""A sweep through the stock client and the command, against a service that trains."""

from typing import Any

import openai
import pytest

from benchmarks.support.samples import build_chat_file
from tests.acceptance.client_command import Client
from tests.acceptance.processes import JOB_S, InstalledService
from tests.acceptance.test_whole_preference_job import build_pairs
from tests.waiting import wait_until

SWEEP_FILE = """\
model: tiny
training_file: train.jsonl
hyperparameters: {max_steps: 2, batch_size: 4, validation_split: 0.25}
sweep:
  grid:
    learning_rate: [0.0001, 0.01]
    lora_r: [4, 8]
"""
ENDED = ("succeeded", "failed", "cancelled")


def how_validated(client: openai.OpenAI, job_id: str) -> str:
    """What the job was told when its data was checked."""
    told = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
    return next(each for each in told if each.startswith("Files validated")).partition(",")[0]


def test_a_sweep_is_checked_once_and_compared(tunery: Client, service: InstalledService) -> None:
    (tunery.place / "sweep.yaml").write_text(SWEEP_FILE, "utf-8")
    estimated, said = tunery.run("sweeps", "estimate", "sweep.yaml")
    assert estimated.split()[:5] == ["learning_rate", "lora_r", "STEPS", "DURATION", "MEMORY"]
    assert [line.split()[:3] for line in estimated.splitlines()[1:]] == [
        [rate, rank, "2"] for rate in ("0.0001", "0.01") for rank in ("4", "8")
    ]
    assert "4 jobs, one after another on one worker: " in said
    sweep_id = tunery.run("sweeps", "create", "sweep.yaml")[0].strip()

    def read() -> Any:
        return tunery.read_json("sweeps", "show", sweep_id)

    wait_until(lambda: read()["status"] in ENDED, within_s=JOB_S)

    sweep = read()
    losses = [point["result_valid_loss"] for point in sweep["points"]]
    assert sweep["status"] == "succeeded", sweep
    assert losses == sorted(losses)
    assert len(set(losses)) > 1
    assert sweep["best"] == sweep["points"][0]
    first, *rest = sorted(point["job_id"] for point in sweep["points"])
    with service.client() as client:
        told = [how_validated(client, job_id) for job_id in (first, *rest)]
        data: list[Any] = [
            client.get(f"/fine_tuning/jobs/{job_id}/data", cast_to=object) for job_id in rest
        ]
    assert told == ["Files validated", *[f"Files validated with {first}"] * 3]
    assert [each["report"]["estimate"]["steps"] for each in data] == [2, 2, 2]
    printed, said = tunery.run("sweeps", "show", sweep_id)
    assert printed.split()[:6] == ["JOB", "learning_rate", "lora_r", "STATUS", "STEPS", "LOSS"]
    assert printed.splitlines()[1].split()[0] == sweep["best"]["job_id"]
    assert sweep["best"]["fine_tuned_model"] in said
    assert sweep_id in tunery.run("sweeps", "list")[0]


def test_the_stock_client_makes_and_cancels_a_sweep(client: openai.OpenAI) -> None:
    file = client.files.create(file=build_chat_file(400), purpose="fine-tune")
    body: dict[str, Any] = {
        "model": "tiny",
        "training_file": file.id,
        "hyperparameters": {"validation_split": 0.5, "n_epochs": 50},
        "sweep": {"list": [{"lora_r": 4}, {"lora_r": 8, "learning_rate": 1e-3}]},
    }

    sweep: Any = client.post("/fine_tuning/sweeps", cast_to=object, body=body)
    path = f"/fine_tuning/sweeps/{sweep['id']}"
    client.post(f"{path}/cancel", cast_to=object)

    def read() -> Any:
        return client.get(path, cast_to=object)

    wait_until(lambda: read()["status"] in ENDED, within_s=JOB_S)
    assert [point["status"] for point in read()["points"]] == ["cancelled"] * 2
    jobs = [client.fine_tuning.jobs.retrieve(point["job_id"]) for point in sweep["points"]]
    assert {job.status for job in jobs} == {"cancelled"}


def test_a_sweep_of_preference_tuning_varies_all_but_its_loss(service: InstalledService) -> None:
    fixed = {"max_steps": 2, "batch_size": 4, "validation_split": 0.25}
    with service.client(strict=True) as client:
        file = client.files.create(file=("pairs.jsonl", build_pairs()), purpose="fine-tune")

        def send(hyperparameters: dict[str, Any], **grid: list[float]) -> Any:
            body: dict[str, Any] = {
                "model": "tiny",
                "training_file": file.id,
                "method": {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
                "sweep": {"grid": grid},
            }
            return client.post("/fine_tuning/sweeps", cast_to=object, body=body)

        with pytest.raises(openai.BadRequestError, match="'beta' cannot vary") as refused:
            send(fixed, learning_rate=[1e-4], beta=[0.1, 0.5])
        path = (
            f"/fine_tuning/sweeps/{send(fixed | {'beta': 0.5}, learning_rate=[1e-5, 1e-2])['id']}"
        )

        def read() -> Any:
            return client.get(path, cast_to=object)

        wait_until(lambda: read()["status"] in ENDED, within_s=JOB_S)
        sweep = read()
        best = client.fine_tuning.jobs.retrieve(sweep["best"]["job_id"])
    assert refused.value.param == "sweep.grid.beta[0]"
    assert sweep["status"] == "succeeded", sweep
    low, high = (point["result_valid_loss"] for point in sweep["points"])
    assert low < high < 0.7, "the loss of a pair begins with log 2"
    assert sweep["best"]["hyperparameters"] == {"learning_rate": 1e-2}
    assert best.method is not None
    assert best.method.dpo is not None
    assert best.method.dpo.hyperparameters is not None
    assert best.method.dpo.hyperparameters.beta == 0.5


def test_a_sweep_in_a_file_for_one_job_is_named(tunery: Client) -> None:
    (tunery.place / "sweep.yaml").write_text(SWEEP_FILE, "utf-8")
    (tunery.place / "job.yaml").write_text(SWEEP_FILE.partition("sweep:")[0], "utf-8")

    as_job = tunery.run("submit", "sweep.yaml", code=2)[1]
    as_sweep = tunery.run("sweeps", "create", "job.yaml", code=2)[1]

    assert "sweep.yaml line 4: 'sweep' makes several jobs" in as_job
    assert "job.yaml: 'sweep' is missing." in as_sweep
