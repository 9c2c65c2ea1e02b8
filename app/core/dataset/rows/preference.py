"""Reads preferences: two answers to the same prompt, in OpenAI's form or TRL's."""

from collections.abc import Mapping
from typing import Any

from app.core.dataset.formats import ChatExample, LineError, PreferenceExample, PromptExample
from app.core.dataset.rows.fields import is_list, is_object, read_string, together, unknown_fields
from app.core.dataset.rows.messages import ParsedMessage, parse_messages, parse_tools

_TRL_ANSWERS = ("chosen", "rejected")
OPENAI_ANSWERS = (
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)
ANSWER_FIELDS = frozenset({*_TRL_ANSWERS, *OPENAI_ANSWERS[0], *OPENAI_ANSWERS[1]})
PREFERENCE_FIELDS = ANSWER_FIELDS | {"prompt", "input"}


def parse_preference(row: Mapping[str, Any]) -> PreferenceExample:
    """The preference of a row that has at least one of `ANSWER_FIELDS`.

    Raises:
        LineError: the row is malformed, or mixes two forms.
    """
    for preferred, rejected in OPENAI_ANSWERS:
        if preferred in row or rejected in row:
            _refuse_other_forms(row, {"input", preferred, rejected})
            return _parse_openai(row, preferred, rejected)
    _refuse_other_forms(row, {"prompt", *_TRL_ANSWERS})
    if any(is_list(row.get(key)) for key in ("prompt", *_TRL_ANSWERS)):
        prompt = parse_messages(row, "prompt")
        answers = [_answer(prompt, parse_messages(row, key), None) for key in _TRL_ANSWERS]
        return PreferenceExample(*answers)
    text = read_string(row, "prompt", may_be_empty=True)
    pairs = [PromptExample(text, read_string(row, key)) for key in _TRL_ANSWERS]
    return PreferenceExample(*pairs)


def _refuse_other_forms(row: Mapping[str, Any], fields: set[str]) -> None:
    errors = unknown_fields(
        {name: row[name] for name in row.keys() & PREFERENCE_FIELDS},
        fields,
        f"a preference with {', '.join(repr(name) for name in sorted(fields))}",
    )
    if errors:
        raise together(errors)


def _parse_openai(row: Mapping[str, Any], preferred: str, rejected: str) -> PreferenceExample:
    source = row.get("input")
    if not is_object(source):
        problem = "'input' must be an object that has the prompt in 'messages'."
        raise LineError("wrong_type" if source is not None else "missing_field", problem, "input")
    known = {"messages", "tools", "parallel_tool_calls"}
    errors = unknown_fields(source, known, "'input'", "input.")
    if errors:
        raise together(errors)
    prompt = parse_messages(source, "messages", "input.")
    if prompt[-1][0]["role"] == "assistant":
        problem = "The prompt ends with an answer. Move it, or remove it."
        raise LineError("bad_role", problem, f"input.messages[{len(prompt) - 1}].role")
    tools = parse_tools(source, "input.")
    answers: list[ChatExample] = []
    for key in (preferred, rejected):
        answer = parse_messages(row, key)
        if len(answer) != 1 or answer[0][0]["role"] != "assistant":
            raise LineError("bad_role", f"{key!r} must have one assistant message.", key)
        answers.append(_answer(prompt, answer, tools))
    return PreferenceExample(*answers)


def _answer(
    prompt: list[ParsedMessage], answer: list[ParsedMessage], tools: list[dict[str, Any]] | None
) -> ChatExample:
    messages = [message for message, _ in (*prompt, *answer)]
    is_learned = [False] * len(prompt) + [learned for _, learned in answer]
    return ChatExample(messages, is_learned, tools)
