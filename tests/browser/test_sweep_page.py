"""The page of a sweep: its jobs by validation loss, and their curves in one plot."""

from typing import Any

import openai
import pytest
from playwright.sync_api import expect

from tests.browser.job_page import JOB_S, LIVE_MS
from tests.browser.watching import Tabs, find_barriers, scrolls_sideways
from tests.builders import build_chat_file
from tests.waiting import wait_until


def create_sweep(client: openai.OpenAI, **hyperparameters: Any) -> Any:
    """Create a sweep of two learning rates and two ranks."""
    file = client.files.create(file=("train.jsonl", build_chat_file(40)), purpose="fine-tune")
    body = {
        "model": "tiny",
        "training_file": file.id,
        "suffix": "swept",
        "hyperparameters": {"batch_size": 4, "validation_split": 0.2, **hyperparameters},
        "sweep": {"grid": {"learning_rate": [1e-4, 1e-2], "lora_r": [4, 8]}},
    }
    return client.post("/fine_tuning/sweeps", cast_to=object, body=body)


@pytest.fixture(scope="module")
def ended_sweep(client: openai.OpenAI) -> Any:
    path = f"/fine_tuning/sweeps/{create_sweep(client, max_steps=3, eval_steps=1)['id']}"

    def look() -> Any:
        sweep: Any = client.get(path, cast_to=object)
        return sweep if sweep["finished_at"] else None

    return wait_until(look, within_s=JOB_S)


def test_the_best_job_is_first_and_every_job_has_a_curve(tabs: Tabs, ended_sweep: Any) -> None:
    page = tabs.open(f"/sweep?id={ended_sweep['id']}")
    rows = page.locator("tbody tr")

    expect(rows).to_have_count(4)
    for row, point in zip(rows.all(), ended_sweep["points"], strict=True):
        expect(row).to_contain_text(point["job_id"])
        expect(row).to_contain_text(f"{point['result_valid_loss']:.4f}")
    expect(rows.first).to_contain_text("best")
    expect(page.locator("#curves select").first).to_have_value("valid_loss")
    best = ended_sweep["best"]
    legend = page.locator(".legend li")
    expect(legend).to_have_count(4)
    expect(legend.first).to_contain_text(f"lora_r {best['hyperparameters']['lora_r']}")
    expect(legend.first).to_contain_text(f"{best['valid_loss']:.4f}")
    assert find_barriers(page) == []
    page.set_viewport_size({"width": 320, "height": 700})
    assert not scrolls_sideways(page)

    page.get_by_role("link", name=best["job_id"]).click()
    page.get_by_role("link", name=ended_sweep["id"]).click()
    expect(rows).to_have_count(4)


def test_sweeps_are_listed_with_their_best_job(tabs: Tabs, ended_sweep: Any) -> None:
    page = tabs.open("/")
    page.get_by_role("link", name="Sweeps").click()
    row = page.get_by_role("row").filter(has_text=ended_sweep["id"])

    expect(row).to_contain_text(f"{ended_sweep['best']['result_valid_loss']:.4f}")
    assert find_barriers(page) == []


def test_a_sweep_is_watched_and_cancelled(tabs: Tabs, client: openai.OpenAI) -> None:
    sweep = create_sweep(client, n_epochs=50, max_steps=100_000)
    page = tabs.open(f"/sweep?id={sweep['id']}")

    expect(page.locator(".status.running").first).to_be_visible(timeout=LIVE_MS)
    page.get_by_role("button", name="Cancel the sweep").click()
    page.get_by_role("button", name="Cancel the jobs").click()

    expect(page.locator("tbody .status.cancelled")).to_have_count(4, timeout=LIVE_MS)
    expect(page.get_by_role("button", name="Cancel the sweep")).to_have_count(0)
