"""What a process that runs jobs does first: it joins the service, or says why it cannot."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.core.abilities.ability import Ability
from app.core.base_models import Catalogue, load_catalogue
from app.core.db.migrate import prepare
from app.core.db.session import Database
from app.core.installation import StoreConnection, connect_store, require_right_key
from app.core.logging import configure_logging
from app.core.machine.linux import refuse_tracing
from app.core.occupancy import make_data_dir, occupied
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.privacy import close_data_directory, keep_new_files_private
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Launcher
from worker.launch.sandbox.sandbox import Sandbox, make_sandbox
from worker.membership.machine import MachineWatch, measure_ability
from worker.presence import Pace


@dataclass(frozen=True, slots=True)
class Member:
    """A process that works for the service, on this machine."""

    settings: Settings
    database: Database
    connection: StoreConnection
    catalogue: Catalogue
    sandbox: Sandbox
    ability: Ability
    watch: MachineWatch
    pace: Pace = field(default_factory=Pace)

    def resources(self, launcher: Launcher, *, ability: Ability | None = None) -> Resources:
        """What attempts share that use this launcher.

        Args:
            launcher: starts their training processes.
            ability: what the worker can do. None for work that no plan was stored for.
        """
        return Resources(
            self.settings,
            self.database,
            self.connection.store,
            self.catalogue,
            launcher,
            clock=self.watch.clock,
            ability=ability,
            pace=self.pace,
        )


@contextmanager
def joined(settings: Settings, *, may_move: bool, kept_connections: int = 1) -> Generator[Member]:
    """Join the service while the block runs.

    Args:
        settings: those of this process.
        may_move: whether it may move the service to another store. Only one that stays may.
        kept_connections: connections to the database that stay open when they are idle.

    Raises:
        OperatorError: the database, the store, the signing key or the data directory is not the
            one of the service, or cannot be used. The message says what to do.
    """
    keep_new_files_private()
    configure_logging(settings)
    make_data_dir(settings)
    close_data_directory(settings)
    refuse_tracing()  # this process knows the database's password
    with occupied(settings):
        database = Database(settings.resolved_database_url, kept_connections=kept_connections)
        try:
            prepare(database)
            connection = connect_store(settings, database, may_move=may_move)
            require_right_key(database, SigningKeys(settings.signing_dir))
            sandbox = make_sandbox(
                settings.sandbox,
                data_dir=settings.data_dir,
                locks_dir=settings.workers_dir,
                threads=settings.resolved_training_threads,
            )
            catalogue = load_catalogue(settings.data_dir)
            ability = measure_ability(settings, catalogue)
            watch = MachineWatch(ability.machine, database)
            watch.look()
            yield Member(settings, database, connection, catalogue, sandbox, ability, watch)
        finally:
            database.dispose()
