"""Ids of one project, sent by another in every place that takes an id: as if they did not exist.

The places come from the OpenAPI document. A new parameter or field fails here until it is listed as
an id or as none.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.core.access import Scope
from app.core.db.session import Database
from app.core.db.tables import Event
from app.core.storage.local import LocalBlobStore
from tests.access.leaks import own_rows
from tests.access.operations import DOCUMENT, OPERATIONS, Operation
from tests.access.project_calls import OTHER_PROJECT, World
from tests.builders import TEXT_LINE, add_key, bearer
from tests.webhooks import add_endpoint

pytestmark = pytest.mark.only_sqlite  # the repositories' own tests use both

JOBS = "/v1/fine_tuning/jobs"

NOT_AN_ID = {
    *("accept", "encoding", "format", "limit", "order", "points", "purpose"),
    *("step_from", "step_to"),
    *("allow_inexact_resume", "auto_start", "from", "hyperparameters", "integrations", "metadata"),
    *("method", "priority", "sweep"),
    *("bytes", "data", "expires_after", "file", "filename", "md5", "mime_type", "seed", "suffix"),
    *("expires_after[anchor]", "expires_after[seconds]"),
    *("colour", "context_length", "overlong_row_behavior", "recipe", "rows", "train_on"),
    *("name", "url", "event_type", "event_types", "keep_old_secret_active_for_24_hours"),
    *("cursor", "key", "status", "stream", "wait"),
    *("access_programs", "audio", "background", "background_options", "best_of"),
    *("context_management", "conversation", "echo", "frequency_penalty", "function_call"),
    *("functions", "image", "include", "input", "instructions", "logit_bias", "logprobs"),
    *("max_completion_tokens", "max_output_tokens", "max_tokens", "max_tool_calls", "messages"),
    *("modalities", "moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty"),
    *("previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "reasoning", "reasoning_effort", "response_format"),
    *("safety_identifier", "service_tier", "stop", "store", "stream_options", "temperature"),
    *("text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user"),
    *("eval_prompts", "eval_prompts_at_checkpoints", "verbosity", "web_search_options"),
    "Idempotency-Key",  # a value of the caller's choice: tested by itself below
}


class Place(NamedTuple):
    operation: Operation
    where: str
    """path, query, header or body"""
    name: str


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """The fields of a schema, which may be a reference or one of several."""
    if "$ref" in schema:
        return _resolve(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    fields = dict(schema.get("properties", {}))
    for each in [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]:
        fields |= _resolve(each)
    return fields


def find_places() -> Iterator[Place]:
    for operation in OPERATIONS:
        if operation.scope == Scope.ADMIN:  # an admin manages every project
            continue
        for parameter in operation.description.get("parameters", []):
            yield Place(operation, parameter["in"], parameter["name"])
        content = operation.description.get("requestBody", {}).get("content", {})
        for media in content.values():
            for name in _resolve(media["schema"]):
                yield Place(operation, "body", name)


PLACES = [place for place in find_places() if place.name not in NOT_AN_ID]


class Two:
    """One project with something of every kind, and another with a file, a job and an upload."""

    def __init__(self, client: TestClient, database: Database, store: LocalBlobStore) -> None:
        self.client = client
        self.world = World(database, store)
        self.owner = bearer(add_key(database))
        self.other = bearer(add_key(database, "Other"))
        with database.reading() as session:
            event_id = session.scalars(select(Event.id).order_by(Event.id.desc())).first()
        world = self.world
        self.ids: dict[str, list[str]] = {
            "file_id": [world.file.id, world.used_file.id],
            "job_id": [world.done.id, world.queued.id],
            "upload_id": [world.upload.id],
            "model": [world.model.id, f"{world.model.id}:ckpt-step-1"],
            "after": [
                *(world.file.id, world.queued.id, world.result.id, event_id or ""),
                *(world.endpoint.id, world.sweep.id),
            ],
            "base_model": [world.model.id],
            "search": [world.done.id, world.model.id],
            "checkpoint": [world.result.id],
            "training_file": [world.file.id],
            "validation_file": [world.file.id],
            "part_ids": [world.part.id],
            "endpoint_id": [world.endpoint.id],
            "sweep_id": [world.sweep.id],
        }
        self.file = self.upload_file(self.other)
        self.job = self.create_job(self.other, self.file).json()["id"]
        upload = {"bytes": len(TEXT_LINE), "filename": "a", "mime_type": "text/jsonl"}
        created = self.ask("POST", "/v1/uploads", json=upload | {"purpose": "fine-tune"})
        url = "https://hooks.example.com/"
        own_endpoint = add_endpoint(database, url, project_id=OTHER_PROJECT)
        self.own = {
            "file_id": self.file,
            "job_id": self.job,
            "upload_id": created.json()["id"],
            "model": "tiny",
            "endpoint_id": own_endpoint.id,
        }

    def ask(self, method: str, url: str, **options: Any) -> Any:
        """As the other project."""
        return self.client.request(method, url, headers=self.other, **options)

    def upload_file(self, who: dict[str, str]) -> str:
        files, data = {"file": ("a.jsonl", TEXT_LINE)}, {"purpose": "fine-tune"}
        return self.client.post("/v1/files", headers=who, files=files, data=data).json()["id"]

    def create_job(self, who: dict[str, str], file_id: str, **headers: str) -> Any:
        body = {"model": "tiny", "training_file": file_id, "seed": 1}
        return self.client.post(JOBS, headers=who | headers, json=body)

    def replay(self, place: Place, foreign_id: str) -> tuple[int, str]:
        """The answer to the other project that names this id in this place, less the id."""
        operation, ids, options = place.operation, dict(self.own), place.operation.body()
        if "training_file" in options.get("json", {}):
            options["json"] = options["json"] | {"training_file": self.file}
        if place.where == "path":
            ids[place.name] = foreign_id
        elif place.where == "query":
            options["params"] = {place.name: foreign_id}
        else:
            value = [foreign_id] if place.name.endswith("_ids") else foreign_id
            options["json"] = options.get("json", {}) | {place.name: value}
        answer = self.ask(operation.method, operation.url(ids), **options)
        return answer.status_code, answer.text.replace(foreign_id, "ID")


@pytest.fixture
def two(client: TestClient, database: Database, store: LocalBlobStore) -> Two:
    return Two(client, database, store)


def never_was(known: str) -> str:
    """An id that does not exist, beside one that does in every order."""
    at = -1 if ":ckpt-step-" not in known else known.index(":ckpt-step-") - 1
    letter = "0" if known[at] != "0" else "1"
    return known[:at] + letter + (known[at + 1 :] if at != -1 else "")


def test_an_id_of_another_project_is_as_one_that_never_was(two: Two, database: Database) -> None:
    with database.reading() as session:
        before = own_rows(session)

    for place in PLACES:
        for foreign_id in two.ids[place.name]:
            answer = two.replay(place, foreign_id)
            assert answer == two.replay(place, never_was(foreign_id)), place
            if place.where != "query":
                assert answer[0] in (400, 404), place
            if place.where == "path":
                assert answer[0] == 404, place
    with database.reading() as session:
        assert own_rows(session) == before


def test_an_idempotency_key_belongs_to_its_project(two: Two) -> None:
    theirs = two.create_job(two.owner, two.world.file.id, **{"idempotency-key": "k"}).json()["id"]

    first = two.create_job(two.other, two.file, **{"idempotency-key": "k"})
    again = two.create_job(two.other, two.file, **{"idempotency-key": "k"})
    reused = two.create_job(two.other, two.world.file.id, **{"idempotency-key": "k"})

    assert first.json()["id"] not in (theirs, two.job)
    assert "idempotent-replayed" not in first.headers
    assert again.json()["id"] == first.json()["id"]
    assert reused.json()["error"]["code"] == "idempotency_key_reused"
    assert theirs not in reused.text


def test_a_retry_finds_only_what_its_project_has_made(two: Two) -> None:
    file_id = two.world.file.id
    theirs = two.create_job(two.owner, file_id).json()["id"]

    retried = two.create_job(two.other, file_id, **{"x-stainless-retry-count": "1"})

    assert (retried.status_code, theirs in retried.text) == (404, False)


def test_an_answer_is_reused_only_for_its_project(two: Two) -> None:
    url = f"{JOBS}/{two.world.done.id}"

    for _ in range(2):  # the second one is reused
        assert two.client.get(url, headers=two.owner).status_code == 200
        assert two.ask("GET", url).status_code == 404
        listed = two.ask("GET", JOBS).json()["data"]
        assert [job["id"] for job in listed] == [two.job]


def test_nothing_that_a_list_shows_is_of_another_project(two: Two) -> None:
    foreign = {each for ids in two.ids.values() for each in ids}

    for operation in OPERATIONS:
        is_own = operation.scope not in (None, Scope.ADMIN)
        if operation.method == "GET" and is_own and "{" not in operation.path:
            shown = two.ask("GET", operation.path).text
            assert [each for each in foreign if each in shown] == []
