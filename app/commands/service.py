"""The commands that serve the API and maintain the service's data.

`tunery` offers them beside its own; `python -m app` offers them alone, and serves by default.
"""

import dataclasses
import json
import os
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvicorn

from app.api.http_protocol import bounded_protocol
from app.api.polls.protocol import repeating
from app.commands.keys import keys
from app.commands.machines import drain, machines, undrain
from app.commands.projects import projects
from app.commands.signing import signing_key, verify
from app.core.clock import utc_now
from app.core.command_line.exit_codes import CommandGroup
from app.core.command_line.json_output import AsJson, print_json
from app.core.db.migrate import prepare
from app.core.disk import MIB, Ballast
from app.core.errors import OperatorError
from app.core.installation import require_right_store
from app.core.logging import configure_logging
from app.core.machine.linux import refuse_tracing, share_heaps
from app.core.occupancy import make_data_dir, occupied
from app.core.settings import Settings, read_settings
from app.core.storage.privacy import close_data_directory, keep_new_files_private
from app.main import create_app
from app.maintenance.backup import make_backup
from app.maintenance.doctor import examine
from app.maintenance.findings import Finding, Level
from app.maintenance.keys import secure_start
from app.maintenance.metrics import serving_metrics
from app.maintenance.restore import restore_backup

_SWITCH_INTERVAL_S = 0.001
"""Time after which a thread that checks a file lets the event loop run, instead of Python's 5 ms.
The loop waits this long several times in a request."""


class CannotListenError(OperatorError):
    """Another program listens on the address, or it is not one of this machine."""


commands = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve Tunery's API, and maintain its data. Settings come from the environment or from "
    "a file .env: docs/settings.md. Exit codes: 0 success, 1 problems remain, 2 cannot run, "
    "3 the database is busy.",
)

commands.add_typer(keys, name="keys")
commands.add_typer(projects, name="projects")
commands.command()(verify)
commands.add_typer(signing_key, name="signing-key")
for command in (drain, undrain, machines):
    commands.command()(command)

Host = Annotated[
    str | None, typer.Option(help="Address to listen on, instead of TUNERY_HOST.", metavar="ADDR")
]
Port = Annotated[
    int | None, typer.Option(help="TCP port, instead of TUNERY_PORT.", min=0, max=65535)
]
Copies = Annotated[bool, typer.Option("--copy", help="Copy files even where a hard link would do.")]


def run_app() -> None:
    """`python -m app`: the command that the arguments name, or the API when there are none.

    Raises:
        SystemExit: always, with the exit code.
    """
    keep_new_files_private()
    commands(sys.argv[1:] or ["api"], prog_name="python -m app")


@commands.command("api")
def serve_api(host: Host = None, port: Port = None) -> None:
    """Serve the API on TUNERY_HOST:TUNERY_PORT until SIGTERM or Ctrl-C."""
    refuse_tracing()  # this process knows the database's password
    share_heaps(2)
    override_address(host, port)
    settings = read_settings()
    configure_logging(settings)
    make_data_dir(settings)
    close_data_directory(settings)
    with occupied(settings):
        ballast = Ballast(settings)
        if not ballast.release_if_full():
            ballast.make_if_room()
        application = create_app(settings)
        _check_address(settings)
        database = application.state.resources.database
        prepare(database)
        require_right_store(database, application.state.resources.store)
        secure_start(settings, database, now=utc_now())
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        metrics = application.state.metrics
        with serving_metrics(metrics.registry, settings, database):
            uvicorn.run(
                application,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,  # `app.api.requests` writes one with the request's id
                server_header=False,
                http=repeating(bounded_protocol(settings, metrics), application.state.repeats),
                ws="none",
                timeout_graceful_shutdown=10,
            )


def override_address(host: str | None, port: int | None) -> None:
    """Let options win over the environment, for this process and those that it starts."""
    for name, value in (("TUNERY_HOST", host), ("TUNERY_PORT", port)):
        if value is not None:
            os.environ[name] = str(value)


@commands.command("openapi")
def print_openapi() -> None:
    """Print the API's OpenAPI document."""
    typer.echo(json.dumps(create_app(read_settings()).openapi(), indent=2))


@commands.command()
def doctor(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what is safe to repair.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of every file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the database, the files and the disk. The service may be running or stopped."""
    settings = read_settings()
    findings: list[Finding] = []
    with occupied(settings):
        for finding in examine(settings, is_deep=deep, may_repair=repair):
            findings.append(finding)
            if not as_json:
                typer.echo(_describe(finding))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    raise typer.Exit(int(any(finding.level is Level.BAD for finding in findings)))


def _describe(finding: Finding) -> str:
    lines = [f"{finding.level:<4} {finding.check:<13} {finding.message}"]
    if finding.repaired:
        lines.append(f"{'':18} repaired: {finding.repaired}")
    if finding.advice:
        lines.append(f"{'':18} {finding.advice}")
    return "\n".join(lines)


@commands.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="New directory for the backup.")],
    *,
    with_models: Annotated[
        bool, typer.Option("--with-models", help="Include the base models' weights.")
    ] = False,
    read_back: Annotated[
        bool, typer.Option("--read-back", help="Verify every byte afterwards.")
    ] = False,
    copy: Copies = False,
) -> None:
    """Copy the database and all files to a new directory. The service may be running or stopped."""
    settings = read_settings()
    with occupied(settings):
        record = make_backup(
            settings,
            directory,
            may_link=not copy,
            with_models=with_models,
            reads_back=read_back,
        )
    typer.echo(
        f"{directory}: the {record.database} database, and {record.blob_count:,} files of "
        f"{record.blob_bytes // MIB:,} MiB."
    )
    _exit_with(
        [f"Not in the backup, as the service no longer has it: {key}" for key in record.missing],
        advice="Run `tunery doctor` to see which files and jobs are affected.",
    )


@commands.command()
def restore(
    directory: Annotated[Path, typer.Argument(help="A directory that `backup` made.")],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Move the present content of the data directory aside.")
    ] = False,
    accept_damage: Annotated[
        bool,
        typer.Option(
            "--accept-damage",
            help="Restore without damaged files. A damaged database is never accepted.",
        ),
    ] = False,
    copy: Copies = False,
) -> None:
    """Restore a backup. Stop the service first."""
    settings = read_settings()
    restored = restore_backup(
        settings,
        directory,
        replace=force,
        may_link=not copy,
        accept_damage=accept_damage,
    )
    record = restored.record
    typer.echo(f"{settings.data_dir} is as it was at {record.created_at:%Y-%m-%d %H:%M:%S} UTC.")
    if restored.replaced is not None:
        typer.echo(f"What was there before is in {restored.replaced}; delete it when all is well.")
    if restored.put_back:
        typer.echo(f"{len(restored.put_back)} jobs that ran then are back in the queue.")
    if restored.working_keys:
        typer.echo(
            f"API keys that work: {restored.working_keys}, also those that were revoked after the "
            "backup. Check `tunery keys list`."
        )
    for model_id in restored.models_to_install:
        typer.echo(f"Install the base model again: tunery models install {model_id}")
    _exit_with(
        [f"Not restored, as it is damaged in the backup: {key}" for key in sorted(restored.damaged)]
    )


def _exit_with(problems: list[str], *, advice: str = "") -> NoReturn:
    """Print the problems and end the command with exit code 1, or with 0 if there are none."""
    for line in [*problems, advice] if problems and advice else problems:
        typer.echo(line)
    raise typer.Exit(int(bool(problems)))


def _check_address(settings: Settings) -> None:
    """Make sure that the API can listen: uvicorn itself would only log why it cannot.

    Raises:
        CannotListenError: it cannot.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotListenError(
                f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose "
                "another address with TUNERY_HOST and TUNERY_PORT, or --host and --port."
            ) from error
