"""The committed OpenAPI document is that of the code, so a review sees what changes for clients."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from app.commands.service import commands

DOCUMENT = Path(__file__).parents[2] / "openapi.json"
STALE = "openapi.json is not that of the code. Run `make openapi` and commit the change."


def test_the_committed_document_is_current(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # away from the `.env` that a developer may have
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path))

    printed = CliRunner().invoke(commands, ["openapi"]).stdout

    is_current = printed == DOCUMENT.read_text("utf-8")
    assert is_current, STALE


def test_every_route_is_described(app: FastAPI) -> None:
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }

    assert operations
    assert [name for name, operation in operations.items() if "description" not in operation] == []
