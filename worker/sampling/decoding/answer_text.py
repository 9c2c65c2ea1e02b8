"""The text of an answer, told as soon as nothing that follows can change it."""

from collections.abc import Sequence

from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.text.stop_texts import StopTexts
from worker.sampling.decoding.text.token_text import Detokenizer
from worker.sampling.decoding.text.told import Told


class AnswerText:
    """Makes text and tool calls of the tokens of one answer."""

    def __init__(
        self, detokenizer: Detokenizer, *, stops: Sequence[str], calls: CallReader | None = None
    ) -> None:
        """Begin an answer.

        Args:
            detokenizer: makes text of its tokens.
            stops: texts that end it.
            calls: finds tool calls in it; None if nobody looks for any.
        """
        self._detokenizer = detokenizer
        self._stops = StopTexts(stops)
        self._calls = calls
        self._passed = 0
        self._written = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text ended the answer. Then all of it was told."""
        return self._stops.is_found

    @property
    def complete(self) -> int:
        """Number of characters that the model has written to their end."""
        return self._written

    @property
    def written(self) -> int:
        """Number of characters that the model has written or begun."""
        return self._written + self._detokenizer.is_within_character

    @property
    def told(self) -> int:
        """Number of characters that were told, as text or as calls."""
        return self._passed - (self._calls.held if self._calls else 0)

    def add(self, token: int) -> Told:
        """What can be told once the token is there."""
        told = self._pass(self._write(self._detokenizer.add(token)))
        return told + self._end_calls() if self.is_stopped else told

    def end(self) -> Told:
        """What was held back, now that nothing follows."""
        text = self._write(self._detokenizer.end())
        if not self.is_stopped:
            text += self._stops.end()
        return self._pass(text) + self._end_calls()

    def _write(self, text: str) -> str:
        self._written += len(text)
        return self._stops.add(text)

    def _pass(self, text: str) -> Told:
        self._passed += len(text)
        return self._calls.add(text) if self._calls else Told(text)

    def _end_calls(self) -> Told:
        return self._calls.end() if self._calls else Told()
