"""Makes the report on a tuned model: lets it and its base model answer, and scores the answers."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import torch

from app.core.job.child.job_spec import BASE_MODEL_NAME, JOB_SPEC_NAME, JobSpec
from app.core.job.child.training_events import Failed, Progressed, Reported
from app.core.job.scores.report import (
    MAX_PROMPTS,
    REQUEST_NAME,
    AnswerPair,
    AnswerReport,
    ModelAnswer,
    ReportRequest,
)
from worker.sampling.decoding.refusals import RefusedError
from worker.sampling.model.adapter_files import AdapterError
from worker.scoring.answering import answer_all
from worker.scoring.metrics import is_json, score
from worker.scoring.models import Models, Pair
from worker.scoring.questions import Drawn, Question, ask_user, draw
from worker.training.data.tokenizer import load_tokenizer
from worker.training.failures import TrainingFailedError, last_event_after
from worker.training.training_loop import Report

TIME_LIMIT_S = 60.0
"""Processor time for all answers, in seconds. Loading the model does not count. A process that is
stopped most of the time, beside a training, takes longer and makes as many answers."""

_LOADED = 0.1
"""Progress once the models are loaded."""

_STAGES = 20
"""Number of times that the progress of the answers is reported."""


def report_answers(directory: Path, report: Report, *, time_limit_s: float = TIME_LIMIT_S) -> None:
    """Make the report that the task in `directory` asks for.

    The last event is `Reported`, `Failed`, `OutOfSpace` or `MemoryShort`.

    Args:
        directory: a job directory with the base model, the adapter and the validation data.
        report: takes every event as it happens.
        time_limit_s: processor time for the answers, in seconds.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    torch.set_num_threads(spec.threads)
    try:
        _report(directory, spec, report, time_limit_s)
    except RefusedError as error:
        report(Failed(code=error.answer.code, message=error.answer.message))
    except AdapterError as error:
        message = f"The adapter cannot be used for answers. {error}"
        report(Failed(code="adapter_unsupported", message=message))
    except Exception as error:
        if (last := last_event_after(error, spec.config)) is None:
            raise
        report(last)


def _report(directory: Path, spec: JobSpec, report: Report, time_limit_s: float) -> None:
    tokenizer = load_tokenizer(directory / BASE_MODEL_NAME)
    drawn, asked = draw(directory, spec, tokenizer), _read_asked(directory)
    if not asked and not drawn.questions:
        raise TrainingFailedError(
            "nothing_to_score",
            "The validation data has no answer that can be compared: its rows are texts, its "
            "answers are tool calls, or its file was deleted. Send eval_prompts.",
            param="eval_prompts",
        )
    models = Models.load(directory, spec, tokenizer)
    report(Progressed(fraction=_LOADED))
    began_s = time.process_time()
    shown = [_begin_or_refuse(models, question) for question in asked]
    scored = list(_begin_readable(models, drawn.questions))
    pairs = [*_pairs(shown), *scored]
    answer_all(
        [draft for pair in pairs for draft in (pair.base, pair.tuned)],
        models.runner,
        is_over=lambda: time.process_time() - began_s >= time_limit_s,
        tell_fraction=_in_stages(report),
    )
    processor_s = time.process_time() - began_s
    report(Reported(report=_describe(drawn, shown, scored, processor_s)))


def _read_asked(directory: Path) -> list[Question]:
    """The prompts of the request."""
    request = ReportRequest.model_validate_json((directory / REQUEST_NAME).read_bytes())
    return [ask_user(prompt, is_chat=request.are_chats) for prompt in request.prompts]


def _begin_readable(models: Models, questions: Iterable[Question]) -> Iterator[Pair]:
    for question in questions:
        try:
            yield models.begin(question)
        except RefusedError:  # too long, or with tools that the chat template does not know
            continue


def _begin_or_refuse(models: Models, question: Question) -> Pair | AnswerPair:
    """The answers to a prompt of the request, or why there are none."""
    try:
        return models.begin(question)
    except RefusedError as error:
        none = ModelAnswer(text="", finish_reason=None)
        return AnswerPair(
            prompt=question.shown,
            reference=None,
            base=none,
            tuned=none,
            refusal=error.answer.message,
        )


def _pairs(shown: Iterable[Pair | AnswerPair]) -> list[Pair]:
    return [pair for pair in shown if isinstance(pair, Pair)]


def _in_stages(report: Report) -> Callable[[float], None]:
    """Reports the progress of the answers, from 0 to 1, but not at every step."""
    told = 0

    def tell(fraction: float) -> None:
        nonlocal told
        if int(fraction * _STAGES) > told:
            told = int(fraction * _STAGES)
            report(Progressed(fraction=_LOADED + (1 - _LOADED) * fraction))

    return tell


def _describe(
    drawn: Drawn, shown: Sequence[Pair | AnswerPair], scored: Sequence[Pair], processor_s: float
) -> AnswerReport:
    """The report.

    Args:
        drawn: the examples of the validation data.
        shown: answers to the prompts of the request, or why there are none.
        scored: answers to the examples.
        processor_s: time that the answers took.
    """
    # Those that overtook an unfinished one do not count: short answers are no fair sample.
    finished = list(takewhile(lambda pair: pair.is_finished, scored))
    return AnswerReport(
        source=drawn.source,
        examples=drawn.examples,
        chosen_examples=drawn.chosen,
        skipped_examples=drawn.chosen - len(scored),
        scored_examples=len(finished),
        json_references=sum(is_json(pair.reference) for pair in finished),
        base=score([(pair.base.text, pair.reference) for pair in finished]),
        tuned=score([(pair.tuned.text, pair.reference) for pair in finished]),
        answers=tuple(
            pair.show() if isinstance(pair, Pair) else pair
            for pair in (shown or scored)[:MAX_PROMPTS]
        ),
        processor_s=round(processor_s, 3),
        is_over_time=not all(pair.is_finished for pair in (*_pairs(shown), *scored)),
    )
