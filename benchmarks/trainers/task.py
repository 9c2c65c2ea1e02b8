"""What a trainer is told, and what it answers: both are JSON, since each runs in a process."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_TOKENS = 512
"""Of one example; the rest of a longer one is cut off, as in the reference script. Data of long
rows have more."""
LORA: dict[str, Any] = {
    "r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
}
LEARNING_RATE = 2e-4

TEXTS_NAME = "texts.jsonl"
"""Rows of `text`: the conversations as the chat template of the model renders them."""
PAIRS_NAME = "pairs.jsonl"
"""Rows of `prompt` and `completion`, or of `prompt`, `chosen` and `rejected`: lists of messages."""
CHATS_NAME = "chats.jsonl"
"""Rows of `messages`, or preferences in OpenAI's form."""
VALIDATION_NAME = "validation.jsonl"
"""The same, of other examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training run. Paths are absolute."""

    model: str
    data: str
    """Directory with the same examples in the form that each trainer reads."""
    scratch: str
    """Directory for whatever a trainer writes; empty."""
    threads: int
    seed: int
    batch_size: int
    """Examples of an optimizer step."""
    max_tokens: int = MAX_TOKENS
    steps: int | None = None
    """Optimizer steps; None for three epochs."""
    is_dpo: bool = False
    """Whether the examples are pairs."""
    lora_layers: int | None = None
    """Number of the last layers that get an adapter, in trainers that can; None for all."""
    variant: str = ""
    """Which of the configurations that a trainer has."""
    adapter: str = ""
    """Directory of a trained adapter, where that is what the task is about."""
    validate: bool = False

    @property
    def model_dir(self) -> Path:
        return Path(self.model)

    @property
    def data_dir(self) -> Path:
        return Path(self.data)

    @property
    def scratch_dir(self) -> Path:
        return Path(self.scratch)


@dataclass(frozen=True, slots=True)
class Tick:
    """The end of an optimizer step."""

    at_s: float
    """On a clock that runs while the trainer trains."""
    tokens: int
    """Real tokens read so far: those of the examples once they are cut, never padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a trainer did."""

    ticks: list[Tick]
    wall_s: float = 0.0
    """From the start of its process to its end."""
    peak_bytes: int = 0
    """Most memory that its process had at once."""
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """What only this trainer has to say."""

    def tokens_per_second(self, warm_up_steps: int) -> float:
        """Real tokens per second of the training loop, less its first steps."""
        first, last = self.ticks[warm_up_steps - 1], self.ticks[-1]
        return (last.tokens - first.tokens) / (last.at_s - first.at_s)

    def tokens(self, warm_up_steps: int) -> int:
        return self.ticks[-1].tokens - self.ticks[warm_up_steps - 1].tokens

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_run(content: dict[str, Any]) -> Run:
    return Run(**(content | {"ticks": [Tick(**tick) for tick in content["ticks"]]}))
