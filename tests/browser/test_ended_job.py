"""The page of a job that has ended: everything it made, safe for every reader and every device."""

import re

import openai
import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser.job_page import (
    create_job,
    create_long_job,
    expect_status,
    open_table,
    path_of,
    steps_shown,
    wait_for,
)
from tests.browser.watching import Tabs, find_barriers, scrolls_sideways

SCRIPT = "<script>alert(1)</script>"
STEPS = 10
MAX_PAGE_BYTES = 150_000


@pytest.fixture(scope="module")
def ended_job(client: openai.OpenAI) -> str:
    job_id = create_job(client, SCRIPT, checkpoint_steps=5)
    wait_for(client, job_id, "succeeded")
    return job_id


def open_ended(tabs: Tabs, job_id: str, **options: int | str) -> Page:
    page = tabs.open(path_of(job_id), **options)  # pyright: ignore[reportArgumentType]
    expect_status(page, "Succeeded")
    expect(page.locator("#data")).to_contain_text("examples")
    return page


def test_a_name_is_never_html(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)

    expect(page.get_by_role("heading", level=1)).to_have_text(SCRIPT)
    assert SCRIPT in page.title()
    assert page.locator("main script").count() == 0


def test_every_step_and_result_is_there(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)
    open_table(page)

    assert steps_shown(page) == list(range(STEPS, -1, -1))
    expect(page.locator("#results tbody tr")).to_have_count(2)
    expect(page.locator("#events")).to_contain_text("successfully completed")
    for button, ending in (("Download CSV", ".csv"), ("Download the adapter", ".zip")):
        with page.expect_download() as download:
            page.get_by_text(button, exact=True).click()
        assert download.value.suggested_filename.endswith(ending)


def test_a_checkpoint_is_downloaded_for_llama_cpp(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)

    with page.expect_download(timeout=120_000) as download:
        page.get_by_role("button", name=f"Download step {STEPS} as GGUF").click()

    assert download.value.suggested_filename == f"{ended_job}-step-{STEPS}.gguf"


def test_the_answers_of_both_models_are_compared(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)

    report = page.locator("#report")
    expect(report.locator(".scores tbody tr")).to_have_count(2, timeout=120_000)
    expect(report).to_contain_text("4 of 4 examples of the validation file are scored")
    expect(report.locator(".answers")).to_have_count(4)
    expect(report.locator(".answers").first).to_contain_text("Reference")


def test_the_answers_of_a_checkpoint_are_chosen(tabs: Tabs, client: openai.OpenAI) -> None:
    asked = {"eval_prompts": ["Who are you?"], "eval_prompts_at_checkpoints": True}
    job_id = create_job(client, "asked", asked=asked, checkpoint_steps=5)
    wait_for(client, job_id, "succeeded")
    page = open_ended(tabs, job_id)
    report = page.locator("#report")
    expect(report.locator(".scores")).to_have_count(1, timeout=120_000)

    report.get_by_label("Answers of").select_option("step 5")

    expect(report.locator(".scores")).to_have_count(0, timeout=120_000)
    expect(report.locator(".answers")).to_have_count(1)
    expect(report.get_by_label("Answers of").locator("option")).to_have_text(
        ["the result", "step 5"]
    )


def test_a_report_is_asked_for_again_if_the_service_was_busy(tabs: Tabs, ended_job: str) -> None:
    busy = {"error": {"message": "Later.", "code": "database_busy"}}
    page = tabs.open("/")
    page.route("**/report", lambda route: route.fulfill(status=503, json=busy), times=1)

    page.goto(path_of(ended_job))

    expect(page.locator("#report .answers")).to_have_count(4, timeout=120_000)
    assert any("503" in fault for fault in tabs.faults)
    tabs.forgive("503")


def test_settings_are_shown_as_calls_that_make_such_a_job(
    tabs: Tabs, ended_job: str, client: openai.OpenAI
) -> None:
    page = open_ended(tabs, ended_job)

    for form, expected in (
        ("curl", '"n_epochs": 1'),
        ("Python", "client.fine_tuning.jobs.create("),
    ):
        page.get_by_role("button", name=form, exact=True).click()
        expect(page.locator("#settings pre")).to_contain_text(expected)
    page.get_by_role("button", name="YAML", exact=True).click()
    page.reload()
    expect(page.locator("#settings pre")).to_contain_text("  n_epochs: 1")


def test_rows_are_shown_as_the_model_reads_them(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)

    page.get_by_label("Rows").fill("2")
    page.get_by_role("button", name="Show as the model reads them").click()

    learned = page.locator("#data .learned", has_text="After 1 comes 2.")
    expect(learned).to_be_visible(timeout=30_000)


def test_a_plot_is_zoomed_by_keyboard_and_by_mouse(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)
    plot = page.get_by_role("group", name=re.compile("^Plot: Loss"))
    start = page.get_by_label("From step")

    plot.focus()
    page.keyboard.press("+")
    expect(start).not_to_have_value("")
    page.keyboard.press("0")
    expect(start).to_have_value("")

    over = plot.locator(".u-over")
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 40)
    page.mouse.up()
    expect(start).to_have_value("5")


def test_a_job_is_deleted_only_after_a_question(tabs: Tabs, client: openai.OpenAI) -> None:
    job_id = create_job(client, "to delete")
    wait_for(client, job_id, "succeeded")
    page = open_ended(tabs, job_id)

    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    assert client.fine_tuning.jobs.retrieve(job_id)

    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_url(re.compile("/$"))
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(job_id)


def test_a_rerun_is_cancelled_only_after_a_question(tabs: Tabs, client: openai.OpenAI) -> None:
    job_id = create_long_job(client, "to repeat")
    client.fine_tuning.jobs.cancel(job_id)
    wait_for(client, job_id, "cancelled")
    page = tabs.open(path_of(job_id))

    page.get_by_role("button", name="Rerun", exact=True).click()
    expect(page.locator("#head")).to_contain_text(f"repeats {job_id}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    again = client.fine_tuning.jobs.list(limit=1).data[0]
    assert again.id in page.url
    assert again.status != "cancelled"

    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect_status(page, "Cancelled")
    assert client.fine_tuning.jobs.retrieve(again.id).status == "cancelled"


def test_an_unknown_job_is_named_as_such(tabs: Tabs) -> None:
    page = tabs.open(path_of("ftjob-nothing"))

    expect(page.get_by_role("alert")).to_contain_text("ftjob-nothing")
    tabs.forgive("404")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_the_page(tabs: Tabs, ended_job: str, theme: str) -> None:
    page = open_ended(tabs, ended_job, theme=theme)
    open_table(page)

    assert find_barriers(page) == []


def test_a_phone_needs_no_scrolling_sideways(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job, width=320)
    open_table(page)
    page.get_by_role("button", name="curl", exact=True).click()

    assert not scrolls_sideways(page)


def test_the_page_is_light(tabs: Tabs, ended_job: str) -> None:
    page = open_ended(tabs, ended_job)
    loaded: list[Response] = []
    page.on("response", lambda response: loaded.append(response))  # noqa: PLW0108 - it marks the handler

    page.reload()
    expect_status(page, "Succeeded")

    sizes = {
        response.url: response.request.sizes()["responseBodySize"]
        for response in loaded
        if "/v1/" not in response.url
    }
    assert any(url.endswith("uPlot.esm.js") for url in sizes)
    assert sum(sizes.values()) < MAX_PAGE_BYTES
