"""`python -m worker.sampling`: answer requests to models, until SIGTERM or Ctrl-C."""

import logging
import sys

from app.core.command_line.exit_codes import EXPECTED, report
from app.core.errors import OperatorError
from app.core.logging import configure_logging
from app.core.machine.linux import refuse_tracing
from app.core.machine.signals import listen_for_stops
from app.core.occupancy import make_data_dir, occupied
from app.core.settings import read_settings
from app.core.storage.privacy import close_data_directory, keep_new_files_private
from worker.sampling.keeper import Keeper

logger = logging.getLogger("worker.sampling")


class SamplingIsOffError(OperatorError):
    """The operator has switched sampling off."""


def main() -> int:
    """Run the sampler until told to stop. Returns the exit code."""
    keep_new_files_private()
    refuse_tracing()  # the settings may have the database's password
    try:
        settings = read_settings()
        configure_logging(settings)
        if settings.sampling == "off":
            raise SamplingIsOffError(
                "TUNERY_SAMPLING is off, so no model can be asked. Set it to idle or shared."
            )
        make_data_dir(settings)
        close_data_directory(settings)
        with occupied(settings):
            Keeper(settings, stops=listen_for_stops()).run()
    except EXPECTED as error:
        return report("sampler", error)
    logger.info("sampler stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
