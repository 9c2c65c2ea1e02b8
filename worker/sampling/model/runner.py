"""What runs a base model with adapters, as those see it that decide what is read next.

Dimension key:
    B  rows of a batch
    V  vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from worker.sampling.model.adapter_files import AdapterFiles


class Adapter(Protocol):
    """An adapter in memory, of the base model of one runner."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        ...


class Cache(Protocol):
    """Keys and values of the tokens that one sequence has read, in order."""

    @property
    def length(self) -> int:
        """Number of tokens that were read."""
        ...

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        ...

    def fork(self, length: int) -> "Cache":
        """A cache of its own that has read the same first `length` tokens.

        It has read none if the architecture's states cannot be cut there, so look at its own
        `length`. All that was read can always be forked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence in a batch."""

    cache: Cache
    """What it has read before. Reading appends to it."""
    tokens: Sequence[int]
    """What it reads now, at least one."""
    adapter: Adapter | None
    """None for the base model as it is."""


class Runner(Protocol):
    """A base model in memory."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def window(self) -> int:
        """Maximum number of tokens of a sequence."""
        ...

    @property
    def bytes(self) -> int:
        """Memory that the weights take."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Memory of a cache for each token."""
        ...

    def new_cache(self) -> Cache: ...

    def load_adapter(self, files: AdapterFiles) -> Adapter:
        """Load an adapter of this base model.

        Raises:
            DamagedAdapterError: the files are not those that were asked for, or do not fit.
            UnsupportedAdapterError: the adapter has a form that the sampler does not know.
        """
        ...

    def read(self, rows: Sequence[Row]) -> Tensor:
        """Read the tokens of all rows in one batch.

        Besides the caches, it takes memory for each token of the batch: read a long prompt in
        pieces. After an error, the caches of the rows must not be used any more.

        Returns:
            `logits_BV`, float32: for each row, those of the token that follows its last one.
        """
        ...
