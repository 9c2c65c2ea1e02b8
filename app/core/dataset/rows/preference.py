"""Reads preferences: two answers to the same prompt, in OpenAI's form or TRL's."""

from collections.abc import Mapping
from typing import Any

from app.core.dataset.formats import ChatExample, LineError, PreferenceExample, PromptExample
from app.core.dataset.rows.fields import is_list, is_object, read_string, together, unknown_fields
from app.core.dataset.rows.messages import Message, parse_messages, parse_tools

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
        return _parse_chats(row, "prompt", row, _TRL_ANSWERS)
    text = read_string(row, "prompt", may_be_empty=True)
    pairs = [PromptExample(text, read_string(row, key)) for key in _TRL_ANSWERS]
    return _check_pair(PreferenceExample(*pairs), _TRL_ANSWERS[1])


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
    return _parse_chats(source, "messages", row, (preferred, rejected), "input.")


def _parse_chats(
    source: Mapping[str, Any],
    prompt_key: str,
    row: Mapping[str, Any],
    answer_keys: tuple[str, str],
    path: str = "",
) -> PreferenceExample:
    """Two answers to a chat.

    Args:
        source: the object that has the prompt, under `prompt_key`, and its tools.
        prompt_key: the name of the list of messages that are answered.
        row: the object that has the answers.
        answer_keys: the names of the preferred answer and of the other one.
        path: where `source` is in the line, with a trailing dot.
    """
    prompt = [message for message, _ in parse_messages(source, prompt_key, path)]
    if prompt[-1]["role"] == "assistant":
        problem = "The prompt ends with an answer. Move it, or remove it."
        raise LineError("bad_role", problem, f"{path}{prompt_key}[{len(prompt) - 1}].role")
    tools = parse_tools(source, path)
    preferred, non_preferred = (
        ChatExample([*prompt, _parse_answer(row, key)], [False] * len(prompt) + [True], tools)
        for key in answer_keys
    )
    return _check_pair(PreferenceExample(preferred, non_preferred), answer_keys[1])


def _parse_answer(row: Mapping[str, Any], key: str) -> Message:
    answer = parse_messages(row, key)
    message, is_learned = answer[0]
    if len(answer) != 1 or message["role"] != "assistant":
        problem = f"{key!r} must have one assistant message. Move what precedes it to the prompt."
        raise LineError("bad_role", problem, key)
    if not is_learned:
        problem = "An answer of a preference cannot have the weight 0. Remove it."
        raise LineError("bad_weight", problem, f"{key}[0].weight")
    return message


def _check_pair(example: PreferenceExample, key: str) -> PreferenceExample:
    """The example, if it says which answer is better."""
    if example.preferred == example.non_preferred:
        problem = "Both answers are the same, so there is nothing to prefer. Remove the example."
        raise LineError("equal_answers", problem, key)
    return example
