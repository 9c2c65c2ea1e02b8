"""A base model in S3, fetched by several machines, each with several workers, as real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.core.base_models import InstalledModel, load_catalogue
from app.core.db.migrate import upgrade
from app.core.db.repositories.base_models.stored import StoredCopy, StoredModels
from app.core.db.session import Database
from app.core.manifest import sha256_of
from app.core.stored_models.fetching import ModelUnavailableError, fetch_model
from benchmarks.support.samples import catalogue_entry, write_entries
from tests.builders import NOW
from tests.models import install_models, tiny_model_files, write_files
from tests.stores.counting_proxy import CountingProxy
from tests.stores.servers import BUCKET, StoreServer
from worker.commands import models
from worker.model_store.shared import keep_in_store

pytestmark = pytest.mark.parametrize(
    ("store_name", "database_kind"),
    [("localbucket", "sqlite"), ("moto", "postgresql")],
    indirect=["database_kind"],
)

MEGABYTE = 1024 * 1024
WEIGHT_BYTES = 24 * MEGABYTE
FIRST_RANGE = 256 * 1024
"""What opening an object reads in any case, also to continue in the middle."""

FETCHER = """
import sys
from app.core.base_models import load_catalogue
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.opening import open_store
from app.core.stored_models.fetching import fetch_model

url, *data_dirs = sys.argv[1:]
database = Database(url)
settings = Settings(_env_file=None, data_dir=data_dirs[0])
copy = database.read(lambda session: StoredModels(session).find("tiny"))
print("ready", flush=True)
sys.stdin.readline()
catalogue = load_catalogue(settings.data_dir)
print(fetch_model(copy, catalogue, open_store(settings), lambda _: None))
"""
"""A worker process, reduced to what it does before it trains."""


class Installation:
    """A database, a bucket behind a proxy that counts, and a base model that is stored in it."""

    def __init__(
        self, root: Path, url: str, server: StoreServer, prefix: str, proxy: CountingProxy
    ) -> None:
        self.root = root
        self.proxy = proxy
        self.url = url or f"sqlite:///{root / 'tunery.db'}"
        self.database = Database(self.url)
        upgrade(self.database)
        self.prefix = prefix
        self.variables = server.environment(proxy.endpoint)
        self.variables["TUNERY_STORE_URL"] = f"s3://{BUCKET}/{prefix}"
        self.store = server.store(root / "scratch", prefix=prefix, endpoint=proxy.endpoint)
        self.direct = server.store(root / "scratch", prefix=prefix)

    def install(self) -> StoredCopy:
        """Install the base model on one machine, which stores it."""
        files = tiny_model_files(weight_bytes=WEIGHT_BYTES)
        source = write_files(self.root / "source", files)
        data_dir = self.root / "installer"
        install_models(
            data_dir,
            catalogue_entry("tiny", source={"kind": "directory", "path": str(source)}),
        )
        catalogue = load_catalogue(data_dir)
        installed = catalogue.find_installed("tiny")
        assert installed is not None
        directory = catalogue.directory("tiny")
        keep_in_store(installed, directory, self.database, self.direct, now=NOW)
        return self.copy()

    def copy(self) -> StoredCopy:
        copy = self.database.read(lambda session: StoredModels(session).find("tiny"))
        assert copy is not None
        return copy

    def start_worker(self, machine: str) -> "subprocess.Popen[str]":
        """Start a process that fetches the base model once it is told to."""
        data_dir = self.root / machine
        data_dir.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHER, self.url, str(data_dir)],
            env=os.environ | self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def read_bytes(self) -> dict[str, int]:
        """Bytes that were read of each file of the base model."""
        names = {f"/{BUCKET}/{self.prefix}/{file.key}": n for n, file in self.copy().files.items()}
        return {names[path]: size for path, size in self.proxy.bytes.items() if path in names}


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: "subprocess.Popen[str]") -> Path:
    """Wait until a worker has the base model. Returns where."""
    said, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    return Path(said.strip())


def same_files(directory: Path, installed: InstalledModel) -> bool:
    return {
        path.name: sha256_of(path) for path in directory.iterdir() if path.name != "tunery.json"
    } == installed.files


@pytest.fixture
def installation(
    store_name: str,
    database_url: str,
    tmp_path: Path,
    store_prefix: str,
    store_server: Callable[[str], StoreServer],
) -> Iterator[Installation]:
    server = store_server(store_name)
    with CountingProxy(server.port).running() as proxy:
        installation = Installation(tmp_path, database_url, server, store_prefix, proxy)
        yield installation
        installation.database.dispose()


def test_three_machines_with_three_workers_each_fetch_a_model_once_a_machine(
    installation: Installation,
) -> None:
    copy = installation.install()
    machines = ("alpha", "beta", "gamma")
    workers = [installation.start_worker(machine) for machine in machines for _ in range(3)]
    for worker in workers:
        tell(worker)

    directories = {end(worker) for worker in workers}

    assert directories == {installation.root / each / "models" / "tiny" for each in machines}
    assert all(same_files(directory, copy.installed) for directory in directories)
    sizes = {name: file.bytes for name, file in copy.files.items()}
    assert installation.read_bytes() == {name: 3 * size for name, size in sizes.items()}


def test_a_killed_fetch_leaves_nothing_visible_and_goes_on_where_it_stopped(
    installation: Installation,
) -> None:
    copy = installation.install()
    worker = installation.start_worker("alpha")
    installation.proxy.stall_after = 15 * MEGABYTE
    tell(worker)
    assert installation.proxy.has_stalled.wait(60)
    worker.kill()
    worker.communicate()
    catalogue = load_catalogue(installation.root / "alpha")
    assert catalogue.find_version("tiny", copy.installed.sha256) is None
    partial = catalogue.hidden_directory("tiny", copy.installed.sha256, "partial")
    arrived = sum(path.stat().st_size for path in partial.iterdir())
    assert arrived > 5 * MEGABYTE
    installation.proxy.release()
    installation.proxy.forget()

    again = installation.start_worker("alpha")
    tell(again)

    assert same_files(end(again), copy.installed)
    read = installation.read_bytes()
    assert sum(read.values()) <= copy.bytes - arrived + FIRST_RANGE
    assert set(read) == {"model.safetensors", "tunery.json"}
    assert not partial.exists()


def test_a_corrupt_object_is_refused_and_named(installation: Installation) -> None:
    copy = installation.install()
    weights = copy.files["model.safetensors"]
    scratch = installation.direct.scratch_file()
    scratch.write_bytes(b"x" * weights.bytes)
    installation.direct.delete(weights.key)  # no store of ours overwrites
    installation.direct.put(weights.key, scratch)
    catalogue = load_catalogue(installation.root / "alpha")

    with pytest.raises(ModelUnavailableError, match=r"model\.safetensors of the base model tiny"):
        fetch_model(copy, catalogue, installation.store, lambda _: None)

    assert catalogue.find_version("tiny", copy.installed.sha256) is None
    partial = catalogue.hidden_directory("tiny", copy.installed.sha256, "partial")
    assert not list(partial.glob("model.safetensors*"))


def test_an_outline_reads_the_small_files_and_the_head_of_the_weights(
    installation: Installation,
) -> None:
    copy = installation.install()
    catalogue = load_catalogue(installation.root / "alpha")

    directory = fetch_model(
        copy, catalogue, installation.store, lambda _: None, needs_weights=False
    )

    weights = directory / "model.safetensors"
    assert weights.stat().st_size == copy.files["model.safetensors"].bytes
    assert weights.stat().st_blocks * 512 < MEGABYTE
    assert installation.read_bytes()["model.safetensors"] <= FIRST_RANGE
    assert catalogue.find_version("tiny", copy.installed.sha256) is None
    installation.proxy.forget()
    fetch_model(copy, catalogue, installation.store, lambda _: None)
    assert set(installation.read_bytes()) == {"model.safetensors"}


def test_the_commands_store_it_take_it_from_the_store_and_remove_it(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(machine: str, *arguments: str) -> str:
        monkeypatch.setenv("TUNERY_DATA_DIR", str(installation.root / machine))
        result = CliRunner().invoke(models, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    source = write_files(installation.root / "source", tiny_model_files())
    entry = catalogue_entry("tiny", source={"kind": "directory", "path": str(source)})
    for machine in ("alpha", "beta"):
        write_entries(installation.root / machine, entry)
    for name, value in installation.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNERY_DATABASE_URL", installation.url)

    run("alpha", "install", "tiny")
    shutil.rmtree(source)
    run("beta", "install", "tiny")

    copy = installation.copy()
    beta = load_catalogue(installation.root / "beta")
    assert same_files(beta.directory("tiny"), copy.installed)
    run("beta", "remove", "--local", "tiny")
    assert beta.find_installed("tiny") is None
    assert installation.copy() == copy
    assert "removed from the store as well" in run("alpha", "remove", "tiny")
    assert not [blob for blob in installation.direct.list_all() if "models/" in blob.key]
