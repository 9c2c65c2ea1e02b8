"""`tunery models install` as real processes: killed, and started twice at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.support.samples import catalogue_entry, write_entries
from tests.hub_stand_in import HubStandIn, Interruption
from tests.models import tiny_model_files

REPO = "us/tiny"
COMMIT = "1" * 40
MEGABYTE = 1024 * 1024


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn().running() as hub:
        yield hub


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory whose catalogue has `tiny`."""
    write_entries(tmp_path, catalogue_entry("tiny", source={"kind": "hub", "repo": REPO}))
    return tmp_path


def start_fetch(hub: HubStandIn, data_dir: Path) -> "subprocess.Popen[str]":
    addresses = {"HF_ENDPOINT": hub.url, "TUNERY_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-m", "worker.commands", "install", "tiny"],
        env=os.environ | addresses,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_goes_on_where_it_stopped(hub: HubStandIn, data_dir: Path) -> None:
    hub.add(REPO, tiny_model_files(weight_bytes=25 * MEGABYTE), COMMIT)
    # 24 MB do not fit into a socket: when they are sent, 10 MB have been written to the disk.
    hub.interruption = Interruption(after_bytes=24 * MEGABYTE)
    killed = start_fetch(hub, data_dir)
    assert hub.interruption.is_reached.wait(60)
    killed.kill()
    killed.communicate()
    hub.interruption.may_go_on.set()
    hub.interruption = None
    hub.requests.clear()

    again = start_fetch(hub, data_dir)

    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "model.safetensors: continuing after " in said
    assert hub.names_fetched() == ["model.safetensors"]
    assert hub.requests[-1].range in {f"bytes={10 * MEGABYTE}-", f"bytes={20 * MEGABYTE}-"}


def test_two_processes_that_want_the_same_model_fetch_it_once(
    hub: HubStandIn, data_dir: Path
) -> None:
    hub.add(REPO, tiny_model_files(), COMMIT)
    hub.interruption = Interruption(after_bytes=10)
    first = start_fetch(hub, data_dir)
    assert hub.interruption.is_reached.wait(60)

    second = start_fetch(hub, data_dir)
    assert second.stderr is not None
    assert "another process is installing tiny" in second.stderr.readline()
    hub.interruption.may_go_on.set()

    said = [process.communicate()[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "tiny is installed in" in said[0]
    assert "tiny is already installed in" in said[1]
    assert sorted(hub.names_fetched()) == sorted(tiny_model_files())


def test_the_hub_is_asked_for_nothing_but_the_model_and_told_nothing_else(
    hub: HubStandIn, data_dir: Path
) -> None:
    hub.add(REPO, tiny_model_files(), COMMIT)

    _, said = start_fetch(hub, data_dir).communicate()

    assert "tiny is installed in" in said
    listing = f"/api/models/{REPO}"
    files = [f"/{REPO}/resolve/{COMMIT}/{name}" for name in tiny_model_files()]
    weights = f"/large/{REPO}/{COMMIT}/model.safetensors"
    assert sorted(r.path for r in hub.requests) == sorted([listing, *files, weights])
    assert not any("torch" in str(request.user_agent) for request in hub.requests)
