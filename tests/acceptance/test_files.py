"""Files, as the stock client has them."""

import asyncio
import hashlib
import io
import time
from pathlib import Path

import openai
import pytest

from tests.builders import CHAT_LINE, TEXT_LINE, build_chat_file


def upload(client: openai.OpenAI, content: bytes = TEXT_LINE) -> str:
    return client.files.create(file=content, purpose="fine-tune").id


@pytest.mark.parametrize("how", ["bytes", "named", "path", "file", "buffer"])
def test_a_data_set_is_uploaded_in_every_way_the_client_knows(
    client: openai.OpenAI, tmp_path: Path, how: str
) -> None:
    content = build_chat_file(5)
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with path.open("rb") as opened:
        ways = {
            "bytes": (content, "upload"),
            "named": (("named.jsonl", content), "named.jsonl"),
            "path": (path, "mine.jsonl"),
            "file": (opened, "mine.jsonl"),
            "buffer": (io.BytesIO(content), "upload"),
        }
        sent, name = ways[how]

        file = client.files.create(file=sent, purpose="fine-tune")

    assert (file.object, file.filename, file.bytes) == ("file", name, len(content))
    assert (file.status, file.purpose, file.expires_at) == ("processed", "fine-tune", None)
    assert abs(file.created_at - time.time()) < 60
    assert file.model_extra == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": "messages",
        "examples": 5,
    }


def test_a_file_is_found_read_and_deleted(client: openai.OpenAI) -> None:
    file_id = upload(client, CHAT_LINE)

    assert client.files.wait_for_processing(file_id).id == file_id
    assert client.files.retrieve(file_id).id == file_id
    assert file_id in [file.id for file in client.files.list(purpose="fine-tune")]
    assert client.files.content(file_id).read() == CHAT_LINE
    assert client.files.delete(file_id).model_dump() == {
        "id": file_id,
        "object": "file",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError) as refusal:
        client.files.retrieve(file_id)
    assert (refusal.value.code, refusal.value.type) == ("file_not_found", "invalid_request_error")
    assert refusal.value.request_id is not None


def test_content_is_streamed_into_a_file(client: openai.OpenAI, tmp_path: Path) -> None:
    content = build_chat_file(20_000)
    file_id = upload(client, content)

    with client.files.with_streaming_response.content(file_id) as response:
        response.stream_to_file(tmp_path / "copy.jsonl")

    assert (tmp_path / "copy.jsonl").read_bytes() == content


def test_a_file_can_be_made_to_expire(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=TEXT_LINE,
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )

    assert file.expires_at == file.created_at + 3600


def test_the_client_pages_through_all_files_in_either_order(client: openai.OpenAI) -> None:
    uploaded = [upload(client) for _ in range(5)]

    newest = [file.id for file in client.files.list(limit=2)]
    oldest = [file.id for file in client.files.list(limit=2, order="asc")]

    assert newest[:5] == uploaded[::-1]
    assert oldest == newest[::-1]
    assert len(set(newest)) == len(newest)


def test_a_page_says_where_it_begins_and_ends(client: openai.OpenAI) -> None:
    uploaded = [upload(client) for _ in range(3)]

    page = client.files.list(limit=2)

    assert (page.has_more, [file.id for file in page.data]) == (True, uploaded[:0:-1])
    extra = page.model_extra or {}
    assert (extra["first_id"], extra["last_id"]) == (uploaded[2], uploaded[1])


def test_a_bad_file_is_refused_with_every_problem(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        upload(client, TEXT_LINE + b'{"text": 5}\n[]\n')

    assert (refusal.value.code, refusal.value.param) == ("invalid_file", "file")
    assert isinstance(refusal.value.body, dict)
    assert [(one["line"], one["code"]) for one in refusal.value.body["errors"]] == [
        (2, "wrong_type"),
        (3, "not_an_object"),
    ]
    assert refusal.value.body["error_count"] == 2


def test_the_client_of_asyncio_works_as_well(client: openai.OpenAI) -> None:
    async def upload_and_read() -> bytes:
        async with openai.AsyncOpenAI(
            base_url=client.base_url, api_key="unused", max_retries=0
        ) as other:
            file = await other.files.create(file=TEXT_LINE, purpose="fine-tune")
            content = await other.files.content(file.id)
            return content.content

    assert asyncio.run(upload_and_read()) == TEXT_LINE
