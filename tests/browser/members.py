"""Members of a service that wants keys, each in a project of their own."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

import httpx
from playwright.sync_api import Browser, Page, expect

from app.core.db.session import Database
from tests.browser.watching import Tabs
from tunery.local_service import LocalService


@dataclass
class Member:
    tabs: Tabs
    key: str
    api: httpx.Client
    """The API, with the key."""
    database: Database
    """That of the service."""

    @property
    def project_id(self) -> str:
        return self.api.get("/v1/session").json()["project"]["id"]

    def sign_in(
        self, path: str = "/", *, theme: Literal["light", "dark"] = "light", width: int = 1280
    ) -> Page:
        """Open a tab and sign in, to land on `path`."""
        query = urlencode({"next": path.removeprefix("/")})
        page = self.tabs.open(f"/sign-in?{query}", theme=theme, width=width)
        fill_in_key(page, self.key)
        expect(page).to_have_url(f"{self.tabs.base_url}{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        return page

    def upload(self, name: str, content: bytes) -> str:
        """Upload a dataset. Returns its id."""
        files = {"file": (name, content)}
        answer = self.api.post("/v1/files", data={"purpose": "fine-tune"}, files=files)
        return answer.raise_for_status().json()["id"]

    def create_job(self, file: str, **changes: object) -> str:
        """Create a job of the base model `tiny`. Returns its id."""
        body = {"model": "tiny", "training_file": file, **changes}
        return self.api.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]


def fill_in_key(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


@contextmanager
def watched_tabs(browser: Browser, service: LocalService) -> Generator[Tabs]:
    """Tabs on a service. In the end, nothing may have gone wrong in any of them."""
    tabs = Tabs(browser, service.url)
    yield tabs
    for context in browser.contexts:
        context.close()
    assert tabs.faults == [], tabs.faults


@contextmanager
def database_of(service: LocalService) -> Generator[Database]:
    database = Database(f"sqlite:///{service.data_dir / 'tunery.db'}")
    try:
        yield database
    finally:
        database.dispose()
