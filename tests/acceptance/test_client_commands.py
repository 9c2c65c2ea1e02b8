"""`tunery` as a client, in a terminal and in scripts, against a service that trains."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.support.samples import build_chat_file
from tests.acceptance.client_command import COMMAND_S, LONG_EPOCHS, Client
from tests.acceptance.processes import JOB_S, InstalledService
from tests.terminal import COLUMNS, CTRL_C
from tests.tiny import install_tiny_model
from tunery.client.job_file import read_job_file

EXPORT_S = 240
"""Limit for a command that waits until the service has made an export, in seconds."""

HOSTILE = "[red]x[/red]\x1b[31mred\x1b]0;title\x07"
"""Markup of rich, a colour and a new title for the terminal's window."""


@pytest.fixture
def long_job(tunery: Client) -> Iterator[str]:
    """Id of a job that runs until it is cancelled, which it is after the test."""
    tunery.write_long_job_file()
    job_id = tunery.run("submit", "job.yaml")[0].strip()
    yield job_id
    tunery.run("cancel", job_id)


def test_a_job_file_becomes_an_adapter(tunery: Client) -> None:
    tunery.write_job_file(epochs=8)

    with tunery.in_terminal("submit", "job.yaml", "--follow", "--output", "there") as terminal:
        terminal.wait_for(r"\d+/96 loss \d", within_s=JOB_S)
        code = terminal.wait(within_s=JOB_S)

    assert code == 0, terminal.text
    assert "succeeded, ft:tiny:tunery:from-a-file:" in terminal.text
    lines = [line for line in terminal.text.replace("\r", "\n").splitlines() if "━" in line]
    assert max(map(len, lines)) == COLUMNS
    assert (tunery.place / "there" / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    assert (tunery.place / "there" / "loss.csv").read_text("utf-8").startswith("step,")
    assert not [path for path in tunery.place.rglob("*") if "part" in path.suffixes]


def test_the_settings_of_a_job_become_a_job_file(tunery: Client, long_job: str) -> None:
    tunery.run("init", "again.yaml", "--from", long_job)

    content = read_job_file(tunery.place / "again.yaml").content
    assert (content["model"], content["suffix"]) == ("tiny", "from-a-file")
    job = tunery.read_json("jobs", "--search", long_job)[0]
    assert content["training_file"] == job["training_file"]
    given = {"n_epochs": LONG_EPOCHS, "batch_size": 4, "lora_r": 8}.items()
    assert given <= content["hyperparameters"].items()
    assert "lora_target_modules" in content["hyperparameters"]


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(
    tunery: Client, long_job: str
) -> None:
    with tunery.in_terminal("watch", long_job) as terminal:
        terminal.wait_for(r"\d+/15,000 loss", within_s=JOB_S)
        terminal.press(CTRL_C)
        assert terminal.wait(within_s=COMMAND_S) == 130

    assert f"To watch it again: tunery watch {long_job}" in terminal.text
    assert tunery.read_json("jobs", "--limit", "1")[0]["status"] == "running"

    with tunery.in_terminal("watch", long_job) as terminal:
        terminal.wait_for(r"\d+/15,000 loss", within_s=JOB_S)
        tunery.run("cancel", long_job)
        assert terminal.wait(within_s=JOB_S) == 1

    assert "\rcancelled, " in terminal.text


def test_a_job_that_fails_is_told_by_the_exit_code(tunery: Client) -> None:
    tunery.write_job_file(epochs=1)
    path = tunery.place / "job.yaml"
    more = "batch_size: 4, context_length: 16, overlong_row_behavior: error"
    path.write_text(path.read_text("utf-8").replace("batch_size: 4", more), "utf-8")

    printed, _ = tunery.run("submit", "job.yaml", "--follow", code=1)

    job_id, *_, last = printed.splitlines()
    assert last.startswith("failed, ")
    assert tunery.run("watch", job_id, code=1)[0].splitlines()[-1] == last


def test_one_idempotency_key_makes_one_job(tunery: Client) -> None:
    tunery.write_long_job_file()
    command = ("submit", "job.yaml", "--idempotency-key", f"once-{tunery.place.name}")

    first, again = (tunery.run(*command)[0].strip() for _ in range(2))
    tunery.run("cancel", first)

    assert again == first
    other = tunery.run("rerun", first)[0].strip()
    assert tunery.read_json("pause", other)[0]["id"] == other != first
    tunery.run("cancel", other)


def test_watching_outlives_a_restart_of_the_service(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    install_tiny_model(data_dir, source=tmp_path / "hub" / "our-tiny")
    with InstalledService(data_dir) as service:
        tunery = Client(tmp_path, service.base_url)
        tunery.write_long_job_file()
        job_id = tunery.run("submit", "job.yaml")[0].strip()
        with tunery.in_terminal("watch", job_id, "--json") as terminal:
            terminal.wait_for("Step 10/15000", within_s=JOB_S)
            service.processes["api"].stop(signal.SIGKILL)
            terminal.wait_for('"disconnected"', within_s=COMMAND_S)
            service.start("api")
            tunery.run("cancel", job_id)
            assert terminal.wait(within_s=JOB_S) == 1

        messages = [json.loads(line) for line in terminal.text.splitlines()]
        events = [each["data"]["id"] for each in messages if each["event"] == "event"]
        steps = [each["data"]["step"] for each in messages if each["event"] == "step"]
        written = [event["id"] for event in reversed(read_events(service, job_id))]

    assert messages[-1]["event"] == "end"
    assert messages[-1]["data"]["status"] == "cancelled"
    assert events == written[written.index(events[0]) :]
    assert steps == [*range(steps[0], steps[-1] + 1)]


def read_events(service: InstalledService, job_id: str) -> list[dict[str, Any]]:
    answer = httpx.get(
        f"{service.base_url}/fine_tuning/jobs/{job_id}/events", params={"limit": 1000}
    )
    return answer.json()["data"]


def test_json_is_what_the_service_says(
    tunery: Client, service: InstalledService, finished_job: openai.types.fine_tuning.FineTuningJob
) -> None:
    job_id = finished_job.id
    answer = httpx.get(f"{service.base_url}/fine_tuning/jobs/{job_id}").json()

    found = ("jobs", "--search", job_id, "--label", "team=red", "--status")
    assert tunery.read_json(*found, "succeeded,failed") == [answer]
    assert tunery.read_json(*found, "failed") == []
    assert [each["id"] for each in tunery.read_json("files", "list")]
    compared = tunery.read_json("compare", job_id, job_id)
    assert compared["settings"] == {}
    assert compared["results"]["status"] == ["succeeded"] * 2
    assert "tiny" in [each["id"] for each in tunery.read_json("models", "available")]
    last = tunery.run("logs", job_id, "--json", "--limit", "1")[0]
    assert json.loads(last)["message"] == "The job has successfully completed"


def test_a_dataset_is_uploaded_once(tunery: Client) -> None:
    first, _ = tunery.run("files", "upload", "train.jsonl")
    second, said = tunery.run("files", "upload", "train.jsonl")

    assert (second, said) == (first, "train.jsonl is there already.\n")


def test_a_broken_download_is_continued_and_checked(
    tunery: Client,
    service: InstalledService,
    finished_job: openai.types.fine_tuning.FineTuningJob,
) -> None:
    adapter = httpx.get(f"{service.base_url}/fine_tuning/jobs/{finished_job.id}/adapter")
    half = adapter.content[: len(adapter.content) // 2]
    part = tunery.place / "a.zip.part"
    command = ("download", finished_job.id, "--output", "a.zip")

    part.write_bytes(bytes(len(half)))
    part.with_name("a.zip.part.etag").write_text(adapter.headers["etag"], "utf-8")
    _, said = tunery.run(*command, code=2)
    assert said.startswith("download: a.zip is not what the service has")

    for arrived in (b"", half, adapter.content):
        part.write_bytes(arrived)
        part.with_name("a.zip.part.etag").write_text(adapter.headers["etag"], "utf-8")
        tunery.run(*command)
        assert (tunery.place / "a.zip").read_bytes() == adapter.content


def test_an_adapter_for_llama_cpp_is_waited_for_and_checked(
    tunery: Client, finished_job: openai.types.fine_tuning.FineTuningJob
) -> None:
    printed, _ = tunery.run("download", finished_job.id, "--format", "gguf", within_s=EXPORT_S)

    assert printed == f"{finished_job.id}.gguf\n"
    assert (tunery.place / f"{finished_job.id}.gguf").read_bytes().startswith(b"GGUF")
    _, said = tunery.run("download", finished_job.id, "--format", "gguf", "--unpack", code=2)
    assert said.startswith("download: A GGUF adapter is one file.")


def test_a_merged_model_is_waited_for_and_unpacked(
    tunery: Client, finished_job: openai.types.fine_tuning.FineTuningJob
) -> None:
    command = ("download", finished_job.id, "--format", "merged")

    printed, _ = tunery.run(*command, "--unpack", within_s=EXPORT_S)

    unpacked = tunery.place / f"{finished_job.id}-merged"
    assert {str(path.relative_to(tunery.place)) for path in unpacked.iterdir()} == {
        *printed.splitlines()
    }
    assert {"config.json", "tokenizer.json", "README.md"} <= {
        path.name for path in unpacked.iterdir()
    }
    tunery.run(*command)
    assert (tunery.place / f"{finished_job.id}-merged.zip").exists()
    assert not [*tunery.place.glob("*.part*")]


def test_unpacking_leaves_an_archive_alone(
    tunery: Client, finished_job: openai.types.fine_tuning.FineTuningJob
) -> None:
    archive = tunery.place / f"{finished_job.id}.zip"
    tunery.run("download", finished_job.id)
    content = archive.read_bytes()

    printed, _ = tunery.run("download", finished_job.id, "--unpack")

    assert archive.read_bytes() == content
    unpacked = tunery.place / finished_job.id
    assert {str(path.relative_to(tunery.place)) for path in unpacked.iterdir()} == {
        *printed.splitlines()
    }
    assert not [*tunery.place.glob("*.part*")]


def test_text_of_users_does_not_control_the_terminal(
    tunery: Client, service: InstalledService
) -> None:
    with service.client() as client:
        file = client.files.create(
            file=(f"{HOSTILE}.jsonl", build_chat_file(8)), purpose="fine-tune"
        )
        jobs = [
            client.fine_tuning.jobs.create(
                model="tiny",
                training_file=file.id,
                metadata={"note": f"{number}{HOSTILE}"},
                extra_body={"auto_start": False},
            )
            for number in (1, 2)
        ]

    with tunery.in_terminal("compare", *(job.id for job in jobs)) as terminal:
        assert terminal.wait(within_s=COMMAND_S) == 0
    assert "[red]" in terminal.text
    assert "\x1b[31m" not in terminal.output
    assert "\x1b]0;" not in terminal.output

    shown, _ = tunery.run("compare", *(job.id for job in jobs))
    assert "1[red]x[/red]\\x1b[31mred\\x1b]0;title\\x07" in shown
    tunery.run("cancel", *(job.id for job in jobs))


def test_an_id_that_there_is_not(tunery: Client) -> None:
    assert tunery.run("watch", "ftjob-none", code=2) == (
        "",
        "watch: No such fine-tuning job: ftjob-none\n",
    )


def test_a_service_that_is_down(tunery: Client) -> None:
    _, said = tunery.run("jobs", code=3, TUNERY_BASE_URL="http://127.0.0.1:9/v1")

    assert said.startswith("jobs: http://127.0.0.1:9/v1 does not answer: ")
    assert said.count("\n") == 1


def test_a_wrong_key_is_named_and_not_shown(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    with InstalledService(
        tmp_path / "data", workers=0, bootstrap_key_file=str(key_file)
    ) as service:
        tunery = Client(tmp_path, service.base_url)
        key = key_file.read_text("utf-8").strip()
        wrong = f"{key[:-4]}0000"

        assert tunery.run("jobs", TUNERY_API_KEY=key)[1] == "Found no job.\n"
        said = "".join(tunery.run("jobs", code=2, TUNERY_API_KEY=wrong))
        _, said_without = tunery.run("jobs", code=2)

    assert said.startswith("jobs: ")
    assert wrong not in said
    assert "wants an API key. Set TUNERY_API_KEY" in said_without


def test_a_shell_completes_ids_of_jobs(
    tunery: Client, finished_job: openai.types.fine_tuning.FineTuningJob
) -> None:
    offered, _ = tunery.run(
        _TUNERY_COMPLETE="complete_bash", COMP_WORDS="tunery watch ftjob-", COMP_CWORD="2"
    )

    assert finished_job.id in offered.split()
