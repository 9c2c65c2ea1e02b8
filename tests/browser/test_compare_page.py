"""The page that compares jobs: what differs between them, and their curves in one plot."""

import re
from collections.abc import Iterator

import openai
import pytest
from playwright.sync_api import expect

from tests.browser.job_page import LIVE_MS, create_job, create_long_job, wait_for, wait_for_steps
from tests.browser.watching import Tabs, find_barriers, scrolls_sideways


@pytest.fixture(scope="module")
def two_jobs(client: openai.OpenAI) -> tuple[str, str]:
    """Two jobs that have ended, and that differ in their learning rate."""
    slow, fast = (
        create_job(client, name, learning_rate=rate)
        for name, rate in (("slow", 1e-4), ("fast", 1e-2))
    )
    for job_id in (slow, fast):
        wait_for(client, job_id, "succeeded")
    return slow, fast


@pytest.fixture
def running_job(client: openai.OpenAI) -> Iterator[str]:
    job_id = create_long_job(client, "compared while it runs")
    wait_for_steps(client, job_id)
    yield job_id
    client.fine_tuning.jobs.cancel(job_id)
    wait_for(client, job_id, "cancelled")


def test_only_differing_settings_are_shown_at_first(tabs: Tabs, two_jobs: tuple[str, str]) -> None:
    page = tabs.open(f"/compare?ids={','.join(two_jobs)}")
    settings = page.locator("table.compared tbody").first.get_by_role("rowheader")

    expect(settings.filter(has_text="learning_rate")).to_be_visible()
    expect(settings.filter(has_text="n_epochs")).to_have_count(0)

    page.get_by_label("Show equal ones too").check()
    expect(settings.filter(has_text="n_epochs")).to_be_visible()


def test_jobs_are_found_added_and_removed(tabs: Tabs, two_jobs: tuple[str, str]) -> None:
    slow, fast = two_jobs
    page = tabs.open(f"/compare?ids={slow}")

    page.get_by_role("searchbox", name="Add jobs").fill(fast)
    offered = page.locator(".offered li")
    expect(offered).to_have_count(1)
    offered.get_by_role("button", name="Add").click()
    expect(page.locator(".legend li")).to_have_text([re.compile("slow"), re.compile("fast")])

    page.reload()
    page.get_by_role("button", name="Remove slow").click()
    expect(page.locator(".legend li")).to_have_text([re.compile("fast")])
    page.wait_for_url(re.compile(f"ids={fast}$"))


def test_a_running_job_is_compared_live(
    tabs: Tabs, two_jobs: tuple[str, str], running_job: str
) -> None:
    page = tabs.open(f"/compare?ids={two_jobs[0]},{running_job}")
    readout = page.locator(".legend li").nth(1).locator(".readout")
    expect(readout).to_have_text(re.compile(r"\d"), timeout=LIVE_MS)
    before = readout.inner_text()

    expect(readout).not_to_have_text(before, timeout=LIVE_MS)

    page.get_by_role("combobox", name=re.compile("^By")).select_option("Tokens")
    page.reload()
    expect(page.get_by_role("combobox", name=re.compile("^By"))).to_have_value("tokens_seen")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_compare(tabs: Tabs, two_jobs: tuple[str, str], theme: str) -> None:
    page = tabs.open(f"/compare?ids={','.join(two_jobs)}", theme=theme, width=320)  # pyright: ignore[reportArgumentType]
    expect(page.locator(".legend li")).to_have_count(2)

    assert find_barriers(page) == []
    assert not scrolls_sideways(page)
