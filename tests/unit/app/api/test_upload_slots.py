"""How many files are received at once, and what the others are told."""

import asyncio
from dataclasses import replace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.upload_slots import UploadSlots
from app.core.errors import TooManyUploadsError
from tests.builders import TEXT_LINE

FORM = {"files": {"file": ("a.jsonl", TEXT_LINE)}, "data": {"purpose": "fine-tune"}}


def test_no_more_uploads_than_slots_at_once() -> None:
    slots = UploadSlots(2, wait_s=0.01)

    async def use() -> None:
        async with slots.take(), slots.take():
            with pytest.raises(TooManyUploadsError, match="receiving 2 files"):
                async with slots.take():
                    pass
        async with slots.take(), slots.take():
            pass

    asyncio.run(use())


def test_an_upload_waits_for_its_turn() -> None:
    slots = UploadSlots(1)

    async def use() -> list[int]:
        order: list[int] = []

        async def upload(number: int) -> None:
            async with slots.take():
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(upload(number) for number in range(3)))
        return order

    assert asyncio.run(use()) == [0, 1, 2]


@pytest.mark.only_sqlite
def test_an_upload_too_many_is_a_503_that_clients_repeat(client: TestClient, app: FastAPI) -> None:
    slots = UploadSlots(1, wait_s=0.01)
    app.state.resources = replace(app.state.resources, upload_slots=slots)

    async def post_while_another_uploads() -> None:
        async with slots.take():
            answer = await asyncio.to_thread(client.post, "/v1/files", **FORM)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "too_many_uploads")
        assert answer.headers["retry-after"] == "2"

    asyncio.run(post_while_another_uploads())
    assert client.post("/v1/files", **FORM).status_code == 200
