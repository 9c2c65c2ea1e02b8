"""Finds out in which form a model writes tool calls, from its chat template alone."""

from dataclasses import dataclass

from worker.sampling.decoding import probes
from worker.sampling.decoding.calls.forms import FORMS, CallForm
from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.calls.values import schemas_of
from worker.training.data.answers import AnswerFinder
from worker.training.data.chat_template import ChatTemplateError


@dataclass(frozen=True, slots=True)
class DetectedForm:
    form: CallForm
    written: str
    """A call, as a model has to write it. Its special tokens mark calls."""


def detect_form(finder: AnswerFinder) -> DetectedForm | None:
    """The form in which a model has to write calls.

    Args:
        finder: finds what a model has to write for an answer.

    Returns:
        None if its template writes no calls, or in a form that is not known.
    """
    messages = finder.template.adapt([probes.QUESTION, probes.CALLING])
    try:
        written = finder.find(messages, [probes.TOOL]).completion
    except ChatTemplateError:
        return None
    for form in FORMS:
        reader = CallReader(form, schemas_of((probes.TOOL,)))
        calls = (reader.add(written.removesuffix(finder.stop)) + reader.end()).calls
        if [(call.name, call.arguments) for call in calls] == [(probes.NAME, probes.ARGUMENTS)]:
            return DetectedForm(form, written)
    return None
