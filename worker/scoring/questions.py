"""Draws examples from the validation data of a job, and makes prompts of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import ChatExample, ParsedExample, PreferenceExample, PromptExample
from app.core.dataset.reading import read_examples
from app.core.job.child.job_spec import TRAINING_DATA_NAME, VALIDATION_DATA_NAME, JobSpec
from app.core.job.scores.report import MAX_EXAMPLES
from app.core.sampling.messages import ChatPrompt, TextPrompt
from worker.training.preparation.prepared_data import PreparedData
from worker.training.preparation.tokenized_job import prepare_data


@dataclass(frozen=True, slots=True)
class Question:
    """What both models are asked."""

    prompt: ChatPrompt | TextPrompt
    shown: str
    """The prompt, as people read it."""
    reference: str | None = None
    """The answer in the validation data."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Examples of the validation data, in a random order."""

    source: Literal["validation_file", "validation_split"] | None = None
    examples: int = 0
    """Number of examples that there are."""
    chosen: int = 0
    """Number of examples that were drawn."""
    questions: Sequence[Question] = ()
    """Those of them that have a text to compare an answer with."""


def ask_user(prompt: str, *, is_chat: bool) -> Question:
    """A prompt of the request.

    Args:
        prompt: its text.
        is_chat: whether it is the message of a user. Otherwise the model continues it.
    """
    if is_chat:
        return Question(ChatPrompt(messages=({"role": "user", "content": prompt},)), prompt)
    return Question(TextPrompt(text=prompt), prompt)


def draw(directory: Path, spec: JobSpec, tokenizer: PreTrainedTokenizerBase) -> Drawn:
    """Draw up to `MAX_EXAMPLES` examples by the seed of the job. None, if it has no data here.

    Args:
        directory: that of the task, with the validation file, or with the training file if a part
            of it was held out.
        spec: the job.
        tokenizer: that of its base model.

    Raises:
        TrainingFailedError: the training file cannot be split any more.
    """
    if spec.validation_file is not None and (directory / VALIDATION_DATA_NAME).exists():
        lines: Sequence[int] = range(1, spec.validation_file.examples + 1)
        return _draw(directory / VALIDATION_DATA_NAME, lines, "validation_file", spec)
    if spec.config.validation_split is not None and (directory / TRAINING_DATA_NAME).exists():
        held_out = _prepare(directory, spec, tokenizer).held_out
        lines = [] if held_out is None else np.unique(held_out.lines).tolist()
        return _draw(directory / TRAINING_DATA_NAME, lines, "validation_split", spec)
    return Drawn()


def as_question(example: ParsedExample) -> Question | None:
    """The prompt of an example and its answer.

    That is the last answer of a chat that is learned, and the preferred answer of a preference.
    None if there is no text to compare with: the example is one text, or the answer a tool call.
    """
    if isinstance(example, PreferenceExample):
        example = example.preferred
    if isinstance(example, PromptExample):
        return Question(TextPrompt(text=example.prompt), example.prompt, example.completion)
    if not isinstance(example, ChatExample):
        return None
    learned = [index for index, is_learned in enumerate(example.is_learned) if is_learned]
    if not learned:
        return None
    messages, answer = example.messages[: learned[-1]], example.messages[learned[-1]]
    if answer.get("tool_calls") or not answer.get("content"):
        return None
    prompt = ChatPrompt(
        messages=tuple(messages), tools=tuple(example.tools or ()), tool_choice="none"
    )
    return Question(prompt, _show(messages), answer["content"])


def _draw(
    path: Path,
    lines: Sequence[int],
    source: Literal["validation_file", "validation_split"],
    spec: JobSpec,
) -> Drawn:
    # The same examples on every machine, and the first of them are as good a sample as all.
    generator = random.Random(spec.config.seed)  # noqa: S311 - nobody keeps a secret with it
    chosen = generator.sample(lines, min(MAX_EXAMPLES, len(lines)))
    with path.open("rb") as file:
        found = dict(read_examples(file, only=set(chosen)))
    questions = [as_question(found[line]) for line in chosen if line in found]
    return Drawn(source, len(lines), len(chosen), [each for each in questions if each])


def _prepare(directory: Path, spec: JobSpec, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Tokenize the training file as the training did, because the split is one of its rows."""
    return prepare_data(directory, spec, tokenizer, lambda _: None)


def _show(messages: Sequence[dict[str, object]]) -> str:
    """The messages before an answer: the text alone if there is only one."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{each['role']}: {each.get('content') or ''}" for each in messages)
