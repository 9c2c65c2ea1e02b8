"""Ends an answer where a stop text begins."""

from collections.abc import Sequence


class StopTexts:
    """Looks for stop texts in a text that comes in pieces.

    Attributes:
        held: what is not told yet, because a stop text may begin with it.
        is_found: whether a stop text was found. The text ends before it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self.held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """What can be told once this piece is there."""
        text = self.held + text
        beginnings = [text.find(stop) for stop in self._stops if stop in text]
        self.is_found = bool(beginnings)
        told = min(beginnings) if beginnings else len(text) - self._overlap(text)
        self.held = "" if self.is_found else text[told:]
        return text[:told]

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        told, self.held = self.held, ""
        return told

    def _overlap(self, text: str) -> int:
        return max((overlap(text, stop) for stop in self._stops), default=0)


def overlap(text: str, mark: str) -> int:
    """Number of characters at the end of a text that `mark` begins with, but fewer than all."""
    start = max(0, len(text) - len(mark) + 1)
    while (start := text.find(mark[0], start)) >= 0:
        if mark.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
