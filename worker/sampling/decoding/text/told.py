"""What can be told of an answer."""

from dataclasses import dataclass

from app.core.sampling.messages import ToolCall


@dataclass(frozen=True, slots=True)
class Told:
    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: "Told") -> "Told":
        return Told(self.text + other.text, self.calls + other.calls)
