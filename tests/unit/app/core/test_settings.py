from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.command_line.environment import SettingsError
from app.core.settings import Settings, read_settings


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


@pytest.mark.parametrize(
    "hosts",
    [
        "https://tunery.example.org",
        "tunery.example.org:8443",
        "tunery.example.org/v1",
        "[::1]:8000",
        "*.example.org",
        "tunery.example.org.",
        "a.example.org,",
        "a.example.org,,b.example.org",
        "a.example.org b.example.org",
        " ",
    ],
)
def test_hosts_that_no_request_could_name_are_refused_in_one_line(
    hosts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_ALLOWED_HOSTS", hosts)

    with pytest.raises(SettingsError) as refusal:
        read_settings()

    assert str(refusal.value) == (
        "TUNERY_ALLOWED_HOSTS: it must be host names such as tunery.example.org, separated by "
        "commas, without https://, a port or a path. See docs/settings.md."
    )


def test_hosts_may_be_names_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_ALLOWED_HOSTS", "Tunery.example.org, lab_1,10.0.0.7,[fd00::7]")

    assert Settings().host_names >= {"tunery.example.org", "lab_1", "10.0.0.7", "[fd00::7]"}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("TUNERY_DATADIR", "Did you mean TUNERY_DATA_DIR?"),
        ("tunery_lease", "Did you mean TUNERY_LEASE_S?"),
        ("TUNERY_QQQ", "docs/settings.md"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_with_a_suggestion(
    name: str, suggestion: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(name, "1")
        with pytest.raises(SettingsError, match=rf"^{name.upper()} is not a setting\. ") as refusal:
            read_settings()
        assert suggestion in str(refusal.value)

    (elsewhere / ".env").write_text(f"export {name}=1\n")
    with pytest.raises(SettingsError, match=rf"^{name.upper()} in \.env is not a setting\. "):
        read_settings()


def test_variables_of_clients_tests_and_other_programs_are_left_alone(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNERY_URL", "TUNERY_API_KEY", "TUNERY_TEST_LONG"):
        monkeypatch.setenv(name, "1")
    (elsewhere / ".env").write_text("OTHER=1\nnot an assignment of ours\nTUNERY_PORT=9000\n")

    assert read_settings().port == 9000


def test_a_line_of_the_file_that_sets_nothing_is_refused(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("OTHER=1\n\nTUNERY_PORT 9000\n")

    with pytest.raises(SettingsError, match=r"/\.env, line 3: not an assignment"):
        read_settings()


def test_every_bad_setting_is_named_and_no_value_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_LEASE_S", "swordfish")
    monkeypatch.setenv("TUNERY_DATABASE_URL", "mysql://swordfish")

    with pytest.raises(SettingsError) as refusal:
        read_settings()

    url, lease = str(refusal.value).splitlines()
    assert url.startswith("TUNERY_DATABASE_URL: it must begin with postgresql://")
    assert lease.startswith("TUNERY_LEASE_S: Input should be a valid number")
    assert "swordfish" not in str(refusal.value)
