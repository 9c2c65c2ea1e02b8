"""Keeps an answer within JSON, by a schema if there is one.

Dimension key:
    V  vocabulary
"""

import json
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, cast

import llguidance.hf
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.sampling.messages import TextForm
from worker.sampling.decoding.refusals import RefusedError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_CHARACTERS = 64 * 1024
"""Maximum length of a JSON schema. Together with the library's own limits on the grammar that
becomes of it, it bounds the time that a request can take before its first token."""

_OPTIONS: "JsonCompileOptions" = {
    "lenient": False,
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    # A model that is unsure writes white space for ever, so it may not.
    "whitespace_pattern": r"[ \n\r\t]{1,40}",
}
"""How JSON is written. A schema cannot change it, although the library would let it."""

_WORDS = {
    "Enable 'coerce_one_of' option to approximate oneOf with anyOf": "Use anyOf",
    "NoExtensionBias": "the model has no token for what must follow",
}
"""What we say for words of the library that only its caller could follow."""

_LIMITS = LLParserLimits(verbose_errors=False, precompute_large_lexemes=False)


class JsonForms:
    """Makes grammars for one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop_tokens: Iterable[int]
    ) -> None:
        """Prepare to make them.

        Args:
            tokenizer: the tokenizer of the base model.
            vocabulary: number of logits.
            stop_tokens: what a model may choose once its JSON is complete.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_tokens = sorted(stop_tokens)

    def compile(self, form: TextForm) -> "JsonGrammar":
        """The grammar of a form.

        Raises:
            RefusedError: the schema is wrong, too large, or has something that is not supported.
        """
        schema = {"type": "object"} if form.json_schema is None else form.json_schema
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise _refuse(
                f"has {len(text):,} characters, and the limit is {MAX_SCHEMA_CHARACTERS:,}"
            )
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
        matcher = LLMatcher(self._library_tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refuse(f"cannot be followed: {_reason(matcher)}")
        return JsonGrammar(matcher, self._vocabulary)

    @cached_property
    def _library_tokenizer(self) -> LLTokenizer:
        return llguidance.hf.from_tokenizer(
            cast("PreTrainedTokenizerFast", self._tokenizer),
            n_vocab=self._vocabulary,
            eos_token=self._stop_tokens,
            slices=LLTokenizer.json_slices(),
        )


class JsonGrammar:
    """What may follow in one answer."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow what was chosen."""
        return self._matcher.is_stopped()

    def copy(self) -> "JsonGrammar":
        """The grammar for another answer, at the same place."""
        return JsonGrammar(self._matcher.deep_copy(), self._vocabulary)

    def allowed(self) -> NDArray[np.bool_]:
        """`allowed_V`: whether each token may be chosen now.

        Raises:
            RefusedError: the schema is too complex to go on, or no token fits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return allowed_V.view(np.bool_)

    def take(self, token: int) -> None:
        """Go on with a token that was allowed.

        Raises:
            RefusedError: the schema is too complex to go on.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refuse(f"cannot be followed any further: {_reason(self._matcher)}")


def _reason(matcher: LLMatcher) -> str:
    """The library's words, without what only its caller could follow."""
    words = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    return words.rstrip(".")


def _refuse(problem: str) -> RefusedError:
    return RefusedError(
        "schema_unsupported",
        f"The JSON schema {problem}. Simplify it, or ask for JSON without a schema.",
        param="response_format",
    )
