"""Servers that speak S3, from `make stores`: moto's, localbucket, and rclone's, the careless one.

moto honours conditions and keeps everything in memory. localbucket keeps files on disk and ignores
`If-Match`. rclone ignores every condition, overwrites silently and answers 200 to a range.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.core.settings.store_urls import BucketAddress
from app.core.storage.s3 import S3Access, S3BlobStore

PROGRAMS = Path(__file__).parents[2] / ".venv-stores" / "bin"
BUCKET = "bucket"
KEY_ID = "test-key-id"
SECRET = "test-secret-that-nobody-may-see"  # noqa: S105
WITHIN_S = 30
NAMES = ("moto", "localbucket", "rclone")


class StoreServer:
    """One server on a port of its own, with an empty bucket.

    Args:
        name: one of NAMES.
        root: directory for what it keeps, and for its log. moto keeps nothing on disk.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.port = free_port()
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        (root / "data" / BUCKET).mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "StoreServer":
        """Start it, and wait until it answers. May be called again after `kill`."""
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(_command(self), stdout=log, stderr=log)
        deadline_s = time.monotonic() + WITHIN_S
        while not _answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.name}: {(self.root / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        if self.name == "moto":
            request = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")  # noqa: S310
            urllib.request.urlopen(request).close()  # noqa: S310
        return self

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self._end(signal.SIGTERM)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables with which a process reaches it, or a proxy in front of it."""
        return environment_of(endpoint or self.endpoint)

    def store(
        self, scratch: Path, *, prefix: str = "", endpoint: str | None = None, **options: Any
    ) -> S3BlobStore:
        """A store in its bucket."""
        access = S3Access.from_environment(self.environment(endpoint))
        return S3BlobStore(BucketAddress(BUCKET, prefix), access, scratch_root=scratch, **options)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(WITHIN_S)
            self.process = None


def environment_of(endpoint: str) -> dict[str, str]:
    """The variables of AWS for a server at this URL."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _command(server: StoreServer) -> Sequence[str]:
    data, port = str(server.root / "data"), str(server.port)
    match server.name:
        case "moto":
            return [str(PROGRAMS / "moto_server"), "-H", "127.0.0.1", "-p", port]
        case "localbucket":
            return [str(PROGRAMS / "localbucket"), "--port", port, data]
        case "rclone":
            keys = f"{KEY_ID},{SECRET}"
            address = f"127.0.0.1:{port}"
            return [
                str(PROGRAMS / "rclone"), "serve", "s3", "--addr", address, "--auth-key", keys,
                "--config", os.devnull, data,
            ]  # fmt: skip
        case name:
            raise ValueError(name)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
