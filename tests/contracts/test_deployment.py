"""The deployment files name what exists, agree with each other, and their commands work."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from sqlalchemy import select

from app.core.db.session import Database
from app.core.db.worker_tables import WorkerRow
from app.core.settings import Settings
from tests.wheel import install_wheel

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (PROJECT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text("utf-8"))
DEPLOYMENT_GUIDE = (PROJECT / "docs" / "deployment.md").read_text("utf-8")
IMAGES = ("app", "worker")


class Instruction(NamedTuple):
    name: str
    arguments: str


def read_stages() -> dict[str, list[Instruction]]:
    """The instructions of every stage of the Dockerfile; a stage begins with its parent's."""
    without_comments = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    stages: dict[str, list[Instruction]] = {}
    name = ""
    for line in without_comments.replace("\\\n", " ").splitlines():
        instruction = Instruction(*line.split(maxsplit=1)) if line.strip() else None
        if instruction and instruction.name == "FROM":
            parent, _, name = instruction.arguments.split()
            stages[name] = list(stages.get(parent, []))
        elif instruction:
            stages[name].append(instruction)
    return stages


STAGES = read_stages()


def arguments_of(image: str, name: str) -> list[str]:
    return [one.arguments for one in STAGES[image] if one.name == name]


def environment_of(image: str) -> dict[str, str]:
    pairs = (pair for line in arguments_of(image, "ENV") for pair in shlex.split(line))
    return dict(pair.split("=", 1) for pair in pairs)


def copied_to(stage: str) -> set[str]:
    """Everything that a stage takes from the checkout."""
    copies = [line.split() for line in arguments_of(stage, "COPY")]
    return {source for words in copies for source in words[:-1]}


def command_of(image: str, name: str) -> list[str]:
    """The words of the last CMD or HEALTHCHECK, with programs of the installed wheel."""
    words = json.loads(re.search(r"\[.*\]$", arguments_of(image, name)[-1])[0])
    programs = {"python", "tunery"}
    return [str(install_wheel() / word) if word in programs else word for word in words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_health(image: str, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of an image's health check, and what it says when something is wrong."""
    check = subprocess.run(
        command_of(image, "HEALTHCHECK"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return check.returncode, check.stderr.strip()


def is_healthy(image: str, environment: dict[str, str]) -> bool:
    return check_health(image, environment)[0] == 0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a container, as far as it can be had outside of one."""
    (tmp_path / "data").mkdir()
    changed = {
        "TUNERY_DATA_DIR": str(tmp_path / "data"),
        "TUNERY_BOOTSTRAP_KEY_FILE": str(tmp_path / "data" / "admin-key"),
        "TUNERY_PORT": str(free_port()),
        "TUNERY_INSTALL_DEFAULT_MODEL": "false",  # it would be downloaded
        "TUNERY_WARM_S": "0",  # no job is trained, so no torch need be loaded
    }
    return os.environ | environment_of("app") | {"HOME": str(tmp_path)} | changed


def test_hadolint_has_nothing_to_say() -> None:
    lint = subprocess.run(
        [BIN / "hadolint", PROJECT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (lint.stdout, lint.returncode) == ("", 0)


def test_the_compose_file_follows_its_schema() -> None:
    schema = "vendor.compose-spec"
    subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, PROJECT / "docker-compose.yml"],
        stdout=subprocess.DEVNULL,
        check=True,
    )


@pytest.mark.parametrize("image", IMAGES)
def test_a_container_starts_becomes_healthy_and_stops(
    image: str, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert not is_healthy(image, environment)

    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command_of(image, "CMD"), cwd=tmp_path, env=environment, stdout=sink, stderr=sink
        ) as process,
    ):
        became_healthy = await_health(image, environment, process)
        process.terminate()

    assert became_healthy, log.read_text()
    # uvicorn, once it has shut down in good order, ends by the signal that asked it to.
    assert process.returncode in (0, -signal.SIGTERM), log.read_text()
    assert "Traceback" not in log.read_text()


def await_health(
    image: str, environment: dict[str, str], process: subprocess.Popen[bytes], within_s: float = 120
) -> bool:
    deadline = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < deadline:
        if is_healthy(image, environment):
            return True
    return False


def test_a_worker_is_unhealthy_once_it_hangs_or_was_killed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    database = f"sqlite:///{environment['TUNERY_DATA_DIR']}/tunery.db"
    command = command_of("worker", "CMD")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        assert await_health("worker", environment, process)

        process.send_signal(signal.SIGSTOP)
        let_time_pass(database)
        code, reason = check_health("worker", environment)
        assert (code, reason.count("\n")) == (1, 0)
        assert re.search(rf"process {process.pid}\) has sent no heartbeat for \d\d s", reason)

        process.send_signal(signal.SIGCONT)
        assert await_health("worker", environment, process)

        process.kill()
        process.wait()
        code, reason = check_health("worker", environment)
        assert (code, reason.count("\n")) == (1, 0)
        assert re.fullmatch(rf"unhealthy: Died: worker-\w+ \(process {process.pid}\)", reason)


def let_time_pass(url: str) -> None:
    """As if a minute had passed since the last heartbeat of every worker."""
    database = Database(url)
    with database.writing() as session:
        for worker in session.scalars(select(WorkerRow)):
            worker.heartbeat_at -= timedelta(minutes=1)
    database.dispose()


def test_the_app_image_has_no_torch() -> None:
    installed = " ".join(arguments_of("app", "RUN"))

    assert "worker" not in installed
    assert "torch" not in installed


@pytest.mark.parametrize(
    ("image", "installed"), [("app", '.whl)[s3]"'), ("worker", '.whl)[worker,s3]"')]
)
def test_an_image_installs_the_wheel_with_the_versions_of_the_lock(
    image: str, installed: str
) -> None:
    locked = (PROJECT / "requirements.lock").read_text("utf-8").splitlines()
    pip, *rest = [
        command.split()
        for line in arguments_of(image, "RUN")
        for command in line.split("&&")
        if "pip install" in command
    ]

    assert pip[-1] in locked
    assert all("-c requirements.lock" in " ".join(words) for words in rest)
    assert rest[-1][-1].endswith(installed)


def test_the_wheel_is_built_from_all_that_belongs_in_it() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]

    assert {f"{name}/" for name in included} <= copied_to("wheel")


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_copied_is_sent_to_the_builder(stage: str) -> None:
    ignore = (PROJECT / ".dockerignore").read_text("utf-8").split("\n")
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}

    for source in copied_to(stage):
        assert (PROJECT / source).exists()
        assert Path(source).parts[0] in allowed


@pytest.mark.parametrize("image", IMAGES)
def test_a_container_runs_as_an_ordinary_user_on_a_read_only_system(image: str) -> None:
    service = COMPOSE["services"][image]

    assert arguments_of(image, "USER") == ["10001:10001"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"] == {"driver": "local"}  # it alone throws old lines away
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("image", IMAGES)
def test_compose_builds_the_image_and_mounts_its_data_directory(image: str) -> None:
    service = COMPOSE["services"][image]
    data_dir = environment_of(image)["TUNERY_DATA_DIR"]

    assert service["build"]["target"] == image
    assert arguments_of(image, "VOLUME") == [data_dir]
    assert service["volumes"] == [f"data:{data_dir}"]
    assert "data" in COMPOSE["volumes"]


def test_the_port_is_one_and_is_published_on_this_machine_alone() -> None:
    port = environment_of("app")["TUNERY_PORT"]

    assert arguments_of("app", "EXPOSE") == [port]
    (published,) = COMPOSE["services"]["app"]["ports"]
    assert published.startswith("127.0.0.1:")
    assert published.endswith(f":{port}")


def test_the_worker_waits_for_an_app_that_is_healthy() -> None:
    worker = COMPOSE["services"]["worker"]

    assert worker["depends_on"] == {"app": {"condition": "service_healthy"}}
    assert worker["stop_grace_period"] == "40s"
    assert "TimeoutStopSec=40" in DEPLOYMENT_GUIDE


def test_the_sampler_is_the_image_of_the_worker_without_a_network() -> None:
    sampler, worker = COMPOSE["services"]["sampler"], COMPOSE["services"]["worker"]

    assert sampler["image"] == worker["image"]
    assert sampler["command"] == ["tunery", "sampler"]
    assert sampler["network_mode"] == "none"
    for name in ("read_only", "cap_drop", "security_opt", "volumes", "restart"):
        assert sampler[name] == worker[name]


@pytest.mark.parametrize(
    "text", [pytest.param(DOCKERFILE, id="Dockerfile"), pytest.param(DEPLOYMENT_GUIDE, id="guide")]
)
def test_every_setting_that_is_named_exists(text: str) -> None:
    named = {name.lower() for name in re.findall(r"\bTUNERY_([A-Z_]+)\b", text)}

    assert named
    assert named <= Settings.model_fields.keys()


def test_the_units_in_the_guide_run_the_two_processes() -> None:
    started = re.findall(r"^ExecStart=\S+/bin/tunery (\w+)$", DEPLOYMENT_GUIDE, re.MULTILINE)

    assert started == ["api", "worker"]


def test_systemd_asks_for_the_workers_health_as_docker_does() -> None:
    (check,) = re.findall(
        r"^ExecStart=\S+/bin/(tunery worker -.*)$", DEPLOYMENT_GUIDE, re.MULTILINE
    )
    health_check = re.search(r"\[.*\]$", arguments_of("worker", "HEALTHCHECK")[-1])

    assert health_check is not None
    assert check.split() == json.loads(health_check[0])
    assert "enable --now tunery-api tunery-worker tunery-worker-health.timer" in DEPLOYMENT_GUIDE
