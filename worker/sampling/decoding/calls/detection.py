"""Finds out in which form a model writes tool calls, from its chat template alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from worker.sampling.decoding.calls.forms import FORMS, CallForm
from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.calls.values import schemas_of
from worker.sampling.decoding import probes
from worker.training.data.chat_template import ChatTemplate, ChatTemplateError


@dataclass(frozen=True, slots=True)
class DetectedForm:
    form: CallForm
    written: str
    """A call, as the template writes it. Its special tokens mark calls."""


def detect_form(template: ChatTemplate, stops: Sequence[str]) -> DetectedForm | None:
    """The form in which a template writes the calls of an answer.

    Args:
        template: the chat template.
        stops: what ends an answer.

    Returns:
        None if the template writes none, or in a form that is not known.
    """
    written = _write_call(template)
    if written is None:
        return None
    end = min((written.find(stop) for stop in stops if stop in written), default=len(written))
    written = written[:end].strip()
    for form in FORMS:
        reader = CallReader(form, schemas_of((probes.TOOL,)))
        calls = (reader.add(written) + reader.end()).calls
        if [(call.name, call.arguments) for call in calls] == [(probes.NAME, probes.ARGUMENTS)]:
            return DetectedForm(form, written)
    return None


def _write_call(template: ChatTemplate) -> str | None:
    """An answer that is a call. A thought may come before it."""
    tools = [probes.TOOL]
    try:
        prompt = template.render([probes.QUESTION], tools, add_generation_prompt=True)
        text = template.render(template.adapt([probes.QUESTION, probes.CALLING]), tools)
    except ChatTemplateError:
        return None
    return text[len(commonprefix([prompt, text])) :]


