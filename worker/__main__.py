"""`python -m worker`: train what is in the queue, until SIGTERM or Ctrl-C."""

import logging
import os
import signal
import subprocess
import sys
from types import FrameType

from app.core.base_models import DEFAULT_MODEL_ID, load_catalogue
from app.core.db.migrate import upgrade
from app.core.db.session import Database
from app.core.ids import IdPrefix, new_id
from app.core.logging import configure_logging
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from worker.local_launcher import LocalLauncher
from worker.loop import Worker

logger = logging.getLogger("worker")


def main() -> int:
    settings = Settings()
    configure_logging(settings.log_level)
    database = Database(settings.resolved_database_url)
    upgrade(database)
    catalogue = load_catalogue(settings.data_dir)
    worker = Worker(
        new_id(IdPrefix.WORKER),
        settings,
        database=database,
        store=LocalBlobStore(settings.blobs_dir),
        catalogue=catalogue,
        launcher=LocalLauncher(),
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if settings.install_default_model and catalogue.find_installed(DEFAULT_MODEL_ID) is None:
        _install_default_model(settings)
    logger.info("worker ready", extra={"data_dir": settings.data_dir})
    worker.run()
    database.dispose()
    logger.info("worker stopped")
    return 0


def _install_default_model(settings: Settings) -> None:
    """In a process of its own: the conversion needs libraries that this one never loads.

    A failure is only logged: other base models may be installed, and the API says which.
    """
    logger.info("installing the base model", extra={"model": DEFAULT_MODEL_ID})
    command = [sys.executable, "-m", "worker.fetch_model", DEFAULT_MODEL_ID]
    environment = os.environ | {"TUNERY_DATA_DIR": str(settings.data_dir)}
    if subprocess.run(command, env=environment, check=False).returncode != 0:  # noqa: S603
        logger.error("the base model could not be installed", extra={"model": DEFAULT_MODEL_ID})


if __name__ == "__main__":
    sys.exit(main())
