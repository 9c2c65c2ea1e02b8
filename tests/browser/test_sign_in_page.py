"""Signing in and out of the dashboard."""

import pytest
from playwright.sync_api import expect

from tests.browser.members import Member, fill_in_key
from tests.browser.watching import Tabs


def test_a_page_asks_for_a_key_and_then_shows_itself(member: Member) -> None:
    page = member.tabs.open("/files?x=1")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    member.tabs.forgive("401")

    fill_in_key(page, member.key)

    expect(page).to_have_url(f"{member.tabs.base_url}/files?x=1")
    expect(page.get_by_role("heading", name="Files")).to_be_visible()


def test_a_wrong_key_is_told(member: Member) -> None:
    page = member.tabs.open("/sign-in")

    fill_in_key(page, "tnr_nothing")

    expect(page.get_by_role("alert")).to_contain_text("key")
    expect(page.get_by_role("button", name="Sign in")).to_be_enabled()
    expect(page.get_by_label("API key")).to_be_focused()
    member.tabs.forgive("401")


def test_signing_out_forgets_the_key(member: Member) -> None:
    page = member.sign_in()

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()

    page.goto("/models")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.context.cookies() == []
    member.tabs.forgive("401")


@pytest.mark.parametrize(
    "next_page",
    [
        "https://example.org/",
        "//example.org/files",
        "javascript:alert(1)",
        "/v1/session",
        "http://[",
        r"\\example.org",
    ],
)
def test_next_does_not_leave_the_dashboard(member: Member, next_page: str) -> None:
    page = member.tabs.open("/sign-in")
    page.evaluate(
        "(next) => history.replaceState(null, '', `?next=${encodeURIComponent(next)}`)", next_page
    )

    fill_in_key(page, member.key)

    expect(page).to_have_url(f"{member.tabs.base_url}/")


def test_a_service_without_keys_needs_no_sign_in(tabs: Tabs) -> None:
    page = tabs.open("/models")

    expect(page.get_by_role("heading", name="Base models")).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
