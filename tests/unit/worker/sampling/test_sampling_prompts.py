"""Prompts are what training has learned to answer, token for token."""

from datetime import date
from typing import Any

import pytest

from app.core.dataset.formats import ChatExample, PromptExample
from app.core.sampling.messages import ChatPrompt, TextPrompt
from tests.chat_families import CONVERSATIONS, FAMILIES, TODAY, build_encoder, build_tokenizer
from tests.tiny import CHAT_TEMPLATE, REWRITING_TEMPLATE
from tests.tiny import build_tokenizer as build_tiny_tokenizer
from worker.sampling.decoding.prompts import PromptWriter
from worker.sampling.decoding.refusals import RefusedError
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.encoding import Encoder
from worker.training.data.tokenizer import load_tokenizer

QUESTION = {"role": "user", "content": "How are you?"}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def writer(tokenizer: Any, *, window: int = 4096, **changes: Any) -> PromptWriter:
    settings = {"vocabulary": len(tokenizer), "today": lambda: TODAY, **changes}
    return PromptWriter(tokenizer, window=window, **settings)


def chat(*messages: dict[str, Any], **more: Any) -> ChatPrompt:
    return ChatPrompt(messages=messages, **more)


def refusal(prompts: PromptWriter, prompt: ChatPrompt | TextPrompt) -> tuple[str, str | None, str]:
    with pytest.raises(RefusedError) as raised:
        prompts.write(prompt)
    answer = raised.value.answer
    return answer.code, answer.param, answer.message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_and_its_answer_are_what_training_encodes(family: str) -> None:
    tokenizer = build_tokenizer(family)
    encoder, prompts = build_encoder(family, tokenizer), writer(tokenizer)
    for example in CONVERSATIONS.values():
        try:
            row = encoder.encode(example)[-1]
        except ChatTemplateError:
            continue

        prompt = prompts.write(chat(*example.messages[:-1], tools=tuple(example.tools or ())))

        is_learned = row.is_learned[len(prompt) :]
        end = len(is_learned) - is_learned[::-1].index(True)  # the template may write more
        assert prompt == row.input_ids[: len(prompt)]
        assert all(is_learned[:end])


def test_a_real_tokenizer_splits_the_prompt_as_training_does(embedded_model_dir: Any) -> None:
    tokenizer = load_tokenizer(embedded_model_dir)
    messages = [{"role": "system", "content": "Be brief."}, QUESTION]
    answer = {"role": "assistant", "content": "Fine, thanks: 3.14 naïve 狐狸!"}
    example = ChatExample([*messages, answer], [False, False, True])
    row = Encoder(tokenizer, today=TODAY).encode(example)[0]

    prompt = writer(tokenizer).write(chat(*messages))

    assert row.input_ids[: len(prompt)] == prompt
    assert row.is_learned.index(True) == len(prompt)


def test_a_text_is_split_as_in_rows_with_a_prompt(embedded_model_dir: Any) -> None:
    tokenizer = load_tokenizer(embedded_model_dir)
    row = Encoder(tokenizer, today=TODAY).encode(PromptExample("Capital of France:", " Paris"))[0]

    assert writer(tokenizer).write(TextPrompt(text="Capital of France:")) == row.input_ids[:-2]


def test_a_beginning_token_stays_and_an_end_token_does_not() -> None:
    tokenizer = build_tiny_tokenizer()
    plain = tokenizer.encode("ab", add_special_tokens=False)
    tokenizer.backend_tokenizer.post_processor = template_with_both_ends()

    assert tokenizer.encode("ab") == [256, *plain, 258]
    assert writer(tokenizer).write(TextPrompt(text="ab")) == [256, *plain]
    assert writer(tokenizer).write(TextPrompt(text="ab<|im_end|>"))[-1] == 258


def template_with_both_ends() -> Any:
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415

    return TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 256), ("<|im_end|>", 258)],
    )


def test_an_empty_prompt_begins_a_text() -> None:
    prompts = writer(build_tiny_tokenizer())

    assert prompts.write(TextPrompt()) == [256]
    assert prompts.write(TextPrompt(tokens=())) == [256]


def test_tokens_are_read_as_they_are() -> None:
    assert writer(build_tiny_tokenizer()).write(TextPrompt(tokens=(5, 258, 0))) == [5, 258, 0]


@pytest.mark.parametrize("token", [-1, 259])
def test_a_token_that_does_not_exist_is_refused(token: int) -> None:
    code, param, message = refusal(writer(build_tiny_tokenizer()), TextPrompt(tokens=(1, token)))

    assert (code, param) == ("invalid_value", "prompt")
    assert message == f"The model has no token {token}: tokens are 0 to 258."


def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers() -> None:
    prompts = writer(build_tiny_tokenizer(), window=50)
    longest = TextPrompt(text="x" * 49)

    assert len(prompts.write(longest)) == 49
    code, param, message = refusal(prompts, TextPrompt(text="x" * 50))
    assert (code, param) == ("context_length_exceeded", "prompt")
    assert "50 tokens" in message
    assert message.startswith("This model's maximum context length is 50 tokens.")
    assert refusal(prompts, chat(QUESTION | {"content": "x" * 99}))[:2] == (
        "context_length_exceeded",
        "messages",
    )


def test_templates_see_the_day_of_the_request() -> None:
    days = iter([date(2026, 1, 31), date(2026, 2, 1), date(2026, 2, 1)])
    tokenizer = build_tiny_tokenizer(REWRITING_TEMPLATE)
    prompts = writer(tokenizer, today=lambda: next(days))

    texts = [tokenizer.decode(prompts.write(chat(QUESTION)))[:10] for _ in range(3)]

    assert texts == ["2026-01-31", "2026-02-01", "2026-02-01"]


def test_what_the_template_refuses_is_refused_with_its_reason() -> None:
    template = "{{ raise_exception('No system role') }}" + CHAT_TEMPLATE

    code, param, message = refusal(writer(build_tiny_tokenizer(template)), chat(QUESTION))

    assert (code, param) == ("chat_template_unsupported", "messages")
    assert "No system role" in message


def test_messages_for_a_model_without_a_template_are_refused() -> None:
    assert refusal(writer(build_tiny_tokenizer(None)), chat(QUESTION))[:2] == (
        "no_chat_template",
        "model",
    )


def test_tools_that_the_template_leaves_out_are_refused() -> None:
    prompts = writer(build_tiny_tokenizer())
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}

    assert refusal(prompts, chat(QUESTION, tools=(TOOL,)))[:2] == ("tools_not_supported", "tools")
    assert refusal(prompts, chat(QUESTION, called))[:2] == ("tools_not_supported", "messages")


def test_a_forced_call_needs_no_place_in_the_template() -> None:
    prompts = writer(build_tiny_tokenizer())

    forced = prompts.write(chat(QUESTION, tools=(TOOL,), tool_choice="forced"))

    assert forced == prompts.write(chat(QUESTION))


def test_half_a_surrogate_pair_in_a_call_is_refused() -> None:
    function = {"name": "find", "arguments": '{"x": "\\ud800"}'}
    call = {"id": "call00001", "type": "function", "function": function}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}

    code, param, _ = refusal(writer(build_tokenizer("qwen2_5")), chat(QUESTION, called))

    assert (code, param) == ("invalid_value", "messages")
