"""Previews over HTTP, with the process that makes them."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.base_models import DEFAULT_MODEL_ID
from app.core.clock import utc_now
from app.core.dataset.formats import DatasetFormat
from app.core.dataset.tokenizing.processes import TokenizerProcesses
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.builders import CHAT_LINE, add_file, add_project
from tests.models import link_embedded_model
from tests.tiny import CHAT_TEMPLATE, build_tokenizer, chat_row
from tests.unit.app.core.test_tables import as_csv, as_parquet

pytestmark = pytest.mark.only_sqlite

HOSTILE = "\x1b]0;owned\x07\x1b[2J \u202e\u009b31m \u27e7 <|im_end|>"
ROWS = [chat_row("Two?", "Two, très."), chat_row("What?", HOSTILE)]


@pytest.fixture
def preview(client: TestClient, data_dir: Path) -> Callable[..., Any]:
    """Asks for a preview of a file by the base model `tiny`, which has a tokenizer here."""
    build_tokenizer(CHAT_TEMPLATE).save_pretrained(data_dir / "models" / "tiny")

    def ask(file_id: str, *, accept: str = "application/json", **params: Any) -> Any:
        return client.get(
            f"/v1/files/{file_id}/preview",
            params={"model": "tiny"} | params,
            headers={"accept": accept},
        )

    return ask


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: TestClient, content: bytes) -> str:
    form = {"files": {"file": ("a", content)}, "data": {"purpose": "fine-tune"}}
    return client.post("/v1/files", **form).json()["id"]


def learned_in(row: dict[str, Any]) -> str:
    (example,) = row["examples"]
    return "".join(token["text"] for token in example["tokens"] if token["is_learned"])


@pytest.mark.parametrize(
    "write",
    [
        as_jsonl,
        lambda rows: gzip.compress(as_jsonl(rows)),
        lambda rows: as_csv(["messages"], *([json.dumps(row["messages"])] for row in rows)),
        as_parquet,
    ],
    ids=["jsonl", "gzip", "csv", "parquet"],
)
def test_every_kind_of_file_is_shown_as_it_is_trained_on(
    client: TestClient,
    preview: Callable[..., Any],
    write: Callable[[list[dict[str, Any]]], bytes],
) -> None:
    file_id = upload(client, write(ROWS))

    body = preview(file_id, rows="2,1").json()

    assert [row["line"] for row in body["rows"]] == [1, 2]
    assert [learned_in(row) for row in body["rows"]] == [
        "Two, très.<|im_end|>",
        f"{HOSTILE}<|im_end|>",
    ]
    head = {"object": "file.preview", "file_id": file_id, "model": "tiny", "stop": "<|im_end|>"}
    assert head.items() <= body.items()


def test_hyperparameters_decide_what_is_learned(
    client: TestClient, preview: Callable[..., Any]
) -> None:
    file_id = upload(client, as_jsonl(ROWS))
    hyperparameters = {"context_length": 30, "overlong_row_behavior": "drop"}

    (row,) = preview(file_id, rows="1", train_on="everything", **hyperparameters).json()["rows"]

    (example,) = row["examples"]
    assert (example["outcome"], example["learned_tokens"]) == ("dropped", 0)
    assert [token["is_learned"] for token in example["tokens"][:3]] == [False, True, True]


def test_both_answers_of_a_preference_are_shown(
    client: TestClient, preview: Callable[..., Any]
) -> None:
    file_id = upload(client, as_jsonl([{"prompt": "Two?", "chosen": "Two.", "rejected": "No."}]))

    (row,) = preview(file_id).json()["rows"]
    text = preview(file_id, accept="text/plain", colour=False).text

    answers = [(each["answer"], learned_in({"examples": [each]})) for each in row["examples"]]
    assert answers == [("preferred", "Two.<|im_end|>"), ("non_preferred", "No.<|im_end|>")]
    assert "line 1, preferred answer: 9 tokens, 5 learned; kept" in text
    assert "line 1, non-preferred answer: " in text


def test_what_is_learned_of_a_preference_cannot_be_chosen(
    client: TestClient, preview: Callable[..., Any]
) -> None:
    file_id = upload(client, as_jsonl([{"prompt": "Two?", "chosen": "Two.", "rejected": "No."}]))

    answer = preview(file_id, train_on="everything")

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "train_on")


def test_text_for_a_terminal_has_nothing_of_the_file_that_controls_it(
    client: TestClient, preview: Callable[..., Any]
) -> None:
    file_id = upload(client, as_jsonl(ROWS))

    answer = preview(file_id, accept="text/plain", colour=False)

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.replace("\n", "").isprintable()
    assert "assistant\u21b5\n\u27e6Two, très.<|im_end|>\u27e7\u21b5" in answer.text
    assert r"\x1b]0;owned\x07\x1b[2J \u202e\x9b31m \u27e7 <|im_end|>" in answer.text


def test_the_embedded_model_shows_its_system_prompt(client: TestClient, data_dir: Path) -> None:
    link_embedded_model(data_dir)
    file_id = upload(client, as_jsonl(ROWS[:1]))

    answer = client.get(
        f"/v1/files/{file_id}/preview",
        params={"model": DEFAULT_MODEL_ID},
        headers={"accept": "text/plain"},
    )

    assert "named SmolLM" in answer.text
    assert "\x1b[32mTwo, très.\x1b[0m\x1b[32;2m<|im_end|>\x1b[0m\u21b5" in answer.text


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"model": "nope"}, "model_not_available", "model"),
        ({"model": "absent"}, "model_not_available", "model"),
        ({"rows": "3"}, "invalid_value", "rows"),
        ({"rows": "1-51"}, "invalid_value", "rows"),
        ({"context_length": "15"}, "invalid_value", "context_length"),
        ({"context_length": "100000"}, "invalid_value", "context_length"),
        ({"overlong_row_behavior": "shrink"}, "invalid_value", "overlong_row_behavior"),
        ({"train_on": "nothing"}, "invalid_value", "train_on"),
        ({"colour": "green"}, "invalid_value", "colour"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    client: TestClient,
    preview: Callable[..., Any],
    params: dict[str, str],
    code: str,
    param: str,
) -> None:
    answer = preview(upload(client, as_jsonl(ROWS)), **params)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"format": None, "examples": None}, (400, "invalid_value")),
        ({"uses_tools": True}, (400, "tools_not_supported")),
        ({"expires_at": utc_now() - timedelta(seconds=1)}, (404, "file_not_found")),
        ({"project_id": "proj-other"}, (404, "file_not_found")),
    ],
    ids=["made by a job", "tools", "expired", "of another project"],
)
def test_a_file_that_cannot_be_trained_on_is_not_shown(
    preview: Callable[..., Any],
    database: Database,
    store: LocalBlobStore,
    changes: dict[str, Any],
    refusal: tuple[int, str],
) -> None:
    if "project_id" in changes:
        add_project(database, changes["project_id"])
    file = add_file(database, store, CHAT_LINE, **({"format": DatasetFormat.MESSAGES} | changes))

    answer = preview(file.id)

    assert (answer.status_code, answer.json()["error"]["code"]) == refusal


def test_a_file_whose_bytes_are_gone_is_a_404(
    client: TestClient, preview: Callable[..., Any], store: LocalBlobStore
) -> None:
    file_id = upload(client, as_jsonl(ROWS))
    store.delete(f"files/{file_id}")

    assert preview(file_id).status_code == 404


def test_a_preview_too_many_is_a_503_that_clients_repeat(
    client: TestClient, app: FastAPI, preview: Callable[..., Any]
) -> None:
    processes = TokenizerProcesses(0, wait_s=0.01)
    app.state.resources = replace(app.state.resources, tokenizers=processes)

    answer = preview(upload(client, as_jsonl(ROWS)))

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tokenizing_busy")
    assert answer.headers["retry-after"] == "2"
