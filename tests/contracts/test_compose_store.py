"""The S3 server of the compose file, whose script runs here without Docker."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from app.core.errors import StoreAwayError
from app.core.settings.store_urls import BucketAddress
from app.core.storage.s3 import S3Access, S3BlobStore
from tests.stores.fixtures import require_stores
from tests.stores.servers import PROGRAMS, WITHIN_S, environment_of, free_port

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text("utf-8"))


@contextmanager
def served(directory: Path, port: int, keys: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    *shell, script = COMPOSE["services"]["s3"]["entrypoint"]
    script = script.replace("$$", "$").replace("/objects", str(directory))
    command = [*shell, script.replace(" :9000", f" 127.0.0.1:{port}")]
    variables = {"PATH": f"{PROGRAMS}{os.pathsep}{os.defpath}", "HOME": str(directory), **keys}
    with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_wants_the_keys(tmp_path: Path) -> None:
    require_stores()
    port = free_port()
    known = environment_of(f"http://127.0.0.1:{port}")
    keys = {name: known[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}

    def store(variables: dict[str, str]) -> S3BlobStore:
        access = S3Access.from_environment(variables)
        bucket = BucketAddress("tunery", "")
        return S3BlobStore(bucket, access, scratch_root=tmp_path / "scratch", patience_s=WITHIN_S)

    with served(tmp_path / "objects", port, keys):
        assert store(known).probe_conditions().lists
        with pytest.raises(StoreAwayError) as refused:
            store(known | {"AWS_SECRET_ACCESS_KEY": "another"}).probe_conditions()

    assert "403" in refused.value.for_operator


def test_it_does_not_start_without_keys(tmp_path: Path) -> None:
    require_stores()

    with served(tmp_path / "objects", free_port(), {}) as process:
        assert process.wait(WITHIN_S) != 0
