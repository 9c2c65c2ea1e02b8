"""A Ray cluster on this machine: a head and nodes, each with processes and environment of its own.

The head runs no jobs. A node that has died is started again by `restore`, as a service manager
would do it; after the head has, all nodes are, because they know nothing of a new one.
"""

import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from tests.programs import skip_unless_ci
from tunery import service_root
from tunery.logged_process import LoggedProcess, ServiceError

START_S = 90.0
NODE_MEMORY = 8_000_000_000
_RAY = Path(sys.executable).with_name("ray")
_STORE = ("--object-store-memory", "78643200")  # as little as Ray allows: nothing is kept in it

_EMPTY = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
"""Keys that a cluster file must have."""


def require_ray() -> None:
    """Skip the test where Ray is not installed; in CI, fail."""
    if importlib.util.find_spec("ray") is None:
        skip_unless_ci("Ray is not installed. Run: make ray")


class RayCluster:
    """A context manager: in the block the cluster runs, after it none of its processes is left.

    Args:
        nodes: for each node by its name, its environment besides that of this process.
        log_dir: directory for the logs of `ray start`.
        autoscaled: environment of the nodes that Ray's autoscaler starts while they are needed. By
            default there is no autoscaler.
        max_nodes: how many nodes it may start.
        is_v2: whether the autoscaler is the one that `ray up` uses, or the older one.
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, str]],
        *,
        log_dir: Path,
        autoscaled: Mapping[str, str] | None = None,
        max_nodes: int = 1,
        is_v2: bool = True,
    ) -> None:
        self._temp_dir = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
        self.address = f"127.0.0.1:{_free_port()}"
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0"]
        head += ["--include-dashboard=false", f"--temp-dir={self._temp_dir}", *_STORE]
        node = [f"--address={self.address}", "--num-cpus=1", f"--memory={NODE_MEMORY}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(service_root()),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_METRICS_COLLECTION": "0",
        }
        if autoscaled is not None:
            config = self._temp_dir / "autoscaling.json"
            command, log = [_RAY, "start", "--block", *node, *_STORE], log_dir / "nodes.log"
            config.write_text(json.dumps(_cluster_file(command, autoscaled, log, max_nodes)))
            head.append(f"--autoscaling-config={config}")
            environment |= {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": str(int(is_v2)),
                "RAY_CLOUD_INSTANCE_ID": "head",  # as `ray up` does
                "RAY_NODE_TYPE_NAME": "head",
            }
        self.processes = {
            name: LoggedProcess(
                [_RAY, "start", "--block", *arguments],
                log=log_dir / f"{name}.log",
                cwd=self._temp_dir,
                environment=environment | dict(own),
            )
            for name, arguments, own in [
                ("head", head, nodes.get("head", {})),
                *((name, [*node, *_STORE], own) for name, own in nodes.items() if name != "head"),
            ]
        }

    def __enter__(self) -> Self:
        try:
            self._start("head")
            self._start(*self.node_names)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self.processes):
            self._clear(name)
        shutil.rmtree(self._temp_dir, ignore_errors=True)

    @property
    def node_names(self) -> list[str]:
        return [name for name in self.processes if name != "head"]

    def find(self, name: str, program: str) -> list[psutil.Process]:
        """Processes of a node whose command line contains this text."""
        process = self.processes[name]
        if not process.is_running:
            return []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            return [one for one in family if _is_called(one, program)]
        return []

    def kill(self, name: str) -> bool:
        """SIGKILL what makes the node a part of the cluster. Returns whether it was there."""
        found = self.find(name, "gcs_server" if name == "head" else "raylet/raylet")
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(found)

    def kill_actor(self, name: str) -> bool:
        """SIGKILL the process of an attempt. Returns whether there was one."""
        found = self.find(name, "ray::AttemptActor")
        for process in found[:1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(found)

    def restore(self) -> None:
        """Start what has died again, and wait until it runs."""
        if not self._is_whole("head"):
            for name in self.processes:
                self._clear(name)
            self._start("head")
        dead = [name for name in self.node_names if not self._is_whole(name)]
        for name in dead:
            self._clear(name)
        self._start(*dead)

    def _is_whole(self, name: str) -> bool:
        return bool(self.find(name, "gcs_server" if name == "head" else "raylet/raylet"))

    def _start(self, *names: str) -> None:
        """One after the other: two nodes that start together take each other's ports."""
        for name in names:
            for is_last in (False, True):
                self.processes[name].start()
                try:
                    self.processes[name].wait_for("Ray runtime started", within_s=START_S)
                except ServiceError:
                    self._clear(name)
                    if is_last:
                        raise
                else:
                    break

    def _clear(self, name: str) -> None:
        """Leave nothing of a node, as a service manager does before it starts it again."""
        process = self.processes[name]
        if process.is_running:
            kill_family(process.pid)
            process.wait()


def kill_family(pid: int) -> None:
    """SIGKILL a process and everything that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family[1:], timeout=20)


def _cluster_file(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path, max_nodes: int
) -> dict[str, Any]:
    """For a cluster whose nodes this command starts."""
    node = {"command": [*map(str, command)], "environment": dict(environment), "log": str(log)}
    head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    trainer = {
        "resources": {"CPU": 1, "memory": NODE_MEMORY},
        "node_config": node,
        "min_workers": 0,
        "max_workers": max_nodes,
    }
    return {
        "cluster_name": "test",
        "max_workers": max_nodes,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "tests.cluster.local_nodes.LocalNodes",
            "disable_node_updaters": True,  # there is no SSH
            "disable_launch_config_check": True,
        },
        "available_node_types": {"head": head, "trainer": trainer},
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in _EMPTY},
    }


def _is_called(process: psutil.Process, program: str) -> bool:
    try:
        return program in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
