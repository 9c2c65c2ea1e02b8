"""Who looks for broken promises must find them; here on a plain directory."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.powercut.audit import Acknowledged, audit
from tests.powercut.writers import Service, write_all_kinds

WRITES = 150


class EnoughError(Exception):
    """As many acknowledgements as a test needs."""


@pytest.fixture
def acknowledged(tmp_path: Path) -> Acknowledged:
    """What one writer has written to `tmp_path`, until it was stopped."""
    acknowledged = Acknowledged()

    def acknowledge(*what: Any) -> None:
        acknowledged.add(*what)
        if acknowledged.kinds.total() > WRITES and acknowledged.rows and acknowledged.files:
            raise EnoughError

    with Service(tmp_path) as service, pytest.raises(EnoughError):
        write_all_kinds(service, random.Random(1), acknowledge)  # noqa: S311 - chance, not secrecy
    return acknowledged


def test_nothing_is_found_where_nothing_is_missing(
    tmp_path: Path, acknowledged: Acknowledged
) -> None:
    assert audit(tmp_path, acknowledged) == []


def _execute(statement: str) -> Callable[[Path, Acknowledged], None]:
    def spoil(root: Path, _: Acknowledged) -> None:
        with Service(root) as service, service.database.writing() as session:
            session.execute(text("PRAGMA defer_foreign_keys = ON"))
            session.execute(text(statement))

    return spoil


def _acknowledge_one_job_more(_: Path, acknowledged: Acknowledged) -> None:
    acknowledged.add("jobs", ["ftjob-lost"])


def _lose_a_blob(root: Path, acknowledged: Acknowledged) -> None:
    (root / "data/blobs" / next(iter(acknowledged.files))).unlink()


def _empty_a_blob(root: Path, acknowledged: Acknowledged) -> None:
    (root / "data/blobs" / next(iter(acknowledged.blobs))).write_bytes(b"")


def _leave_half_a_blob_without_a_row(root: Path, _: Acknowledged) -> None:
    (root / "data/blobs/files/file-half").write_bytes(b"0" * 64 + b"half")


def _lose_a_checkpoint(root: Path, acknowledged: Acknowledged) -> None:
    shutil.rmtree(root / "data" / next(iter(acknowledged.checkpoints)))


def _cut_a_checkpoint_short(root: Path, acknowledged: Acknowledged) -> None:
    (root / "data" / next(iter(acknowledged.checkpoints)) / "state.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(_lose_a_blob, "blob lost", id="blob lost"),
        pytest.param(_empty_a_blob, "blob damaged", id="blob emptied"),
        pytest.param(_leave_half_a_blob_without_a_row, "blob damaged", id="half a blob"),
        pytest.param(_lose_a_checkpoint, "checkpoint lost", id="checkpoint lost"),
        pytest.param(_cut_a_checkpoint_short, "checkpoint damaged", id="checkpoint cut short"),
        pytest.param(
            _execute("DELETE FROM events WHERE id = (SELECT max(id) FROM events)"),
            "job without its events",
            id="event lost",
        ),
        pytest.param(
            _execute("UPDATE jobs SET suffix = 't/3' WHERE id = (SELECT max(id) FROM jobs)"),
            "transaction in part",
            id="transaction in part",
        ),
        pytest.param(_acknowledge_one_job_more, "job lost", id="job lost"),
        pytest.param(
            _execute("DELETE FROM files WHERE checkpoint_id IS NULL"), "row lost", id="row lost"
        ),
    ],
)
def test_a_broken_promise_is_found(
    tmp_path: Path,
    acknowledged: Acknowledged,
    spoil: Callable[[Path, Acknowledged], None],
    found: str,
) -> None:
    spoil(tmp_path, acknowledged)

    assert found in {kind for kind, _ in audit(tmp_path, acknowledged)}
