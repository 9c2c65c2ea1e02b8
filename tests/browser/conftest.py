"""A real service with a tiny base model, and a real browser on it."""

from collections.abc import Iterator
from secrets import token_hex

import httpx
import openai
import pytest
from playwright.sync_api import Browser, expect

from tests.browser.members import Member, database_of, watched_tabs
from tests.browser.watching import AXE, Tabs, launching
from tests.builders import add_key, bearer
from tests.programs import require_programs, skip_unless_ci
from tests.tiny import install_tiny_model
from tunery.local_service import LocalService

expect.set_options(timeout=15_000)  # in milliseconds; the machine may be busy

_SETTINGS = {
    "poll_interval_s": "0.05",
    "training_threads": "1",
    "training_dtype": "float32",
    "install_default_model": "false",
}


@pytest.fixture(scope="module")  # not longer: while it lasts, the thread has a running event loop
def browser() -> Iterator[Browser]:
    require_programs("chromium")
    if not AXE.exists():
        skip_unless_ci("axe-core is not installed; run: make clients")
    with launching() as browser:
        yield browser


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """The API and one worker; its base model is `tiny`."""
    data_dir = tmp_path_factory.mktemp("browser") / "data"
    install_tiny_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    with LocalService(data_dir, _SETTINGS) as service:
        yield service


@pytest.fixture(scope="package")
def client(service: LocalService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def tabs(browser: Browser, service: LocalService) -> Iterator[Tabs]:
    """Tabs on the service. At the end of the test, nothing may have gone wrong in any of them."""
    with watched_tabs(browser, service) as tabs:
        yield tabs


@pytest.fixture(scope="package")
def keyed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """Like `service`, but it wants a key."""
    data_dir = tmp_path_factory.mktemp("keyed") / "data"
    install_tiny_model(data_dir, source=tmp_path_factory.mktemp("keyed-hub") / "our-tiny")
    with LocalService(data_dir, _SETTINGS) as service:
        with database_of(service) as database:
            add_key(database)
        yield service


@pytest.fixture
def member(browser: Browser, keyed_service: LocalService) -> Iterator[Member]:
    """Somebody with a key of a project of their own, which has nothing in it yet."""
    with database_of(keyed_service) as database:
        key = add_key(database, f"project-{token_hex(8)}")
        with (
            watched_tabs(browser, keyed_service) as tabs,
            httpx.Client(base_url=keyed_service.url, headers=bearer(key)) as api,
        ):
            yield Member(tabs, key, api, database)
