"""Whole jobs on files of every form: what is learned does not depend on how it was written."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.core.job.child.job_spec import TRAINING_DATA_NAME
from app.core.job.child.training_events import Finished, Stepped, TrainingEvent
from tests.tiny import chat_row, write_job
from worker.training.recipe import run_job

PAIRS = [(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]

Losses = list[float]
Train = Callable[[bytes], Losses]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def train(base_model: Path, tmp_path: Path) -> Train:
    """Trains on a file with this content, and returns the loss of every step."""

    def train_on(content: bytes) -> Losses:
        directory = tmp_path / f"job-{len(list(tmp_path.iterdir()))}"
        write_job(directory, [chat_row(*pair) for pair in PAIRS], base_model=base_model)
        (directory / TRAINING_DATA_NAME).write_bytes(content)
        events: list[TrainingEvent] = []
        run_job(directory, events.append)
        assert isinstance(events[-1], Finished), events[-1]
        return [event.metrics.train_loss for event in events if isinstance(event, Stepped)]

    return train_on


def as_csv(columns: list[str], rows: Iterable[Iterable[str]], **dialect: Any) -> bytes:
    target = io.StringIO()
    csv.writer(target, **dialect).writerows([columns, *rows])
    return target.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target, row_group_size=3)
    return target.getvalue()


TEXTS = [(f'Line "{i}";\nand {ask}',) for i, (ask, _) in enumerate(PAIRS)]
TEXT_ROWS = [{"text": text} for (text,) in TEXTS]
CHATS = as_lines([chat_row(*pair) for pair in PAIRS])
FORMS = {
    "instruction": (as_lines([{"instruction": ask, "output": tell} for ask, tell in PAIRS]), CHATS),
    "sharegpt": (
        as_lines(
            [
                {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
                for a, b in PAIRS
            ]
        ),
        CHATS,
    ),
    "gzip": (gzip.compress(CHATS), CHATS),
    "parquet": (as_parquet([chat_row(*pair) for pair in PAIRS]), CHATS),
    "csv": (as_csv(["instruction", "output"], PAIRS), CHATS),
    "csv with semicolons": (as_csv(["text"], TEXTS, delimiter=";"), as_lines(TEXT_ROWS)),
}
"""A file in each form, and one whose examples are the same."""


@pytest.mark.parametrize(("content", "same"), FORMS.values(), ids=list(FORMS))
def test_every_form_trains_alike(train: Train, content: bytes, same: bytes) -> None:
    assert train(content) == train(same)
