"""Machines of a test: each is a network namespace with one worker in it.

A machine reaches the database and the store through one cable each, and a `Link` at the end of it.
It has a data directory, a host id and a kernel's network of its own; nothing else is shared with
the other machines but the clock and the processor. All of it ends with this process.
"""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import make_url

from tests.builders import write_catalogue
from tests.chaos.network.link import Fault, Link, Relays
from tests.programs import require_programs, skip_unless_ci
from tunery import service_root
from tunery.logged_process import LoggedProcess

Server = Literal["database", "store"]
SERVERS: tuple[Server, ...] = ("database", "store")


def require_namespaces() -> None:
    """Skip the test, and say why, where no network namespace can be made; in CI, fail."""
    require_programs("ip", "unshare", "nsenter", packages="iproute2 util-linux")
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        skip_unless_ci(f"Network namespaces need root: {done.stderr.strip()}")


class Cable:
    """Two ends of a virtual network card: one here, one in a namespace.

    Args:
        namespace: id of a process in the namespace.
        name: name of this end, at most 15 characters.
    """

    def __init__(self, namespace: int, name: str) -> None:
        self._name = name
        block = 4 * secrets.randbelow(1 << 15)  # 198.18.0.0/15 is for tests of network devices
        self.host, peer = (
            f"198.{18 + (block >> 16)}.{block >> 8 & 255}.{(block & 255) + end}" for end in (1, 2)
        )
        _ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", str(namespace))
        _ip("addr", "add", f"{self.host}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("addr", "add", f"{peer}/30", "dev", name, namespace=namespace)
        _ip("link", "set", name, "up", namespace=namespace)

    def unplug(self) -> None:
        """Lose every packet, in both directions, without a word to either side."""
        _ip("link", "set", self._name, "down")

    def plug(self) -> None:
        _ip("link", "set", self._name, "up")


class Machine:
    """One machine with its worker, which `process` starts.

    Args:
        name: at most 8 characters.
        directory: for its data directory and its log.
        targets: where the servers listen in this namespace.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        relays: Relays,
        targets: Mapping[Server, tuple[str, int] | Path],
    ) -> None:
        self.name = name
        self.directory = directory
        self.data_dir = directory / "data"
        write_catalogue(self.data_dir)
        # Ends with its standard input, and so with this process; the namespace ends with it.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n"
        tag = secrets.token_hex(4)
        self.cables = {one: Cable(self._holder.pid, f"tn{tag}{one[:2]}") for one in SERVERS}
        self.links = {one: Link(relays, targets[one], self.cables[one].host) for one in SERVERS}

    @property
    def connections(self) -> int:
        """Number of connections that its links have accepted."""
        return sum(link.connections for link in self.links.values())

    def prepare(self, settings: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """Make the process of the worker, `process`, without starting it."""
        own = {**settings, "data_dir": str(self.data_dir), "log_level": "info"}
        inherited = {key: os.environ[key] for key in os.environ if not key.startswith("TUNERY_")}
        variables = {f"TUNERY_{key.upper()}": value for key, value in own.items()}
        self.process = LoggedProcess(
            [*self._enter(), sys.executable, "-P", "-m", "tests.chaos.worker"],
            log=self.directory / "worker.log",
            cwd=self.data_dir,
            environment={
                **inherited,
                "PYTHONPATH": str(service_root()),
                "TUNERY_TEST_HOST": self.name,
                **environment,
                **variables,
            },
        )

    def database_url(self, url: str) -> str:
        """The address of a database, as this machine sees it."""
        link = self.links["database"]
        remote = make_url(url).set(host=link.host, port=link.port)
        return remote.difference_update_query(["host"]).render_as_string(hide_password=False)

    def store_endpoint(self) -> str:
        link = self.links["store"]
        return f"http://{link.host}:{link.port}"

    def fail(self, server: Server, fault: Fault | None) -> None:
        """Cut the machine off from a server.

        Args:
            fault: None unplugs the cable.
        """
        if fault is None:
            self.cables[server].unplug()
        else:
            self.links[server].fail(fault)

    def heal(self, server: Server, *, delivers: bool) -> None:
        self.cables[server].plug()
        self.links[server].heal(delivers=delivers)

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self._holder.send_signal(signal.SIGKILL)
        self._holder.communicate()

    def _enter(self) -> Sequence[str]:
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ip(*arguments: str, namespace: int | None = None) -> None:
    enter = [] if namespace is None else ["nsenter", f"--net=/proc/{namespace}/ns/net"]
    subprocess.run([*enter, "ip", *arguments], check=True)
