"""The commands of `python -m app`: serve the API, and look after the service's data."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from app.api.http_protocol import BoundedHttpProtocol
from app.core.base_models import CatalogueError
from app.core.db.inspection import NoDatabaseError
from app.core.db.snapshot import SnapshotError
from app.core.disk import Ballast
from app.core.errors import DatabaseBusyError, StorageFullError
from app.core.logging import configure_logging
from app.core.maintenance.backup import make_backup
from app.core.maintenance.backup_format import BackupError
from app.core.maintenance.doctor import examine
from app.core.maintenance.findings import Finding, Level
from app.core.maintenance.occupancy import OccupiedError, occupied
from app.core.maintenance.restore import restore_backup
from app.core.settings import Settings
from app.main import create_app

_MIB = 1024 * 1024
_EXPECTED = (
    BackupError,
    CatalogueError,
    DatabaseBusyError,
    NoDatabaseError,
    OccupiedError,
    OSError,
    SnapshotError,
    StorageFullError,
)
"""What ends a command with a message instead of a traceback."""


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code: 0, 1 when problems remain, 2 when it cannot run."""
    parsed = _parser().parse_args(arguments)
    settings = Settings()
    try:
        return parsed.run(settings, parsed)
    except _EXPECTED as error:
        sys.stderr.write(f"{parsed.command}: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="The API of Tunery, and what looks after its data. Settings come from the "
        "environment or from a file .env: docs/settings.md.",
        epilog="Without a command, `serve`. Exit codes: 0 good, 1 problems remain, 2 cannot run.",
    )
    parser.set_defaults(command="serve", run=_serve)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def add(name: str, run: object, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        command.set_defaults(command=name, run=run)
        return command

    add("serve", _serve, "Serve the API on TUNERY_HOST:TUNERY_PORT")
    add("openapi", _openapi, "Print the API's OpenAPI document")
    doctor = add("doctor", _doctor, "Examine the database, the files and the disk")
    doctor.add_argument("--repair", action="store_true", help="mend what is safe to mend")
    doctor.add_argument("--deep", action="store_true", help="read every byte of every file")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    backup = add("backup", _backup, "Copy the database and all files into a new directory")
    backup.add_argument("directory", type=Path, metavar="DIR", help="must not exist yet")
    backup.add_argument("--with-models", action="store_true", help="the base models' weights, too")
    backup.add_argument("--read-back", action="store_true", help="verify every byte afterwards")
    restore = add("restore", _restore, "Put a backup back, with the service stopped")
    restore.add_argument("directory", type=Path, metavar="DIR", help="made by `backup`")
    restore.add_argument(
        "--force", action="store_true", help="move what is in the data directory aside"
    )
    restore.add_argument(
        "--accept-damage", action="store_true", help="leave damaged files out; never the database"
    )
    for command in (backup, restore):
        command.add_argument(
            "--copy", action="store_true", help="copy files also where a hard link would do"
        )
    return parser


def _serve(settings: Settings, _parsed: argparse.Namespace) -> int:
    configure_logging(settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with occupied(settings):
        ballast = Ballast(settings)
        if not ballast.release_if_full():
            ballast.make_if_room()
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            server_header=False,
            http=BoundedHttpProtocol,
            timeout_graceful_shutdown=10,
        )
    return 0


def _openapi(settings: Settings, _parsed: argparse.Namespace) -> int:
    _print(json.dumps(create_app(settings).openapi(), indent=2))
    return 0


def _doctor(settings: Settings, parsed: argparse.Namespace) -> int:
    findings: list[Finding] = []
    with occupied(settings):
        for finding in examine(settings, is_deep=parsed.deep, may_repair=parsed.repair):
            findings.append(finding)
            if not parsed.json:
                _print(_describe(finding))
    if parsed.json:
        _print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    return int(any(finding.level is Level.BAD for finding in findings))


def _describe(finding: Finding) -> str:
    lines = [f"{finding.level:<4} {finding.check:<13} {finding.message}"]
    if finding.mended:
        lines.append(f"{'':18} mended: {finding.mended}")
    if finding.advice:
        lines.append(f"{'':18} {finding.advice}")
    return "\n".join(lines)


def _backup(settings: Settings, parsed: argparse.Namespace) -> int:
    with occupied(settings):
        record = make_backup(
            settings,
            parsed.directory,
            may_link=not parsed.copy,
            with_models=parsed.with_models,
            reads_back=parsed.read_back,
        )
    _print(
        f"{parsed.directory}: the {record.database} database, and {record.blob_count:,} files of "
        f"{record.blob_bytes // _MIB:,} MiB."
    )
    for key in record.missing:
        _print(f"The service itself has lost {key}; `python -m app doctor` says whose it is.")
    return int(bool(record.missing))


def _restore(settings: Settings, parsed: argparse.Namespace) -> int:
    restored = restore_backup(
        settings,
        parsed.directory,
        replace=parsed.force,
        may_link=not parsed.copy,
        accept_damage=parsed.accept_damage,
    )
    record = restored.record
    _print(f"{settings.data_dir} is as it was at {record.created_at:%Y-%m-%d %H:%M:%S} UTC.")
    if restored.replaced is not None:
        _print(f"What was there before is in {restored.replaced}; delete it when all is well.")
    if restored.put_back:
        _print(f"{len(restored.put_back)} jobs that ran then are back in the queue.")
    for model_id in restored.models_to_install:
        _print(f"Install the base model again: python -m worker.fetch_model {model_id}")
    for key in sorted(restored.damaged):
        _print(f"Not restored, as it is damaged in the backup: {key}")
    return int(bool(restored.damaged))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
