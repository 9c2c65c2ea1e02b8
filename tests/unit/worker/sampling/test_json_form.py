"""Answers that must be JSON, written by a model that knows nothing."""

import contextlib
import json
import random
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from app.core.sampling.messages import SamplingParameters, TextForm
from tests.tiny import VOCABULARY, build_tokenizer
from worker.sampling.decoding.json_form import MAX_SCHEMA_CHARACTERS, JsonForms, JsonGrammar
from worker.sampling.decoding.next_token import TokenChooser
from worker.sampling.decoding.refusals import RefusedError

STOP = 258
PADDED = VOCABULARY + 29
"""Some models have more logits than there are tokens."""

FORMS = JsonForms(build_tokenizer(), vocabulary=PADDED, stop_tokens=[STOP])


def write(grammar: JsonGrammar, *, seed: int, limit: int = 20_000) -> str:
    """What a model with random logits writes."""
    noise = np.random.default_rng(seed)
    chooser = TokenChooser(SamplingParameters(seed=seed), vocabulary=PADDED)
    tokens: list[int] = []
    while not grammar.is_complete and len(tokens) < limit:
        token = chooser.choose(noise.standard_normal(PADDED, np.float32), grammar.allowed())
        if token == STOP:
            break
        grammar.take(token)
        tokens.append(token)
    return str(build_tokenizer().decode(tokens))


PLAIN_SCHEMAS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 20},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
    {"type": "integer", "minimum": 0, "maximum": 120},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "grün", 7, None]},
]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.choice(["plain", "object", "array", "either"]) if depth < 3 else "plain"
    parts = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))] if depth < 3 else []
    if kind == "object":
        properties = {f"k{index}": part for index, part in enumerate(parts)}
        required = list(properties)[: rng.randint(0, len(parts))]
        schema = {"type": "object", "properties": properties, "required": required}
        return schema | {"additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": parts[0], "maxItems": 3}
    return {"anyOf": parts} if kind == "either" else rng.choice(PLAIN_SCHEMAS)


@pytest.mark.parametrize("seed", range(50))
def test_answers_are_instances_of_a_random_schema(seed: int) -> None:
    schema = random_schema(random.Random(seed))  # noqa: S311 - repeatable

    text = write(FORMS.compile(TextForm(json_schema=schema)), seed=seed)

    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_schema_an_answer_is_a_json_object(seed: int) -> None:
    assert isinstance(json.loads(write(FORMS.compile(TextForm()), seed=seed)), dict)


def test_a_schema_may_have_hundreds_of_properties() -> None:
    properties = {f"property_{index}": {"type": "integer"} for index in range(500)}
    required = list(properties)[::50]
    schema = {"type": "object", "properties": properties, "required": required}

    text = write(FORMS.compile(TextForm(json_schema=schema)), seed=0)

    jsonschema.validate(json.loads(text), schema)


def test_a_copy_goes_on_by_itself() -> None:
    grammar = FORMS.compile(TextForm(json_schema={"enum": [1, 23]}))
    first, second = grammar.copy(), grammar.copy()

    assert json.loads(write(first, seed=1)) in (1, 23)
    assert json.loads(write(second, seed=1)) in (1, 23)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "colour"}, "colour"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"x": {"not": {}}}}, "not"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf .* Use anyOf"),
        ({"type": "string", "pattern": "(ab"}, "ab"),
        ({"type": "string", "pattern": "(?=x)"}, "look-ahead"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Length"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_its_part(
    schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(RefusedError, match=named) as raised:
        FORMS.compile(TextForm(json_schema=schema))

    assert raised.value.answer.status == 400
    assert raised.value.answer.code == "schema_unsupported"
    assert raised.value.answer.param == "response_format"


HOSTILE = {
    "too long": {"enum": ["x" * 9] * (MAX_SCHEMA_CHARACTERS // 9)},
    "repeated": {"type": "string", "pattern": "^(a{1,1000}b{1,1000}){1,1000}$"},
    "ambiguous": {"type": "string", "pattern": "(a|aa)*(b|bb)*.{500}c.{500}d"},
    "exponential": {"type": "string", "pattern": ".*a.{18}$"},
    "long list": {"type": "array", "minItems": 10**6, "items": {"type": "string"}},
    "product": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)]}
            for i in range(8)
        ]
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_takes_little_time(name: str) -> None:
    start = time.thread_time()

    with contextlib.suppress(RefusedError):
        write(FORMS.compile(TextForm(json_schema=HOSTILE[name])), seed=0, limit=50)

    assert time.thread_time() - start < 5


def test_a_schema_that_is_too_long_is_refused_with_both_lengths() -> None:
    with pytest.raises(RefusedError, match=r"has 80,\d+ characters, and the limit is 65,536"):
        FORMS.compile(TextForm(json_schema={"enum": ["x" * 80_000]}))


def test_a_schema_that_needs_what_the_model_cannot_write_is_refused_there() -> None:
    vocabulary = {piece: index for index, piece in enumerate(["</s>", '"', "a"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")  # noqa: S106
    forms = JsonForms(tokenizer, vocabulary=len(vocabulary), stop_tokens=[0])
    grammar = forms.compile(TextForm(json_schema={"enum": ["ax", "ay"]}))
    grammar.take(vocabulary['"'])
    grammar.take(vocabulary["a"])

    with pytest.raises(RefusedError, match="no token for what must follow") as raised:
        grammar.allowed()

    assert raised.value.answer.code == "schema_unsupported"


def test_white_space_ends() -> None:
    grammar = FORMS.compile(TextForm(json_schema={"type": "boolean"}))
    space = build_tokenizer().encode("\n")[0]
    lines = 0
    while bool(grammar.allowed()[space]):
        grammar.take(space)
        lines += 1
        assert lines <= 100
