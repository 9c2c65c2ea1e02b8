"""Estimates what a job takes, or each job of a sweep, from a sample of its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import BinaryIO

import numpy as np

from app.core.dataset.formats import LineError
from app.core.dataset.reading import read_examples
from app.core.dataset.tokenizing.messages import (
    EstimateRequest,
    Refused,
    SampledEstimate,
    SampledEstimates,
)
from app.core.job.training_config import TrainingConfig
from app.core.machine.memory import PLENTY
from worker.training.compute.hardware import Machine, read_or_measure
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.counted_rows import Rows
from worker.training.data.cutting import cut_example, group_rows
from worker.training.data.encoding import Encoded, Encoder
from worker.training.data.stop_tokens import StopTokens
from worker.training.data.tokenizer import load_tokenizer
from worker.training.estimate import estimate as estimate_job
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import ModelShape

_SAMPLED_ROWS = 500
_SAMPLING_S = 6.0
"""Time after which no more rows of a file are read. The rows read so far are the sample then. Jobs
whose tokens differ share this time."""

_PARAMS = ("training_file", "validation_file")


def estimate(request: EstimateRequest, sources: Sequence[BinaryIO]) -> SampledEstimates | Refused:
    """Count the tokens of some rows of each file, and estimate every job from them."""
    try:
        return SampledEstimates(jobs=tuple(_Estimator(request, sources).estimate_all()))
    except TrainingFailedError as error:
        return Refused(code=error.code, message=str(error), param=error.param)


class _Estimator:
    def __init__(self, request: EstimateRequest, sources: Sequence[BinaryIO]) -> None:
        self._request = request
        self._sources = sources
        self._tokenizer = load_tokenizer(request.base_model)
        self._stops = StopTokens.read(request.base_model, self._tokenizer)

    def estimate_all(self) -> Iterator[SampledEstimate]:
        request = self._request
        configs = (request.config, *request.others)
        keys = {config.data_key for config in configs}
        samples: dict[str, list[_Sample]] = {}
        # No GPU can be seen from here, nor its memory.
        is_on_gpu = request.compute.device == "cuda"
        machine = Machine(
            speeds=read_or_measure(request.machine_cache),
            threads=request.threads,
            total_bytes=PLENTY.total if is_on_gpu else request.memory_bytes,
            has_gpu=is_on_gpu,
        )
        for config in configs:
            if config.data_key not in samples:
                samples[config.data_key] = self._sample(config, within_s=_SAMPLING_S / len(keys))
            taken = samples[config.data_key]
            training, *validation = (sample.stand_for_all() for sample in taken)
            estimated = estimate_job(
                ModelShape.read(request.base_model),
                config,
                training,
                validation[0] if validation else None,
                asked=request.compute,
                machine=machine,
                jobs=len(configs),
            )
            yield SampledEstimate(estimate=estimated, sampled_rows=taken[0].rows)

    def _sample(self, config: TrainingConfig, *, within_s: float) -> list["_Sample"]:
        """A sample of each file, as tokens of a job with these hyperparameters."""
        encoder = Encoder.for_job(config, self._tokenizer, self._stops)
        files = zip(self._sources, self._request.rows, _PARAMS, strict=False)
        return [
            _Sample.take(source, rows, encoder, config, param, within_s=within_s)
            for source, rows, param in files
        ]


@dataclass(slots=True)
class _Sample:
    """What a file's rows become, counted over some of them."""

    all_rows: int
    config: TrainingConfig
    param: str
    """Field of the request that names the file."""
    rows: int = 0
    tokens: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """Tokens of each example."""
    learned_tokens: int = 0

    @classmethod
    def take(
        cls,
        source: BinaryIO,
        rows: int,
        encoder: Encoder,
        config: TrainingConfig,
        param: str,
        *,
        within_s: float,
    ) -> "_Sample":
        """Count the tokens of rows that are chosen by the seed of the job.

        Args:
            source: the file.
            rows: number of its rows.
            encoder: makes tokens of them.
            config: hyperparameters of the job.
            param: as in the attributes.
            within_s: seconds after which no more rows are read.

        Raises:
            TrainingFailedError: a job on such rows would fail.
        """
        sample = cls(rows, config, param)
        chosen = np.random.default_rng(config.seed).permutation(rows)[:_SAMPLED_ROWS] + 1
        until = monotonic() + within_s
        source.seek(0)
        try:
            for line, example in read_examples(source, only=set(chosen.tolist())):
                try:
                    encoded = encoder.encode(example)
                except ChatTemplateError as error:
                    message = f"Line {line} does not fit this base model: {error}."
                    raise TrainingFailedError(error.code, message, param=param) from error
                for together in group_rows(example, encoded):
                    sample._count(line, together)
                sample.rows += 1
                if monotonic() > until:
                    break
        except LineError as error:
            raise TrainingFailedError(error.code, str(error), param=param) from error
        return sample

    def stand_for_all(self) -> Rows:
        """The examples of the whole file, if its other rows are like these.

        Raises:
            TrainingFailedError: none of them is trained on.
        """
        if not self.tokens:
            raise TrainingFailedError(
                "no_trainable_tokens",
                f"None of the {self.rows:,} rows that were looked at has a token to learn within "
                f"{self.config.max_sequence_tokens:,} tokens. Raise context_length, or shorten "
                "the prompts.",
                param=self.param,
            )
        return Rows(
            lengths=np.array([len(row) for row in self.tokens]),
            count=round(self.all_rows * len(self.tokens) / self.rows),
            learned_tokens=self.learned_tokens,
            read=self.tokens.__getitem__,
        )

    def _count(self, line: int, rows: Sequence[Encoded]) -> None:
        limit = self.config.max_sequence_tokens
        kept = cut_example(rows, max_tokens=limit, overlong=self.config.overlong_row_behavior)
        if kept[0].outcome == "too_long":
            longest = max(len(row.input_ids) for row in rows)
            raise TrainingFailedError(
                "row_too_long",
                f"Line {line} has {longest:,} tokens; the limit is {limit:,}. "
                "Shorten it, raise context_length, or set overlong_row_behavior to truncate or "
                "drop.",
                param=self.param,
            )
        for row in kept:
            if row.outcome in ("kept", "truncated"):
                self.tokens.append(np.array(row.input_ids, np.int32))
                self.learned_tokens += sum(row.is_learned)
