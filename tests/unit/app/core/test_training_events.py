import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.job.child.training_events import (
    Checkpointed,
    Failed,
    MemoryShort,
    Noted,
    OutOfSpace,
    Planned,
    ProtocolError,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    Unresumable,
    parse_event,
)
from tests.builders import build_metrics
from tests.effort import effort


@pytest.mark.parametrize(
    "event",
    [
        Noted(message="trainable params: 1 || all params: 2 || trainable%: 50.0"),
        Planned(total_steps=3),
        Started(total_steps=3),
        Stepped(metrics=build_metrics()),
        Checkpointed(step=3, directory="out/step-3"),
        Checkpointed(step=3, directory="out/step-3", state="out/resume-3"),
        Saved(step=3, directory="out/resume-3"),
        Stopped(step=0),
        OutOfSpace(message="There is no space left."),
        MemoryShort(message="It is full.", device="cpu", needed_bytes=9, total_bytes=8),
        Unresumable(step=3, message="It is of another version."),
        Failed(code="loss_diverged", message="The loss is not a number any more."),
    ],
    ids=lambda event: event.kind,
)
def test_what_a_child_writes_is_what_its_parent_reads(event: Noted) -> None:
    assert parse_event(event.model_dump_json().encode()) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Loading weights: 100%",
        b"[]",
        b'{"kind": "exploded"}',
        b'{"kind": "started", "total_steps": 0}',
        b'{"kind": "started", "total_steps": 1, "more": 1}',
        b'{"kind": "checkpointed", "step": 1, "directory": "out/../../etc"}',
        b'{"kind": "checkpointed", "step": 1, "directory": "out/step-1\\n"}',
        b'{"kind": "checkpointed", "step": 1, "directory": "out/step-1", "state": "out/step-1"}',
        b'{"kind": "saved", "step": 1, "directory": "out/step-1"}',
        b'{"kind": "saved", "step": 0, "directory": "out/resume-0"}',
        b'{"kind": "saved", "step": 1, "directory": "out/resume-1/.."}',
        b'{"kind": "saved", "step": 1, "directory": "out/resume-\xd9\xa3"}',
        b'{"kind": "stopped", "step": -1}',
        b'{"kind": "started", "total_steps": 1180591620717411303424}',
        b'{"kind": "failed", "code": "<b>", "message": "x"}',
        b'{"kind": "noted", "message": "\\ud800"}',
        b"[" * 100_000,
        json.dumps({"kind": "noted", "level": "error", "message": "x"}).encode(),
    ],
)
def test_anything_else_is_not_an_event(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="a line that is not an event") as refused:
        parse_event(line)

    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("x" * 10_001, "x" * 1997 + "..."),
        ("\x1b[2Jgone", "\ufffd[2Jgone"),
        ("a zero\0byte", "a zero\ufffdbyte"),
        ("two\n\tlines", "two\n\tlines"),
        ("read \u202ebackwards", "read \ufffdbackwards"),
        ("FileNotFoundError: '/srv/tunery/data/work/x'", "FileNotFoundError: '[path]'"),
    ],
    ids=["long", "terminal", "zero byte", "lines", "direction", "path"],
)
def test_a_text_is_cleaned_and_cut(said: str, shown: str) -> None:
    line = json.dumps({"kind": "noted", "message": said}).encode()

    assert parse_event(line) == Noted(message=shown)


def test_the_largest_failure_that_a_child_reports_is_small() -> None:
    problem = {"line": 1, "path": "p" * 9000, "code": "c", "message": "\u20ac" * 9000}
    failed = {"kind": "failed", "code": "c", "message": "m" * 9000, "errors": [problem] * 50}

    event = parse_event(json.dumps(failed).encode())

    assert len(event.model_dump_json()) < 40_000


_EVENTS = st.sampled_from(
    [
        Noted(message="hello"),
        Started(total_steps=3),
        Stepped(metrics=build_metrics(valid_loss=2.0)),
        Checkpointed(step=3, directory="out/step-3", state="out/resume-3"),
        Failed(code="loss_not_finite", message="bad"),
    ]
)
_PIECES = st.sampled_from(
    [b"", b"0", b"-1", b"1e999", b"9" * 400, b"null", b"{", b"]", b'"', b"\\ud800", b"\xff", b"\0"]
)


@settings(max_examples=effort(300, long=10_000))
@given(event=_EVENTS, start=st.integers(0, 300), length=st.integers(0, 40), piece=_PIECES)
def test_a_damaged_event_is_another_event_or_none(
    event: TrainingEvent, start: int, length: int, piece: bytes
) -> None:
    line = event.model_dump_json().encode()

    try:
        found = parse_event(line[:start] + piece + line[start + length :])
    except ProtocolError:
        return
    assert parse_event(found.model_dump_json().encode()) == found
