"""What is read in one step: the sequences of all requests that are answered.

Dimension key:
    V  vocabulary
"""

from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field

from worker.sampling.decoding.choice import Choice
from worker.sampling.decoding.decoder import Prepared
from worker.sampling.model.prefixes import PrefixOwner
from worker.sampling.model.runner import Cache, Row
from worker.sampling.serving.requests import Request
from worker.sampling.serving.shelf import LoadedAdapter, LoadedModel


@dataclass(eq=False, slots=True)
class Running:
    """A request that is being answered."""

    request: Request
    model: LoadedModel
    adapter: LoadedAdapter | None
    prepared: Prepared
    sequences: list["Sequence"] = field(default_factory=list["Sequence"])

    @property
    def owner(self) -> PrefixOwner:
        ask = self.request.ask
        adapter = ask.adapter
        # The configuration counts too: it scales the weights.
        identity = f"{adapter.weights_sha256} {adapter.config_sha256}" if adapter else None
        return PrefixOwner(ask.project_id, ask.base_model_sha256, identity)


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens of one answer with its prompt; of the prompt alone until it is read."""

    running: Running
    cache: Cache
    tokens: list[int]
    """All that it has read or is to read."""
    choice: Choice | None
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
