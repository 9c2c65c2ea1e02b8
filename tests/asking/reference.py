"""What `transformers` and `peft` answer with a base model and a downloaded adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from tests.sampled_models import load_reference


class Reference:
    """A model as its users load it elsewhere.

    Args:
        base: directory of the base model.
        adapter: directory of the adapter, if there is one.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self._model = load_reference(base, adapter)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)

    def chat(self, messages: Sequence[Any], *, max_tokens: int) -> str:
        """The greedy answer."""
        prompt = self._encode(messages)
        tokens = self._model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=0,
        )
        return self._tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)

    def log_probs(self, messages: Sequence[Any]) -> Tensor:
        """Log-probabilities of the first token of the answer."""
        with torch.no_grad():
            logits = self._model(input_ids=torch.tensor([self._encode(messages)])).logits
        return logits[0, -1].float().log_softmax(-1)

    def _encode(self, messages: Sequence[Any]) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and what it and its base model answer elsewhere."""

    name: str
    checksum: str
    earlier_checksum: str
    """That of its first checkpoint."""
    reference: Reference
    earlier: Reference
    base: Reference
