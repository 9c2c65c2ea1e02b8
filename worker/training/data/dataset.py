"""A dataset on disk as tokens: tokenized once, memory-mapped, read row by row.

Memory holds a few numbers for each row and no tokens, so a dataset may be larger than memory. It is
two files of little-endian 32-bit integers. `NAME.tokens` has all tokens one after the other; one
that is not learned is stored as its bitwise complement, which is negative. `NAME.rows` has the
length of each row, how many of its tokens are learned, and its line in the user's file.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

IGNORE_INDEX = -100
"""Label of a token that is read but not learned: prompt and padding."""

_INT32 = np.dtype("<i4")
_NUMBERS_PER_ROW = 3


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    input_ids: np.ndarray
    labels: np.ndarray
    """The token itself where it is learned, otherwise `IGNORE_INDEX`. The first token is never
    learned, because nothing predicts it."""


class TokenizedData:
    """The rows of one file that are trained or evaluated on, each with a token to learn.

    Attributes:
        lengths: tokens of each row.
        learned: learned tokens of each row.
        lines: line of each row in the user's file, from 1.
        sha256: digest of all tokens, and of which of them are learned.
    """

    def __init__(self, directory: Path, name: str, *, sha256: str) -> None:
        """Open the two files of a dataset.

        Raises:
            OSError: a file is missing.
            ValueError: the files do not belong together.
        """
        rows = np.fromfile(_rows_path(directory, name), _INT32).reshape(-1, _NUMBERS_PER_ROW)
        self.lengths, self.learned, self.lines = (np.ascontiguousarray(row) for row in rows.T)
        self._tokens = np.asarray(np.memmap(_tokens_path(directory, name), _INT32, "r"))
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        if len(rows) == 0 or self._ends[-1] != len(self._tokens):
            raise ValueError(f"{name}: the rows do not have the tokens that are there")
        self.sha256 = sha256

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> TokenizedRow:
        end = self._ends[index]
        stored = self._tokens[end - self.lengths[index] : end]
        is_learned = stored >= 0
        return TokenizedRow(
            np.where(is_learned, stored, ~stored), np.where(is_learned, stored, IGNORE_INDEX)
        )


class TokenWriter:
    """Writes the two files of a dataset.

    Attributes:
        name: what the names of the files begin with.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._digest = hashlib.sha256()
        with ExitStack() as files:
            self._tokens = files.enter_context(_tokens_path(directory, name).open("wb"))
            self._rows = files.enter_context(_rows_path(directory, name).open("wb"))
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, input_ids: np.ndarray, is_learned: np.ndarray, *, line: int) -> None:
        """Add a row.

        Args:
            input_ids: its tokens, as 32-bit integers.
            is_learned: for each token, whether it is learned.
            line: its line in the user's file.
        """
        length, learned = len(input_ids), int(np.count_nonzero(is_learned))
        self._tokens.write(np.where(is_learned, input_ids, ~input_ids).tobytes())
        self._rows.write(np.array((length, learned, line), _INT32).tobytes())
        # Every release has computed the digest from labels, and saved states have it.
        labels = np.where(is_learned, input_ids, IGNORE_INDEX)
        for part in (np.array(length, _INT32), input_ids, labels):
            self._digest.update(part.tobytes())

    @property
    def sha256(self) -> str:
        """Digest of all tokens so far, and of which of them are learned."""
        return self._digest.hexdigest()


def _tokens_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.tokens"


def _rows_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.rows"
