"""Jobs for the tests of the dashboard, and what its page of a job shows."""

import re
from collections.abc import Mapping

import openai
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Page, expect

from tests.builders import build_chat_file
from tests.waiting import wait_until

JOB_S = 120
"""Limit for a job of a few steps, in seconds, on a busy machine."""

LIVE_MS = 60_000
"""Limit for what a page shows once a job has made progress, in milliseconds."""


def create_long_job(client: openai.OpenAI, suffix: str) -> str:
    """Create a job of thousands of steps, which still runs whenever a test looks.

    Its batches are large, so that a table of the newest steps still has those of half a minute ago.
    """
    return create_job(client, suffix, rows=3200, n_epochs=50, batch_size=32, checkpoint_steps=20)


def create_job(
    client: openai.OpenAI,
    suffix: str,
    *,
    rows: int = 40,
    asked: Mapping[str, object] | None = None,
    **changes: object,
) -> str:
    """Create a job with a validation file.

    Args:
        client: the client.
        suffix: of its model.
        rows: of the training file.
        asked: other fields of the request.
        changes: hyperparameters.

    Returns:
        The id of the job.
    """
    training, validation = (
        client.files.create(file=(name, build_chat_file(size)), purpose="fine-tune").id
        for name, size in (("train.jsonl", rows), ("valid.jsonl", 4))
    )
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training,
        validation_file=validation,
        suffix=suffix,
        extra_body={
            "hyperparameters": {"n_epochs": 1, "batch_size": 4, **changes},
            **(asked or {}),
        },
    )
    return job.id


def wait_for(client: openai.OpenAI, job_id: str, *statuses: str) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in statuses else None

    return wait_until(look, within_s=JOB_S)


def wait_for_steps(client: openai.OpenAI, job_id: str) -> None:
    def look() -> int:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return (job.model_extra or {})["trained_steps"]

    wait_until(look, within_s=JOB_S)


def path_of(job_id: str) -> str:
    return f"/job?id={job_id}"


def open_table(page: Page) -> None:
    """Show the plotted values as a table."""
    page.get_by_text("Values as a table").click()


def steps_shown(page: Page) -> list[int]:
    """Steps in the table of plotted values, newest first."""
    cells = page.locator("table.steps tbody td:first-child").all_inner_texts()
    return [int(cell.replace(",", "")) for cell in cells]


def wait_for_step(page: Page, at_least: int) -> int:
    """Wait until the page, untouched, shows this step or a later one. Returns the newest step."""
    page.wait_for_function(
        """(wanted) => {
          const cell = document.querySelector("table.steps tbody td");
          return cell && Number(cell.textContent.replaceAll(",", "")) >= wanted;
        }""",
        arg=at_least,
        timeout=LIVE_MS,
    )
    return steps_shown(page)[0]


def expect_every_step_after(page: Page, step: int) -> None:
    """Check that the steps after this one are in the table, each of them once."""
    shown = steps_shown(page)
    assert [each for each in shown if each > step] == list(range(shown[0], step, -1))


def expect_status(page: Page, status: str) -> None:
    expect(page.locator("#head .status")).to_have_text(re.compile(status), timeout=LIVE_MS)
