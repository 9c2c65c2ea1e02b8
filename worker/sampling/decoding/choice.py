"""One answer in the making: chooses its tokens, and tells its text."""

from typing import Protocol

from torch import Tensor

from app.core.sampling.messages import Delta, Finished


class Choice(Protocol):
    """One of the answers to a request."""

    def take(self, logits_V: Tensor) -> tuple[int | None, list[Delta | Finished]]:
        """Choose the next token.

        Args:
            logits_V: float32, of the token that follows all that was read.

        Returns:
            The token that must be read next, None if the answer is complete, and what there is to
            tell now: text is held back while it may be the beginning of a stop text, of a tool call
            or of a character.

        Raises:
            RefusedError: the answer cannot go on.
        """
        ...
