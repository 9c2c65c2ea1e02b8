from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a `.env` of the developer's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_is_kept_in_the_data_directory() -> None:
    settings = Settings()

    assert settings.data_dir == Path("data")
    assert settings.resolved_database_url == "sqlite:///data/tunery.db"
    assert {settings.blobs_dir, settings.work_dir, settings.workers_dir} == {
        Path("data/blobs"),
        Path("data/work"),
        Path("data/workers"),
    }


def test_a_listener_is_local_unless_the_operator_says_otherwise() -> None:
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8000)


def test_the_environment_wins_over_the_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / ".env").write_text("TUNERY_PORT=9000\nTUNERY_LEASE_S=30\nOTHER=1\n")
    monkeypatch.setenv("TUNERY_PORT", "9001")

    settings = Settings()

    assert (settings.port, settings.lease_s) == (9001, 30.0)


def test_another_database_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", "sqlite:////elsewhere/jobs.db")

    assert Settings().resolved_database_url == "sqlite:////elsewhere/jobs.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("ORGANIZATION", "Not A Slug"),
        ("LEASE_S", "0.5"),
        ("POLL_INTERVAL_S", "0"),
        ("TRAINING_THREADS", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_setting_out_of_range_is_refused_at_the_start(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TUNERY_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()
