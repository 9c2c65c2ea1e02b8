"""The variables that settings come from: those of the process, and those in a file `.env`."""

import difflib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from app.core.errors import OperatorError

PREFIX = "TUNERY_"

_OF_CLIENTS = tuple(f"{PREFIX}{name}" for name in ("URL", "BASE_URL", "API_KEY", "PROFILE"))
"""Variables of the README and of clients, often set in the shell that starts the service."""
_OF_TESTS = f"{PREFIX}TEST_"


class SettingsError(OperatorError):
    """A setting is invalid or unknown. The message names the variable."""


def find_variables(env_file: Path) -> dict[str, str]:
    """Find every `TUNERY_...` variable.

    Returns:
        Names in capitals, each with its place: `NAME`, or `NAME in FILE` for one of the file.

    Raises:
        SettingsError: the file cannot be read.
    """
    found = {name: f"{name} in {env_file}" for name in _of_this_service(_names_in(env_file))}
    return found | {name: name for name in _of_this_service(os.environ)}


def require_known(variables: Mapping[str, str], *, known: Collection[str]) -> None:
    """Refuse variables that no setting has: their author believes that they take effect.

    Args:
        known: names of the settings, in small letters and without the prefix.

    Raises:
        SettingsError: a variable is unknown. The message suggests the nearest setting.
    """
    settings = [f"{PREFIX}{name}".upper() for name in known]
    unknown = [
        f"{place} is not a setting. {_suggest(name, settings)}docs/settings.md lists every setting."
        for name, place in variables.items()
        if name not in settings and name not in _OF_CLIENTS and not name.startswith(_OF_TESTS)
    ]
    if unknown:
        raise SettingsError("\n".join(unknown))


def explain_invalid(
    field: tuple[int | str, ...], message: str, variables: Mapping[str, str]
) -> str:
    """Describe an invalid setting by the name and place of its variable.

    Args:
        field: path of the setting, as pydantic gives it; empty if several settings are at odds.
    """
    why = f"{message.removeprefix('Value error, ').rstrip('.')}. See docs/settings.md."
    if not field:
        return why
    name = f"{PREFIX}{field[0]}".upper()
    return f"{variables.get(name, name)}: {why}"


def _of_this_service(names: Iterable[str]) -> Iterator[str]:
    return (name.upper() for name in names if name.upper().startswith(PREFIX))


def _suggest(name: str, settings: Collection[str]) -> str:
    endings = [each.removeprefix(PREFIX) for each in settings]
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1)
    return f"Did you mean {PREFIX}{nearest[0]}? " if nearest else ""


def _names_in(env_file: Path) -> list[str]:
    try:
        content = env_file.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return []
    except OSError as error:
        raise SettingsError(
            f"{env_file.absolute()} cannot be read: {error.strerror}. Make it readable for the "
            "user of this process, or remove it."
        ) from error
    try:
        bindings = [*parse_stream(io.StringIO(content.decode()))]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"{env_file.absolute()}, line {line}: not UTF-8. Save the file in UTF-8."
        ) from error
    for binding in bindings:
        _require_readable(binding, env_file)
    return [binding.key for binding in bindings if binding.key is not None]


def _require_readable(binding: Binding, env_file: Path) -> None:
    """Refuse a line about a setting that is no assignment: it would have no effect."""
    text = binding.original.string
    if binding.error and PREFIX in text:
        line = binding.original.line + text.count("\n", 0, len(text) - len(text.lstrip()))
        raise SettingsError(
            f"{env_file.absolute()}, line {line}: not an assignment. Write it as NAME=VALUE."
        )
