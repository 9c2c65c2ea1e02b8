"""The list of jobs: live, filtered, in pages."""

import re
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from app.core.clock import utc_now
from app.core.db.repositories.jobs import JobRepository
from app.core.job.status import JobStatus
from tests.browser.members import Member
from tests.builders import build_job, build_job_in

_SAMPLE = Path(__file__).parents[2] / "examples" / "lighthouse-train.jsonl"
_PAGE_SIZE = 50


def rows(page: Page) -> Locator:
    return page.locator("table.jobs tbody tr")


def add_jobs(member: Member, count: int) -> None:
    """Jobs that have ended, job-1 being the newest."""
    now, project_id = utc_now(), member.project_id
    with member.database.writing() as session:
        repository = JobRepository(session, project_id)
        for number in range(count, 0, -1):
            repository.add(
                build_job(
                    **build_job_in(JobStatus.FAILED if number % 2 else JobStatus.SUCCEEDED),
                    project_id=project_id,
                    suffix=f"job-{number}",
                    created_at=now - timedelta(minutes=number),
                )
            )


def test_a_change_in_another_tab_shows_without_a_reload(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in()
    expect(page.get_by_role("heading", name="Tune your first model")).to_be_visible()
    expect(page.locator(".connection")).to_have_text("Live")
    other = member.tabs.open_beside(page.context.new_page(), f"/new?file={file}")

    other.locator("#field-suffix").fill("from-the-other-tab")
    other.get_by_label("Epochs").fill("50")
    other.get_by_role("button", name="Start the job").click()
    expect(other).to_have_url(re.compile("/job"))
    page.bring_to_front()

    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("from-the-other-tab")
    expect(rows(page)).to_contain_text("Running", timeout=60_000)
    member.api.post(f"/v1/fine_tuning/jobs/{other.url.partition('=')[2]}/cancel")
    expect(rows(page)).to_contain_text("Cancelled", timeout=60_000)


def test_filters_are_kept_over_a_reload(member: Member) -> None:
    add_jobs(member, 4)
    page = member.sign_in()
    expect(rows(page)).to_have_count(4)

    page.get_by_role("button", name="Failed").click()
    expect(rows(page)).to_have_count(2)
    page.get_by_placeholder("Search name, id or label").fill("job-3")
    expect(rows(page)).to_have_count(1)
    page.reload()

    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("job-3")
    expect(page.get_by_role("button", name="Failed")).to_have_attribute("aria-pressed", "true")
    page.get_by_placeholder("Search name, id or label").fill("nothing has this name")
    page.get_by_role("button", name="Clear the filters").click()
    expect(rows(page)).to_have_count(4)


def test_a_label_filters_the_list(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    for team in ("sea", "<b>land</b>"):
        member.create_job(file, suffix="of-a-team", metadata={"team": team}, auto_start=False)
    page = member.sign_in()
    expect(rows(page)).to_have_count(2)

    page.get_by_role("button", name="team=<b>land</b>").click()

    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Remove the filter team=<b>land</b>").click()
    expect(rows(page)).to_have_count(2)


def test_the_selection_is_compared(member: Member) -> None:
    add_jobs(member, 9)
    page = member.sign_in()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_disabled()

    for number in range(1, 9):
        page.get_by_label(f"Compare job-{number}").check()
    page.reload()

    expect(page.get_by_label("Compare job-9")).to_be_disabled()
    page.get_by_role("button", name="Compare (8)").click()
    expect(page).to_have_url(re.compile(r"/compare\?ids=ftjob-[^,]+(,ftjob-[^,]+){7}$"))


def test_ten_thousand_jobs_are_quick(member: Member) -> None:
    add_jobs(member, 10_000)
    page = member.sign_in("/models")

    page.goto("/")
    expect(rows(page)).to_have_count(_PAGE_SIZE, timeout=5000)
    page.get_by_role("link", name="Older jobs").click()
    expect(rows(page).first).to_contain_text("job-51", timeout=5000)
    page.go_back()
    expect(rows(page).first).to_contain_text("job-1", timeout=5000)
    page.get_by_placeholder("Search name, id or label").fill("job-9876")

    expect(rows(page)).to_have_count(1, timeout=5000)
