"""A base model and its adapter, loaded to answer prompts."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from app.core.job.child.job_spec import BASE_MODEL_NAME, MACHINE_CACHE_NAME, JobSpec
from app.core.job.scores.report import AnswerPair
from app.core.manifest import sha256_of
from app.core.sampling.messages import Ask, SamplingParameters
from worker.sampling.decoding.decoder import Decoder
from worker.sampling.model.adapter_files import AdapterFiles
from worker.sampling.model.loading import load_runner
from worker.sampling.model.runner import Adapter, Runner
from worker.scoring.answering import Draft
from worker.scoring.questions import Question
from worker.training.compute.hardware import read_or_measure
from worker.training.compute.memory import require_free_memory
from worker.training.compute.plan import choose_placement
from worker.training.data.encoding import today_of
from worker.training.model.base_model import ModelShape

MAX_ANSWER_TOKENS = 512
"""Maximum length of an answer, in tokens."""

_MORE_TOKENS = 16
"""Tokens that an answer may have beyond twice the length of its reference."""

_UNCOMPARED_TOKENS = 256
"""Maximum length of an answer without a reference, in tokens."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of both models to a question, in the making."""

    question: Question
    base: Draft
    tuned: Draft

    @property
    def is_finished(self) -> bool:
        return self.base.is_finished and self.tuned.is_finished

    @property
    def reference(self) -> str:
        """The reference answer. Empty if there is none."""
        return self.question.reference or ""

    def show(self) -> AnswerPair:
        return AnswerPair(
            prompt=self.question.shown,
            reference=self.question.reference,
            base=self.base.answer,
            tuned=self.tuned.answer,
        )


@dataclass(frozen=True, slots=True)
class Models:
    """Both models of a report, which share their weights."""

    base_model: Path
    base_model_sha256: str
    runner: Runner
    adapter: Adapter
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, directory: Path, spec: JobSpec, tokenizer: PreTrainedTokenizerBase) -> "Models":
        """Load them from the directory of a task.

        Raises:
            TrainingFailedError, MemoryShortError: as `require_free_memory` raises them.
            AdapterError: the adapter cannot be used.
        """
        base_model = directory / BASE_MODEL_NAME
        # Never on a GPU: a job that begins to train there counts on all of its memory.
        compute = spec.compute.model_copy(update={"device": "cpu"})
        placement = choose_placement(compute, read_or_measure(directory / MACHINE_CACHE_NAME))
        weights_bytes = ModelShape.read(base_model).parameters * placement.torch_dtype.itemsize
        require_free_memory(weights_bytes, what="The report", total_bytes=spec.memory_bytes)
        runner = load_runner(base_model, placement)
        decoder = Decoder(
            base_model,
            tokenizer,
            window=runner.window,
            vocabulary=runner.vocabulary,
            today=lambda: today_of(spec.config),
        )
        adapter = _load_adapter(runner, directory / ADAPTER_DIRECTORY_NAME)
        return cls(base_model, spec.base_model.sha256, runner, adapter, decoder, tokenizer)

    def begin(self, question: Question) -> Pair:
        """Two answers to a question, greedy, neither of which has a token yet.

        Raises:
            RefusedError: the models cannot read the prompt.
        """
        ask = Ask(
            project_id="",
            base_model=self.base_model,
            base_model_sha256=self.base_model_sha256,
            prompt=question.prompt,
            parameters=SamplingParameters(temperature=0, max_tokens=self._limit(question)),
        )
        base, tuned = (Draft(self.decoder.prepare(ask), each) for each in (None, self.adapter))
        return Pair(question, base, tuned)

    def _limit(self, question: Question) -> int:
        if question.reference is None:
            return _UNCOMPARED_TOKENS
        reference = self.tokenizer(question.reference, verbose=False)["input_ids"]
        return min(MAX_ANSWER_TOKENS, 2 * len(reference) + _MORE_TOKENS)


def _load_adapter(runner: Runner, directory: Path) -> Adapter:
    """Load an adapter whose files were compared with its manifest before."""
    weights, config = (directory / name for name in (ADAPTER_WEIGHTS_NAME, ADAPTER_CONFIG_NAME))
    with ExitStack() as files:
        return runner.load_adapter(
            AdapterFiles(
                files.enter_context(weights.open("rb")),
                files.enter_context(config.open("rb")),
                weights_sha256=sha256_of(weights),
                config_sha256=sha256_of(config),
                max_bytes=weights.stat().st_size,
            )
        )
