import json
import logging
import re

import pytest

from app.core.logging import configure_logging
from app.core.settings import Settings

pytestmark = pytest.mark.usefixtures("untouched_logging")


def configure(**settings: str) -> None:
    configure_logging(Settings(_env_file=None, **settings))  # pyright: ignore - pydantic-settings


def test_a_message_is_one_line_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure()

    logging.getLogger("worker.loop").info("job claimed", extra={"job_id": "ftjob-1"})
    logging.getLogger("worker.loop").debug("not shown")

    line = r"\d{4}-\d\d-\d\dT\S+Z \[info\] job claimed \[worker\.loop\] job_id=ftjob-1\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_message_can_be_an_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="json")
    try:
        int("no")
    except ValueError:
        logging.getLogger("app").exception("failed\ntwice", extra={"job_id": "ftjob-1"})

    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["event"] == "failed\ntwice"
    assert (entry["level"], entry["logger"], entry["job_id"]) == ("error", "app", "ftjob-1")
    assert "ValueError: invalid literal" in entry["exception"]
    assert entry["timestamp"].endswith("Z")


def test_less_severe_messages_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_level="warning")

    logging.getLogger("app").info("not shown")

    assert capsys.readouterr().err == ""
