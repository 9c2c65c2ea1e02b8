"""The commands that manage API keys: `tunery keys`."""

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from app.core.access import DEFAULT_PROJECT_ID, DEFAULT_SCOPES, Scope
from app.core.clock import utc_now
from app.core.db.project_tables import ApiKey
from app.core.db.repositories.projects.access import KeyRepository
from app.core.errors import OperatorError
from app.core.occupancy import open_database
from app.maintenance.keys import create_key, revoke_key

keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


class NoSuchKeyError(OperatorError):
    """No key has this id."""


@keys.command("create")
def create(
    project: Annotated[
        str, typer.Option(help="Name or id of the project. A new name makes a new project.")
    ] = DEFAULT_PROJECT_ID,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What the key may do; can be repeated. Default: read, write, sample."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Lifetime such as 90d or 12h. Default: no end.")
    ] = None,
) -> None:
    """Create an API key and print it. It is shown only this once."""
    now = utc_now()
    expires_at = None if expires is None else now + _read_lifetime(expires)
    scopes = scope or DEFAULT_SCOPES
    with open_database() as database:
        new = database.transact(
            lambda session: create_key(session, project, scopes, expires_at=expires_at, now=now)
        )
    if new.is_new_project:
        typer.echo(f"Created the project {new.project.name} ({new.project.id}).", err=True)
    typer.echo(
        f"Key {new.key_id} of the project {new.project.name}: {', '.join(sorted(set(scopes)))}; "
        f"{_describe_end(expires_at)}. Keep it: it is not shown again.",
        err=True,
    )
    typer.echo(new.key)


@keys.command("list")
def list_keys() -> None:
    """List the keys of all projects, without the keys themselves."""
    with open_database() as database, database.reading() as session:
        rows = KeyRepository(session).list_all()
    for key, project in rows:
        used = f"last used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        typer.echo(
            f"{key.id}  {project.name} ({project.id})  {', '.join(key.scopes)}  {_state_of(key)}  "
            f"{used}"
        )


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, such as key_01k9...")],
) -> None:
    """Make a key unusable, within a second and for good."""
    with open_database() as database:
        is_known = database.transact(lambda session: revoke_key(session, key_id, now=utc_now()))
    if not is_known:
        raise NoSuchKeyError(
            f"There is no key {key_id:.80}. List the keys with 'tunery keys list'."
        )
    typer.echo(f"{key_id} is revoked.")


def _read_lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,4})([hd])", text, re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a lifetime. Give hours or days, such as 12h or 90d.",
            param_hint="--expires",
        )
    return int(match[1]) * _UNITS[match[2]]


def _state_of(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
    return _describe_end(key.expires_at)


def _describe_end(expires_at: datetime | None) -> str:
    return "does not expire" if expires_at is None else f"expires {expires_at:%Y-%m-%d %H:%M} UTC"
