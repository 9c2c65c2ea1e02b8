"""Set-up of the log: one line per message on standard error, with its context."""

import logging
import sys
from contextlib import AbstractContextManager

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core.redaction import redact
from app.core.settings import Settings

_NOT_SHOWN = ("color_message", "_record", "_from_structlog")

_TALLY_INTERVAL_S = 10.0
"""Minimum interval between the messages of a tally, so that an attack does not flood the log."""


def configure_logging(settings: Settings) -> None:
    """Send the messages of this process to standard error, with the level and format of `settings`.

    The values of `log_context` and those that a call passes as `extra` follow the message as
    `key=value`, or as JSON keys. What looks like a secret is hidden.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=[
                merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[_leave_out, *_renderers(settings)],
        )
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def log_context(**values: str | int) -> AbstractContextManager[None]:
    """Add values to every message of the block, in whatever thread or task takes its context."""
    return bound_contextvars(**values)


class Tally:
    """Logs how often something has happened, at most once in `_TALLY_INTERVAL_S`.

    Args:
        message: has one place, for the number of times since the last message.
    """

    def __init__(self, logger: logging.Logger, level: int, message: str) -> None:
        self._logger = logger
        self._level = level
        self._message = message
        self._count = 0
        self._logged_at = float("-inf")

    def add(self, now: float) -> None:
        self._count += 1
        if now - self._logged_at >= _TALLY_INTERVAL_S:
            self._logger.log(self._level, self._message, self._count)
            self._logged_at, self._count = now, 0


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _renderers(settings: Settings) -> list[Processor]:
    if settings.log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]


def _leave_out(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for key in _NOT_SHOWN:
        event.pop(key, None)
    if event["logger"] == "uvicorn.error":  # its name for everything, good news included
        event["logger"] = "uvicorn"
    return event
