"""Turns requests into tokens, and logits into answers, for one base model."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from app.core.sampling.messages import Ask, ChatPrompt
from worker.sampling.decoding.answer import Limits, SampledAnswer
from worker.sampling.decoding.answer_text import AnswerText
from worker.sampling.decoding.calls.detection import DetectedForm, detect_form
from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.calls.values import schemas_of
from worker.sampling.decoding.choice import Choice
from worker.sampling.decoding.endings import Endings
from worker.sampling.decoding.json_form import JsonForms, JsonGrammar
from worker.sampling.decoding.logprobs import LogProbs
from worker.sampling.decoding.next_token import TokenChooser
from worker.sampling.decoding.prompts import PromptWriter, utc_today
from worker.sampling.decoding.refusals import RefusedError
from worker.sampling.decoding.text.token_text import Detokenizer, TokenTexts


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can be answered."""

    prompt: list[int]
    """What the model reads first."""
    choices: list[Choice]
    """The answers, none of which has a token yet."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all answers to a request have in common."""

    ask: Ask
    max_tokens: int
    grammar: JsonGrammar | None
    echo: str


class Decoder:
    """Prepares the requests for one base model. Must not be called by two threads at once."""

    def __init__(
        self,
        base_model: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int,
        vocabulary: int,
        today: Callable[[], date] = utc_today,
    ) -> None:
        """Prepare to answer.

        Args:
            base_model: directory of the base model.
            tokenizer: its tokenizer.
            window: maximum number of tokens of a sequence.
            vocabulary: number of logits.
            today: tells the day that chat templates see.
        """
        self._tokenizer = tokenizer
        self._window = window
        self._vocabulary = vocabulary
        self._texts = TokenTexts(self._tokenizer)
        self._prompts = PromptWriter(
            self._tokenizer, window=window, vocabulary=vocabulary, today=today
        )
        self._endings = Endings(base_model, self._tokenizer, lambda: self._prompts.template)

    def prepare(self, ask: Ask) -> Prepared:
        """The prompt of a request, and its answers in the making.

        Raises:
            RefusedError: the request cannot be answered.
        """
        self._check(ask)
        prompt = self._prompts.write(ask.prompt)
        room, form = self._window - len(prompt), ask.parameters.form
        plan = _Plan(
            ask,
            max_tokens=min(room, ask.parameters.max_tokens or room),
            grammar=self._json_forms.compile(form) if form else None,
            echo=self._write_echo(ask, prompt),
        )
        return Prepared(prompt, [self._begin(plan, index) for index in range(ask.choices)])

    @cached_property
    def _json_forms(self) -> JsonForms:
        stop_tokens = self._endings.of_chats.tokens
        return JsonForms(self._tokenizer, vocabulary=self._vocabulary, stop_tokens=stop_tokens)

    @cached_property
    def _call_form(self) -> DetectedForm | None:
        return detect_form(self._endings.finder) if self._endings.finder else None

    def _check(self, ask: Ask) -> None:
        parameters, problem, param = ask.parameters, "", ""
        unknown = [t for t in parameters.logit_bias if not 0 <= t < self._vocabulary]
        if unknown:
            problem = f"The model has no token {unknown[0]}: it has 0 to {self._vocabulary - 1}."
            param = "logit_bias"
        elif ask.echoes and parameters.top_logprobs is not None:
            problem, param = "'echo' cannot be used with 'logprobs'. Remove one of them.", "echo"
        elif parameters.form and _tools_of(ask):
            param = "response_format"
            problem = "'response_format' cannot be used with 'tools'. Remove one of them."
        if problem:
            raise RefusedError("invalid_value", problem, param=param)

    def _begin(self, plan: _Plan, index: int) -> Choice:
        ask, parameters = plan.ask, plan.ask.parameters
        is_chat = isinstance(ask.prompt, ChatPrompt)
        stops = self._endings.of_chats if is_chat else self._endings.of_texts
        calls = self._call_form if _tools_of(ask) else None
        marks = calls.written if calls else ""
        detokenizer = Detokenizer(
            self._texts,
            begins_text=is_chat,
            shown={token for text, token in self._texts.special.items() if text in marks},
        )
        reader = CallReader(calls.form, schemas_of(_tools_of(ask))) if calls else None
        text = AnswerText(detokenizer, stops=(*parameters.stop, *stops.texts), calls=reader)
        top = parameters.top_logprobs
        return SampledAnswer(
            index,
            chooser=TokenChooser(parameters, choice=index, vocabulary=self._vocabulary),
            text=text,
            limits=Limits(stops.tokens, plan.max_tokens),
            grammar=plan.grammar.copy() if plan.grammar else None,
            logprobs=None if top is None else LogProbs(self._texts, top=top),
            echo=plan.echo,
        )

    def _write_echo(self, ask: Ask, prompt: list[int]) -> str:
        if not ask.echoes or isinstance(ask.prompt, ChatPrompt):
            return ""
        if ask.prompt.tokens is None:
            return ask.prompt.text
        return cast("str", self._tokenizer.decode(prompt, skip_special_tokens=True))


def _tools_of(ask: Ask) -> tuple[dict[str, Any], ...]:
    """The tools whose calls are looked for in the answers."""
    prompt = ask.prompt
    if not isinstance(prompt, ChatPrompt) or prompt.tool_choice != "auto":
        return ()
    return prompt.tools
