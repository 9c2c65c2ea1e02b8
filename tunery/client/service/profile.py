"""Which service the client uses, and with which key: from the environment or a profile."""

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from app.core.errors import OperatorError

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"

_FIELDS = ("base_url", "api_key")
_DEFAULT_NAME = "default"
_EXAMPLE = 'a table such as [default] with base_url = "https://HOST/v1" and api_key = "KEY"'


class ProfileError(OperatorError):
    """The address, the key or the file of profiles is unusable. No message has a key in it."""


@dataclass(frozen=True)
class Profile:
    """Address of a service, and the key for it. A service on the same machine may need none."""

    base_url: str = DEFAULT_BASE_URL
    api_key: str | None = field(default=None, repr=False)


def choose_profile(name: str | None) -> Profile:
    """Return the named profile, otherwise what the environment says, otherwise `default`.

    Address and key always come from the same place, so that no key is sent to another service.

    Raises:
        ProfileError: the profile does not exist, or what was found is unusable.
    """
    base_url, api_key = (os.environ.get(f"TUNERY_{each.upper()}") for each in _FIELDS)
    name = name or os.environ.get("TUNERY_PROFILE")
    if name is None and (base_url or api_key):
        given = {"base_url": base_url, "api_key": api_key}
        return _check({key: value for key, value in given.items() if value}, "TUNERY_")
    path = profile_file()
    profiles = _read(path)
    if name is None:
        return _check(profiles.get(_DEFAULT_NAME, {}), f"{path}: {_DEFAULT_NAME}.")
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise ProfileError(f"{path} has no profile {name!r}. Its profiles: {known}.")
    return _check(profiles[name], f"{path}: {name}.")


def profile_file() -> Path:
    """Where profiles are kept, whether or not the file exists."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "tunery" / "config.toml"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ProfileError(
                    f"{path} can be read by other users, and it is a place for keys. Run: "
                    f"chmod 600 {path}"
                )
            content: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is not TOML: {error}") from error
    for name, profile in content.items():
        if not isinstance(profile, dict):
            raise ProfileError(f"{path}: {name!r} is in no profile. A profile is {_EXAMPLE}.")
        if unknown := cast("dict[str, Any]", profile).keys() - set(_FIELDS):
            raise ProfileError(
                f"{path}: {name}.{min(unknown)} is unknown. A profile is {_EXAMPLE}."
            )
    return content


def _check(given: dict[str, Any], place: str) -> Profile:
    """Make a profile of it.

    Args:
        given: the fields that are set.
        place: where they are, for messages: the name of a field follows it.
    """
    names = {each: f"{place}{each.upper() if place == 'TUNERY_' else each}" for each in _FIELDS}
    for each, value in given.items():
        if not isinstance(value, str):
            raise ProfileError(f"{names[each]} must be a string.")
    base_url: str = given.get("base_url", DEFAULT_BASE_URL)
    if not _is_web_address(base_url):
        raise ProfileError(
            f"{names['base_url']} is not the address of a service. Give one such as "
            f"{DEFAULT_BASE_URL}."
        )
    api_key: str | None = given.get("api_key")
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise ProfileError(f"{names['api_key']} has characters that no key has, such as spaces.")
    return Profile(base_url.rstrip("/"), api_key)


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_whole and parts.scheme in {"http", "https"} and "@" not in parts.netloc
