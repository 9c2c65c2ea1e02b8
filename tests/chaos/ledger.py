"""What a service has acknowledged to its clients, and whether all of it can be read back."""

import hashlib
import io
import json
import random
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.stand_in_trainer import chain

STEPS = (20, 80)
CHECKPOINT_STEPS = 20
MAX_ROWS = 2000
"""Rows of the largest file, which then has 170 kB."""
WAITING = 3
"""Number of unfinished jobs that the clients maintain."""
TIMEOUT_S = 60.0
ENOUGH_FILES = 100
"""Files that the clients keep; with more they only delete."""


@dataclass
class Ledger:
    """What was acknowledged. All clients write into it."""

    files: dict[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of every file whose upload was answered with 200 and that nobody began to delete."""
    jobs: dict[str, tuple[bytes, int]] = field(default_factory=dict[str, tuple[bytes, int]])
    """Training data and steps of every job whose creation was answered with 200."""
    problems: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def object_to(self, what: str) -> None:
        with self.lock:
            self.problems.append(what)


class Reader:
    """Reads back what the ledger has, through the API. Asks again while that is away."""

    def __init__(self, base_url: str, ledger: Ledger) -> None:
        self.ledger = ledger
        self._http = httpx.Client(base_url=base_url, timeout=TIMEOUT_S)

    def insist(self, send: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
        """Send a request again and again, until the answer is neither missing nor 503."""
        while True:
            answer = self.try_once(send)
            if answer is not None:
                return answer
            time.sleep(0.1)

    def try_once(self, send: Callable[[httpx.Client], httpx.Response]) -> httpx.Response | None:
        """Send a request. None if there was no answer, or one with 503."""
        try:
            answer = send(self._http)
        except httpx.TransportError:
            self.ledger.count("requests without an answer")
            return None
        if answer.status_code == 503:
            self.ledger.count("requests answered with 503")
            return None
        return answer

    def check_file(self, file_id: str, sha256: str) -> None:
        answer = self.insist(lambda http: http.get(f"/files/{file_id}/content"))
        if answer.status_code == 404 and file_id not in self.ledger.files:
            return  # another client has begun to delete it
        self.ledger.count("files read")
        if answer.status_code != 200:
            self.ledger.object_to(f"{file_id}: {answer.status_code} {answer.text[:200]}")
        elif hashlib.sha256(answer.content).hexdigest() != sha256:
            self.ledger.object_to(f"{file_id}: other bytes than were uploaded")

    def check_job(self, job_id: str) -> bool:
        """Check the checkpoints of a job. Returns whether it has ended."""
        data, total = self.ledger.jobs[job_id]
        job = self._get(f"/fine_tuning/jobs/{job_id}")
        if job.get("status") not in {"succeeded", "failed", "cancelled"}:
            return False
        if job["status"] != "succeeded":
            self.ledger.object_to(f"{job_id}: {job['status']}: {job['error']}")
            return True
        steps = sorted({*range(CHECKPOINT_STEPS, total + 1, CHECKPOINT_STEPS), total})
        found = self._get(f"/fine_tuning/jobs/{job_id}/checkpoints?limit=100").get("data", [])
        if sorted(checkpoint["step_number"] for checkpoint in found) != steps:
            self.ledger.object_to(f"{job_id}: checkpoints {found}, due at {steps}")
        for checkpoint in found:
            self._check_adapter(job_id, checkpoint["id"], chain(data, checkpoint["step_number"]))
        for file_id in job["result_files"]:
            if self.insist(lambda http: http.get(f"/files/{file_id}/content")).status_code != 200:  # noqa: B023 - used at once
                self.ledger.object_to(f"{job_id}: its loss log {file_id} is lost")
        self.ledger.count("jobs read")
        return True

    def check_all(self) -> tuple[int, int]:
        """Read every file, and every checkpoint of every job that has ended. Returns how many."""
        with self.ledger.lock:
            files, jobs = dict(self.ledger.files), list(self.ledger.jobs)
        for file_id, sha256 in files.items():
            self.check_file(file_id, sha256)
        return len(files), sum(self.check_job(job_id) for job_id in jobs)

    def _check_adapter(self, job_id: str, checkpoint_id: str, expected: str) -> None:
        path = f"/fine_tuning/jobs/{job_id}/adapter?checkpoint={checkpoint_id}"
        answer = self.insist(lambda http: http.get(path))
        if answer.status_code != 200:
            self.ledger.object_to(f"{path}: {answer.status_code} {answer.text[:200]}")
            return
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            adapter = archive.read("adapter_model.safetensors").decode()
        if adapter != expected:
            self.ledger.object_to(f"{path}: a wrong adapter")
        self.ledger.count("adapters read")

    def _get(self, path: str) -> dict[str, Any]:
        answer = self.insist(lambda http: http.get(path))
        if answer.status_code != 200:
            self.ledger.object_to(f"{path}: {answer.status_code} {answer.text[:200]}")
            return {}
        return answer.json()


class Client(threading.Thread):
    """Uploads, downloads, trains and deletes, until told to end."""

    def __init__(self, base_url: str, ledger: Ledger, *, seed: int) -> None:
        super().__init__(daemon=True)
        self._reader = Reader(base_url, ledger)
        self._ledger = ledger
        self._chance = random.Random(seed)  # noqa: S311 - nothing secret
        self._seed = seed
        self._ended = threading.Event()
        self._number = 0

    def run(self) -> None:
        acts = [self._upload, self._download, self._delete, self._train]
        while not self._ended.wait(self._chance.uniform(0, 0.1)):
            try:
                self._chance.choices(acts, weights=[10, 10, 3, 2])[0]()
            except Exception as error:  # the others go on, and the test fails at its end
                self._ledger.object_to(f"a client failed: {error!r}")

    def end(self) -> None:
        self._ended.set()

    def _upload(self) -> str | None:
        if len(self._ledger.files) > ENOUGH_FILES:
            return None
        data = self._build_data()
        form = {"files": {"file": ("a.jsonl", data)}, "data": {"purpose": "fine-tune"}}
        answer = self._reader.try_once(lambda http: http.post("/files", **form))
        if answer is None:
            return None
        if answer.status_code != 200:
            self._ledger.object_to(f"an upload: {answer.status_code} {answer.text[:200]}")
            return None
        file_id = answer.json()["id"]
        with self._ledger.lock:
            self._ledger.files[file_id] = hashlib.sha256(data).hexdigest()
            self._ledger.counts["files acknowledged"] += 1
        return file_id

    def _download(self) -> None:
        with self._ledger.lock:
            known = list(self._ledger.files.items())
        if known:
            self._reader.check_file(*self._chance.choice(known))

    def _delete(self) -> None:
        with self._ledger.lock:
            if not self._ledger.files:
                return
            file_id = self._chance.choice(list(self._ledger.files))
            del self._ledger.files[file_id]  # from now on it may be gone
        self._reader.try_once(lambda http: http.delete(f"/files/{file_id}"))
        self._ledger.count("files deleted")

    def _train(self) -> None:
        data = self._build_data(most=5)
        unfinished = self._reader.try_once(lambda http: http.get("/fine_tuning/jobs?limit=100"))
        if unfinished is None or unfinished.status_code != 200:
            return
        statuses = Counter(job["status"] for job in unfinished.json()["data"])
        if statuses.total() - statuses["succeeded"] - statuses["failed"] >= WAITING:
            return
        form = {"files": {"file": ("a.jsonl", data)}, "data": {"purpose": "fine-tune"}}
        file_id = self._reader.insist(lambda http: http.post("/files", **form)).json()["id"]
        total = self._chance.randint(*STEPS)
        body = {
            "model": "tiny",
            "training_file": file_id,
            "hyperparameters": {
                "max_steps": total,
                "checkpoint_steps": CHECKPOINT_STEPS,
                "logging_steps": 10,
            },
        }
        self._number += 1
        headers = {"Idempotency-Key": f"{self._seed}-{self._number}"}
        job = self._reader.insist(
            lambda http: http.post("/fine_tuning/jobs", json=body, headers=headers)
        )
        if job.status_code != 200:
            self._ledger.object_to(f"a new job: {job.status_code} {job.text[:200]}")
            return
        with self._ledger.lock:
            self._ledger.jobs[job.json()["id"]] = (data, total)
            self._ledger.counts["jobs acknowledged"] += 1

    def _build_data(self, *, most: int = MAX_ROWS) -> bytes:
        rows = self._chance.randint(1, self._chance.choice([5, most]))
        row = json.dumps({"text": f"{self._chance.random()} " * 4}).encode() + b"\n"
        return row * rows
