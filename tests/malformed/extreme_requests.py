"""Random requests for jobs: a small valid one, in which a few fields have extreme values.

The ranges come from the schema of the request, so that a new hyperparameter is covered as well.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from app.schemas.fine_tuning_jobs import MAX_LABELS, JobCreate
from app.schemas.hyperparameters import Hyperparameters
from tests.builders import CHAT_LINE, TEXT_LINE, build_chat_file
from tests.malformed.mutations import EVIL_VALUES

MODEL = "tiny"
CONTEXT_LENGTH = 4096
"""Context length of the base model in its catalogue entry, in tokens."""

EVIL_SHARE = 0.3
"""Fraction of the extreme values that have nothing to do with the range of their field."""

_MORE_EVIL = (*EVIL_VALUES, 10**400, -(10**400), 1e-300, 1e300, -1e300, 5e-324, float("-inf"))
_TINY_FRACTIONS = (5e-324, 1e-300, 1e-46, 1e-30, 1e-9, 1e-3, 0.5)
_SHORT_TEXTS = ("é", "\u202e", "\U0001f642", " ", "\n", "..", "/", "-", "\x7f", "%s", "{0}")
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NOT_RANGES: dict[str, tuple[Any, ...]] = {
    "model": ("absent", "TINY", "tiny ", "", "t" * 256, "t" * 257, "ft:tiny:tunery::1"),
    "lora_target_modules": (
        "all-linear",
        list(_MODULES),
        *([name] for name in _MODULES),
        ["q_proj"] * 1000,
        [],
        ["lm_head"],
        ["q_proj", 1],
    ),
    "metadata": (
        {},
        {str(number) * 60: "v" * 512 for number in range(MAX_LABELS // 2)},
        {f"{number}": "\U0001f642" * 512 for number in range(MAX_LABELS)},
        {f"{number}": "" for number in range(MAX_LABELS + 1)},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": 1},
        {"": ""},
    ),
    "method": (
        {"type": "supervised"},
        {"type": "dpo", "dpo": {}},
        {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "lora_r": 3}}},
        {"supervised": {}},
    ),
    "hyperparameters": ({}, {"n_epochs": "auto"}, {"lora_rank": 1, "lora_r": 2}),
    "integrations": ([], [{"type": "wandb"}]),
    "training_file": ("", "file-absent", "f" * 10_000),
    "validation_file": ("", "file-absent", "f" * 10_000),
}


def data_files() -> dict[str, bytes]:
    """Small but extreme data sets, by name. Some of them may be refused."""

    def lines(*rows: Mapping[str, object]) -> bytes:
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    def chat(*contents: str, **answer: object) -> dict[str, object]:
        roles = ("user", "assistant") * len(contents)
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return {"messages": [*messages[:-1], messages[-1] | answer]}

    letters = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x11000)]))
    return {
        "ordinary.jsonl": build_chat_file(20),
        "one row.jsonl": TEXT_LINE,
        "one character.jsonl": lines({"text": "a"}),
        "no character.jsonl": lines({"text": ""}),
        "no completion.jsonl": lines({"prompt": "Say nothing.", "completion": ""}),
        "no prompt.jsonl": lines({"prompt": "", "completion": "Hello."}),
        "empty answer.jsonl": lines(chat("Say nothing.", "")),
        "blank answers.jsonl": lines(*[chat("Say little.", " \n ")] * 3),
        "one learned row.jsonl": lines(chat("a", "b"), *[chat("a", "b", weight=0)] * 50),
        "nothing learned.jsonl": lines(chat("a", "b", weight=0)),
        "one letter.jsonl": lines({"text": "a" * 3000}),
        "every letter.jsonl": lines({"text": letters}),
        "long prompt.jsonl": lines({"prompt": "p" * 20_000, "completion": "c"}),
        "long rows.jsonl": lines(*({"text": f"{row} " * 2000} for row in range(40))),
        "one row of 7 MiB.jsonl": lines({"text": "word " * (7 * 2**20 // 5)}),
        "500 turns.jsonl": lines(chat(*["a", "b"] * 500)),
        "equal rows.jsonl": CHAT_LINE * 300,
        "10,000 rows.jsonl": build_chat_file(10_000),
        "tools.jsonl": CHAT_LINE.replace(b"]}\n", b'], "tools": [{"type": "function"}]}\n'),
        "\U0001f642\u202e'; drop.jsonl": TEXT_LINE * 2,
    }


def random_request(chance: Random, files: Mapping[str, str]) -> dict[str, Any]:
    """A request for a job with one to three extreme fields.

    Args:
        files: id of each uploaded file, by name.
    """
    hyperparameters = {"max_steps": chance.randint(1, 4), "lora_r": 2, "batch_size": 2}
    if chance.random() < 0.05:
        del hyperparameters["max_steps"]  # then the file and the number of epochs decide
    ids = list(files.values())
    is_ordinary = chance.random() < 0.5
    request = {"model": MODEL, "training_file": ids[0] if is_ordinary else chance.choice(ids)}
    if chance.random() < 0.3:
        request["validation_file"] = chance.choice(ids)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(list(_FIELDS))
        place = hyperparameters if name in _HYPERPARAMETERS else request
        place[name] = chance.choice(_MORE_EVIL if chance.random() < EVIL_SHARE else _EXTREMES[name])
    newer = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    place = chance.choice(({"hyperparameters": hyperparameters}, {"method": newer}))
    return place | request


def _properties(model: Any) -> dict[str, Any]:
    return model.model_json_schema()["properties"]


def _extremes(name: str, schema: Mapping[str, Any]) -> list[Any]:
    found = [*_NOT_RANGES.get(name, ())]
    for branch in schema.get("anyOf", [schema]):
        found += _extremes_of_branch(branch)
    return found or [None]


def _extremes_of_branch(schema: Mapping[str, Any]) -> Iterator[Any]:
    if "const" in schema:
        yield schema["const"]
        return
    yield from schema.get("enum", ())
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    match schema.get("type"):
        case "boolean":
            yield from (True, False)
        case "integer" if low is not None and high is not None:
            low, high = int(low), int(high)
            yield from (low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1)
        case "number" if low is not None and high is not None:
            yield from (low, high, *(low + (high - low) * each for each in _TINY_FRACTIONS))
            for end in (low, high):
                yield from (math.nextafter(end, -math.inf), math.nextafter(end, math.inf))
        case "string" if "maxLength" in schema:
            longest = schema["maxLength"]
            yield from ("", "a", "a" * longest, "a" * (longest + 1), *_SHORT_TEXTS)
            yield "\U0001f642" * longest
        case _:
            return


_HYPERPARAMETERS = _properties(Hyperparameters)
_FIELDS = _HYPERPARAMETERS | _properties(JobCreate)
_EXTREMES = {name: _extremes(name, schema) for name, schema in _FIELDS.items()}


def requests(count: int, files: Mapping[str, str], *, seed: int) -> Iterator[dict[str, Any]]:
    """The same requests for the same seed, apart from the ids of the files."""
    for number in range(count):
        yield random_request(random.Random(f"{seed}-{number}"), files)  # noqa: S311 - no secret
