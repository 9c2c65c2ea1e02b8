"""Which models can be asked by whom, and what happens without a sampler."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.base_models import RECORD_NAME, InstalledModel
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.sampling.messages import Accepted, AdapterRef, Delta, Finished, Refused
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from app.services.sampling.models import SamplingAdapter, SamplingModel
from tests.builders import (
    add_job,
    add_key,
    bearer,
    build_checkpoint,
    build_result_file,
    claim,
    list_checkpoints,
)
from tests.standin_sampler import Asked, Said, StandInSampler

ORIGIN = "http://127.0.0.1"
NO_BYTE = (
    b'{"kind": "delta", "choice": 0, "logprobs": '
    b'[{"token": "a", "logprob": -1.0, "text_bytes": [256]}]}\n'
)
BEGIN = Accepted(prompt_tokens=1, cached_tokens=0)
END = Finished(choice=0, reason="stop", tokens=1)


def ask(client: TestClient, model: str | None, **options: Any) -> Any:
    asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    return client.post("/v1/chat/completions", json=asked, **options)


def test_a_tuned_model_and_its_checkpoints(
    client: TestClient, sampler: StandInSampler, database: Database, tuned: Job
) -> None:
    first, last = list_checkpoints(database, tuned.id)
    names = {
        tuned.fine_tuned_model: last,
        f"{tuned.fine_tuned_model}:ckpt-step-6": last,
        f"{tuned.fine_tuned_model}:ckpt-step-1": first,
    }
    for name, checkpoint in names.items():
        answer = ask(client, name)

        files = {file.filename: file for file in checkpoint.files}
        weights = files["adapter_model.safetensors"]
        assert answer.json()["model"] == name
        assert answer.json()["system_fingerprint"].startswith(f"fp_{weights.sha256[:16]}_")
        asked = sampler.asked[-1]
        assert asked.ask.adapter is not None
        assert asked.ask.adapter.weights_sha256 == weights.sha256
        assert [len(content) for content in asked.files] == [
            weights.bytes,
            files["adapter_config.json"].bytes,
        ]
        assert b"step %d" % checkpoint.step in asked.files[0]


def fingerprint_of(*, base: str = "b", weights: str | None = "a", config: str = "c") -> str:
    """The fingerprint of a model whose files have checksums of one digit each."""
    adapter = None
    if weights is not None:
        ref = AdapterRef(weights_sha256=weights * 64, config_sha256=config * 64)
        adapter = SamplingAdapter(ref, ("weights", "config"))
    installed = InstalledModel(
        id="model",
        repo="us/model",
        revision=None,
        licence="MIT",
        files={},
        sha256=base * 64,
        installed_at=0,
    )
    return SamplingModel("model", installed, adapter).fingerprint


def test_a_fingerprint_begins_with_the_checksum_of_the_weights() -> None:
    assert fingerprint_of().startswith(f"fp_{'a' * 16}_")
    assert fingerprint_of(weights=None) == f"fp_{'b' * 16}"


@pytest.mark.parametrize("changed", ["base", "weights", "config"])
def test_a_fingerprint_changes_with_everything_that_decides_the_answer(changed: str) -> None:
    assert fingerprint_of(**{changed: "d"}) != fingerprint_of()


def reinstall_tiny(settings: Settings, sha256: str) -> None:
    """Let the base model `tiny` have other weights."""
    record = settings.data_dir / "models" / "tiny" / RECORD_NAME
    installed = InstalledModel.model_validate_json(record.read_bytes())
    record.write_text(installed.model_copy(update={"sha256": sha256}).model_dump_json())


@pytest.mark.only_sqlite
@pytest.mark.parametrize("suffix", ["", ":ckpt-step-1"])
def test_a_tuned_model_is_not_answered_with_another_base_model(
    client: TestClient,
    sampler: StandInSampler,
    database: Database,
    settings: Settings,
    *,
    tuned: Job,
    suffix: str,
) -> None:
    with database.writing() as session:
        session.get_one(Job, tuned.id).base_model_sha256 = "0" * 64
    name = f"{tuned.fine_tuned_model}{suffix}"
    assert ask(client, name).status_code == 200

    reinstall_tiny(settings, "1" * 64)
    answer = ask(client, name)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        "base_model_changed",
        "model",
    )
    assert f"so {name} cannot be asked" in error["message"]
    assert len(sampler.asked) == 1


@pytest.mark.only_sqlite
def test_a_tuned_model_whose_base_model_was_removed_says_how_to_install_it(
    client: TestClient, settings: Settings, tuned: Job
) -> None:
    (settings.data_dir / "models" / "tiny" / RECORD_NAME).unlink()

    error = ask(client, tuned.fine_tuned_model).json()["error"]

    assert error["code"] == "model_not_available"
    assert "tunery models install tiny" in error["message"]


def test_a_base_model_by_any_of_its_names(client: TestClient, sampler: StandInSampler) -> None:
    answers = [ask(client, name).json() for name in ("hub-tiny", "us/hub-tiny")]

    assert [answer["model"] for answer in answers] == ["hub-tiny", "hub-tiny"]
    assert [asked.ask.adapter for asked in sampler.asked] == [None, None]
    assert sampler.asked[0].ask.base_model.name == "hub-tiny"
    assert sampler.asked[0].ask.base_model.is_absolute()


@pytest.mark.usefixtures("sampler")
def test_a_checkpoint_can_be_asked_while_its_job_trains(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_job(database)
    claim(database)
    checkpoint = build_checkpoint(job, 3)
    checkpoint.files = [
        build_result_file(store, job, name, name)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]
    with database.writing() as session:
        CheckpointRepository(session, DEFAULT_PROJECT_ID).add(checkpoint)

    assert ask(client, f"{job.fine_tuned_model}:ckpt-step-3").status_code == 200
    assert ask(client, job.fine_tuned_model).status_code == 404


@pytest.mark.usefixtures("sampler")
def test_no_project_asks_the_models_of_another(
    client: TestClient, database: Database, tuned: Job
) -> None:
    own, other = add_key(database), add_key(database, "Other")

    assert ask(client, tuned.fine_tuned_model, headers=bearer(own)).status_code == 200
    for name in (tuned.fine_tuned_model, f"{tuned.fine_tuned_model}:ckpt-step-1"):
        answer = ask(client, name, headers=bearer(other))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(client, "tiny", headers=bearer(other)).status_code == 200


def test_the_sampler_is_told_the_project(
    client: TestClient, sampler: StandInSampler, database: Database
) -> None:
    key = add_key(database, "Other", scopes=[Scope.SAMPLE])

    ask(client, "tiny", headers=bearer(key))

    assert sampler.asked[0].ask.project_id not in ("", DEFAULT_PROJECT_ID)


@pytest.mark.only_sqlite
@pytest.mark.usefixtures("sampler")
def test_a_model_whose_bytes_are_just_deleted_is_not_found(
    client: TestClient, database: Database, store: LocalBlobStore, tuned: Job
) -> None:
    for checkpoint in list_checkpoints(database, tuned.id):
        for file in checkpoint.files:
            store.delete(file.blob_key)

    answer = ask(client, tuned.fine_tuned_model)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.only_sqlite
def test_a_service_without_a_sampler_says_so(client: TestClient, settings: Settings) -> None:
    never = ask(client, "tiny")
    with StandInSampler(settings.sampler_dir):
        assert ask(client, "tiny").status_code == 200
    dead = ask(client, "tiny")

    for answer in (never, dead):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "sampler_unavailable")
        assert answer.headers["retry-after"]


@pytest.mark.only_sqlite
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_a_service_whose_sampling_is_off_says_how_to_turn_it_on(
    settings: Settings, database: Database, path: str
) -> None:
    app = create_app(settings.model_copy(update={"sampling": "off"}))
    asked = {"model": "tiny", "messages": [], "prompt": "", "input": ""}
    with StandInSampler(settings.sampler_dir), TestClient(app, base_url=ORIGIN) as client:
        answer = client.post(f"/v1/{path}", json=asked)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "sampling_off", "model")
    assert "set it to idle or shared" in error["message"]
    assert database is not None


@pytest.mark.only_sqlite
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_refusal_of_the_sampler_is_passed_on(
    client: TestClient, sampler: StandInSampler, status: Any
) -> None:
    def refuse(_: Asked) -> Iterator[Said]:
        yield Refused(status=status, code="no_way", message="No.", param="model", retry_after_s=7)

    sampler.script = refuse

    answer = ask(client, "tiny")

    assert answer.status_code == status
    assert (answer.json()["error"]["message"], answer.json()["error"]["code"]) == ("No.", "no_way")
    assert answer.headers.get("retry-after") == {429: "7", 503: "2"}.get(status)


@pytest.mark.only_sqlite
@pytest.mark.parametrize(
    "lines",
    [
        [BEGIN, b"not JSON\n", END],
        [Delta(choice=0, text="a"), END],
        [BEGIN, BEGIN, END],
        [BEGIN, Delta(choice=1, text="a"), END],
        [BEGIN, b"x" * 5 * 1024**2, END],
        [BEGIN, NO_BYTE, END],
        [BEGIN],
        [b'{"kind": "acce'],
        [],
    ],
    ids=[
        "no JSON",
        "too early",
        "twice",
        "a choice",
        "too long",
        "no byte",
        "cut off",
        "half",
        "nothing",
    ],
)
def test_a_sampler_is_not_trusted(
    client: TestClient, sampler: StandInSampler, lines: list[Said]
) -> None:
    sampler.script = lambda _: iter(lines)

    answer = ask(client, "tiny")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "sampler_unavailable")


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
FORCED = CHAT | {
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "tool_choice": "required",
}


@pytest.mark.only_sqlite
@pytest.mark.parametrize("stream", [None, True])
@pytest.mark.parametrize(
    ("path", "asked", "param", "named"),
    [
        ("chat/completions", CHAT, "messages", "messages"),
        ("chat/completions", CHAT, "response_format", "response_format"),
        ("chat/completions", FORCED, "response_format", "tools"),
        ("chat/completions", FORCED, "messages", "messages"),
        ("responses", {"input": "Hi"}, "messages", "input"),
        ("responses", {"input": "Hi"}, "response_format", "text.format"),
        ("completions", {"prompt": "Hi"}, "prompt", "prompt"),
    ],
)
def test_a_refusal_names_the_parameter_of_the_request(
    client: TestClient,
    sampler: StandInSampler,
    *,
    path: str,
    asked: dict[str, Any],
    param: str,
    named: str,
    stream: bool | None,
) -> None:
    refused = Refused(status=400, code="no_way", message=f"Shorten the {param}.", param=param)
    sampler.script = lambda _: iter([refused])

    answer = client.post(f"/v1/{path}", json={"model": "tiny", "stream": stream, **asked})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "no_way", named)
    assert error["message"] == f"Shorten the {named}."


@pytest.mark.only_sqlite
def test_a_refusal_in_a_stream_names_the_parameter_of_the_request(
    client: TestClient, sampler: StandInSampler
) -> None:
    late = Refused(status=400, code="no_way", message="No.", param="response_format")
    sampler.script = lambda _: iter([BEGIN, Delta(choice=0, text="{"), late])

    answer = client.post("/v1/responses", json={"model": "tiny", "stream": True, "input": "Hi"})

    last = json.loads(answer.text.rpartition("data: ")[2])
    assert (last["type"], last["code"], last["param"]) == ("error", "no_way", "text.format")
