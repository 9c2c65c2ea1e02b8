"""The pages of files and of models."""

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.members import Member
from tests.waiting import wait_until

_SAMPLE = Path(__file__).parents[2] / "examples" / "lighthouse-train.jsonl"
_HOSTILE_NAME = "<img src=x onerror=alert(1)>.jsonl"


def test_the_name_of_a_file_is_never_html(member: Member) -> None:
    file = member.upload(_HOSTILE_NAME, _SAMPLE.read_bytes())
    member.create_job(file, suffix="<script>alert(1)</script>", auto_start=False)

    for path in ("/files", f"/new?file={file}", "/"):
        page = member.sign_in(path)
        text = page.get_by_text("<script>" if path == "/" else _HOSTILE_NAME)
        expect(text.locator("visible=true").first).to_be_visible()
        expect(page.locator("main img, main script")).to_have_count(0)


def test_a_file_is_uploaded_previewed_downloaded_and_deleted(member: Member) -> None:
    page = member.sign_in("/files")
    page.locator(".drop input").set_input_files(_SAMPLE)
    row = page.locator("tbody tr", has_text=_SAMPLE.name)
    expect(row).to_contain_text("64")

    row.get_by_role("button", name="Preview").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".learned", has_text="Ahoy!").first).to_be_visible(timeout=60_000)
    dialog.get_by_role("button", name="Close").click()
    expect(row.get_by_role("button", name="Preview")).to_be_focused()

    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert download.value.path().read_bytes() == _SAMPLE.read_bytes()

    row.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    expect(row).to_be_visible()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the file").click()
    expect(page.get_by_text("There is no file yet.")).to_be_visible()
    assert member.api.get("/v1/files").json()["data"] == []


def test_a_file_in_use_is_kept_and_the_reason_is_told(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    member.create_job(file, suffix="its-user", auto_start=False)
    page = member.sign_in("/files")
    expect(page.locator("tbody tr")).to_contain_text("its-user")

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the file").click()

    expect(page.locator("#messages")).to_contain_text("ftjob-")
    expect(page.get_by_role("button", name="Delete")).to_be_enabled()
    member.tabs.forgive("400")


def test_a_tuned_model_is_downloaded_and_deleted(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    job = member.create_job(file, suffix="keeper", hyperparameters={"max_steps": 2})
    url = f"/v1/fine_tuning/jobs/{job}"
    wait_until(lambda: member.api.get(url).json()["status"] == "succeeded", within_s=120)
    page = member.sign_in("/models")
    row = page.locator("tbody tr", has_text=job)

    with page.expect_download() as download:
        row.get_by_role("link", name="Adapter").click()
    assert download.value.suggested_filename.endswith(".zip")

    row.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the model").click()
    expect(page.get_by_text("A job that has succeeded leaves its model here.")).to_be_visible()
