"""The stock client, strict about every answer, tunes a model and asks it and its base model.

Nothing stands in for anything: API, worker and sampler are processes of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.asking.reference import Reference
from tests.asking.service import (
    JOB_S,
    WINDOW,
    AskedService,
    checksum_of,
    create_job,
    download_adapter,
    install_asked_model,
    name_of,
    rows_of,
    upload,
)
from tests.tiny import chat_row
from tests.waiting import wait_until

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 7}'}}
CALLING = {
    "messages": [{"role": "user", "content": "Look."}, {"role": "assistant", "tool_calls": [CALL]}],
    "tools": [TOOL],
}
STEPS, EARLIER = 300, 60
WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]
LOOK: list[Any] = [{"role": "user", "content": "Look."}]
ANSWER = "I am red."
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "is_red": {"type": "boolean"}},
    "required": ["size", "is_red"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and what it and its base model answer elsewhere."""

    name: str
    checksum: str
    earlier_checksum: str
    """That of its first checkpoint."""
    reference: Reference
    earlier: Reference
    base: Reference


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedService]:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    install_asked_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    with AskedService(data_dir, sampling="shared") as service:
        yield service


@pytest.fixture(scope="module")
def client(service: AskedService) -> Iterator[openai.OpenAI]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def tuned(
    service: AskedService, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    """A model that knows two answers: one in words, and one that is a call of a tool."""
    file_id = upload(client, rows_of("red") + 16 * [CALLING])
    job = create_job(client, file_id, max_steps=STEPS, checkpoint_steps=EARLIER)
    job = service.wait_for_end(client, job.id)
    base, directory = service.data_dir / "models" / "tiny", tmp_path_factory.mktemp("adapters")
    last = download_adapter(client, job.id, directory / "last")
    earlier = download_adapter(client, job.id, directory / "earlier", step=EARLIER)
    return Tuned(
        name_of(job),
        checksum_of(last),
        checksum_of(earlier),
        Reference(base, last),
        Reference(base, earlier),
        Reference(base, None),
    )


def greedy(client: openai.OpenAI, model: str, messages: list[Any], **changes: Any) -> Any:
    """The greedy answer of a model."""
    usual: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 100}
    return client.chat.completions.create(model=model, messages=messages, **(usual | changes))


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


def test_a_tuned_model_answers_as_it_was_taught(client: openai.OpenAI, tuned: Tuned) -> None:
    answer = greedy(client, tuned.name, WHO)

    assert text_of(answer) == tuned.reference.chat(WHO, max_tokens=100) == ANSWER
    assert answer.model == tuned.name
    assert answer.system_fingerprint.startswith(tuned.checksum)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(ANSWER) + 1  # the end is a token, too


def test_a_stream_has_the_same_answer(client: openai.OpenAI, tuned: Tuned) -> None:
    chunks = list(
        greedy(client, tuned.name, WHO, stream=True, stream_options={"include_usage": True})
    )

    told = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(told) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(ANSWER) + 1
    assert {chunk.system_fingerprint for chunk in chunks} == {
        greedy(client, tuned.name, WHO).system_fingerprint
    }


def test_a_base_model_answers_as_it_does_elsewhere(client: openai.OpenAI, tuned: Tuned) -> None:
    answer = greedy(client, "tiny", WHO, max_completion_tokens=20)

    assert text_of(answer) == tuned.base.chat(WHO, max_tokens=20)
    assert text_of(answer) != ANSWER
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20


def test_a_checkpoint_answers_as_it_does_elsewhere(client: openai.OpenAI, tuned: Tuned) -> None:
    name = f"{tuned.name}:ckpt-step-{EARLIER}"

    answer = greedy(client, name, WHO, max_completion_tokens=20)

    assert text_of(answer) == tuned.earlier.chat(WHO, max_tokens=20)
    assert answer.system_fingerprint.startswith(tuned.earlier_checksum)
    assert tuned.earlier_checksum != tuned.checksum


def test_completions_go_on_with_a_text(
    client: openai.OpenAI, service: AskedService, tuned: Tuned
) -> None:
    prompt = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    asked: dict[str, Any] = {"model": tuned.name, "prompt": prompt, "temperature": 0}

    whole = client.completions.create(**asked, max_tokens=40)
    echoed = client.completions.create(**asked, max_tokens=4, echo=True)
    with service.client(_strict_response_validation=False) as lenient:
        # OpenAI sends null as the `finish_reason` of all chunks but the last, which its strict
        # client does not expect.
        chunks = list(lenient.completions.create(**asked, max_tokens=40, stream=True))

    assert whole.choices[0].text == ANSWER
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert echoed.choices[0].text == prompt + ANSWER[:4]
    assert echoed.choices[0].finish_reason == "length"


def test_responses_say_the_same(client: openai.OpenAI, tuned: Tuned) -> None:
    asked: dict[str, Any] = {"model": tuned.name, "input": "Who are you?", "temperature": 0}

    whole = client.responses.create(**asked)
    events: list[Any] = list(client.responses.create(**asked, stream=True))

    assert whole.output_text == ANSWER
    assert whole.status == "completed"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ANSWER


def test_several_answers_differ_and_a_seed_repeats_them(
    client: openai.OpenAI, tuned: Tuned
) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model="tiny", messages=WHO, n=3, seed=seed, max_tokens=20
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    first = ask(1)

    assert len(set(first)) == 3
    assert ask(1) == first
    assert ask(2) != first
    same = greedy(client, tuned.name, WHO, n=4)
    assert [choice.message.content for choice in same.choices] == 4 * [ANSWER]


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI, tuned: Tuned) -> None:
    expected = tuned.reference.log_probs(WHO)

    answer = greedy(client, tuned.name, WHO, logprobs=True, top_logprobs=5)

    told = answer.choices[0].logprobs.content
    assert "".join(each.token for each in told) == ANSWER
    assert told[0].logprob == pytest.approx(float(expected.max()), abs=1e-3)
    assert [each.logprob for each in told[0].top_logprobs] == pytest.approx(
        expected.topk(5).values.tolist(), abs=1e-3
    )


def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI, tuned: Tuned) -> None:
    answer = greedy(client, tuned.name, WHO, stop=["red", "blue"])
    chunks = list(greedy(client, tuned.name, WHO, stop="red", stream=True))

    assert text_of(answer) == "I am "
    assert answer.choices[0].finish_reason == "stop"
    told = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(told) == "I am "


def test_an_answer_is_held_to_a_schema(client: openai.OpenAI, tuned: Tuned) -> None:
    schema = {"name": "thing", "schema": SCHEMA, "strict": True}

    answer = greedy(
        client,
        tuned.name,
        WHO,
        temperature=1,
        seed=3,
        response_format={"type": "json_schema", "json_schema": schema},
        max_completion_tokens=500,
    )

    thing = json.loads(text_of(answer))
    assert set(thing) == {"size", "is_red"}
    assert isinstance(thing["size"], int)
    assert isinstance(thing["is_red"], bool)
    assert answer.choices[0].finish_reason == "stop"


def test_a_model_that_was_taught_a_tool_calls_it(client: openai.OpenAI, tuned: Tuned) -> None:
    answer = greedy(client, tuned.name, LOOK, tools=[TOOL])
    with client.chat.completions.stream(
        model=tuned.name, messages=LOOK, tools=[TOOL], temperature=0
    ) as stream:
        streamed = stream.get_final_completion()

    for each in (answer, streamed):
        (call,) = each.choices[0].message.tool_calls or ()
        assert call.function.name == "look"
        assert json.loads(call.function.arguments) == {"a": 7}
        assert each.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content


def test_a_call_that_is_required_is_made(client: openai.OpenAI) -> None:
    answer = greedy(
        client, "tiny", LOOK, tools=[TOOL], tool_choice="required", max_completion_tokens=500
    )

    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert isinstance(json.loads(call.function.arguments)["a"], int)


def test_the_beginning_of_a_prompt_is_not_read_again(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "system", "content": 20 * "Be kind. "}, *WHO]

    first, again = (greedy(client, "tiny", long, max_completion_tokens=8) for _ in range(2))

    assert first.usage.prompt_tokens_details.cached_tokens < 100
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert text_of(again) == text_of(first)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="tiny", prompt=(WINDOW + 5) * "a")

    assert raised.value.code == "context_length_exceeded"
    assert str(WINDOW) in raised.value.message
    assert str(WINDOW + 5) in raised.value.message


def test_a_checkpoint_can_be_asked_while_its_job_trains(
    client: openai.OpenAI, service: AskedService, tuned: Tuned
) -> None:
    file_id = upload(client, rows_of("blue") + 60 * [chat_row("Where are you?", "Here.")])
    job = create_job(client, file_id, n_epochs=50, batch_size=1, checkpoint_steps=20)

    def find_checkpoint() -> Any:
        service.check()
        return client.fine_tuning.jobs.checkpoints.list(job.id).data

    name = wait_until(find_checkpoint, within_s=JOB_S)[-1].fine_tuned_model_checkpoint
    answer = greedy(client, name, WHO, max_completion_tokens=10)
    status = client.fine_tuning.jobs.retrieve(job.id).status
    client.fine_tuning.jobs.cancel(job.id)

    assert status == "running"
    assert answer.usage.completion_tokens > 0
    assert not answer.system_fingerprint.startswith((tuned.checksum, tuned.earlier_checksum))
    assert service.wait_for_end(client, job.id).status == "cancelled"
