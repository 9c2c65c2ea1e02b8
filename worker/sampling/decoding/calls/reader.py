"""Finds tool calls in the text of an answer, as it comes."""

from worker.sampling.decoding.calls.forms import CallForm
from worker.sampling.decoding.calls.values import Tools
from worker.sampling.decoding.text.stop_texts import overlap
from worker.sampling.decoding.text.told import Told


class CallReader:
    """Takes the calls out of the text of one answer. What is malformed stays text.

    White space between the text and a call, and between calls, belongs to the form.
    """

    def __init__(self, form: CallForm, tools: Tools) -> None:
        self._form = form
        self._tools = tools
        self._held = ""
        self._is_in_call = False
        self._has_text = False
        self._has_calls = False

    @property
    def held(self) -> int:
        """Number of characters that are not told yet."""
        return len(self._held)

    def add(self, text: str) -> Told:
        """What can be told once this piece is there."""
        self._held += text
        told = Told()
        while True:
            step = self._finish_call() if self._is_in_call else self._find_call()
            if step is None:
                return told
            told += step

    def end(self) -> Told:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._is_in_call and self._form.closing is None:
            return self._read(held, held)
        if self._has_calls and not self._is_in_call:
            held = held.rstrip()
        return Told(held)

    def _find_call(self) -> Told | None:
        """What comes before the next call; None if there may be one that is not whole yet."""
        start = self._held.find(self._form.opening)
        if self._form.is_bare and (self._has_text or self._held[:start].strip() or start < 0):
            start = -1
        self._is_in_call = start >= 0
        end = start if self._is_in_call else len(self._held) - self._uncertain()
        before, self._held = self._held[:end], self._held[end:]
        if self._is_in_call:
            before = before.rstrip()
        self._has_text |= bool(before)
        return Told(before) if before or self._is_in_call else None

    def _uncertain(self) -> int:
        """Number of characters at the end that may belong to a call."""
        if self._form.is_bare:
            return 0 if self._has_text or self._held.strip() else len(self._held)
        mark = overlap(self._held, self._form.opening)
        text = self._held[: len(self._held) - mark]
        return mark + len(text) - len(text.rstrip())

    def _finish_call(self) -> Told | None:
        """The call that is begun; None if it is not whole yet."""
        closing = self._form.closing
        end = self._held.find(closing, len(self._form.opening)) if closing else -1
        if closing is None or end < 0:
            return None
        whole, self._held = self._held[: end + len(closing)], self._held[end + len(closing) :]
        self._is_in_call = False
        return self._read(whole, whole.removesuffix(closing))

    def _read(self, whole: str, call: str) -> Told:
        body = call if self._form.is_bare else call.removeprefix(self._form.opening)
        try:
            calls = self._form.read(body, self._tools)
        except (ValueError, RecursionError):
            self._has_text = True
            return Told(whole)
        self._has_calls = True
        return Told(calls=tuple(calls))
