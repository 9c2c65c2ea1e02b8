"""Which service the client uses, and with which key."""

from pathlib import Path

import pytest

from tunery.client.service.profile import Profile, ProfileError, choose_profile, profile_file

HERE = "http://127.0.0.1:8000/v1"
PROFILES = """\
[default]
base_url = "https://there.example/v1/"
api_key = "key-of-there"

[keyless]
base_url = "http://localhost/v1"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of profiles, which does not exist yet; its directory does."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = profile_file()
    assert path == tmp_path / "tunery" / "config.toml"
    path.parent.mkdir()
    return path


def write(config: Path, text: str, *, mode: int = 0o600) -> None:
    config.write_text(text, "utf-8")
    config.chmod(mode)


def test_without_anything_the_service_is_on_this_machine(config: Path) -> None:
    assert not config.exists()
    assert choose_profile(None) == Profile(HERE, None)


def test_the_default_profile_is_used_if_the_environment_says_nothing(config: Path) -> None:
    write(config, PROFILES)

    assert choose_profile(None) == Profile("https://there.example/v1", "key-of-there")
    assert choose_profile("keyless") == Profile("http://localhost/v1", None)


def test_a_key_goes_to_no_other_address_than_its_own(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, PROFILES)

    monkeypatch.setenv("TUNERY_BASE_URL", "http://elsewhere/v1")
    assert choose_profile(None) == Profile("http://elsewhere/v1", None)

    monkeypatch.setenv("TUNERY_API_KEY", "key-of-elsewhere")
    assert choose_profile("keyless") == Profile("http://localhost/v1", None)

    monkeypatch.delenv("TUNERY_BASE_URL")
    assert choose_profile(None) == Profile(HERE, "key-of-elsewhere")

    monkeypatch.setenv("TUNERY_PROFILE", "keyless")
    assert choose_profile(None) == Profile("http://localhost/v1", None)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(config: Path, mode: int) -> None:
    write(config, PROFILES, mode=mode)

    with pytest.raises(ProfileError, match=rf"Run: chmod 600 {config}"):
        choose_profile(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default", "is not TOML"),
        ('base_url = "http://here/v1"', "'base_url' is in no profile"),
        ('[default]\nurl = "http://here/v1"', "default.url is unknown"),
        ("[default]\nbase_url = 1", "default.base_url must be a string"),
        ('[default]\nbase_url = "here:8000"', "default.base_url is not the address of a service"),
        ('[default]\nbase_url = "http://:80/v1"', "default.base_url is not the address"),
        ('[default]\nbase_url = "http://x:99999/v1"', "default.base_url is not the address"),
        ('[default]\nbase_url = "http://me:secret@x/v1"', "default.base_url is not the address"),
        ('[default]\napi_key = "sécret"', "default.api_key has characters that no key has"),
        ('[other]\napi_key = "secret"', "has no profile 'mine'. Its profiles: other."),
    ],
)
def test_a_mistake_is_named_without_the_key(config: Path, text: str, message: str) -> None:
    write(config, text)

    with pytest.raises(ProfileError) as raised:
        choose_profile("mine" if "[other]" in text else None)

    assert message in str(raised.value)
    assert "cret" not in str(raised.value)


def test_a_profile_does_not_show_its_key() -> None:
    assert "secret" not in repr(Profile(HERE, "secret"))
