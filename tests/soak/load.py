"""Everything that is done with a service during a soak, each thing at its own rate."""

import random
from typing import Any

from app.core.access import Scope
from app.core.access.api_keys import read_key_id
from app.core.clock import utc_now
from app.core.db.session import Database
from app.maintenance.keys import revoke_key
from tests.builders import add_key, build_chat_file
from tests.malformed.wire import FILE_HEAD, FORM, PURPOSE, request
from tests.soak.client import Answers, Client
from tests.soak.repeated import Act, Repeated
from tests.waiting import wait_until
from tests.webhooks import Receiver

UNFINISHED_JOBS = 4
"""Most jobs that wait or run at a time."""

ENDED_JOBS = 8
"""Most jobs that are kept after their end, so that the data stops growing."""

UPLOAD_ROWS = (1, 100, 5_000, 40_000)
"""Sizes of uploaded files: about 150 bytes a row."""

PARTS = 3
CLEAR_S = 60.0
EVENT_TYPES = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


class Load:
    """Does everything with a service, each thing at its own rate, while the block runs."""

    def __init__(
        self, base_url: str, key: str, database: Database, receiver: Receiver, *, seed: int
    ) -> None:
        self.answers = Answers()
        self._base_url = base_url
        self._key = key
        self._database = database
        self._receiver = receiver
        self._chance = random.Random(seed)  # noqa: S311 - nothing secret
        every_s: dict[Act, float] = {
            self._train: 2.0,
            self._interfere: 3.0,
            self._poll: 0.1,
            self._download: 1.0,
            self._upload: 2.0,
            self._upload_in_parts: 3.0,
            self._upload_badly: 1.0,
            self._hang_up: 0.5,
            self._use_new_key: 3.0,
            self._change_endpoints: 5.0,
            self._fail_receiver: 4.0,
        }
        self._repeated = Repeated(every_s, self.open_client, self.answers)

    def __enter__(self) -> None:
        self._repeated.__enter__()

    def __exit__(self, *_: object) -> None:
        self._repeated.__exit__()
        self._receiver.status = 200

    def open_client(self) -> Client:
        return Client(self._base_url, self._key, self.answers)

    def clear(self) -> None:
        """Cancel and delete every job, and delete every uploaded file."""
        client = self.open_client()

        def is_clear() -> bool:
            for job in client.list_jobs():
                self._delete_job(client, job)
            files = client.ask("GET", "/files", params={"purpose": "fine-tune"}).get("data", [])
            for file in files:
                client.ask("DELETE", f"/files/{file['id']}", expect=(200, 400, 404))
            return not files and not client.list_jobs()

        wait_until(is_clear, within_s=CLEAR_S)
        client.close()

    def _train(self, client: Client) -> None:
        """Create a job, unless enough wait; delete the oldest that have ended."""
        jobs = client.list_jobs()
        ended = [job for job in jobs if job["finished_at"] is not None]
        for job in ended[ENDED_JOBS:]:
            self._delete_job(client, job)
        if len(jobs) - len(ended) >= UNFINISHED_JOBS:
            return
        number = self._chance.randrange(2**32)
        file_id = client.upload(self._chance.randint(4, 40), first=number)
        if file_id is not None:
            steps = self._chance.randint(4, 20)
            body = {
                "model": "tiny",
                "training_file": file_id,
                "metadata": {"number": str(number)},
                "hyperparameters": {"max_steps": steps, "checkpoint_steps": 5, "lora_rank": 4},
            }
            once = {"Idempotency-Key": str(number)}
            client.ask("POST", "/fine_tuning/jobs", json=body, headers=once)

    def _delete_job(self, client: Client, job: dict[str, Any]) -> None:
        path = f"/fine_tuning/jobs/{job['id']}"
        if job["finished_at"] is None:
            client.ask("POST", f"{path}/cancel", expect=(200, 400, 404))
            return
        client.ask("DELETE", path, expect=(200, 404))
        client.ask("DELETE", f"/files/{job['training_file']}", expect=(200, 404))

    def _interfere(self, client: Client) -> None:
        """Cancel, pause or resume a job that has not ended."""
        jobs = [job for job in client.list_jobs() if job["finished_at"] is None]
        if jobs:
            job = self._chance.choice(jobs)
            how = (
                "resume" if job["status"] == "paused" else self._chance.choice(["cancel", "pause"])
            )
            path = f"/fine_tuning/jobs/{job['id']}/{how}"
            client.ask("POST", path, expect=(200, 400, 404))

    def _poll(self, client: Client) -> None:
        jobs = client.list_jobs()
        if jobs:
            path = f"/fine_tuning/jobs/{self._chance.choice(jobs)['id']}"
            what = self._chance.choice(["", "/events", "/metrics", "/checkpoints"])
            client.ask("GET", path + what, expect=(200, 404))
        client.ask("GET", self._chance.choice(["/files", "/models"]))

    def _download(self, client: Client) -> None:
        """Download an adapter, or the first bytes of one, and a loss log.

        The job is a recent one, because a job that is deleted meanwhile ends its downloads.
        """
        ended = [job for job in client.list_jobs() if job["finished_at"] is not None]
        jobs = [job for job in ended[: ENDED_JOBS // 2] if job["status"] == "succeeded"]
        if not jobs:
            return
        job = self._chance.choice(jobs)
        path = f"/fine_tuning/jobs/{job['id']}/adapter"
        if self._chance.random() < 0.5:
            client.ask("GET", path, expect=(200, 404))
        else:
            client.read_some(path, expect=(200, 404))
        client.ask("GET", f"/files/{job['result_files'][0]}/content", expect=(200, 404))

    def _upload(self, client: Client) -> None:
        """Upload a file, download it and delete it."""
        file_id = client.upload(self._chance.choice(UPLOAD_ROWS))
        if file_id is not None:
            client.ask("GET", f"/files/{file_id}/content")
            client.read_some(f"/files/{file_id}/content", expect=(200,))
            client.ask("DELETE", f"/files/{file_id}")

    def _upload_in_parts(self, client: Client) -> None:
        """Complete an upload and delete its file, or cancel the upload."""
        content = build_chat_file(self._chance.choice(UPLOAD_ROWS[:-1]))
        body = {"filename": "a.jsonl", "bytes": len(content), "purpose": "fine-tune"}
        upload = client.ask("POST", "/uploads", json=body | {"mime_type": "text/jsonl"})
        if not upload:
            return
        path, size = f"/uploads/{upload['id']}", len(content) // PARTS + 1
        parts: list[str] = []
        for start in range(0, len(content), size):
            files = {"data": ("part", content[start : start + size])}
            parts.append(client.ask("POST", f"{path}/parts", files=files).get("id", ""))
        if self._chance.random() < 0.5 or "" in parts:
            client.ask("POST", f"{path}/cancel")
            return
        done = client.ask("POST", f"{path}/complete", json={"part_ids": parts})
        if done:
            client.ask("DELETE", f"/files/{done['file']['id']}")

    def _upload_badly(self, client: Client) -> None:
        """Send a file with a bad line, a form that is none, or one whose end never comes."""
        rows = build_chat_file(self._chance.choice(UPLOAD_ROWS[:-1]))
        form = {"data": {"purpose": "fine-tune"}, "expect": (400,)}
        how = self._chance.randrange(3)
        if how == 0:
            client.ask("POST", "/files", files={"file": ("a.jsonl", rows + b"{}\n")}, **form)
        elif how == 1:
            headers = {"content-type": FORM}
            client.ask("POST", "/files", content=rows, headers=headers, expect=(400,))
        else:
            headers = f"content-type: {FORM}\r\nauthorization: Bearer {client.key}\r\n"
            whole = request("/v1/files", PURPOSE + FILE_HEAD + rows, headers=headers)
            client.send_raw(whole[: -len(rows) // 2], then_reset=self._chance.random() < 0.5)

    def _hang_up(self, client: Client) -> None:
        """Close a connection in the middle of a request, or before its answer."""
        headers = f"authorization: Bearer {client.key}\r\n"
        whole = request("/v1/files", method="GET", headers=headers)
        content = self._chance.choice([b"", whole[: len(whole) // 2], whole])
        client.send_raw(content, then_reset=self._chance.random() < 0.5)

    def _use_new_key(self, client: Client) -> None:
        """Create a key that may only read, use it, and revoke it."""
        key = add_key(self._database, scopes=[Scope.READ])
        client.ask("GET", "/models", key=key)
        client.ask("POST", "/fine_tuning/jobs", key=key, json={}, expect=(403,))
        with self._database.writing() as session:
            revoke_key(session, read_key_id(key) or "", now=utc_now())
        client.ask("GET", "/models", key=key, expect=(200, 401))

    def _change_endpoints(self, client: Client) -> None:
        """Create an endpoint, send a sample to it, and delete it."""
        body = {"name": "a", "url": f"{self._receiver.origin}/b", "event_types": EVENT_TYPES}
        endpoint = client.ask("POST", "/webhook_endpoints", json=body)
        if endpoint:
            path = f"/webhook_endpoints/{endpoint['id']}"
            client.ask("POST", f"{path}/test", json={"event_type": EVENT_TYPES[0]})
            client.ask("POST", f"{path}/rotate_secret", json={})
            client.ask("DELETE", path)

    def _fail_receiver(self, client: Client) -> None:
        """Let the receiver of webhooks refuse everything now and then."""
        self._receiver.status = self._chance.choice([200, 200, 500])
