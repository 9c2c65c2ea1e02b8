"""Hidden states of all tokens of a dataset between two layers, kept on the disk.

Below the first adapter nothing is trained and nothing is dropped. So the state of a token there
depends only on the tokens of its row up to it, and is the same in every step.

Dimension key:
    T  tokens, laid end to end
    H  hidden width
"""

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worker.training.data.beginnings import Segment


class KeptStates:
    """A file of the states of a dataset, row after row. The states of each row are written once.

    The file has no name, so the system deletes it when the process ends, however it ends. It is
    read and not mapped: pages that are mapped would count as memory of the process, and an error of
    the disk would kill it.
    """

    def __init__(
        self,
        directory: Path,
        lengths: np.ndarray,
        *,
        width: int,
        dtype: torch.dtype,
        spare_bytes: int = 0,
    ) -> None:
        """Make the file, with all the room that it needs.

        Args:
            directory: where the file is made.
            lengths: tokens of each row.
            width: numbers of each state.
            dtype: their type.
            spare_bytes: space that must stay free on the disk.

        Raises:
            OSError: `ENOSPC` or `EDQUOT`. There is not enough space.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        self._starts = ends - lengths
        self._width, self._dtype = width, dtype
        self._token_bytes = width * dtype.itemsize
        size = int(ends[-1]) * self._token_bytes
        self._file, name = tempfile.mkstemp(dir=directory)
        weakref.finalize(self, os.close, self._file)
        Path(name).unlink()
        if shutil.disk_usage(directory).free < size + spare_bytes:
            raise OSError(errno.ENOSPC, f"outputs of layers take {size / 1e6:,.1f} MB")
        os.posix_fallocate(self._file, 0, size)

    def write(self, rows: Sequence[int], places: Sequence[np.ndarray], states_TH: Tensor) -> None:
        """Write the states of rows.

        Args:
            rows: index of each row in the dataset.
            places: for each row, the index of each of its tokens in `states_TH`.
            states_TH: states of these tokens.

        Raises:
            OSError: the disk failed.
        """
        numbers_TH = _as_bytes(states_TH)
        for row, tokens in zip(rows, places, strict=True):
            written = os.pwrite(self._file, numbers_TH[tokens].data, self._offset(row))
            _check(written, len(tokens) * self._token_bytes)

    def read(self, rows: Sequence[int], segments: Sequence[Segment]) -> Tensor:
        """The states of segments of rows, laid end to end.

        Args:
            rows: index of each row in the dataset.
            segments: tokens of these rows.

        Raises:
            OSError: the disk failed.
        """
        tokens = sum(len(one.tokens) for one in segments)
        states_TH = torch.empty((tokens, self._width), dtype=self._dtype)
        numbers_TH = _as_bytes(states_TH)
        for one in segments:
            first = int(one.tokens[0])
            into = numbers_TH[first : first + len(one.tokens)]
            found = os.preadv(self._file, [into.data], self._offset(rows[one.row], one.start))
            _check(found, into.nbytes)
        return states_TH

    def _offset(self, row: int, token: int = 0) -> int:
        return (int(self._starts[row]) + token) * self._token_bytes


def _as_bytes(states_TH: Tensor) -> np.ndarray:
    return states_TH.view(torch.uint8).numpy()


def _check(moved: int, expected: int) -> None:
    if moved != expected:
        raise OSError(errno.EIO, f"{moved} of {expected} bytes of the outputs of a layer")
