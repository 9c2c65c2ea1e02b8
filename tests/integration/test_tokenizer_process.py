"""The process that tokenizes: what it is kept from, and how it ends."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import Request

from app.api.leaving import ClientLeftError, unless_client_leaves
from app.core.dataset.tokenizing import processes
from app.core.dataset.tokenizing.messages import Preview, PreviewRequest
from app.core.dataset.tokenizing.processes import TokenizerProcesses
from app.core.errors import InvalidRequestError, TokenizingBusyError, TokenizingFailedError
from app.core.machine.subprocesses import with_import_path
from tests.builders import CHAT_LINE, build_config
from tests.tiny import CHAT_TEMPLATE, build_tokenizer
from tests.waiting import wait_until

ENDLESS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
HUGE = "{{ 'a' * 9999999999 }}"
PATIENCE_S = 60.0


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "data" / "models" / "tiny", CHAT_TEMPLATE)


def write_model(directory: Path, template: str) -> Path:
    build_tokenizer(template).save_pretrained(directory)
    return directory


def build_request(base_model: Path, **changes: Any) -> PreviewRequest:
    values: dict[str, Any] = {
        "base_model": base_model,
        "data_dir": base_model.parents[1],
        "sandbox": "required",
        "config": build_config(template_date=date(2026, 1, 31)),
        "rows": (1,),
    }
    return PreviewRequest(**(values | changes))


async def ask(request: PreviewRequest, tokenizers: TokenizerProcesses | None = None) -> Preview:
    path = request.base_model / "rows.jsonl"
    path.write_bytes(CHAT_LINE)
    with path.open("rb") as source:
        return await (tokenizers or TokenizerProcesses()).ask(request, [source], Preview)


def list_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "worker.tokenizing" in child.cmdline()]


def test_several_are_answered_one_after_the_other(base_model: Path) -> None:
    tokenizers = TokenizerProcesses(1)

    async def ask_twice() -> list[Preview]:
        request = build_request(base_model)
        return await asyncio.gather(ask(request, tokenizers), ask(request, tokenizers))

    first, second = asyncio.run(ask_twice())

    assert first == second
    assert first.rows[0].examples[0].outcome == "kept"


@pytest.mark.parametrize("template", [ENDLESS, HUGE], ids=["endless", "huge"])
def test_a_template_without_end_is_a_clear_error(base_model: Path, template: str) -> None:
    write_model(base_model, template + CHAT_TEMPLATE)

    with pytest.raises(TokenizingFailedError, match="fewer or shorter rows"):
        asyncio.run(ask(build_request(base_model, cpu_s=4)))


def test_a_row_of_many_megabytes_is_shown_in_part(base_model: Path) -> None:
    content = b'{"text": "%s"}\n' % (b"many words " * 100_000)
    path = base_model / "long.jsonl"
    path.write_bytes(content)

    async def show() -> Preview:
        with path.open("rb") as source:
            return await TokenizerProcesses().ask(build_request(base_model), [source], Preview)

    (row,) = asyncio.run(show()).rows
    assert row.examples[0].total_tokens == 1_100_001


def test_a_process_that_takes_too_long_is_killed(base_model: Path) -> None:
    write_model(base_model, ENDLESS)

    with pytest.raises(TokenizingBusyError):
        asyncio.run(ask(build_request(base_model), TokenizerProcesses(wall_s=0.5)))

    assert list_processes() == []


def test_a_client_that_leaves_takes_its_process_along(base_model: Path) -> None:
    write_model(base_model, ENDLESS)

    async def leave() -> None:
        has_left = asyncio.Event()

        async def receive() -> dict[str, str]:
            await has_left.wait()
            return {"type": "http.disconnect"}

        work = ask(build_request(base_model))
        waiting = asyncio.create_task(
            unless_client_leaves(Request({"type": "http"}, receive), work)
        )
        await asyncio.to_thread(wait_until, list_processes, within_s=PATIENCE_S)
        has_left.set()
        with pytest.raises(ClientLeftError):
            await waiting

    asyncio.run(leave())

    assert list_processes() == []


def test_a_service_without_the_libraries_says_so(
    base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # means: not installed

    with pytest.raises(TokenizingFailedError, match=r"Install tunery\[worker\]"):
        asyncio.run(ask(build_request(base_model)))


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (0, b""),
        (0, b"{}"),
        (0, b'{"rows": [{"line": 0}]}'),
        (0, b"\xff"),
        (1, b""),
        (3, b"{}"),
        (-9, b""),
    ],
)
def test_an_answer_is_believed_only_if_it_is_one(exit_code: int, said: bytes) -> None:
    with pytest.raises(TokenizingFailedError):
        processes._read(exit_code, said, Preview)


def test_what_the_process_refuses_is_cleaned() -> None:
    refused = {
        "code": "no_chat_template",
        "message": "\x1b[31m in /root/secret/model",
        "param": "model",
    }

    with pytest.raises(InvalidRequestError) as caught:
        processes._read(3, json.dumps(refused).encode(), Preview)

    assert str(caught.value) == "\ufffd[31m in [path]"


ATTEMPTS = """
import json, os, socket, sys
from app.core.dataset.tokenizing.messages import REQUESTS
from worker.tokenizing.containment import contain

request = REQUESTS.validate_json(sys.stdin.buffer.read())
contain(request)

def attempt(act):
    try:
        act()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"

print(json.dumps({
    "read the tokenizer": attempt((request.base_model / "tokenizer.json").read_bytes),
    "read the database": attempt((request.data_dir / "tunery.db").read_bytes),
    "list the data directory": attempt(lambda: os.listdir(request.data_dir)),
    "write": attempt(lambda: (request.base_model / "new").write_bytes(b"a")),
    "read the parent's environment": attempt(lambda: open(f"/proc/{os.getppid()}/environ").read()),
    "connect": attempt(socket.socket),
    "kill the parent": attempt(lambda: os.kill(os.getppid(), 0)),
    "take memory": attempt(lambda: bytearray(3 * 1024**3)),
}))
"""


def test_the_process_reaches_nothing_but_the_base_model(base_model: Path) -> None:
    (base_model.parents[1] / "tunery.db").write_bytes(b"secret")

    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS],
        input=build_request(base_model).model_dump_json().encode(),
        env=with_import_path(os.environ),
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
    )

    assert json.loads(done.stdout) == {
        "read the tokenizer": "done",
        "read the database": "PermissionError",
        "list the data directory": "PermissionError",
        "write": "PermissionError",
        "read the parent's environment": "PermissionError",
        "connect": "PermissionError",
        "kill the parent": "PermissionError",
        "take memory": "MemoryError",
    }
