"""Answers from the request to the last message, of a model that writes what a test dictates."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.sampling.messages import (
    MAX_ANSWER_BYTES,
    Ask,
    ChatPrompt,
    ChosenLogProb,
    Delta,
    Finished,
    SamplingParameters,
    TextForm,
    TextPrompt,
)
from tests.chat_families import build_tokenizer as build_family_tokenizer
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, build_tokenizer, write_tiny_model
from worker.sampling.decoding.choice import Choice
from worker.sampling.decoding.decoder import Decoder
from worker.sampling.decoding.refusals import RefusedError
from worker.training.data.tokenizer import load_tokenizer

STOP = 258
CHAT = ChatPrompt(messages=({"role": "user", "content": "Q"},))


def load_decoder(directory: Path) -> Decoder:
    return Decoder(directory, load_tokenizer(directory), window=512, vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(directory)
    return directory


@pytest.fixture(scope="module")
def decoder(model_dir: Path) -> Decoder:
    return load_decoder(model_dir)


def ask(
    prompt: ChatPrompt | TextPrompt = CHAT, *, choices: int = 1, echoes: bool = False, **more: Any
) -> Ask:
    return Ask(
        project_id="proj-1",
        base_model=Path("/models/tiny"),
        base_model_sha256="b" * 64,
        prompt=prompt,
        choices=choices,
        echoes=echoes,
        parameters=SamplingParameters(**{"temperature": 0, **more}),
    )


def dictate(choice: Choice, tokens: Iterable[int], *, vocabulary: int = VOCABULARY) -> list[Any]:
    """Let a choice take logits that have each of these tokens as the most likely one."""
    messages: list[Any] = []
    for token in tokens:
        logits = torch.zeros(vocabulary)
        logits[token] = 9
        following, told = choice.take(logits)
        messages += told
        is_finished = any(isinstance(message, Finished) for message in told)
        assert (following is None) == is_finished
        if is_finished:
            break
        assert following == token
    return messages


def encode(text: str) -> list[int]:
    return build_tokenizer().encode(text)


def text_of(messages: Sequence[Any]) -> str:
    return "".join(message.text for message in messages if isinstance(message, Delta))


def only(decoder: Decoder, request: Ask) -> Choice:
    (choice,) = decoder.prepare(request).choices
    return choice


def test_an_answer_is_told_as_it_comes_and_ends_with_its_stop_token(decoder: Decoder) -> None:
    messages = dictate(only(decoder, ask()), [*encode("Hé!"), STOP, 0])

    assert messages == [
        Delta(choice=0, text="H"),
        Delta(choice=0, text="é"),
        Delta(choice=0, text="!"),
        Finished(choice=0, reason="stop", tokens=5),
    ]


def test_every_stop_token_of_the_base_model_ends_an_answer(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [258, 256]}')
    decoder = load_decoder(tmp_path / "m")

    for prompt in (CHAT, TextPrompt(text="x")):
        assert dictate(only(decoder, ask(prompt)), [256])[-1].reason == "stop"


def test_an_answer_ends_where_training_taught_it_to_end(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>")
    write_tiny_model(tmp_path / "m", chat_template=template)
    decoder = load_decoder(tmp_path / "m")

    chat = dictate(only(decoder, ask()), [256])
    text = dictate(only(decoder, ask(TextPrompt(text="x"))), [256])

    assert chat == [Finished(choice=0, reason="stop", tokens=1)]
    assert text == []


def test_max_tokens_and_the_window_end_an_answer(decoder: Decoder) -> None:
    short = dictate(only(decoder, ask(max_tokens=3)), encode("Hello"))
    prompt = TextPrompt(tokens=(1,) * 510)
    last = dictate(only(decoder, ask(prompt, max_tokens=99)), encode("Hello"))

    assert text_of(short) == "Hel"
    assert short[-1] == Finished(choice=0, reason="length", tokens=3)
    assert text_of(last) == "He"
    assert last[-1].reason == "length"


def test_a_stop_text_is_not_told(decoder: Decoder) -> None:
    messages = dictate(only(decoder, ask(stop=("END",))), encode("so EN ENDs"))

    assert text_of(messages) == "so EN "
    assert messages[-1] == Finished(choice=0, reason="stop", tokens=9)


def test_what_is_held_back_is_told_at_the_end(decoder: Decoder) -> None:
    messages = dictate(only(decoder, ask(stop=("END",))), [*encode("so EN"), STOP])

    assert text_of(messages) == "so EN"
    assert text_of(dictate(only(decoder, ask(max_tokens=2)), encode("🦊"))) == "\ufffd"


def logprobs_of(messages: Sequence[Any]) -> list[ChosenLogProb]:
    return [p for message in messages if isinstance(message, Delta) for p in message.logprobs]


def test_log_probabilities_are_those_before_anything_is_changed(decoder: Decoder) -> None:
    biased = ask(
        top_logprobs=2, logit_bias={STOP: -100}, frequency_penalty=2, temperature=1.7, max_tokens=2
    )
    logits = torch.linspace(-3, 3, VOCABULARY)
    token = encode("A")[0]
    logits[token] = 30  # so much that no other is drawn

    _, (delta,) = only(decoder, biased).take(logits)

    expected = logits.log_softmax(0)
    (found,) = delta.logprobs
    assert (found.token, found.text_bytes) == ("A", (65,))
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-4)
    assert [top.logprob for top in found.top] == pytest.approx(
        expected.topk(2).values.tolist(), abs=1e-4
    )
    assert [top.token for top in found.top][1] == "<|im_end|>"


def test_log_probabilities_come_with_the_text_of_their_tokens(decoder: Decoder) -> None:
    messages = dictate(only(decoder, ask(top_logprobs=0, stop=("END",))), encode("é EN ENDs"))

    assert [p.token for p in logprobs_of(messages)] == ["\ufffd", "\ufffd", *" EN "]
    assert bytes(b for p in logprobs_of(messages) for b in p.text_bytes).decode() == "é EN "
    assert all(
        bytes(byte for p in m.logprobs for byte in p.text_bytes).decode() == m.text
        for m in messages
        if isinstance(m, Delta)
    )


@pytest.mark.parametrize(
    ("stop", "told", "tokens"),
    [("END", "xab", ["x", "abEND"]), ("abE", "x", ["x"]), ("xabE", "", [])],
)
def test_a_token_that_a_stop_text_cuts_has_its_log_probability(
    tmp_path: Path, stop: str, told: str, tokens: list[str]
) -> None:
    write_tiny_model(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["abEND"])
    tokenizer.save_pretrained(tmp_path)
    vocabulary = len(tokenizer)
    tokenizer = load_tokenizer(tmp_path)
    decoder = Decoder(tmp_path, tokenizer, window=512, vocabulary=vocabulary)
    request = ask(top_logprobs=0, stop=(stop,))

    messages = dictate(only(decoder, request), tokenizer.encode("xabEND"), vocabulary=vocabulary)

    assert text_of(messages) == told
    assert [p.token for p in logprobs_of(messages)] == tokens
    assert messages[-1] == Finished(choice=0, reason="stop", tokens=2)


def test_log_probabilities_of_text_that_was_held_back_fit_into_messages(tmp_path: Path) -> None:
    decoder, tokenizer = family_decoder(tmp_path, "llama3_1")
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    prompt = ChatPrompt(messages=CHAT.messages, tools=(tool,))
    tokens = tokenizer.encode('{"name"' + " a" * 1000, add_special_tokens=False)
    request = ask(prompt, top_logprobs=20, max_tokens=len(tokens))

    messages = dictate(only(decoder, request), tokens, vocabulary=len(tokenizer))

    assert len(logprobs_of(messages)) == len(tokens)
    assert max(len(message.model_dump_json()) for message in messages) < MAX_ANSWER_BYTES


def test_what_cannot_be_chosen_has_the_smallest_log_probability(decoder: Decoder) -> None:
    logits = torch.full((VOCABULARY,), float("-inf"))
    logits[70] = 0.0

    _, (delta,) = only(decoder, ask(top_logprobs=2)).take(logits)

    assert [top.logprob for top in delta.logprobs[0].top] == [0.0, -9999.0]


def test_an_echo_comes_first(decoder: Decoder) -> None:
    spoken = TextPrompt(text="Once ")
    given = TextPrompt(tokens=tuple(encode("Once ")))

    for prompt in (spoken, given):
        messages = dictate(only(decoder, ask(prompt, echoes=True)), [*encode("upon"), STOP])
        assert text_of(messages) == "Once upon"
    assert text_of(dictate(only(decoder, ask(spoken, echoes=True)), [STOP])) == "Once "


def test_answers_to_one_request_are_their_own(decoder: Decoder) -> None:
    prepared = decoder.prepare(ask(choices=3, temperature=1, seed=11))
    logits = torch.zeros(VOCABULARY)
    told = [[choice.take(logits)[0] for _ in range(8)] for choice in prepared.choices]

    again = decoder.prepare(ask(choices=3, temperature=1, seed=11))

    assert len({tuple(tokens) for tokens in told}) == 3
    assert told == [[c.take(logits)[0] for _ in range(8)] for c in again.choices]


def test_logits_are_not_changed(decoder: Decoder) -> None:
    logits = torch.linspace(-1, 1, VOCABULARY)
    before = logits.clone()

    only(decoder, ask(logit_bias={0: 5}, temperature=1, top_p=0.5, form=TextForm())).take(logits)

    assert torch.equal(logits, before)


def test_an_answer_in_json_ends_when_it_is_complete(decoder: Decoder) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    choice = only(decoder, ask(form=TextForm(json_schema=schema)))

    messages = dictate(choice, encode('{"ok":true}Sure!'))

    assert text_of(messages) == '{"ok":true}'
    assert messages[-1].reason == "stop"


def test_calls_are_told_whole_and_end_the_answer(tmp_path: Path) -> None:
    decoder, tokenizer = family_decoder(tmp_path, "qwen2_5")
    tool = {
        "type": "function",
        "function": {"name": "find", "description": "x", "parameters": {"type": "object"}},
    }
    prompt = ChatPrompt(messages=CHAT.messages, tools=(tool,))
    text = 'Let me see.\n<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'
    tokens = tokenizer.encode(f"{text}<|im_end|>", add_special_tokens=False)
    request = ask(prompt, top_logprobs=0)

    messages = dictate(only(decoder, request), tokens, vocabulary=len(tokenizer))

    assert text_of(messages) == "Let me see."
    assert "".join(p.token for p in logprobs_of(messages)) == "Let me see."
    calls = [call for m in messages if isinstance(m, Delta) for call in m.tool_calls]
    assert [(call.name, call.arguments) for call in calls] == [("find", '{"x": 1}')]
    assert messages[-1].reason == "tool_calls"


def test_without_tools_a_call_is_text(tmp_path: Path) -> None:
    decoder, tokenizer = family_decoder(tmp_path, "llama3_1")
    text = '{"name": "find", "parameters": {}}'
    tokens = tokenizer.encode(f"{text}<|eot_id|>", add_special_tokens=False)

    messages = dictate(only(decoder, ask()), tokens, vocabulary=len(tokenizer))

    assert text_of(messages) == text
    assert messages[-1].reason == "stop"


def family_decoder(directory: Path, family: str) -> tuple[Decoder, Any]:
    write_tiny_model(directory / "m")
    tokenizer = build_family_tokenizer(family)
    tokenizer.save_pretrained(directory / "m")
    decoder = Decoder(
        directory / "m", load_tokenizer(directory / "m"), window=4096, vocabulary=len(tokenizer)
    )
    return decoder, tokenizer


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask(logit_bias={VOCABULARY: 1.0}), "logit_bias"),
        (ask(TextPrompt(text="x"), echoes=True, top_logprobs=1), "echo"),
        (
            ask(ChatPrompt(messages=CHAT.messages, tools=({},)), form=TextForm()),
            "response_format",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(
    decoder: Decoder, request_: Ask, param: str
) -> None:
    with pytest.raises(RefusedError) as raised:
        decoder.prepare(request_)

    answer = raised.value.answer
    assert (answer.status, answer.code, answer.param) == (400, "invalid_value", param)
