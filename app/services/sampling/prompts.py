"""What a request for completions means to the sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.core.dataset.formats import LineError
from app.core.dataset.rows.fields import is_list, is_object
from app.core.dataset.rows.messages import parse_history
from app.core.errors import InvalidRequestError
from app.core.sampling.messages import (
    Ask,
    ChatPrompt,
    SamplingParameters,
    TextForm,
    TextPrompt,
)
from app.schemas.sampling.chat import ChatCompletionCreate
from app.schemas.sampling.completions import DEFAULT_MAX_TOKENS, CompletionCreate
from app.schemas.sampling.fields import UNSUPPORTED
from app.schemas.sampling.responses import ResponseCreate
from app.services.sampling.models import SamplingModel

_CODES = {
    "missing_field": "missing_required_parameter",
    "unknown_field": "unknown_parameter",
    "unsupported_content": "unsupported_content",
}
"""Codes for problems of a message, by those for a line of a file."""

_ITEM_FIELDS = frozenset({"type", "id", "role", "content", "status", "phase"})
_TEXT_PARTS = ("input_text", "output_text")
_IGNORED_OF_PART = frozenset({"annotations", "logprobs"})


@dataclass(frozen=True, slots=True)
class Plan:
    """A request for the sampler, without what depends on the model."""

    prompt: ChatPrompt | TextPrompt
    parameters: SamplingParameters
    choices: int = 1
    echoes: bool = False
    forced_tool: str | None = None
    """Name of the function that each answer calls: its text is the arguments."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of parameters in the request, by the sampler's names for them, where they differ."""

    def ask(self, model: SamplingModel, directory: Path, project_id: str) -> Ask:
        """The request to a model, whose base model is in this absolute directory."""
        return Ask(
            project_id=project_id,
            base_model=directory,
            base_model_sha256=model.base_sha256,
            adapter=model.adapter and model.adapter.ref,
            prompt=self.prompt,
            choices=self.choices,
            parameters=self.parameters,
            echoes=self.echoes,
        )

    def rename(self, error: InvalidRequestError) -> InvalidRequestError:
        """An error of the sampler, with the name that its parameter has in the request."""
        name = self.names.get(error.param or "")
        if name is None:
            return error
        message = str(error).replace(f"the {error.param}", f"the {name}")
        return InvalidRequestError(message, code=error.code, param=name)


def plan_chat(body: ChatCompletionCreate) -> Plan:
    """Raises InvalidRequestError if a message, a tool or the choice of a tool is invalid."""
    forced = _forced_tool(body)
    form = body.response_format and body.response_format.form
    if forced is not None:
        if form is not None:
            raise InvalidRequestError(
                "'tool_choice' forces a call, so the answer has no format of its own. Leave "
                "'response_format' out.",
                param="response_format",
            )
        form = TextForm(json_schema=forced.get("parameters") or {"type": "object"})
    is_shown = body.tool_choice != "none"
    if is_shown and forced is None:
        _refuse_strict(body.given_tools)
    return Plan(
        ChatPrompt(
            messages=_parse_history({"messages": body.messages}, "messages"),
            tools=tuple(body.given_tools) if is_shown else (),
            tool_choice="forced" if forced is not None else "auto" if is_shown else "none",
        ),
        body.sampling_parameters(
            max_tokens=body.token_limit,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            form=form,
        ),
        choices=body.choices,
        forced_tool=None if forced is None else forced["name"],
        names={} if forced is None else {"response_format": "tools"},
    )


def plan_completion(body: CompletionCreate) -> Plan:
    prompt = body.prompt
    is_text = isinstance(prompt, str)
    return Plan(
        TextPrompt(text=prompt) if is_text else TextPrompt(tokens=tuple(prompt)),
        body.sampling_parameters(
            max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS, top_logprobs=body.logprobs
        ),
        choices=body.choices,
        echoes=bool(body.echo),
    )


def plan_response(body: ResponseCreate) -> Plan:
    """Raises InvalidRequestError if an item of the input is invalid."""
    items = body.input
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    messages = [_as_message(item, f"input[{index}]") for index, item in enumerate(items)]
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    given = {
        **body.drawing,
        "max_tokens": body.max_output_tokens,
        "top_logprobs": body.told_logprobs,
        "form": body.form,
    }
    return Plan(
        ChatPrompt(messages=(*system, *_parse_history({"input": messages}, "input"))),
        SamplingParameters.model_validate(
            {name: value for name, value in given.items() if value is not None}
        ),
        names={"messages": "input", "response_format": "text.format"},
    )


def _forced_tool(body: ChatCompletionCreate) -> dict[str, Any] | None:
    """The function that `tool_choice` forces the model to call."""
    functions = [tool["function"] for tool in body.given_tools]
    choice = body.tool_choice
    if choice in (None, "auto", "none"):
        return None
    if choice == "required":
        if len(functions) != 1:
            raise InvalidRequestError(
                "'required' is supported with exactly one tool. Name the function that has to be "
                'called, as in {"type": "function", "function": {"name": "..."}}, or use \'auto\'.',
                param="tool_choice",
            )
        return functions[0]
    name = choice["function"]["name"]
    named = next((each for each in functions if each["name"] == name), None)
    if named is None:
        raise InvalidRequestError(
            f"'tools' has no function {name[:64]!r}, which 'tool_choice' names.",
            param="tool_choice",
        )
    return named


def _refuse_strict(tools: Sequence[dict[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        if tool["function"].get("strict"):
            path = f"tools[{index}].function.strict"
            raise InvalidRequestError(
                f"'{path}': Only a call that 'tool_choice' forces is held to the schema of its "
                "parameters. Force the call, or leave 'strict' out.",
                code=UNSUPPORTED,
                param=path,
            )


def _as_message(item: dict[str, Any], path: str) -> dict[str, Any]:
    """A message of the input of a response, in the form of chat completions."""
    if item.get("type", "message") != "message" or not item.keys() <= _ITEM_FIELDS:
        raise InvalidRequestError(
            f"'{path}' is not a message of text, and nothing else is supported here. Give messages "
            'such as {"role": "user", "content": "..."}.',
            code="unsupported_content",
            param=path,
        )
    content = item.get("content")
    if is_list(content):
        content = [_as_part(part) for part in content]
    return {"role": item.get("role"), "content": content}


def _as_part(part: Any) -> Any:
    if is_object(part) and part.get("type") in _TEXT_PARTS:
        kept = {name: value for name, value in part.items() if name not in _IGNORED_OF_PART}
        return kept | {"type": "text"}
    return part


def _parse_history(fields: Mapping[str, Any], key: str) -> tuple[dict[str, Any], ...]:
    """The messages in the form of chat templates."""
    try:
        return tuple(parse_history(fields, key))
    except LineError as error:
        raise InvalidRequestError(
            f"'{error.path}': {error}",
            code=_CODES.get(error.code, "invalid_value"),
            param=error.path,
        ) from error
