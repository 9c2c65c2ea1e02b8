"""The events file of a loss log, read with the schema and the checksums of another library."""

import struct

import pytest
from starlette.testclient import TestClient
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.job.tensorboard import event_records
from tests.builders import (
    NOW,
    add_job,
    build_base_metrics,
    build_metrics,
    build_pair_metrics,
    claim,
)

BEGAN_S = 1_790_000_000.25


def masked(content: bytes) -> int:
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(content: bytes) -> list[Event]:
    """The events of a file, whose checksums must be right."""
    events: list[Event] = []
    while content:
        length, checksum = struct.unpack_from("<QI", content)
        body, rest = content[12 : 12 + length], content[12 + length :]
        assert checksum == masked(content[:8])
        assert struct.unpack_from("<I", rest) == (masked(body),)
        events.append(Event.FromString(body))
        content = rest[4:]
    return events


def test_every_step_is_an_event_with_all_of_its_values() -> None:
    last_row = build_pair_metrics(300, valid_loss=2.5)
    batches = [[build_base_metrics(), build_metrics(1)], [last_row]]

    events = read_events(b"".join(event_records(batches, began_s=BEGAN_S)))

    assert events[0].file_version == "brain.Event:2"
    assert [event.step for event in events] == [0, 0, 1, 300]
    assert [event.wall_time - BEGAN_S for event in events] == [0, 0, 0.5, 150]
    base, first, last = (
        {value.tag: value.simple_value for value in event.summary.value} for event in events[1:]
    )
    assert "train_loss" not in base
    assert "valid_loss" in base
    assert (first["train_loss"], first["tokens_seen"]) == (3.0, 100)
    assert "valid_loss" not in first
    assert last["valid_loss"] == 2.5
    assert (last["train_reward_margin"], last["valid_reward_accuracy"]) == (0.75, 0.5)


def test_a_log_without_steps_is_a_file_of_its_version() -> None:
    (event,) = read_events(b"".join(event_records([], began_s=BEGAN_S)))

    assert event.file_version == "brain.Event:2"


@pytest.mark.only_sqlite  # the rows are read as for CSV
def test_an_events_file_can_be_downloaded_under_a_name_that_tensorboard_reads(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    lease, rows = claim(database), [build_metrics(step) for step in range(1, 1501)]
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )

    answer = client.get(
        f"/v1/fine_tuning/jobs/{job.id}/metrics",
        params={"step_to": 1200},
        headers={"accept": "application/x-tensorboard"},
    )

    assert answer.headers["content-type"] == "application/x-tensorboard"
    assert (
        f'filename="events.out.tfevents.{NOW.timestamp():.0f}.{job.id}"'
        in (answer.headers["content-disposition"])
    )
    events = read_events(answer.content)
    assert [event.step for event in events] == list(range(1201))
    assert events[1].wall_time == NOW.timestamp() + 0.5
