"""Every list, as the stock client pages through it."""

from collections.abc import Iterator
from itertools import product

import openai
import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.events import EventRepository
from app.core.db.session import Database
from app.core.db.tables import JobMetadata
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from tests.asgi import stock_client
from tests.builders import NOW, add_file, add_job, add_succeeded_job


@pytest.fixture(params=["lenient", "strict"])
def stock(request: pytest.FixtureRequest, client: TestClient) -> Iterator[openai.OpenAI]:
    """The stock client in both of its modes, talking to the application in this process."""
    with stock_client(client, is_strict=request.param == "strict") as stock:
        yield stock


@pytest.fixture
def requests_sent(client: TestClient) -> list[str]:
    """The address of every request, so that a client that asks for ever is noticed."""
    sent: list[str] = []
    client.event_hooks["request"].append(lambda request: sent.append(str(request.url)))
    return sent


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_the_client_reads_each_job_once_and_stops(
    stock: openai.OpenAI, database: Database, requests_sent: list[str], limit: int
) -> None:
    made = [add_job(database).id for _ in range(4)]

    found = [job.id for job in stock.fine_tuning.jobs.list(limit=limit)]

    assert found == made[::-1]
    assert len(requests_sent) == -(-len(made) // limit)


def test_an_empty_list_is_one_request(stock: openai.OpenAI, requests_sent: list[str]) -> None:
    assert list(stock.fine_tuning.jobs.list()) == []
    assert len(requests_sent) == 1


def test_a_page_has_the_clients_default_size(stock: openai.OpenAI, database: Database) -> None:
    for _ in range(21):
        add_job(database)

    page = stock.fine_tuning.jobs.list()

    assert (len(page.data), page.has_more) == (20, True)


def test_what_is_added_meanwhile_shifts_nothing(stock: openai.OpenAI, database: Database) -> None:
    old = [add_job(database).id for _ in range(4)]

    page = stock.fine_tuning.jobs.list(limit=2)
    add_job(database)
    following = page.get_next_page()

    assert [job.id for job in [*page.data, *following.data]] == old[::-1]


def test_the_cursor_need_not_exist_any_more(
    stock: openai.OpenAI, database: Database, store: LocalBlobStore
) -> None:
    kept, deleted = add_file(database, store).id, add_file(database, store).id

    stock.files.delete(deleted)

    assert [file.id for file in stock.files.list(after=deleted)] == [kept]


def test_files_are_filtered_by_purpose(
    stock: openai.OpenAI, database: Database, store: LocalBlobStore
) -> None:
    uploaded = add_file(database, store)
    add_succeeded_job(database, store)

    made = list(stock.files.list(purpose="fine-tune-results"))

    assert {file.filename for file in made} == {
        "adapter_model.safetensors",
        "manifest.json",
        "step_metrics.csv",
    }
    assert [file.id for file in stock.files.list(purpose="fine-tune")] == [uploaded.id]
    assert list(stock.files.list(purpose="vision")) == []


def test_files_of_checkpoints_are_listed_only_when_they_are_asked_for(
    stock: openai.OpenAI, database: Database, store: LocalBlobStore
) -> None:
    uploaded = add_file(database, store)
    job = add_succeeded_job(database, store, steps=(1, 2))
    other = add_succeeded_job(database, store)
    last = stock.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    parts = (last.model_extra or {})["result_files"]

    def ids(**options: object) -> list[str]:
        return [file.id for file in stock.files.list(**options)]  # pyright: ignore[reportArgumentType]

    assert ids() == [other.result_file_id, job.result_file_id, uploaded.id]
    assert len(ids(purpose="fine-tune-results")) == 8
    assert sorted(ids(extra_query={"checkpoint": last.id})) == sorted(parts)
    assert ids(extra_query={"checkpoint": last.id}, purpose="fine-tune") == []
    assert ids(extra_query={"checkpoint": "ftckpt_nope"}) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("which", [None, "purpose", "checkpoint"])
def test_every_list_of_files_is_paged_also_from_a_file_that_is_not_in_it(
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    order: str,
    which: str | None,
) -> None:
    add_file(database, store)
    job = add_succeeded_job(database, store, steps=(1, 2))
    add_file(database, store)
    filters = {"purpose": "fine-tune-results", "checkpoint": job.result_checkpoint_id or ""}
    params = {"order": order} | ({which: filters[which]} if which else {})
    whole = [file["id"] for file in client.get("/v1/files", params=params).json()["data"]]
    made = {"purpose": "fine-tune-results", "order": order}
    everything = sorted(
        {*whole, *(file["id"] for file in client.get("/v1/files", params=made).json()["data"])},
        reverse=order == "desc",
    )

    for limit, (number, after) in product([1, 2, 3], enumerate(["", *everything])):
        page = client.get("/v1/files", params=params | {"limit": limit, "after": after}).json()
        left = [one for one in whole if one in everything[number:]]
        assert [file["id"] for file in page["data"]] == left[:limit]
        assert page["has_more"] == (len(left) > limit)


def test_jobs_are_filtered_by_label(stock: openai.OpenAI, database: Database) -> None:
    red = add_job(database, metadata_items=[JobMetadata(key="team", value="red")])
    empty = add_job(database, metadata_items=[JobMetadata(key="team", value="")])
    plain = add_job(database)

    def ids(**options: object) -> list[str]:
        return [job.id for job in stock.fine_tuning.jobs.list(limit=1, **options)]  # pyright: ignore[reportArgumentType]

    assert ids() == [plain.id, empty.id, red.id]
    assert ids(metadata={"team": "red"}) == [red.id]
    assert ids(metadata={"team": ""}) == [empty.id]
    assert ids(metadata={"team": "red", "run": "1"}) == []
    assert ids(extra_query={"metadata": "null"}) == [plain.id]
    assert ids(metadata=None) == [plain.id, empty.id, red.id]


def test_a_paused_job_can_be_shown_as_queued_for_clients_that_know_no_paused(
    settings: Settings, database: Database
) -> None:
    paused, queued = add_job(database, status=JobStatus.PAUSED), add_job(database)
    app = create_app(settings.model_copy(update={"show_paused_as": "queued"}))

    with (
        TestClient(app, base_url="http://127.0.0.1") as client,
        stock_client(client, is_strict=True) as stock,
    ):
        jobs = stock.fine_tuning.jobs
        listed = list(jobs.list())
        answers = [jobs.retrieve(paused.id), jobs.pause(queued.id), jobs.cancel(paused.id)]

    assert [(job.id, job.status) for job in listed] == [
        (queued.id, "queued"),
        (paused.id, "queued"),
    ]
    assert [(job.model_extra or {})["queue_position"] for job in listed] == [1, None]
    assert [job.status for job in answers] == ["queued", "queued", "cancelled"]


def test_a_paused_job_is_shown_as_paused_which_a_strict_client_refuses(
    client: TestClient, database: Database
) -> None:
    job = add_job(database, status=JobStatus.PAUSED)

    lenient, strict = (stock_client(client, is_strict=is_strict) for is_strict in (False, True))

    assert lenient.fine_tuning.jobs.retrieve(job.id).status == "paused"
    with pytest.raises(openai.APIResponseValidationError):
        strict.fine_tuning.jobs.list()


def test_events_are_paged_newest_first(stock: openai.OpenAI, database: Database) -> None:
    job, other = add_job(database), add_job(database)
    with database.writing() as session:
        for number in range(50):
            for job_id in (job.id, other.id):
                EventRepository(session, DEFAULT_PROJECT_ID).add(job_id, f"Event {number}", now=NOW)

    found = [event.message for event in stock.fine_tuning.jobs.list_events(job.id)]

    assert found[:50] == [f"Event {number}" for number in reversed(range(50))]
    assert len(found) == 53


def test_checkpoints_are_paged_newest_first(
    stock: openai.OpenAI, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store, steps=tuple(range(1, 26)))

    page = stock.fine_tuning.jobs.checkpoints.list(job.id)

    assert [one.step_number for one in page.data] == list(range(25, 15, -1))
    assert [one.step_number for one in page] == list(range(25, 0, -1))
    assert (page.model_extra or {})["first_id"] == page.data[0].id
    assert (page.model_extra or {})["last_id"] == page.data[-1].id


def test_more_labels_than_a_job_can_have_are_refused(client: TestClient) -> None:
    query = "&".join(f"metadata[k{number}]=v" for number in range(1100))

    answer = client.get(f"/v1/fine_tuning/jobs?{query}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")
