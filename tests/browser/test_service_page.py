"""The page of the service, for admins."""

from playwright.sync_api import expect

from app.core.access import Scope
from tests.browser.members import Member, fill_in_key
from tests.browser.watching import Tabs
from tests.builders import add_key, bearer
from tests.waiting import wait_until


def test_workers_disk_and_findings_are_shown(member: Member) -> None:
    page = member.sign_in("/service")

    expect(page.get_by_text("Free on the disk")).to_be_visible()
    expect(
        page.locator("tr", has_text="idle").or_(page.locator("tr", has_text="running")).first
    ).to_be_visible()
    expect(page.get_by_text("These are the quick checks.")).to_be_visible()


def test_a_key_is_created_used_and_revoked(member: Member) -> None:
    page = member.sign_in("/service")
    page.get_by_label("write").uncheck()
    page.get_by_label("Expires after").fill("7")

    page.get_by_role("button", name="Create a key").click()
    dialog = page.get_by_role("dialog", name="The new key")
    key = dialog.locator("pre").inner_text()
    dialog.get_by_role("button", name="Done").click()

    session = member.api.get("/v1/session", headers=bearer(key)).json()
    assert sorted(session["scopes"]) == ["read", "sample"]
    expect(page.get_by_text(key)).to_have_count(0)
    row = page.locator("tr", has_text=session["key_id"])
    expect(row.first).to_contain_text("until")
    row.first.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(row.first).to_contain_text("revoked")
    wait_until(
        lambda: member.api.get("/v1/session", headers=bearer(key)).status_code == 401, within_s=10
    )


def test_what_was_done_is_in_the_audit_trail(member: Member) -> None:
    file = member.upload("rows.jsonl", b'{"text": "a row"}\n')

    page = member.sign_in("/service")

    trail = page.get_by_role("region", name="Audit trail")
    expect(trail.locator("tr", has_text=file)).to_contain_text("file.uploaded")


def test_a_key_without_the_scope_is_told_so(member: Member) -> None:
    key = add_key(member.database, "project-of-a-reader", [Scope.READ])
    page = member.tabs.open("/sign-in?next=service")

    fill_in_key(page, key)

    expect(page.get_by_text("This page needs a key with the scope admin.")).to_be_visible()
    expect(page.get_by_role("link", name="Service")).to_have_count(0)


def test_a_service_without_keys_says_how_to_get_one(tabs: Tabs) -> None:
    page = tabs.open("/service")

    expect(page.get_by_text("tunery keys create")).to_be_visible()
