"""`tunery drain`, `tunery undrain` and `tunery machines`: the machines that share a database."""

import time
from typing import Annotated

import typer

from app.core.clock import utc_now
from app.core.command_line.json_output import AsJson, print_json
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.workers import WorkerRepository, WorkerState, WorkerStatus
from app.core.db.session import Database
from app.core.errors import OperatorError
from app.core.occupancy import open_database
from app.core.settings import read_settings

_LOOK_S = 1.0
"""Interval at which `tunery drain` looks whether the machine is empty, in seconds."""

Machine = Annotated[
    str | None,
    typer.Argument(help="Name of a machine; this one by default.", metavar="MACHINE"),
]


class UnknownMachineError(OperatorError):
    """No worker has registered from a machine of this name. The message lists those there are."""


def drain(
    machine: Machine = None,
    *,
    wait: Annotated[
        bool, typer.Option(help="Wait until the machine is empty.", show_default=True)
    ] = True,
) -> None:
    """Empty a machine: its workers save and give back their jobs, and take nothing more.

    Other machines go on with the jobs, exactly. The machine stays drained, also when its workers
    are restarted, until `tunery undrain`.
    """
    with open_database() as database:
        name = _find(machine, database)
        is_new = database.transact(lambda session: Drains(session).drain(name, now=utc_now()))
        typer.echo(f"{name} is drained." if is_new else f"{name} is drained already.")
        if wait:
            _await_empty(name, database)


def undrain(machine: Machine = None) -> None:
    """Let the workers of a drained machine take jobs again."""
    with open_database() as database:
        name = machine or read_settings().resolved_machine
        was_drained = database.transact(lambda session: Drains(session).undo(name))
        typer.echo(f"{name} takes jobs again." if was_drained else f"{name} was not drained.")


def machines(*, as_json: AsJson = False) -> None:
    """List the workers of all machines: what they can do, and what they run."""
    with open_database() as database, database.reading() as session:
        workers = WorkerRepository(session).list_all()
        drained = Drains(session).list_all()
        now = server_time(session, local=utc_now())
        rows = [
            {
                "machine": worker.machine,
                "worker": worker.identity.worker_id,
                "state": "silent" if worker.is_silent(now=now) else worker.state.value,
                "seconds_since_heartbeat": round((now - worker.heartbeat_at).total_seconds()),
                "ability": worker.ability and worker.ability.model_dump(mode="json"),
                "models_in_memory": worker.models_in_memory,
                "jobs": [task.job_id for task in worker.tasks],
            }
            for worker in workers
        ]
    if as_json:
        print_json(rows)
        return
    for worker, row in zip(workers, rows, strict=True):
        can = worker.ability.describe() if worker.ability else f"version {worker.version}"
        typer.echo(f"{row['machine'] or '?'}  {row['worker']}  {row['state']}  {can}")
        typer.echo(f"  runs {', '.join(task.job_id for task in worker.tasks) or 'nothing'}")
    for name, since in drained.items():
        typer.echo(f"{name} is drained since {since:%Y-%m-%d %H:%M} UTC. See tunery undrain.")
    if not rows:
        typer.echo("No worker is registered.")


def _find(machine: str | None, database: Database) -> str:
    if machine is None:
        return read_settings().resolved_machine
    known = {worker.machine for worker in _list(database)} - {None}
    if machine not in known:
        names = ", ".join(sorted(name for name in known if name)) or "none"
        raise UnknownMachineError(
            f"No worker has registered from a machine {machine!r}. Machines with workers: {names}. "
            "TUNERY_MACHINE sets the name."
        )
    return machine


def _list(database: Database) -> list[WorkerStatus]:
    with database.reading() as session:
        return WorkerRepository(session).list_all()


def _await_empty(machine: str, database: Database) -> None:
    """Wait until no living worker of the machine has a job, and all know that it is drained."""
    told: set[str] = set()
    while True:
        with database.reading() as session:
            now = server_time(session, local=utc_now())
            workers = [
                worker
                for worker in WorkerRepository(session).list_all()
                if worker.machine == machine and not worker.is_silent(now=now)
            ]
            if not Drains(session).is_drained(machine):
                raise OperatorError(f"{machine} was undrained meanwhile.")
        busy = {task.job_id for worker in workers for task in worker.tasks}
        for job_id in sorted(busy - told):
            typer.echo(f"Waiting for {job_id} to be saved and given back.")
        told |= busy
        if not busy and all(worker.state is WorkerState.DRAINING for worker in workers):
            typer.echo(f"{machine} is empty. Stop it, or let it work with tunery undrain.")
            return
        time.sleep(_LOOK_S)
