import pytest
from starlette.testclient import TestClient

from app.core.db.base import Page
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from app.schemas.bodies import PageRead
from app.schemas.files import FileRead
from tests.builders import add_file, build_file

LISTS = ["/v1/files", "/v1/fine_tuning/jobs"]


def test_a_page_names_its_first_and_its_last_item() -> None:
    rows = [build_file(), build_file(), build_file()]

    page = PageRead[FileRead].of(Page(rows, has_more=True), FileRead.model_validate)

    assert (page.object, page.has_more) == ("list", True)
    assert page.data == [FileRead.model_validate(row) for row in rows]
    assert (page.first_id, page.last_id) == (rows[0].id, rows[-1].id)


def test_an_empty_page_has_every_field() -> None:
    page = PageRead[FileRead].of(Page([], has_more=False), FileRead.model_validate)

    assert page.model_dump() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_pages_hold_every_file_once_in_either_order(
    client: TestClient, database: Database, store: LocalBlobStore, order: str, limit: int
) -> None:
    made = [add_file(database, store).id for _ in range(4)]
    found: list[str] = []
    page = {"has_more": True, "last_id": None}

    while page["has_more"]:
        query = {"limit": limit, "order": order, "after": page["last_id"] or ""}
        page = client.get("/v1/files", params=query).json()
        found += [file["id"] for file in page["data"]]

    assert found == (made if order == "asc" else made[::-1])


@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_of_another_list_is_refused(client: TestClient, path: str) -> None:
    answer = client.get(path, params={"after": "ftevent-01"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_cursor"
    assert answer.json()["error"]["param"] == "after"


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("limit", ["0", "-1", "1000000000", "x", ""])
def test_a_page_of_no_size_is_refused(client: TestClient, path: str, limit: str) -> None:
    answer = client.get(path, params={"limit": limit})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "limit"
