"""How a model reads a micro-batch: by the plain code of its libraries, or by ours, which is faster.

Either rates the learned tokens; a loss is any function of these ratings.
"""

from typing import Any, Protocol

from peft import PeftModel

from worker.training.data.batching import MicroBatch
from worker.training.model.cross_entropy import (
    TokenScores,
    learned_targets,
    score_by_head,
    score_logits,
)
from worker.training.model.dropout import DropoutKey
from worker.training.randomness import seed_torch

PLAIN_HEADS = frozenset({"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Architectures (`config.model_type`) whose logits are the last hidden state times the output
embedding and nothing else: no scale, no soft cap, no bias. A test holds each to that."""


class Forward(Protocol):
    """Rates the learned tokens of micro-batches."""

    model: PeftModel

    def score(self, batch: MicroBatch, dropout: DropoutKey | None) -> TokenScores:
        """Read a micro-batch and rate each of its learned tokens, given those before it.

        Args:
            batch: rows of tokens.
            dropout: names what is zeroed while training; None to evaluate.
        """
        ...


class ReferenceForward:
    """What `transformers` and `peft` do. Works for every architecture.

    What is dropped depends on how a batch is cut into micro-batches.

    Args:
        model: of any architecture.
        is_checkpointing: whether each layer is computed a second time for its backward pass.
    """

    def __init__(self, model: PeftModel, *, is_checkpointing: bool = False) -> None:
        self.model = model
        if is_checkpointing:
            base: Any = model.get_base_model()
            base.activation_checkpointing_enable({"use_reentrant": False})

    def score(self, batch: MicroBatch, dropout: DropoutKey | None) -> TokenScores:
        batch = batch.to(self.model.device)
        self.model.train(dropout is not None)
        if dropout is not None:
            seed_torch(dropout.seed, dropout.step, batch.examples[0])
        base: Any = self.model.get_base_model()
        is_learned_BL, targets_N = learned_targets(batch)
        if base.config.model_type not in PLAIN_HEADS:
            logits_BLV = base(input_ids=batch.input_ids_BL, use_cache=False).logits
            return score_logits(logits_BLV[:, :-1][is_learned_BL].float(), targets_N)
        hidden_BLH = base.base_model(
            input_ids=batch.input_ids_BL, use_cache=False
        ).last_hidden_state
        head_VH = base.get_output_embeddings().weight
        return score_by_head(hidden_BLH[:, :-1][is_learned_BL], head_VH, targets_N)
