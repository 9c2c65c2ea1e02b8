"""The page of a job while the job trains: it grows, and survives what happens to it."""

import signal
from collections.abc import Iterator

import openai
import pytest
from playwright.sync_api import expect

from tests.browser.job_page import (
    LIVE_MS,
    create_long_job,
    expect_every_step_after,
    expect_status,
    open_table,
    path_of,
    steps_shown,
    wait_for,
    wait_for_step,
    wait_for_steps,
)
from tests.browser.watching import Tabs
from tunery.local_service import LocalService

BROKEN_CONNECTION = r"ERR_|Failed to load resource|does not answer"


@pytest.fixture(scope="module")
def running_job(client: openai.OpenAI) -> Iterator[str]:
    job_id = create_long_job(client, "long one")
    wait_for_steps(client, job_id)
    yield job_id
    client.fine_tuning.jobs.cancel(job_id)
    wait_for(client, job_id, "cancelled")


def test_a_running_job_grows_without_a_reload(tabs: Tabs, running_job: str) -> None:
    page = tabs.open(path_of(running_job))
    open_table(page)

    seen = wait_for_step(page, 1)
    wait_for_step(page, seen + 10)

    expect_every_step_after(page, seen)
    expect(page.locator("#bar .connection")).to_have_text("Live")
    expect(page.locator("#attempts")).to_contain_text("Attempt 1")
    assert "% running · long one" in page.title()


def test_a_reload_loses_nothing_of_what_was_set(tabs: Tabs, running_job: str) -> None:
    page = tabs.open(path_of(running_job))
    open_table(page)
    wait_for_step(page, 30)
    page.get_by_label("Logarithmic").check()
    page.get_by_label("From step").fill("10")
    page.get_by_label("From step").press("Enter")
    page.get_by_label("to", exact=True).fill("20")
    page.get_by_label("to", exact=True).press("Enter")

    page.reload()
    open_table(page)

    expect(page.get_by_label("From step")).to_have_value("10")
    expect(page.get_by_label("Logarithmic")).to_be_checked()
    wait_for_step(page, 20)
    assert steps_shown(page) == list(range(20, 9, -1))


def test_held_updates_stand_still_until_they_are_resumed(tabs: Tabs, running_job: str) -> None:
    page = tabs.open(path_of(running_job))
    open_table(page)
    held = wait_for_step(page, 1)
    page.get_by_role("button", name="Hold updates").click()
    held = steps_shown(page)[0]
    progress = page.locator("#head dd").nth(1).inner_text()

    expect(page.locator("#head dd").nth(1)).not_to_have_text(progress, timeout=LIVE_MS)
    assert steps_shown(page)[0] == held

    page.get_by_role("button", name="Resume updates").click()
    wait_for_step(page, held + 1)
    expect_every_step_after(page, held)


def test_a_killed_api_leaves_no_gap_and_no_double(
    tabs: Tabs, running_job: str, service: LocalService
) -> None:
    page = tabs.open(path_of(running_job))
    open_table(page)
    seen = wait_for_step(page, 1)

    service.processes["api"].stop(signal.SIGKILL)
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator(".message.problem")).to_contain_text("does not answer")
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_enabled()
    before = steps_shown(page)[0]
    service.start("api")
    wait_for_step(page, before + 20)

    expect_every_step_after(page, seen)
    tabs.forgive(BROKEN_CONNECTION)


def test_two_tabs_pause_and_resume_one_job(tabs: Tabs, running_job: str) -> None:
    one, other = (tabs.open(path_of(running_job)) for _ in range(2))

    one.get_by_role("button", name="Pause", exact=True).click()
    for page in (one, other):
        expect_status(page, "Paused")

    other.get_by_role("button", name="Resume", exact=True).click()
    for page in (one, other):
        expect_status(page, "Running")
        expect(page.locator("#attempts")).to_contain_text("resumed from step", timeout=LIVE_MS)


def test_a_job_can_be_paused_by_keyboard_alone(tabs: Tabs, running_job: str) -> None:
    page = tabs.open(path_of(running_job))
    expect_status(page, "Running")

    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.textContent.trim()") == "Pause":
            break
    page.keyboard.press("Enter")

    expect_status(page, "Paused")
    page.get_by_role("button", name="Resume", exact=True).press("Enter")
    expect_status(page, "Running")
