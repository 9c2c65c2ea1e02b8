"""Finds tool calls in the text of an answer, as it comes."""

from io import StringIO

from worker.sampling.decoding.calls.forms import CallForm
from worker.sampling.decoding.calls.values import Tools
from worker.sampling.decoding.text.stop_texts import overlap
from worker.sampling.decoding.text.told import Told


class CallReader:
    """Takes the calls out of the text of one answer. What is malformed stays text.

    White space between the text and a call, and between calls, belongs to the form.

    Each piece is looked at once, however long the text is that is held back with it: a model can
    write white space, or a call without an end, for as long as it likes.
    """

    def __init__(self, form: CallForm, tools: Tools) -> None:
        self._form = form
        self._tools = tools
        self._passed = StringIO()  # held back: white space, or the beginning of a call
        self._rest = ""  # held back, too: what follows, where the next mark may begin
        self._is_in_call = False
        self._has_text = False
        self._has_calls = False

    @property
    def held(self) -> int:
        """Number of characters that are not told yet."""
        return self._passed.tell() + len(self._rest)

    def add(self, text: str) -> Told:
        """What can be told once this piece is there."""
        self._rest += text
        told = Told()
        while True:
            step = self._finish_call() if self._is_in_call else self._find_call()
            if step is None:
                return told
            told += step

    def end(self) -> Told:
        """What was held back, now that nothing follows."""
        held = self._take(len(self._rest))
        if self._is_in_call and self._form.closing is None:
            return self._read(held)
        if self._has_calls and not self._is_in_call:
            held = held.rstrip()
        return Told(held)

    def _find_call(self) -> Told | None:
        """What comes before the next call; None if nothing more can be told."""
        start = self._rest.find(self._form.opening)
        if self._form.is_bare and (self._has_text or self._rest[: max(0, start)].strip()):
            start = -1  # only a whole answer is a call
        self._is_in_call = start >= 0
        certain = start if self._is_in_call else len(self._rest) - self._uncertain()
        is_text = self._form.is_bare and self._has_text
        end = certain if is_text else len(self._rest[:certain].rstrip())
        told = self._take(end) if end or is_text else ""
        self._pass(certain - end + (len(self._form.opening) if self._is_in_call else 0))
        self._has_text |= bool(told)
        return Told(told) if told or self._is_in_call else None

    def _uncertain(self) -> int:
        """Number of characters at the end that a call may begin with."""
        return 0 if self._form.is_bare else overlap(self._rest, self._form.opening)

    def _finish_call(self) -> Told | None:
        """The call that is begun; None if it is not whole yet."""
        closing = self._form.closing
        if closing is None:
            self._pass(len(self._rest))
            return None
        end = self._rest.find(closing)
        if end < 0:
            self._pass(len(self._rest) - overlap(self._rest, closing))
            return None
        self._is_in_call = False
        return self._read(self._take(end + len(closing)))

    def _pass(self, length: int) -> None:
        """Keep the beginning of the rest, in which no mark begins any more."""
        self._passed.write(self._rest[:length])
        self._rest = self._rest[length:]

    def _take(self, length: int) -> str:
        """What was passed, with the beginning of the rest."""
        self._pass(length)
        taken = self._passed.getvalue()
        self._passed = StringIO()
        return taken

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
