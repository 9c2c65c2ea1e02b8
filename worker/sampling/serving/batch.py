"""What is read in one step: the sequences of all requests that are answered.

Dimension key:
    V  vocabulary
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field

from app.core.clock import steady_s
from app.core.sampling.messages import Accepted
from worker.sampling.decoding.choice import Choice
from worker.sampling.decoding.decoder import Prepared
from worker.sampling.model.prefixes import PrefixOwner
from worker.sampling.model.runner import Cache, Row
from worker.sampling.serving.requests import Request
from worker.sampling.serving.shelf import LoadedAdapter, LoadedModel

PIECE = 32
"""Prompt tokens of a request with a seed that are read at once. Each such request is read without
others, so larger pieces of several prompts would hold up everybody."""

_FIRST_TOKENS = 64
"""Tokens of each answer for which there must be memory before it is begun."""


@dataclass(eq=False, slots=True)
class Running:
    """A request that is being answered."""

    request: Request
    model: LoadedModel
    adapter: LoadedAdapter | None
    prepared: Prepared
    prepared_s: float = field(default_factory=steady_s, init=False)
    """Time of the steady clock since which it can be answered."""
    sequences: list["Sequence"] = field(default_factory=list["Sequence"], init=False)
    cached_tokens: int = field(default=0, init=False)
    """Tokens at the beginning of the prompt that were read for an earlier request."""
    _is_accepted: bool = field(default=False, init=False)
    is_alone: bool = field(init=False)
    """Whether it is read without others: because it has a seed, or because a step with it has
    failed."""

    def __post_init__(self) -> None:
        self.is_alone = self.repeats

    @property
    def repeats(self) -> bool:
        """Whether it has a seed, so that the same request must get the same answer again.

        How numbers are rounded depends on what is read together. So its prompt is read in pieces of
        `PIECE` tokens, and nothing with it.
        """
        return self.request.ask.parameters.seed is not None

    @property
    def owner(self) -> PrefixOwner:
        ask = self.request.ask
        adapter = ask.adapter
        # The configuration counts too: it scales the weights.
        identity = f"{adapter.weights_sha256} {adapter.config_sha256}" if adapter else None
        return PrefixOwner(ask.project_id, ask.base_model_sha256, identity, in_pieces=self.repeats)

    def shared(self, tokens: int) -> int:
        """How many of so many first tokens of its prompt are read alike for every such request."""
        return tokens - tokens % PIECE if self.repeats else tokens

    @property
    def bytes(self) -> int:
        """Memory of what it has read, at least that of its prompts and the first tokens."""
        choices = self.request.ask.choices
        first = choices * (len(self.prepared.prompt) + _FIRST_TOKENS)
        read = sum(sequence.cache.bytes for sequence in self.sequences)
        return max(read, first * self.model.runner.bytes_per_token)

    def accept(self) -> None:
        """Tell the client that it is answered, unless it knows that."""
        if not self._is_accepted:
            self._is_accepted = True
            prompt_tokens = len(self.prepared.prompt)
            self.request.tell(
                Accepted(prompt_tokens=prompt_tokens, cached_tokens=self.cached_tokens)
            )

    def read_again_alone(self) -> None:
        """Have it read from its first token on, without others."""
        self.is_alone = True
        for sequence in self.sequences:
            sequence.cache = self.model.runner.new_cache()


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens of one answer with its prompt; of the prompt alone until it is read."""

    running: Running
    cache: Cache
    tokens: list[int]
    """All that it has read or is to read."""
    choice: Choice | None = None
    """None while the prompt is read, once for all choices."""

    @property
    def pending(self) -> int:
        """Number of tokens that it is to read."""
        return len(self.tokens) - self.cache.length

    def row(self, count: int) -> Row:
        """What it reads next, at most so many tokens."""
        begin = self.cache.length
        adapter = self.running.adapter
        return Row(
            self.cache, self.tokens[begin : begin + count], adapter.adapter if adapter else None
        )

    def begin_answers(self) -> list["Sequence"]:
        """All answers to the prompt that was read: this one, and copies for the others."""
        first, *others = self.running.prepared.choices
        copies = [
            Sequence(self.running, self.cache.fork(self.cache.length), list(self.tokens), choice)
            for choice in others
        ]
        self.choice = first
        return [self, *copies]


Batch = list[tuple[Sequence, int]]
"""Sequences that are read together, with the number of tokens that each reads."""


def plan_step(requests: Iterable[Running], budget: int) -> list[Batch]:
    """The batches of the next step: one for each base model, and one for each that is alone.

    Args:
        requests: those that are answered.
        budget: as of `share_step`.
    """
    sequences = [sequence for running in requests for sequence in running.sequences]
    shares = share_step([sequence.pending for sequence in sequences], budget)
    batches = defaultdict[LoadedModel | Running, Batch](list)
    for sequence, share in zip(sequences, shares, strict=True):
        running = sequence.running
        if running.repeats:
            share = min(sequence.pending, PIECE)
        batches[running if running.is_alone else running.model].append((sequence, share))
    return list(batches.values())


def share_step(pending: AnySequence[int], budget: int) -> list[int]:
    """How many tokens each sequence reads in the next step.

    Each that has one token to read reads it, so that no answer stands still. The prompts share the
    budget equally, and get what the shorter ones leave.

    Args:
        pending: number of tokens that each is to read.
        budget: number of prompt tokens to read in the step. Each prompt reads at least one.
    """
    shares = [1] * len(pending)
    prompts = sorted(
        (index for index, count in enumerate(pending) if count > 1), key=pending.__getitem__
    )
    for done, index in enumerate(prompts):
        share = max(1, budget // (len(prompts) - done))
        shares[index] = min(pending[index], share)
        budget -= shares[index]
    return shares
