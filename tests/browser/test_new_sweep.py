"""The page that creates a job creates a sweep: several numbers in a field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.members import Member
from tests.browser.watching import find_barriers, scrolls_sideways

_SAMPLE = Path(__file__).parents[2] / "examples" / "lighthouse-train.jsonl"
_PREFERENCES = _SAMPLE.with_name("lighthouse-preferences.jsonl")


def open_form(member: Member, sample: Path = _SAMPLE) -> Page:
    """The form with a part of the file held out."""
    page = member.sign_in(f"/new?file={member.upload(sample.name, sample.read_bytes())}")
    page.get_by_label("Hold out a part of the file").check()
    return page


def read_call(page: Page) -> Any:
    """The body of the call that the page shows."""
    return json.loads(page.get_by_label("The call").inner_text().partition("-d '")[2][:-1])


def list_jobs(member: Member) -> list[object]:
    return member.api.get("/v1/fine_tuning/jobs").json()["data"]


def test_several_numbers_in_a_field_make_a_sweep(member: Member) -> None:
    page = open_form(member)
    page.get_by_label("Epochs").fill("1")

    page.locator("#field-learning_rate").fill("1e-4, 2e-4")
    page.get_by_label("LoRA rank").fill("4,8,")

    start = page.get_by_role("button", name="Start 4 jobs")
    expect(start).to_be_visible()
    estimate = page.locator(".card", has=page.get_by_role("heading", name="Estimate"))
    expect(estimate).to_contain_text("4 jobs, one after another", timeout=60_000)
    total = 4 * 14  # 57 of the 64 examples, 4 in a step
    expect(estimate.locator("dd").nth(2)).to_have_text(str(total + 4))
    call = page.get_by_label("The call")
    expect(call).to_contain_text("fine_tuning/sweeps")
    assert read_call(page)["sweep"] == {"grid": {"learning_rate": [1e-4, 2e-4], "lora_r": [4, 8]}}
    page.get_by_role("button", name="Python").click()
    expect(call).to_contain_text('"/fine_tuning/sweeps"')
    assert find_barriers(page) == []
    page.set_viewport_size({"width": 320, "height": 700})
    assert not scrolls_sideways(page)
    page.get_by_label("and wait until I resume").check()
    page.get_by_role("button", name="Create 4 jobs, paused").click()

    expect(page).to_have_url(re.compile(r"/sweep\?id=ftsweep-"))
    expect(page.locator("tbody tr")).to_have_count(4)
    assert len(list_jobs(member)) == 4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("learning_rate", "1e-4, 2", "This must be above 0, at most 1."),
        ("lora_r", "4, many", "“many” is not a number."),
        ("validation_split", "0.1, 0.2", "'validation_split' cannot vary in a sweep"),
        ("batch_size", "2, 1, 2", "Two jobs of the sweep would be the same"),
    ],
)
def test_what_cannot_be_swept_is_told_at_its_field(
    member: Member, name: str, text: str, says: str
) -> None:
    page = open_form(member)

    page.locator(f"#field-{name}").fill(text)

    expect(page.locator(f"#field-{name}-about .wrong")).to_contain_text(says)
    page.get_by_role("button", name=re.compile("Start ")).click()
    expect(page.locator(f"#field-{name}")).to_be_focused()
    assert list_jobs(member) == []
    member.tabs.forgive("400")


def test_the_loss_of_preference_tuning_cannot_be_swept(member: Member) -> None:
    page = open_form(member, _PREFERENCES)

    page.locator("#field-beta").fill("0.1, 0.3")

    expect(page.locator("#field-beta-about .wrong")).to_contain_text("'beta' cannot vary")
    member.tabs.forgive("400")


def test_too_many_jobs_and_no_validation_data_are_told_before_the_start(member: Member) -> None:
    page = open_form(member)
    many = ", ".join(map(str, range(1, 10)))

    page.get_by_label("LoRA rank").fill(many)
    page.get_by_label("Batch size").fill(many)
    expect(page.get_by_text("The grid has 9 x 9 = 81 points")).to_be_visible()
    page.get_by_label("LoRA rank").fill("4")
    page.get_by_label("None", exact=True).check()

    expect(page.locator(".card", has_text="Validation").first).to_contain_text(
        "so it needs validation data"
    )
    member.tabs.forgive("400")


def test_layers_are_written_in_several_ways_and_shown_in_words(member: Member) -> None:
    page = open_form(member)
    page.get_by_text("All settings").click()
    field = page.locator("#field-lora_layers-about")
    expect(field).to_contain_text("Write 8 for the last eight layers")

    page.locator("#field-lora_layers").fill("first 2")
    expect(field.locator(".wrong")).to_contain_text("[3] for one layer")
    for text, meant, value in (
        ("1", "The last layer.", 1),
        ("last 2", "The last 2 layers.", 2),
        ("[1]", "Only layer 1.", [1]),
        ("1,", "Only layer 1.", [1]),
        ("0 1", "Layers 0, 1.", [0, 1]),
        ("0-1", "Layers 0, 1.", [0, 1]),
    ):
        page.locator("#field-lora_layers").fill(text)
        expect(field).to_contain_text(meant)
        sent = read_call(page)["method"]["supervised"]["hyperparameters"]
        assert sent["lora_layers"] == value
