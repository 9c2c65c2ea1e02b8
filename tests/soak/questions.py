"""Everything that the models of a service are asked during a soak."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.asking.service import pack
from tests.soak.client import Answers, Client
from tests.soak.repeated import Act, Repeated

LONGEST_PROMPT = 1500
"""In characters, of which each is a token of the tiny model."""

CHATS = "/chat/completions"
FIELDS = ("name", "size", "colour", "weight", "age")


class Questions:
    """Asks the models of one project, each thing at its own rate, while the block runs.

    Args:
        base_url: that of the service.
        key: a key of the project, with every scope.
        models: names of its models.
        adapter: directory of an adapter to import.
        seed: decides what is asked.
    """

    def __init__(
        self, base_url: str, key: str, models: Sequence[str], adapter: Path, *, seed: int
    ) -> None:
        self.answers = Answers()
        self._models = models
        self._archive = pack(adapter)
        self._chance = random.Random(seed)  # noqa: S311 - nothing secret
        every_s: dict[Act, float] = {
            self._chat: 0.2,
            self._stream: 0.3,
            self._complete: 0.5,
            self._respond: 0.5,
            self._hold_to_schema: 1.0,
            self._leave: 0.5,
            self._ask_badly: 0.5,
            self._import: 5.0,
        }
        self._repeated = Repeated(
            every_s, lambda: Client(base_url, key, self.answers), self.answers
        )

    def __enter__(self) -> None:
        self._repeated.__enter__()

    def __exit__(self, *_: object) -> None:
        self._repeated.__exit__()

    def _chat(self, client: Client) -> None:
        options = self._chance.choice(
            [
                {"temperature": 0},
                {"n": 3, "seed": self._chance.randrange(99)},
                {"logprobs": True, "top_logprobs": 5},
                {"stop": ["e", "z"], "frequency_penalty": 1},
            ]
        )
        client.ask("POST", CHATS, json=self._question() | options)

    def _stream(self, client: Client) -> None:
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        client.ask("POST", CHATS, json=self._question() | usage)

    def _complete(self, client: Client) -> None:
        body = {"model": self._model(), "prompt": self._text(), "max_tokens": 8, "logprobs": 2}
        body["stream"] = self._chance.random() < 0.5
        client.ask("POST", "/completions", json=body)

    def _respond(self, client: Client) -> None:
        body = {"model": self._model(), "input": self._text(), "max_output_tokens": 8}
        body["stream"] = self._chance.random() < 0.5
        client.ask("POST", "/responses", json=body)

    def _hold_to_schema(self, client: Client) -> None:
        names = self._chance.sample(FIELDS, 2)
        kinds = ("integer", "boolean")
        schema = {
            "type": "object",
            "properties": {name: {"type": self._chance.choice(kinds)} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        client.ask("POST", CHATS, json=self._question() | {"response_format": form})

    def _leave(self, client: Client) -> None:
        """Close the connection in the middle of an answer."""
        body = self._question() | {"max_tokens": 2000, "stream": True, "n": 2}
        client.read_some(CHATS, method="POST", json=body, expect=(200,))

    def _ask_badly(self, client: Client) -> None:
        bad = self._chance.choice(
            [
                {"model": "ft:tiny:nobody::1"},
                {"max_tokens": 0},
                {"messages": [{"role": "user", "content": 20_000 * "a"}]},
                {"tools": [{"type": "function"}]},
                {"audio": {}},
            ]
        )
        client.ask("POST", CHATS, json=self._question() | bad, expect=(400, 404))

    def _import(self, client: Client) -> None:
        """Import an adapter, ask it, and delete it."""
        files = {"file": ("adapter.zip", self._archive)}
        model = client.ask("POST", "/models", files=files, data={"base_model": "tiny"}).get("id")
        if model is not None:
            client.ask("POST", CHATS, json=self._question() | {"model": model})
            client.ask("DELETE", f"/models/{model}")

    def _question(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": self._text()}]
        return {"model": self._model(), "messages": messages, "max_tokens": 16}

    def _model(self) -> str:
        return self._chance.choice(self._models)

    def _text(self) -> str:
        """A text that often begins as earlier ones have begun."""
        beginning = f"Text {self._chance.randrange(20)}. "
        return beginning * self._chance.randint(1, LONGEST_PROMPT // len(beginning))
