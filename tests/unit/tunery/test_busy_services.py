"""Commands that go on when the service is busy for a while."""

import json
from pathlib import Path

import pytest
import typer

from tests.unit.tunery.scripted_service import ScriptedService, scripted_service
from tunery.client.answers.report import report
from tunery.client.downloads.exports import fetch_export
from tunery.client.models import import_adapter
from tunery.client.service.api import Api, AwayError
from tunery.client.service.profile import Profile

ADAPTER = b"GGUF and more"
MAKING = (202, json.dumps({"progress": 0.5, "retry_after": 0}).encode())
BUSY = (503, b"{}")
LIMITED = (429, b"{}")


def fetch(service: ScriptedService, directory: Path) -> list[Path]:
    api = Api(Profile(service.base_url), is_hurried=True)
    target = directory / "adapter.gguf"
    return fetch_export(api, "ftjob-1", target, checkpoint=None, variant="gguf", unpack=False)


def test_a_service_that_is_busy_while_it_makes_an_export_is_asked_again(tmp_path: Path) -> None:
    made = (200, ADAPTER)
    with scripted_service(MAKING, BUSY, LIMITED, MAKING, made, made) as service:
        (path,) = fetch(service, tmp_path)

    assert path.read_bytes() == ADAPTER


def test_nobody_waits_for_a_service_that_was_never_there(tmp_path: Path) -> None:
    with scripted_service(BUSY) as service, pytest.raises(AwayError):
        fetch(service, tmp_path)


def test_a_service_that_is_busy_while_it_makes_a_report_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.dumps({"retry_after": None, "error": None, "report": {}}).encode()
    tries_of_one_request = (BUSY, BUSY, BUSY)
    with scripted_service(MAKING, *tries_of_one_request, (200, made)) as service:
        monkeypatch.setenv("TUNERY_BASE_URL", service.base_url)
        report("ftjob-1", as_json=True)

    assert json.loads(capsys.readouterr().out) == json.loads(made)


def test_the_report_on_a_checkpoint_is_asked_for_until_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = json.dumps({"retry_after": None, "error": None, "report": {}}).encode()
    with scripted_service(MAKING, (200, made)) as service:
        monkeypatch.setenv("TUNERY_BASE_URL", service.base_url)
        report("ftjob-1", checkpoint="40", as_json=True)

    address = "/v1/fine_tuning/jobs/ftjob-1/report?checkpoint=40"
    assert [got.path for got in service.got] == [address, address]


def test_a_checkpoint_answers_no_other_prompts() -> None:
    with pytest.raises(typer.BadParameter, match="--checkpoint"):
        report("ftjob-1", prompt=["Hi"], checkpoint="40")


def test_an_import_is_sent_again_with_the_same_key_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "adapter.zip"
    archive.write_bytes(ADAPTER)
    imported = (200, b'{"id": "ft:tiny:tunery::1"}')
    with scripted_service(BUSY, imported, imported) as service:
        monkeypatch.setenv("TUNERY_BASE_URL", service.base_url)
        import_adapter(archive, model="tiny")
        import_adapter(archive, model="tiny")

    assert capsys.readouterr().out == 2 * "ft:tiny:tunery::1\n"
    assert all(ADAPTER in got.body for got in service.got)
    first, again, second = (got.headers["idempotency-key"] for got in service.got)
    assert first == again != second
