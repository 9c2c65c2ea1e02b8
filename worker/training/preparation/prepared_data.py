"""The data of a job as tokens, opened for training, and the index that says what they are."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from app.core.job.artifacts import NUMERICS_VERSION, TOKENS_INDEX_NAME
from app.core.job.child.job_spec import JobSpec
from app.core.job.data_report import FileParam
from app.core.job.frozen import Frozen
from app.core.manifest import ManifestError, verify
from worker.training.data.dataset import TokenizedData
from worker.training.data.encoding import today_of
from worker.training.data.split import split_rows
from worker.training.data.stop_tokens import StopTokens

logger = logging.getLogger(__name__)


class TokensIndex(Frozen):
    """`tokens.json`, next to the tokens."""

    inputs: dict[str, Any]
    """All that the tokens depend on."""
    ends: tuple[str, ...]
    """Texts that end what the training file teaches."""
    sha256: dict[FileParam, str]
    """Digest of each dataset."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        return cls.model_validate_json((directory / TOKENS_INDEX_NAME).read_bytes())

    def write(self, directory: Path) -> None:
        (directory / TOKENS_INDEX_NAME).write_text(self.model_dump_json() + "\n", "utf-8")


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What a job trains and evaluates on."""

    training: TokenizedData
    validation: TokenizedData | None
    stop_tokens: StopTokens
    is_held_out: bool
    """Whether the validation data is a part of the training file."""

    @property
    def held_out(self) -> TokenizedData | None:
        """The part of the training file that is evaluated on instead. None if there is none."""
        return self.validation if self.is_held_out else None

    @property
    def datasets(self) -> list[TokenizedData]:
        """The data to train on, then that to evaluate on, if there is any."""
        return [self.training] if self.validation is None else [self.training, self.validation]

    @property
    def sha256(self) -> str:
        """Digest of all tokens, and of which of them are learned."""
        parts = [data.sha256 for data in self.datasets]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def open_data(
    directory: Path, index: TokensIndex, spec: JobSpec, stop_tokens: StopTokens
) -> PreparedData:
    """Open the tokens in a directory.

    Without a validation file, `validation_split` may take rows of the training file in its place.

    Args:
        directory: of the tokens.
        index: what the tokens are.
        spec: the job.
        stop_tokens: where the job's model has to stop.

    Raises:
        TrainingFailedError: `too_few_examples`, when `validation_split` leaves no row to train on.
        OSError: a file is missing.
        ValueError: a file is damaged.
    """

    def load(name: FileParam) -> TokenizedData:
        return TokenizedData(directory, name, sha256=index.sha256[name])

    training, fraction = load("training_file"), spec.config.validation_split
    if spec.validation_file is not None:
        return PreparedData(training, load("validation_file"), stop_tokens, is_held_out=False)
    if fraction is None:
        return PreparedData(training, None, stop_tokens, is_held_out=False)
    training, held_out = split_rows(training, fraction=fraction, seed=spec.config.seed)
    return PreparedData(training, held_out, stop_tokens, is_held_out=True)


def find_checked_tokens(directory: Path, spec: JobSpec) -> TokensIndex | None:
    """The index of the tokens in a directory, if they are whole and those of this job."""
    if not directory.is_dir():
        return None
    try:
        verify(directory)
        index = TokensIndex.read(directory)
    except (ManifestError, OSError, ValueError) as error:
        logger.warning("the tokens of the check cannot be used: %s", error)
        return None
    return index if index.inputs == describe_inputs(spec) else None


def describe_inputs(spec: JobSpec) -> dict[str, Any]:
    """All that the tokens of a job depend on."""
    config = spec.config
    return {
        "numerics": NUMERICS_VERSION,
        "base_model": spec.base_model.sha256,
        "training_file": spec.training_file.sha256,
        "validation_file": spec.validation_file and spec.validation_file.sha256,
        "max_sequence_tokens": config.max_sequence_tokens,
        "overlong_row_behavior": config.overlong_row_behavior,
        "learned_part": config.learned_part,
        "template_date": today_of(config).isoformat(),
    } | ({} if config.dpo is None else {"method": "dpo"})
