"""Projects and API keys, as the operator manages them; and the first key of a service."""

import os
import re
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from app.core.access import DEFAULT_PROJECT_ID, Caller, Scope
from app.core.access.api_keys import hash_key, new_key
from app.core.db.base import Project
from app.core.db.project_tables import ApiKey
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.access import KeyRepository, ProjectsRepository
from app.core.db.repositories.projects.audit import Action
from app.core.db.session import Database, Session
from app.core.errors import OperatorError, OutcomeUnknownError
from app.core.ids import IdPrefix, new_id
from app.core.machine.durable import sync
from app.core.settings import Settings

_PROJECT_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9 ._-]{0,62}")
_ID_PREFIXES = ("proj-", "proj_")
"""How the ids of the default project and of all others begin. A name like that is a mistyped id."""


class InvalidProjectNameError(OperatorError):
    """A project cannot have this name."""


class KeyNeededError(OperatorError):
    """Others could reach the service, and it has no API keys."""


class KeyFileError(OperatorError):
    """The first key cannot be written to its file."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just created."""

    key: str
    """The key itself, which is stored nowhere."""
    key_id: str
    project: Project
    is_new_project: bool


def create_key(
    session: Session,
    project_name: str,
    scopes: Collection[Scope],
    *,
    expires_at: datetime | None,
    now: datetime,
    by: Caller | None = None,
) -> NewKey:
    """Create a key of a project, and the project too if there is none of this name or id.

    Args:
        expires_at: when the key stops working; None for never.
        by: whoever sent the request. None for the command line.

    Raises:
        InvalidProjectNameError: a new project cannot have this name.
    """
    project = ProjectsRepository(session).find(project_name)
    is_new_project = project is None
    if project is None:
        project = _create_project(session, project_name, now=now)
    key_id = new_id(IdPrefix.KEY)
    key = new_key(key_id)
    row = ApiKey(
        id=key_id,
        project_id=project.id,
        sha256=hash_key(key),
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=expires_at,
    )
    KeyRepository(session).add(row)
    audit.record(session, by, Action.KEY_CREATED, key_id, now=now, project_id=project.id)
    return NewKey(key, key_id, project, is_new_project)


def revoke_key(session: Session, key_id: str, *, now: datetime, by: Caller | None = None) -> bool:
    """Make a key unusable for good. Returns whether there is such a key.

    Args:
        by: whoever sent the request. None for the command line.
    """
    keys = KeyRepository(session)
    found = keys.find(key_id)
    if found is None:
        return False
    keys.revoke(key_id, now=now)
    audit.record(session, by, Action.KEY_REVOKED, key_id, now=now, project_id=found[1].id)
    return True


def _create_project(session: Session, name: str, *, now: datetime) -> Project:
    if name.startswith(_ID_PREFIXES):
        raise InvalidProjectNameError(
            f"There is no project {name[:80]!r}, and a new one cannot have this name, because it "
            "begins like an id. List the projects with 'tunery projects list'."
        )
    if not _PROJECT_NAME.fullmatch(name):
        raise InvalidProjectNameError(
            f"{name[:80]!r} cannot be the name of a project. Use up to 63 letters, digits, spaces, "
            "'.', '_' and '-', and begin with a letter or a digit."
        )
    project = Project(id=new_id(IdPrefix.PROJECT), name=name, created_at=now)
    ProjectsRepository(session).add(project)
    return project


def secure_start(settings: Settings, database: Database, *, now: datetime) -> None:
    """Make sure that nobody else can use a service without a key: write the first key, or refuse.

    Raises:
        KeyNeededError: there is no key, others can reach the service, and the setting
            `bootstrap_key_file` names no file for a first key.
        KeyFileError: the first key could not be written.
    """
    with database.reading() as session:
        if KeyRepository(session).is_any():
            return
    if settings.bootstrap_key_file:
        _create_first_key(database, Path(settings.bootstrap_key_file), now=now)
    elif not settings.may_be_keyless:
        raise KeyNeededError(
            f"TUNERY_HOST is {settings.host} and TUNERY_ALLOWED_HOSTS is "
            f"{settings.allowed_hosts!r}, so others can reach this service, and it has no API "
            "keys. Create one with 'tunery keys create', or set TUNERY_BOOTSTRAP_KEY_FILE, or "
            "listen on 127.0.0.1 under no other name."
        )


def _create_first_key(database: Database, path: Path, *, now: datetime) -> None:
    """Create a key and its file. The file comes first: a key that works is always in it."""
    with ExitStack() as undo:
        try:
            with database.writing() as session:
                if KeyRepository(session).is_any():  # another process has just created it
                    return
                new = create_key(session, DEFAULT_PROJECT_ID, list(Scope), expires_at=None, now=now)
                _write_key_file(path, new.key, undo)
        except OutcomeUnknownError:
            undo.pop_all()  # the key may work
            raise
        undo.pop_all()


def _write_key_file(path: Path, key: str, undo: ExitStack) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        undo.callback(path.unlink, missing_ok=True)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{key}\n")
        sync(path)
        sync(path.parent)
    except FileExistsError as error:
        raise KeyFileError(
            f"TUNERY_BOOTSTRAP_KEY_FILE: {path} exists already, and the database has no API keys. "
            "If it is from an earlier database, delete it."
        ) from error
    except OSError as error:
        raise KeyFileError(
            f"TUNERY_BOOTSTRAP_KEY_FILE: the first API key cannot be written to {path}: "
            f"{error.strerror}. It must be a new file in a directory that this process may write."
        ) from error
