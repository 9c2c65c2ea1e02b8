"""The page of a job with very many steps: soon drawn, and exact where it is enlarged."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.browser.job_page import open_table, path_of, steps_shown
from tests.browser.watching import Tabs
from tests.builders import add_succeeded_job, write_catalogue
from tests.effort import effort
from tunery.local_service import LocalService

STEPS = effort(100_000, long=1_000_000)
MAX_DRAWN_MS = 5000
"""Generous, as the machine may be busy. On a quiet one it is well below a second."""

_DRAWN = """
(step) => document.querySelector(".readout")?.textContent.includes(`step ${step}`)
  && performance.now()
"""


@pytest.fixture(scope="module")
def big_job(
    tmp_path_factory: pytest.TempPathFactory, migrated_file: Path
) -> Iterator[tuple[str, str]]:
    """Address of an API without workers, and the id of a job in it."""
    data_dir = tmp_path_factory.mktemp("big") / "data"
    write_catalogue(data_dir)
    shutil.copyfile(migrated_file, data_dir / "tunery.db")
    database = Database(f"sqlite:///{data_dir}/tunery.db")
    job = add_succeeded_job(database, LocalBlobStore(data_dir / "blobs"), steps=(STEPS,))
    database.dispose()
    with LocalService(data_dir, workers=0) as service:
        yield service.url, job.id


@pytest.fixture
def page(browser: Browser, big_job: tuple[str, str]) -> Iterator[Page]:
    url, job_id = big_job
    tabs = Tabs(browser, url)
    yield tabs.open(path_of(job_id))
    assert tabs.faults == []


def test_a_big_job_is_drawn_soon(page: Page) -> None:
    page.reload()

    took_ms = page.wait_for_function(_DRAWN, arg=f"{STEPS:,}").json_value()

    assert took_ms < MAX_DRAWN_MS


def test_an_enlarged_range_has_every_step(page: Page) -> None:
    page.wait_for_function(_DRAWN, arg=f"{STEPS:,}")
    open_table(page)
    for label, step in (("From step", 50_000), ("to", 50_100)):
        page.get_by_label(label, exact=True).fill(str(step))
        page.get_by_label(label, exact=True).press("Enter")

    expect(page.locator("table.steps tbody tr")).to_have_count(101)
    assert steps_shown(page) == list(range(50_100, 49_999, -1))
