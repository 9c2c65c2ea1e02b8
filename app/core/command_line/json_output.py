"""The option `--json` of the commands that run a service."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(rows: Sequence[object]) -> None:
    """Print a list as one document. It is ASCII, so nothing in it controls a terminal."""
    sys.stdout.write(f"{json.dumps(rows, indent=2)}\n")
