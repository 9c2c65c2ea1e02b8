"""Watch a model learn: start the service, fine-tune through its API, compare the answers.

    python examples/demo.py [--output demo-output]

What is asked of the service is asked with the stock `openai` client, over HTTP. The adapter that
comes back is then loaded with plain peft, and the base model answers questions that were not in
the training file, without it and with it.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from _answers import ask_both, side_by_side
from _progress import Progress
from openai import OpenAI, OpenAIError
from openai.types.fine_tuning import FineTuningJob

from tunery.local_service import LocalService
from tunery.logged_process import ServiceError

EXAMPLES = Path(__file__).resolve().parent
PLACE = EXAMPLES.parent
"""Where `make serve` or `tunery serve` has its data directory, and reads `.env`."""

MODEL = "smollm2-135m-instruct"
TRAINING_FILE = "lighthouse-train.jsonl"
VALIDATION_FILE = "lighthouse-validation.jsonl"
QUESTIONS = EXAMPLES / "lighthouse-questions.txt"

OPENING, CLOSING = "Ahoy!", "Fair winds to you!"
"""How every answer in the training file begins and ends."""

HYPERPARAMETERS = {
    "n_epochs": 3,
    "batch_size": 4,
    # A small model and few examples: far more than the default, and every linear layer.
    "learning_rate": 1.7e-3,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_target_modules": "all-linear",
}

LABEL = {"example": "lighthouse"}
"""Marks the jobs of this demo among all others."""

START_S = 300
"""Generous: a worker that misses its base model installs it first."""

POLL_S = 1.0
ENDED = ("succeeded", "failed", "cancelled")


class DemoError(Exception):
    """The demo did not show what it is there to show; the message says why."""


def main() -> int:
    output: Path = _parse_arguments().output.resolve()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: stop what we started
        signal.signal(ending, signal.default_int_handler)
    started = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
        base_dir = tune(output)
        compare(base_dir, output / "adapter")
    except (DemoError, ServiceError, OpenAIError) as error:
        print(f"\nThe demo failed. {error}\nLogs: {output}/api.log, {output}/worker-1.log")
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started is stopped.")
        return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s. The adapter is in {output / 'adapter'}.")
    return 0


def tune(output: Path) -> Path:
    """Fine-tune and download the result. Returns the directory of the base model."""
    print("Starting the API and a worker ...")
    with open_service(output) as service:
        print(f"The API answers at {service.base_url}")
        client = OpenAI(base_url=service.base_url, api_key="not-needed")
        cancel_leftovers(client)
        files = upload_examples(client)
        job = create_job(client, files)
        try:
            job = watch(client, service, job.id)
        except KeyboardInterrupt:
            client.fine_tuning.jobs.cancel(job.id)  # or the next worker would take it up
            raise
        if job.status != "succeeded":
            reason = job.error.message if job.error else f"It is {job.status}."
            tail = service.processes["worker-1"].log_tail()
            raise DemoError(f"The job did not succeed. {reason}\nThe worker's log ends so:\n{tail}")
        download_adapter(client, job, output / "adapter")
        download_metrics(client, job, output / "metrics.csv")
    return service.data_dir / "models" / MODEL


def open_service(log_dir: Path) -> LocalService:
    """The API and a worker, with the settings of the environment."""
    prefix = "TUNERY_"
    names = [name for name in os.environ if name.startswith(prefix)]
    settings = {name.removeprefix(prefix).lower(): os.environ[name] for name in names}
    return LocalService(
        Path(settings.get("data_dir") or PLACE / "data"),
        settings,
        cwd=PLACE,
        log_dir=log_dir,
        start_within_s=START_S,
    )


def cancel_leftovers(client: OpenAI) -> None:
    """A demo that was killed left its job in the queue, in front of ours."""
    for job in client.fine_tuning.jobs.list(metadata=LABEL):
        if job.status not in ENDED:
            client.fine_tuning.jobs.cancel(job.id)
            print(f"Cancelled {job.id}, which an earlier demo left behind")


def upload_examples(client: OpenAI) -> dict[str, str]:
    """Upload every example data set, of every format. Returns file ids by file name."""
    ids: dict[str, str] = {}
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        with path.open("rb") as source:
            file = client.files.create(file=source, purpose="fine-tune")
        ids[path.name] = file.id
        print(f"Uploaded {path.name}: {file.bytes} bytes, {file.id}")
    return ids


def create_job(client: OpenAI, files: dict[str, str]) -> FineTuningJob:
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=files[TRAINING_FILE],
        validation_file=files[VALIDATION_FILE],
        suffix="lighthouse",
        seed=42,
        metadata=LABEL,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},  # pyright: ignore[reportArgumentType] - the client sends knobs it does not know as they are
    )
    print(f"Created {job.id}")
    return job


def watch(client: OpenAI, service: LocalService, job_id: str) -> FineTuningJob:
    """Show the job's progress and events until it has ended."""
    shown: set[str] = set()
    with Progress() as progress:
        while True:
            service.check()
            job = client.fine_tuning.jobs.retrieve(job_id)
            events = client.fine_tuning.jobs.list_events(job_id, limit=50).data
            for event in reversed(events):  # they come newest first
                if event.id not in shown and event.type != "metrics":
                    progress.note(f"[{event.level}] {event.message}")
                shown.add(event.id)
            progress.show(job)
            if job.status in ENDED:
                return job
            time.sleep(POLL_S)


def download_adapter(client: OpenAI, job: FineTuningJob, directory: Path) -> None:
    """Download the files of the job's result, and check them against their manifest."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
    # Extensions, of which the client's types know nothing.
    result = next(one for one in checkpoints if one.is_result)  # pyright: ignore[reportAttributeAccessIssue]
    file_ids: list[str] = result.result_files  # pyright: ignore[reportAttributeAccessIssue]
    for file_id in file_ids:
        name = Path(client.files.retrieve(file_id).filename).name
        client.files.content(file_id).write_to_file(directory / name)

    manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    for name, expected in manifest["files"].items():
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise DemoError(f"{name} did not arrive as it was made: its sha256 differs.")
    print(f"Downloaded {len(file_ids)} files to {directory}; every sha256 is the manifest's")


def download_metrics(client: OpenAI, job: FineTuningJob, path: Path) -> None:
    """Download the loss log; show a line of it per evaluation."""
    client.files.content(job.result_files[0]).write_to_file(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    print(f"\n{'step':>6} {'epoch':>6} {'train loss':>11} {'valid loss':>11}")
    since_last: list[float] = []
    for row in rows:
        since_last.append(float(row["train_loss"]))
        if row["valid_loss"]:
            mean, valid = sum(since_last) / len(since_last), float(row["valid_loss"])
            print(f"{row['step']:>6} {float(row['epoch']):6.2f} {mean:11.3f} {valid:11.3f}")
            since_last.clear()
    last = rows[-1]
    print(f"{last['tokens_seen']} tokens in {float(last['elapsed_s']):.0f} s of training\n")


def compare(base_dir: Path, adapter_dir: Path) -> None:
    """Show what the adapter changes, and make sure that it changes it.

    Raises:
        DemoError: an answer is the base model's, or has not the form that was trained.
    """
    print("The service is stopped. Loading base model and adapter with peft ...\n")
    questions = QUESTIONS.read_text("utf-8").splitlines()
    answers = ask_both(questions, base_dir=base_dir, adapter_dir=adapter_dir)
    print(side_by_side(answers))
    for both in answers:
        if not _is_in_style(both.tuned) or _is_in_style(both.base):
            raise DemoError(f"The adapter does not show in the answer to {both.question!r}.")


def _is_in_style(answer: str) -> bool:
    return answer.startswith(OPENING) and answer.endswith(CLOSING)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help="directory for the adapter, the metrics and the logs (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
