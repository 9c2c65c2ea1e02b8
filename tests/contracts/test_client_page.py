"""`docs/command-line.md` has every command of the client with its options, and no others."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from tunery.client.cli import client

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
OF_EVERY_COMMAND = {"--help", "--json", "--profile"}


def find_commands(command: Any, *names: str) -> Iterator[tuple[str, set[str]]]:
    """Every command with its own options, those of groups included."""
    if subcommands := getattr(command, "commands", {}):
        for name, subcommand in subcommands.items():
            yield from find_commands(subcommand, *names, name)
        return
    options = {flag for each in command.params for flag in each.opts if flag.startswith("-")}
    assert {"--json", "--profile"} <= options
    yield " ".join(names), options - OF_EVERY_COMMAND


def test_the_page_has_every_command_with_its_options() -> None:
    text = PAGE.read_text("utf-8").partition("\n## The commands\n")[2]
    documented = {
        heading: set(re.findall(r"`(--?[a-z-]+)`(?=[^|]*\| )", section))
        for heading, section in re.findall(
            r"^### `tunery ([a-z ]*[a-z])[^`]*`\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL
        )
    }

    written = dict(find_commands(get_command(client))) | {"models available": set[str]()}

    assert documented == written
