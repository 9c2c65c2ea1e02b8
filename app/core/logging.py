"""Log set-up of every process: one line per message on standard error, with its context."""

import logging
import sys
from typing import ClassVar


class _KeyValueFormatter(logging.Formatter):
    """`2026-11-22T16:05:00+0000 INFO worker.loop: job claimed job_id=ftjob-... attempt=1`."""

    _own: ClassVar[frozenset[str]] = frozenset(
        {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
    )

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        context = [f"{key}={value}" for key, value in vars(record).items() if key not in self._own]
        return " ".join([super().formatMessage(record), *context])


def configure_logging(level: str) -> None:
    """Send the messages of this process, at `level` and above, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
