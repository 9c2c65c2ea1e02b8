"""`tunery models`, and `python -m worker.commands`: list, install and remove base models.

Only `install` imports the libraries that it needs, so `list` and `remove` work without the extra
`worker`.
"""

import importlib.util
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.core.base_models import (
    DEFAULT_MODEL_ID,
    Catalogue,
    CatalogueEntry,
    load_catalogue,
)
from app.core.clock import utc_now
from app.core.command_line.exit_codes import CommandGroup
from app.core.command_line.json_output import AsJson, print_json
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError, ServiceError, StoreAwayError
from app.core.installation import connect_store
from app.core.occupancy import make_data_dir, occupied, open_database
from app.core.settings import Settings, read_settings
from app.core.settings.store_urls import is_shared
from app.core.storage.blob_store import BlobStore
from app.core.storage.privacy import keep_new_files_private
from app.core.stored_models.fetching import ModelUnavailableError
from worker.model_store.errors import InstallError
from worker.model_store.remove import ModelInUseError, remove_model
from worker.model_store.shared import fetch_installed, keep_in_store

_NO_WORKER = """\
This installation serves the API and cannot train: its extra `worker` is missing. Install it with
  pip install 'tunery[worker]' --extra-index-url https://download.pytorch.org/whl/cpu
or
  uv pip install 'tunery[worker]' --torch-backend cpu
For a GPU, leave the last option out. `tunery api` serves the API alone."""

Names = Annotated[
    list[str], typer.Argument(help="Ids in the catalogue, or hub repositories.", metavar="ID...")
]

models = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="List, install and remove base models. Exit codes: 0 success, 1 any of them failed, "
    "2 cannot run, 3 the database is busy.",
)


@models.command("list")
def list_models(*, as_json: AsJson = False) -> None:
    """Show the catalogue, and which base models are installed."""
    catalogue = _load_catalogue()
    if not as_json:
        typer.echo(_table(catalogue))
        return
    print_json(
        [
            {
                "id": entry.id,
                "name": entry.name,
                "licence": entry.licence,
                "context_length": entry.context_length,
                "is_installed": catalogue.find_installed(entry.id) is not None,
            }
            for entry in catalogue.entries
        ]
    )


@models.command("install")
def install(names: Names) -> None:
    """Install base models, so that jobs can tune them."""
    require_worker()
    catalogue = _load_catalogue()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("worker").setLevel(logging.INFO)
    logging.getLogger("app.core.stored_models").setLevel(logging.INFO)
    settings = read_settings()
    make_data_dir(settings)
    with occupied(settings), _shared_store(settings) as shared:
        failures = [name for name in names if not _install(name, catalogue, shared)]
    raise typer.Exit(int(bool(failures)))


@models.command("remove")
def remove(
    names: Names,
    *,
    local: Annotated[
        bool, typer.Option("--local", help="Leave them in the store, for other machines.")
    ] = False,
) -> None:
    """Remove installed base models, except those that an unfinished job needs.

    If the store has them, they are removed from there, too.
    """
    catalogue, settings = _load_catalogue(), read_settings()
    with open_database(settings) as database:
        store = None if local else connect_store(settings, database, may_move=False).store
        failures = [name for name in names if not _remove(name, catalogue, database, store)]
    raise typer.Exit(int(bool(failures)))


def require_worker() -> None:
    """End the command with what to do when the extra `worker` is not installed.

    Raises:
        typer.Exit: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        typer.echo(_NO_WORKER, err=True)
        raise typer.Exit(2)


def _load_catalogue() -> Catalogue:
    return load_catalogue(read_settings().data_dir)


@contextmanager
def _shared_store(settings: Settings) -> Generator[tuple[Database, BlobStore] | None]:
    """The database, and the store if other machines reach it. None if they do not."""
    if not is_shared(settings.store_url):
        yield None
        return
    with open_database(settings) as database:
        yield database, connect_store(settings, database, may_move=False).store


def _install(name: str, catalogue: Catalogue, shared: tuple[Database, BlobStore] | None) -> bool:
    from worker.model_store.install import install_model  # noqa: PLC0415 - see above

    entry = _find(name, catalogue)
    if entry is None:
        return False
    try:
        if shared is not None:
            spare_bytes = read_settings().min_free_bytes
            fetch_installed(entry, catalogue, *shared, spare_bytes=spare_bytes)
        installed = install_model(entry, catalogue)
        if shared is not None:
            directory = catalogue.directory(entry.id)
            keep_in_store(installed, directory, *shared, now=utc_now())
    except (InstallError, ModelUnavailableError, ServiceError, StoreAwayError, OSError) as error:
        return _fail(f"{entry.id} was not installed. {_explain(error)}")
    except KeyboardInterrupt:
        return _fail(
            f"{entry.id} was not installed: interrupted. Run the command again to continue."
        )
    return True


def _remove(name: str, catalogue: Catalogue, database: Database, store: BlobStore | None) -> bool:
    entry = _find(name, catalogue)
    if entry is None:
        return False
    try:
        removed = remove_model(entry, catalogue, database, store)
    except (ModelInUseError, DatabaseBusyError, StoreAwayError, OSError) as error:
        return _fail(f"{entry.id} was not removed. {_explain(error)}")
    was_there = removed.was_here or removed.was_stored
    typer.echo(f"{entry.id} is removed" if was_there else f"{entry.id} is not installed")
    if removed.was_stored:
        typer.echo("It is removed from the store as well. Machines that have fetched it keep their")
        typer.echo(f"copies; `tunery models remove {entry.id}` on each of them frees its disk.")
    if entry.id == DEFAULT_MODEL_ID and read_settings().install_default_model:
        typer.echo("A worker that starts installs it again. TUNERY_INSTALL_DEFAULT_MODEL=false")
        typer.echo("prevents that.")
    return True


def _find(name: str, catalogue: Catalogue) -> CatalogueEntry | None:
    entry = catalogue.find(name)
    if entry is None:
        known = ", ".join(entry.id for entry in catalogue.entries)
        _fail(
            f"There is no base model {name!r}. There are {known}. "
            "docs/base-models.md says how to add one."
        )
    return entry


def _explain(error: Exception) -> str:
    return error.for_operator if isinstance(error, StoreAwayError) else str(error)


def _fail(message: str) -> bool:
    typer.echo(message, err=True)
    return False


def _table(catalogue: Catalogue) -> str:
    heading = ("ID", "NAME", "LICENCE", "CONTEXT", "INSTALLED")
    rows: list[tuple[str, ...]] = [heading]
    for entry in catalogue.entries:
        is_installed = "yes" if catalogue.find_installed(entry.id) else "no"
        context = str(entry.context_length)
        rows.append((entry.id, entry.name, entry.licence, context, is_installed))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    keep_new_files_private()
    models()
