"""Secrets put through every path appear in no log, no answer and no artifact."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from benchmarks.support.postgres import PostgresServer
from tests.acceptance.processes import InstalledService

PLACES = ("wrong", "header", "cookie", "query", "idempotency", "body", "form", "path", "hub")
KEYS = {place: f"tnr_01k9{place}_{'5ec2e7' * 11}" for place in PLACES}
"""Secrets in the form of a key, by where they are put."""
SWORDFISH = "swordfish-of-the-database"
"""Password in the URL of the database."""
ROW = "the-patient-is-called-Zebedee"
"""Text of a dataset, which by its form is no secret."""
FILENAME = "diagnosis-of-Zebedee.jsonl"
LABEL = "label-of-Zebedee"
JOBS = "/v1/fine_tuning/jobs"


@dataclass
class Use:
    """A service that was used, with everything that came out of it."""

    service: InstalledService
    key: str
    """The key with which it was used."""
    answers: list[httpx.Response] = field(default_factory=list[httpx.Response])
    artifacts: list[bytes] = field(default_factory=list[bytes])

    def send(self, client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
        answer = client.request(method, path, **options)
        self.answers.append(answer)
        return answer

    @property
    def logs(self) -> str:
        return "".join(process.log() for process in self.service.processes.values())

    @property
    def everything_said(self) -> str:
        return "".join(f"{answer.headers}{answer.text}" for answer in self.answers)


def line(*, roles: tuple[str, str] = ("user", "assistant")) -> bytes:
    messages = [{"role": role, "content": f"{role}: {ROW}"} for role in roles]
    return json.dumps({"messages": messages}).encode() + b"\n"


def upload(content: bytes) -> dict[str, Any]:
    data = {"purpose": "fine-tune", "note": KEYS["form"]}
    return {"files": {"file": (FILENAME, content)}, "data": data}


def send_bad_requests(use: Use, client: httpx.Client) -> None:
    use.send(client, "POST", "/v1/files", **upload(line(roles=("user", "nobody"))))
    use.send(client, "POST", "/v1/files", **upload(line()[:-20]))
    use.send(client, "POST", JOBS, json={"model": "tiny", "seed": KEYS["body"]})
    use.send(client, "POST", JOBS, content=f'{{"model": {KEYS["body"]}')
    use.send(client, "GET", JOBS, params={"limit": KEYS["query"], "api_key": KEYS["query"]})
    use.send(client, "GET", f"/v1/files/{KEYS['path']}")
    use.send(client, "DELETE", f"/v1/models/{KEYS['path']}")
    use.send(client, "PUT", f"/{KEYS['path']}")


def train(use: Use, client: httpx.Client) -> None:
    file_id = use.send(client, "POST", "/v1/files", **upload(line() * 4)).json()["id"]
    body = {
        "model": "tiny",
        "training_file": file_id,
        "metadata": {"patient": LABEL},
        "hyperparameters": {"n_epochs": 1},
    }
    keyed = {"Idempotency-Key": KEYS["idempotency"]}
    job_id = use.send(client, "POST", JOBS, json=body, headers=keyed).json()["id"]
    with use.service.client().with_options(api_key=use.key) as stock:
        assert use.service.wait_for_end(stock, job_id).status == "succeeded"
    job = f"{JOBS}/{job_id}"
    for path in (job, f"{job}/events?limit=1000", f"{job}/checkpoints", f"{job}/metrics"):
        use.artifacts.append(client.get(path).content)
    use.artifacts.append(client.get(f"{job}/adapter").content)
    for made in client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"]:
        use.artifacts.append(client.get(f"/v1/files/{made['id']}/content").content)


def browse(use: Use) -> None:
    """Sign in with a wrong key and the right one. Only the answer to the right one may show it."""
    page = {"sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=use.service.url, headers=page) as browser:
        use.send(browser, "POST", "/v1/session", json={"key": KEYS["wrong"]})
        browser.post("/v1/session", json={"key": use.key}).raise_for_status()
        browser.get(JOBS).raise_for_status()


@pytest.fixture(scope="module")
def use(
    tiny_data_dir: Path, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Use]:
    key_file = tmp_path_factory.mktemp("first") / "key"
    headers = {
        "X-Api-Key": KEYS["header"],
        "Cookie": f"session={KEYS['cookie']}",
    }
    with pytest.MonkeyPatch.context() as patch, postgres.database(migrated=False) as url:
        patch.setenv("HF_TOKEN", KEYS["hub"])
        secret_url = make_url(url).set(password=SWORDFISH).render_as_string(hide_password=False)
        settings = {
            "database_url": secret_url,
            "store_url": f"file://{key_file.parent}/blobs",  # the other is of another database
            "log_format": "json",
            "bootstrap_key_file": str(key_file),
        }
        with (
            InstalledService(tiny_data_dir, log_dir=key_file.parent, **settings) as service,
            httpx.Client(base_url=service.url, headers=headers, timeout=60) as client,
        ):
            use = Use(service, key_file.read_text("utf-8").strip())
            use.send(client, "GET", JOBS, headers={"Authorization": f"Bearer {KEYS['wrong']}"})
            client.headers["Authorization"] = f"Bearer {use.key}"
            train(use, client)
            send_bad_requests(use, client)
            browse(use)
            with postgres.stopped():
                use.send(client, "GET", JOBS)
            yield use


def test_no_log_has_a_secret_or_what_users_write(use: Use) -> None:
    logs = use.logs

    assert '"job_id"' in logs
    assert "cannot be reached" in logs
    for secret in (use.key, *KEYS.values(), SWORDFISH, ROW, FILENAME, LABEL):
        assert secret not in logs


def test_no_answer_has_a_secret_of_the_service_or_of_a_header(use: Use) -> None:
    said = use.everything_said

    assert [answer.status_code for answer in use.answers].count(200) == 2
    assert use.answers[-1].status_code == 503
    for place in ("wrong", "header", "cookie", "query", "idempotency", "form", "hub"):
        assert KEYS[place] not in said, place
    assert use.key not in said
    assert SWORDFISH not in said
    assert ROW not in said


def test_no_artifact_has_a_secret_or_a_row(use: Use) -> None:
    made = b"".join(use.artifacts)

    assert len(use.artifacts) > 8
    for secret in (use.key, *KEYS.values(), SWORDFISH, ROW):
        assert secret.encode() not in made


def test_every_line_about_a_job_says_which_attempt_and_whose(use: Use) -> None:
    lines = [json.loads(each) for each in use.service.processes["worker-1"].log().splitlines()]
    about_jobs = [each for each in lines if "job_id" in each]

    events = {"check claimed", "child ended", "job claimed", "job ended"}
    assert events <= {each["event"] for each in about_jobs}
    for line in about_jobs:
        number = line["check"] if "check" in line else line["attempt"]
        assert (number, line["project"]) == (1, "proj-default")


def test_every_line_about_a_request_says_who_asked_and_how_it_went(use: Use) -> None:
    lines = [json.loads(each) for each in use.service.processes["api"].log().splitlines()]
    requests = [each for each in lines if each["logger"] == "app.access"]
    made = next(each for each in requests if each["event"].startswith(f"POST {JOBS} 200"))

    assert all(each["request_id"].startswith("req_") for each in requests)
    assert {each["outcome"] for each in requests} == {"ok", "refused", "failed"}
    assert made["job_id"].startswith("ftjob-")
    assert made["project"] == "proj-default"
    assert made["key_id"].startswith("key_")
    assert use.key.split("_")[1] in made["key_id"]
