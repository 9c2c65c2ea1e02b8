import json
import logging
import re

import pytest

from app.core.logging import configure_logging, log_context
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


def test_every_message_of_a_block_has_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="json")

    with log_context(job_id="ftjob-1", attempt=2):
        logging.getLogger("worker").info("inside")
    logging.getLogger("worker").info("outside")

    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (inside["job_id"], inside["attempt"]) == ("ftjob-1", 2)
    assert "job_id" not in outside


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_secret_is_hidden_wherever_it_is(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "tnr_" + "0123456789abcdef" * 6
    configure(log_format=log_format)
    with log_context(sent=secret):
        try:
            int(secret)
        except ValueError:
            logging.getLogger("app").exception("failed on %s", secret, extra={"value": secret})

    said = capsys.readouterr().err
    assert "failed on [hidden]" in said
    assert secret not in said
