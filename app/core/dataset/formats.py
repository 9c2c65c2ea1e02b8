"""The formats of datasets, and the examples that their lines become.

Every line of a file is a JSON object, and all lines have the same format:

    {"text": "..."}                              the whole text is learned
    {"prompt": "...", "completion": "..."}       the completion is learned
    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}
                                                 every answer of the assistant is learned, unless
                                                 its "weight" is 0
    {"instruction": "...", "input": "...", "output": "..."}
                                                 the output is learned, as the answer in a chat
    {"conversations": [{"from": ..., "value": ...}, ...]}
                                                 as messages, in ShareGPT's words
    {"prompt": ..., "chosen": ..., "rejected": ...}
                                                 a preference, also in OpenAI's two spellings

Lines end with a line feed, with or without a carriage return; U+2028 and its like do not end a
line. A byte order mark at the start of the file and blank lines at its end are accepted.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MAX_PROBLEMS = 50
"""Number of problems after which the check of a file stops."""


class DatasetFormat(StrEnum):
    TEXT = "text"
    PROMPT_COMPLETION = "prompt_completion"
    MESSAGES = "messages"
    INSTRUCTION = "instruction"
    SHAREGPT = "sharegpt"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class TextExample:
    text: str


@dataclass(frozen=True, slots=True)
class PromptExample:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatExample:
    messages: list[dict[str, Any]]
    """Messages in the form that chat templates take: `role`, `content` (a string), ..."""

    is_learned: list[bool]
    """Whether each message is learned."""

    tools: list[dict[str, Any]] | None = None

    @property
    def uses_tools(self) -> bool:
        return self.tools is not None or any(
            message["role"] == "tool" or message.get("tool_calls") for message in self.messages
        )


Example = TextExample | PromptExample | ChatExample
"""An example of supervised training."""


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """Two answers to the same prompt."""

    preferred: PromptExample | ChatExample
    non_preferred: PromptExample | ChatExample


ParsedExample = Example | PreferenceExample


class LineError(ValueError):
    """First problem of a line. `others` has the remaining problems of the same line."""

    def __init__(self, code: str, message: str, path: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.path = path
        self.others: tuple[LineError, ...] = ()
