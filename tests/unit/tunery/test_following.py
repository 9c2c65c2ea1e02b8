"""Following a job of a service that streams nothing, such as one of an earlier release."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunery.client.service.api import Api, AwayError, RefusedError
from tunery.client.service.live import follow
from tunery.client.service.profile import Profile


class _OldService(BaseHTTPRequestHandler):
    """Shows one job, which has one more event each time that it is asked for, and then ends."""

    looks = 0
    EVENTS = 3

    def do_GET(self) -> None:
        kind = type(self)
        if "/events" in self.path:
            events = [{"id": f"ftevent-{number}"} for number in range(kind.looks)]
            self._answer(200, {"data": events[::-1], "has_more": False, "last_id": None})
        elif self.path.endswith("/ftjob-1"):
            kind.looks += 1
            status = "succeeded" if kind.looks == self.EVENTS else "running"
            self._answer(200, {"id": "ftjob-1", "status": status})
        else:
            self._answer(404, {"error": {"message": "No such\x1b job", "code": "job_not_found"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(_OldService, "looks", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), _OldService) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield Api(Profile(f"http://127.0.0.1:{server.server_port}/v1"), is_hurried=True)
        server.shutdown()
        serving.join()


def ignore_breaks() -> None:
    pytest.fail("The service did not break off.")


def test_a_service_without_a_stream_is_asked_until_the_job_ends(api: Api) -> None:
    messages = [*follow(api, "ftjob-1", past_events=None, on_break=ignore_breaks)]

    assert [each.data["id"] for each in messages if each.kind == "event"] == [
        "ftevent-0",
        "ftevent-1",
        "ftevent-2",
    ]
    assert [each.data["status"] for each in messages if each.kind != "event"] == [
        "running",
        "running",
        "succeeded",
    ]
    assert messages[-1].kind == "end"


def test_an_error_is_the_services_own_and_cannot_control_the_terminal(api: Api) -> None:
    with pytest.raises(RefusedError) as raised:
        api.get("/fine_tuning/jobs/ftjob-2")

    assert str(raised.value) == "No such\\x1b job"


def test_nobody_waits_for_a_service_that_never_answered() -> None:
    api = Api(Profile("http://127.0.0.1:9/v1"), is_hurried=True)

    with pytest.raises(AwayError, match="does not answer"):
        next(follow(api, "ftjob-1", past_events=None, on_break=ignore_breaks))
