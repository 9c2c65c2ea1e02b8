"""An answer is given again only while nothing has changed, and only to who has had it before."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient

from app.api.access import CALLER
from app.api.admission.authentication import Authenticator
from app.api.admission.token_buckets import TokenBuckets
from app.api.metrics import RequestMetrics
from app.api.polls.memory import MAX_ANSWER_BYTES, MAX_ANSWERS, Memory
from app.api.polls.recent_answers import PATHS, RecentAnswers
from app.api.polls.repeats import Repeats
from app.core.access import LOCAL_CALLER, Caller
from app.core.db.session import Database
from tests.builders import add_job

JOB = f"{PATHS}/ftjob-1"


def repeats_at(version: Callable[[], int | None]) -> Repeats:
    """Repeats that keep nothing by its bytes: no request here comes over a connection."""
    nothing: Any = None
    return Repeats(
        Memory(version),
        authenticator=Authenticator(nothing, may_be_keyless=True),
        buckets=TokenBuckets(),
        metrics=RequestMetrics(),
    )


class Counting:
    """Answers with how often it was asked; `version` is the database's."""

    def __init__(self, answer: Response | None = None) -> None:
        self.version: int | None = 1
        self.asked = 0
        self._answer = answer
        self._answers = RecentAnswers(self, repeats=repeats_at(lambda: self.version))
        self.client = TestClient(self._identify, base_url="http://127.0.0.1")

    async def _identify(self, scope: Any, receive: Any, send: Any) -> None:
        """As the guard does, but without asking who that is."""
        key_id = Request(scope).headers.get("authorization")
        scope["state"][CALLER] = Caller("proj-1", frozenset(), key_id)
        await self._answers(scope, receive, send)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        answer = self._answer or JSONResponse({"asked": self.asked})
        await answer(scope, receive, send)

    def get(self, path: str = JOB, **options: Any) -> Any:
        return self.client.get(path, **options).json()["asked"]


def test_an_answer_is_given_again_until_something_changes() -> None:
    counting = Counting()

    first = [counting.get(), counting.get()]
    counting.version = 2
    second = [counting.get(), counting.get()]

    assert first == [1, 1]
    assert second == [2, 2]


def test_an_answer_that_is_given_again_is_the_same_but_for_its_own_headers() -> None:
    counting = Counting()

    answers = [counting.client.get(JOB) for _ in range(2)]

    assert answers[0].content == answers[1].content
    assert answers[0].headers == answers[1].headers
    assert counting.asked == 1


def test_what_cannot_be_known_to_be_the_same_is_asked_for_again() -> None:
    counting = Counting()
    counting.version = None

    assert [counting.get(), counting.get()] == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"headers": {"authorization": "Bearer other"}}, id="who"),
        pytest.param({"headers": {"accept": "text/csv"}}, id="form"),
        pytest.param({"params": {"limit": "1"}}, id="query"),
        pytest.param({"path": f"{JOB}/events"}, id="path"),
    ],
)
def test_another_question_has_another_answer(other: dict[str, Any]) -> None:
    counting = Counting()

    counting.get()

    assert counting.get(**other) == 2


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD"])
def test_only_a_read_is_answered_again(method: str) -> None:
    counting = Counting()

    for _ in range(2):
        counting.client.request(method, JOB)

    assert counting.asked == 2


def test_what_does_not_answer_by_the_database_alone_is_asked_for_again() -> None:
    counting = Counting()

    assert [counting.get("/healthz"), counting.get("/healthz")] == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(JSONResponse({}, status_code=404), id="error"),
        pytest.param(PlainTextResponse("step,loss"), id="no JSON"),
        pytest.param(JSONResponse("x" * MAX_ANSWER_BYTES), id="large"),
        pytest.param(
            StreamingResponse(iter([b"[", b"]"]), media_type="application/json"), id="in parts"
        ),
    ],
)
def test_what_is_no_small_good_answer_is_not_kept(answer: Response) -> None:
    counting = Counting(answer)

    counting.client.get(JOB)
    counting._answer = JSONResponse({})  # a stream can be sent only once
    counting.client.get(JOB)

    assert counting.asked == 2


@pytest.mark.parametrize("query", ["wait=30", "limit=1&wait=30", "stream=true"])
def test_what_is_answered_later_than_asked_is_asked_for_again(query: str) -> None:
    counting = Counting()

    asked = [counting.get(f"{JOB}?{query}") for _ in range(2)]

    assert asked == [1, 2]


def test_no_more_than_so_many_answers_are_kept() -> None:
    counting = Counting()

    for number in range(MAX_ANSWERS + 1):
        counting.get(f"{JOB}{number}")
    asked = counting.asked
    counting.get(f"{JOB}{MAX_ANSWERS}")

    assert counting.asked == asked + 1


def test_an_answer_that_was_overtaken_by_a_change_is_not_kept() -> None:
    """One request reads, then another sees a commit, and only then is the first answered."""
    version = 1
    may_answer = asyncio.Event()
    asked: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        asked.append(Request(scope).url.path)
        if len(asked) == 1:
            await may_answer.wait()
        await JSONResponse(len(asked))(scope, receive, send)

    async def ignore(_message: Any) -> None: ...

    app = RecentAnswers(slow, repeats=repeats_at(lambda: version))

    async def ask(path: str) -> None:
        scope: Any = {"type": "http", "method": "GET", "path": path}
        scope |= {"query_string": b"", "headers": []}
        scope["state"] = {CALLER: LOCAL_CALLER}
        await app(scope, ignore, ignore)  # pyright: ignore[reportArgumentType] - it reads no body

    async def overtake() -> None:
        nonlocal version
        first = asyncio.create_task(ask(JOB))
        await asyncio.sleep(0)
        version = 2
        await ask(f"{JOB}/events")
        may_answer.set()
        await first
        await ask(JOB)

    asyncio.run(overtake())

    assert asked == [JOB, f"{JOB}/events", JOB]


@pytest.mark.parametrize("version", [pytest.param(1, id="kept"), pytest.param(None, id="made")])
def test_an_answer_that_the_client_has_is_not_sent(version: int | None) -> None:
    counting = Counting(JSONResponse({"status": "running"}))
    counting.version = version
    whole = counting.client.get(JOB)
    tag = whole.headers["etag"]

    same = counting.client.get(JOB, headers={"If-None-Match": f'"other", W/{tag}'})
    other = counting.client.get(JOB, headers={"If-None-Match": '"other"'})

    assert (same.status_code, same.content, same.headers) == (304, b"", {"etag": tag})
    assert (other.status_code, other.content, other.headers["etag"]) == (200, whole.content, tag)


def test_the_tag_changes_exactly_when_the_answer_does() -> None:
    counting = Counting(JSONResponse({"status": "queued"}))
    tags = [counting.client.get(JOB).headers["etag"]]

    counting.version = 2  # a commit that concerns something else
    tags.append(counting.client.get(JOB).headers["etag"])
    counting.version, counting._answer = 3, JSONResponse({"status": "running"})
    tags.append(counting.client.get(JOB).headers["etag"])

    assert tags[0] == tags[1] != tags[2]


@pytest.mark.parametrize(
    ("answer", "has_tag"),
    [
        pytest.param(JSONResponse("x" * MAX_ANSWER_BYTES), True, id="large"),
        pytest.param(JSONResponse({}, status_code=HTTPStatus.NOT_FOUND), False, id="error"),
        pytest.param(PlainTextResponse("step,loss"), False, id="no JSON"),
        pytest.param(
            StreamingResponse(iter([b"[", b"]"]), media_type="application/json"),
            False,
            id="in parts",
        ),
    ],
)
def test_only_a_good_answer_in_json_has_a_tag(answer: Response, *, has_tag: bool) -> None:
    asked = Counting(answer).client.get(JOB, headers={"If-None-Match": "*"})

    assert asked.status_code == (304 if has_tag else answer.status_code)
    assert ("etag" in asked.headers) == has_tag


def test_every_commit_is_seen_by_the_next_poll(client: TestClient, database: Database) -> None:
    path = f"{PATHS}/{add_job(database).id}"
    before = [client.get(path).json()["status"] for _ in range(2)]

    client.post(f"{path}/pause")  # by the API itself
    paused = [client.get(path).json()["status"] for _ in range(2)]
    client.post(f"{path}/resume")
    with database.engine.begin() as connection:  # and by another process
        connection.exec_driver_sql("UPDATE jobs SET priority = 7")

    assert before == ["queued"] * 2
    assert paused == ["paused"] * 2
    assert client.get(path).json()["priority"] == 7
