"""The commands of `tunery`: its own, those of the API and those of the worker."""

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Annotated

import typer

from app.commands.service import Host, Port, commands, override_address
from app.core.command_line.exit_codes import CommandGroup
from app.core.logging import configure_logging
from app.core.machine.linux import refuse_tracing
from app.core.sampling.health import answers
from app.core.settings import read_settings
from app.core.storage.privacy import keep_new_files_private
from app.core.version import VERSION
from tunery import service_root
from tunery.client.cli import client
from tunery.client.init import commands as job_file_commands
from tunery.client.models import list_models
from tunery.supervisor import Supervisor
from worker.commands import models, require_worker
from worker.health import report_health

STOP_MARGIN_S = 10.0
"""Seconds beyond TUNERY_STOP_GRACE_S after which a process that is told to stop is killed."""

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "fastapi", "sqlalchemy")

cli = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune language models over OpenAI's API, on your own machine. `tunery serve` is all "
    "it takes. Settings of the service come from the environment or from a file .env.",
)


def run() -> None:
    """Run the command that the arguments name.

    Raises:
        SystemExit: always, with the exit code: 0 success, 1 problems remain, 2 cannot run,
            3 the database is busy.
    """
    keep_new_files_private()
    cli(prog_name="tunery")


@cli.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Run API, worker and sampler together, and restart what dies; Ctrl-C stops all."""
    refuse_tracing()  # this process knows the database's password
    require_worker()
    override_address(host, port)
    settings = read_settings()
    configure_logging(settings)
    parts = {"api": "app", "worker": "worker"}
    if settings.sampling != "off":
        parts["sampler"] = "worker.sampling"
    supervisor = Supervisor(
        parts,
        stop_within_s=settings.stop_grace_s + STOP_MARGIN_S,
    )
    raise typer.Exit(supervisor.run())


@cli.command("worker")
def run_worker(
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check whether the workers of this machine are healthy. Exit code 1 if not.",
        ),
    ] = False,
) -> None:
    """Train what is in the queue until SIGTERM or Ctrl-C."""
    if check:
        raise typer.Exit(report_health())
    require_worker()
    from worker.__main__ import main  # noqa: PLC0415 - needs the extra `worker`

    raise typer.Exit(main())


@cli.command("sampler")
def run_sampler(
    *,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check whether the sampler answers. Exit code 1 if not."),
    ] = False,
) -> None:
    """Answer requests to models until SIGTERM or Ctrl-C."""
    if check:
        is_alive = answers(read_settings().sampler_dir)
        typer.echo("healthy" if is_alive else "unhealthy: no sampler answers.", err=not is_alive)
        raise typer.Exit(int(not is_alive))
    require_worker()
    from worker.sampling.__main__ import main  # noqa: PLC0415 - needs the extra `worker`

    raise typer.Exit(main())


cli.add_typer(client)
cli.add_typer(commands)
cli.add_typer(models, name="models")
models.command("available")(list_models)  # on the other side: see decision 0048
cli.add_typer(job_file_commands)


@cli.command()
def examples(
    directory: Annotated[Path, typer.Argument(help="Directory to write the examples to.")] = Path(
        "examples"
    ),
) -> None:
    """Write example datasets and programs into a directory; existing files are left alone."""
    directory.mkdir(parents=True, exist_ok=True)
    for source in sorted((service_root() / "examples").iterdir()):
        target = directory / source.name
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)
            typer.echo(target)


@cli.command()
def version() -> None:
    """Print the versions of Tunery, Python and the main libraries."""
    typer.echo(f"tunery {VERSION}")
    typer.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _LIBRARIES:
        typer.echo(f"{name} {_installed_version(name)}")


def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
