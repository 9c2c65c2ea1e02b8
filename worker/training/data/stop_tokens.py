"""The tokens that stop a model: where the base model stops, and what a job teaches it to write."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from app.core.job.artifacts import GENERATION_CONFIG_NAME
from app.core.job.data_report import DataWarning


@dataclass(frozen=True, slots=True)
class StopTokens:
    """Tokens at which an inference server stops a model."""

    generation_config: dict[str, Any]
    """The base model's own settings for generation; empty if it has none."""
    base: dict[int, str]
    """Tokens at which the base model stops, by their ids."""
    taught: dict[str, int | None]
    """Texts that end the examples of the job, with their ids; None for what is not one token."""

    @classmethod
    def read(cls, base_model: Path, tokenizer: PreTrainedTokenizerBase) -> "StopTokens":
        """Read where the base model in this directory stops."""
        path = base_model / GENERATION_CONFIG_NAME
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        ids = config.get("eos_token_id")
        ids = [*([ids] if isinstance(ids, int) else ids or []), tokenizer.eos_token_id]
        return cls(config, {id_: _text(tokenizer, id_) for id_ in cast("list[int]", ids)}, {})

    @property
    def are_known(self) -> bool:
        """Whether the base model says itself where it stops, not only its tokenizer."""
        return self.generation_config.get("eos_token_id") is not None

    def teaching(self, ends: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> "StopTokens":
        """The stop tokens of a model that learns examples with these ends."""
        taught: dict[str, int | None] = {}
        for end in sorted(ends):
            ids = tokenizer.encode(end, add_special_tokens=False)
            taught[end] = ids[0] if len(ids) == 1 else None
        return StopTokens(self.generation_config, self.base, taught)

    def warnings(self) -> list[DataWarning]:
        """A warning for each end at which the base model does not stop."""
        known = ", ".join(self.base.values())
        return [
            DataWarning(
                code="stop_token_unknown",
                param=None,
                count=1,
                message=f"The answers end with {end}, and the base model stops at {known}. To keep "
                f"a served model from running on, have the inference server stop at {end}, too: "
                f"{GENERATION_CONFIG_NAME} in the checkpoint names "
                f"{'the tokens' if id_ is not None else 'only the tokens of the base model'}.",
            )
            for end, id_ in self.taught.items()
            if id_ not in self.base
        ]

    def as_generation_config(self) -> str:
        """The base model's settings for generation, with every stop token, as JSON."""
        ids = [*self.base, *(id_ for id_ in self.taught.values() if id_ is not None)]
        config = self.generation_config | {"eos_token_id": list(dict.fromkeys(ids))}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))
