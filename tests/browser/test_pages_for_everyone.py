"""Every page in both themes, on a narrow screen, and without a mouse."""

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.members import Member
from tests.browser.watching import find_barriers, scrolls_sideways

_SAMPLE = Path(__file__).parents[2] / "examples" / "lighthouse-train.jsonl"
_PAGES = ["/", "/new", "/sweep", "/try", "/files", "/models", "/service", "/sign-in"]


@pytest.fixture
def busy_member(member: Member) -> Member:
    """A member with a file and a job of long names."""
    file = member.upload(f"{'long-name-' * 12}.jsonl", _SAMPLE.read_bytes())
    member.create_job(file, suffix="x" * 60, metadata={"k" * 60: "v" * 200}, auto_start=False)
    return member


def open_whole(
    member: Member, path: str, *, theme: Literal["light", "dark"] = "light", width: int = 1280
) -> Page:
    """Open a page with everything on it that is folded at first."""
    if path == "/sign-in":
        return member.tabs.open(path, theme=theme, width=width)
    page = member.sign_in(path, theme=theme, width=width)
    expect(page.get_by_text("Loading…")).to_be_hidden()
    for closed in page.locator("details:not([open]) > summary").all():
        closed.click()
    return page


@pytest.mark.parametrize("path", _PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nobody_is_kept_out(
    busy_member: Member, path: str, theme: Literal["light", "dark"]
) -> None:
    page = open_whole(busy_member, path, theme=theme)

    assert find_barriers(page) == []


@pytest.mark.parametrize("path", _PAGES)
def test_a_narrow_screen_scrolls_only_down(busy_member: Member, path: str) -> None:
    page = open_whole(busy_member, path, width=320)

    assert not scrolls_sideways(page)


def test_a_job_is_started_by_keyboard_alone(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    expect(page.get_by_label("The call")).to_contain_text(file)
    epochs = page.get_by_label("Epochs")

    for _ in range(40):
        page.keyboard.press("Tab")
        if epochs.evaluate("(field) => field === document.activeElement"):
            break
    page.keyboard.type("2")
    page.keyboard.press("Enter")  # starts nothing
    start = page.get_by_role("button", name="Start the job")
    for _ in range(40):
        page.keyboard.press("Tab")
        if start.evaluate("(button) => button === document.activeElement"):
            break
    assert member.api.get("/v1/fine_tuning/jobs").json()["data"] == []
    page.keyboard.press("Enter")

    page.wait_for_url("**/job?id=*")
    [job] = member.api.get("/v1/fine_tuning/jobs").json()["data"]
    assert job["hyperparameters"]["n_epochs"] == 2
