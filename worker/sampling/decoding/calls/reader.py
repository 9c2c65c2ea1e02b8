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
            return self._read(held)
        if self._has_calls and not self._is_in_call:
            held = held.rstrip()
        return Told(held)

    def _find_call(self) -> Told | None:
        """What comes before the next call; None if nothing more can be told."""
        start = self._held.find(self._form.opening)
        if self._form.is_bare and (self._has_text or self._held[: max(0, start)].strip()):
            start = -1  # only a whole answer is a call
        self._is_in_call = start >= 0
        certain = start if self._is_in_call else len(self._held) - self._uncertain()
        end = len(self._held[:certain].rstrip())
        if self._form.is_bare and self._has_text:
            end = certain
        told, self._held = self._held[:end], self._held[end:]
        self._has_text |= bool(told)
        return Told(told) if told or self._is_in_call else None

    def _uncertain(self) -> int:
        """Number of characters at the end that a call may begin with."""
        return 0 if self._form.is_bare else overlap(self._held, self._form.opening)

    def _finish_call(self) -> Told | None:
        """The call that is begun; None if it is not whole yet."""
        opening, closing = self._form.opening, self._form.closing
        if closing is None:
            return None
        end = self._held.find(closing, self._held.find(opening) + len(opening))
        if end < 0:
            return None
        whole, self._held = self._held[: end + len(closing)], self._held[end + len(closing) :]
        self._is_in_call = False
        return self._read(whole)

    def _read(self, written: str) -> Told:
        body = written.lstrip().removesuffix(self._form.closing or "")
        if not self._form.is_bare:
            body = body.removeprefix(self._form.opening)
        try:
            calls = self._form.read(body, self._tools)
        except (ValueError, RecursionError):
            self._has_text = True
            return Told(written)
        self._has_calls = True
        return Told(calls=tuple(calls))
