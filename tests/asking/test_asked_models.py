"""The stock client, strict about every answer, tunes a model and asks it and its base model.

Nothing stands in for anything: API, worker and sampler are processes of their own.
"""

from typing import Any

import openai
import pytest

from tests.asking.questions import ANSWER, EARLIER, WHO, greedy, text_of
from tests.asking.reference import Tuned
from tests.asking.service import JOB_S, WINDOW, AskedService, create_job, rows_of, upload
from tests.tiny import chat_row
from tests.waiting import wait_until


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
    others = 1200 * [chat_row("Where are you?", "Here.")]  # it trains until it is cancelled
    file_id = upload(client, rows_of("blue") + others)
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
