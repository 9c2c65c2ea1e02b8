"""The API in this process, with a few things in it: for requests that no decent client sends."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.settings import Settings
from app.main import create_app
from tests.builders import CHAT_LINE, TEXT_LINE, pass_checks, write_catalogue

MAX_UPLOAD_BYTES = 20_000_000


class Answer(Protocol):
    """As much of a response as these tests look at."""

    status_code: int
    headers: Any
    text: str
    content: bytes

    def json(self) -> Any: ...


class Lab:
    """What a case needs to send its request, and the ids it may name."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.text_file = self.upload(TEXT_LINE * 3).json()["id"]
        self.other_file = self.upload(TEXT_LINE).json()["id"]
        self.tools_file = self.upload(
            CHAT_LINE.replace(b"]}\n", b'], "tools": [{"type": "function"}]}\n')
        ).json()["id"]
        self.preference_file = self.upload(
            b'{"prompt": "Hi", "chosen": "Ho", "rejected": "Go"}'
        ).json()["id"]
        self.queued_job = self.create_job().json()["id"]
        self.cancelled_job = self.create_job(training_file=self.other_file).json()["id"]
        self.post(f"/fine_tuning/jobs/{self.cancelled_job}/cancel")

    def get(self, path: str) -> Answer:
        return self.client.get(f"/v1{path}")

    def post(self, path: str, **options: Any) -> Answer:
        return self.client.post(f"/v1{path}", **options)

    def delete(self, path: str) -> Answer:
        return self.client.delete(f"/v1{path}")

    def upload(self, content: bytes, **fields: str) -> Answer:
        """Upload a file, for the right purpose unless `fields` says otherwise."""
        data = {"purpose": "fine-tune"} | fields
        return self.post("/files", files={"file": ("data.jsonl", content)}, data=data)

    def send_form(self, body: bytes, boundary: str = "X") -> Answer:
        """Send this as a form, whatever it is."""
        content_type = f"multipart/form-data; boundary={boundary}"
        return self.post("/files", content=body, headers={"content-type": content_type})

    def create_job(self, **changes: Any) -> Answer:
        """Create a job that is good but for `changes`."""
        body: dict[str, Any] = {"model": "tiny", "training_file": self.text_file} | changes
        return self.post("/fine_tuning/jobs", json=body)

    def rerun(self, **options: Any) -> Answer:
        return self.post(f"/fine_tuning/jobs/{self.cancelled_job}/rerun", **options)

    def with_knobs(self, **knobs: Any) -> Answer:
        return self.create_job(hyperparameters=knobs)

    def send_json(self, body: bytes, content_type: str = "application/json") -> Answer:
        """Send this as the description of a job, whatever it is."""
        headers = {"content-type": content_type}
        return self.post("/fine_tuning/jobs", content=body, headers=headers)


Send = Callable[[Lab], Answer]


@contextmanager
def open_lab(data_dir: Path) -> Generator[Lab]:
    write_catalogue(data_dir)
    settings = Settings(
        _env_file=None,  # pyright: ignore[reportCallIssue] - pydantic-settings takes it
        data_dir=data_dir,
        max_upload_bytes=MAX_UPLOAD_BYTES,
    )
    database = Database(settings.resolved_database_url)
    with TestClient(
        create_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        lab = Lab(client)
        pass_checks(database)
        yield lab
    database.dispose()


def envelope(
    code: str, message: str, param: str | None = None, **extra: Any
) -> dict[str, dict[str, Any]]:
    """The whole body of an answer to a bad request."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": error | extra}


def problems(*found: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """Of a request whose parameters are wrong, each as path, code and message."""
    errors = [{"path": path, "code": code, "message": message} for path, code, message in found]
    more = f" And {len(found) - 1} more; see 'errors'." if found[1:] else ""
    path, code, message = found[0]
    return envelope(code, message + more, path or None, errors=errors, error_count=len(errors))


def bad_value(path: str, why: str, code: str = "invalid_value") -> dict[str, dict[str, Any]]:
    """Of a request with one parameter whose value is wrong."""
    return problems((path, code, f"Invalid value for '{path}': {why}."))


def bad_file(*found: tuple[int, str, str, str]) -> dict[str, dict[str, Any]]:
    """Of an upload that is no data set, each problem as line, path, code and message."""
    keys = ("line", "path", "code", "message")
    errors = [dict(zip(keys, one, strict=True)) for one in found]
    line, path, _, message = found[0]
    where = f"line {line}" + (f", {path}" if path else "")
    more = f" And {len(found) - 1} more; see 'errors'." if found[1:] else ""
    return envelope(
        "invalid_file",
        f"The file is not a dataset. In {where}: {message}{more}",
        "file",
        errors=errors,
        error_count=len(errors),
    )
