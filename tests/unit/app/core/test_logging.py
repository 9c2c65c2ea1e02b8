import logging
import re

import pytest

from app.core.logging import configure_logging


def test_a_message_is_one_line_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        logging.getLogger("worker.loop").info("job claimed", extra={"job_id": "ftjob-1"})
        logging.getLogger("worker.loop").debug("not shown")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO worker\.loop: job claimed job_id=ftjob-1\n",
        capsys.readouterr().err,
    )
