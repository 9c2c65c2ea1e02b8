"""The HTTP protocol that answers repeated polls before they are parsed."""

import asyncio
from typing import Any, ClassVar

from app.api.http_protocol import BoundedHttpProtocol
from app.api.polls.pauses import Pauses
from app.api.polls.repeats import REQUEST_BYTES, Repeats


def repeating(base: type[BoundedHttpProtocol], repeats: Repeats) -> type[BoundedHttpProtocol]:
    """The protocol `base`, with these repeats."""
    members = {"repeats": repeats, "pauses": Pauses()}
    return type("ConfiguredRepeatingProtocol", (_RepeatingProtocol, base), members)


class _RepeatingProtocol(BoundedHttpProtocol):
    repeats: ClassVar[Repeats]
    pauses: ClassVar[Pauses]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun = 0
        self._ended = 0
        """Requests whose first byte, and whose last byte, has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.pauses.note_other_work(self.loop.time())
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        is_fresh = self.is_waiting and not self.has_begun and not self.flow.write_paused
        if is_fresh:
            answer = self.repeats.answer(data, self.server_state.default_headers)
            if answer is not None:
                self._send(answer)
                return
        self.pauses.note_other_work(self.loop.time())
        begun, ended = self._begun, self._ended
        super().data_received(data)
        is_one_request = (self._begun - begun, self._ended - ended) == (1, 1)
        if is_fresh and is_one_request and self._stays_open:
            self.cycle.scope.setdefault("state", {})[REQUEST_BYTES] = data

    def on_message_begin(self) -> None:
        self._begun += 1
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._ended += 1
        super().on_message_complete()

    @property
    def _stays_open(self) -> bool:
        """Whether the connection is as before after the request that has just arrived."""
        if self.transport.is_closing() or self.parser is None:
            return False
        return self.cycle.keep_alive and not self.parser.should_upgrade()

    def _send(self, answer: bytes) -> None:
        """Send an answer, and wait for the next request as after every other."""
        self.expect_next_request()
        self.transport.write(answer)
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
        self.pauses.after_poll(id(self), self.tasks, self.loop.time())

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless a poll has come since the time-out was set.

        To set it again takes longer than to look a poll's answer up.
        """
        left_s = self.message_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._keep_alive_for(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )
