"""Three small tasks of the kind that people tune for, each with held-out questions.

Every answer can be judged by a program: a form to fill in, a voice to speak in, a class to name.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_EXAMPLES = Path(__file__).parents[1] / "examples"

_NAMES = (
    "Maria Keller", "Tom Okafor", "Lena Brandt", "Ivan Petrov", "Aisha Khan", "Paul Meyer",
    "Nora Lindqvist", "Kenji Mori", "Rosa Alvarez", "Samuel Adeyemi", "Greta Vogel", "Omar Haddad",
    "Julia Novak", "Peter Lang", "Mei Chen", "Carlos Silva", "Emma Doyle", "Felix Braun",
)  # fmt: skip
_ITEMS = (
    "lamp", "chair", "kettle", "blanket", "printer", "bicycle", "mirror", "backpack", "radio",
    "notebook", "umbrella", "candle", "helmet", "pillow", "camera", "toaster",
)  # fmt: skip
_CITIES = (
    "Oslo", "Lyon", "Porto", "Graz", "Leeds", "Turin", "Ghent", "Malaga", "Bergen", "Krakow",
    "Dublin", "Basel", "Tartu", "Split", "Aarhus", "Utrecht",
)  # fmt: skip
_ORDERS = (
    "{name} from {city} orders {quantity} of the article {item}.",
    "Please send {quantity} x {item} to {name} in {city}.",
    "Hello, this is {name}. I need {quantity} pieces of {item}, delivered to {city}.",
    "To {city}: {item}, {quantity} pieces. The customer is {name}.",
)

_COMPLAINTS = {
    "billing": (
        "I was charged twice for {item}.",
        "The invoice for {item} has the wrong amount.",
        "Where is my refund for {item}?",
        "My card was declined when I paid for {item}.",
        "Why is there a fee on my bill for {item}?",
        "I want to pay for {item} in two parts.",
    ),
    "delivery": (
        "{item} has not arrived yet.",
        "The courier left {item} at the wrong house.",
        "When will {item} be here?",
        "The tracking page for {item} shows nothing.",
        "Please send {item} to another address.",
        "The parcel with {item} came a week late.",
    ),
    "account": (
        "I forgot my password and cannot order {item}.",
        "Please change the email address with which I ordered {item}.",
        "Delete my profile, I only wanted {item} once.",
        "I cannot log in to see {item}.",
        "Somebody else ordered {item} under my user name.",
        "How do I register to buy {item}?",
    ),
    "technical": (
        "{item} does not switch on.",
        "{item} makes a strange noise.",
        "A part of {item} broke after one day.",
        "How do I assemble {item}?",
        "{item} overheats when I use it.",
        "Which battery does {item} need?",
    ),
}


@dataclass(frozen=True, slots=True)
class RecipeTask:
    """Rows to train on, rows to ask, and what makes an answer right."""

    name: str
    training: Sequence[dict[str, Any]]
    held_out: Sequence[dict[str, Any]]
    is_right: Callable[[str, str], bool]
    """Whether an answer, the first argument, will do where the second was expected."""

    def shortened(self, rows: int) -> "RecipeTask":
        """The same task with fewer rows to train on."""
        return replace(self, name=f"{self.name}, {rows} rows", training=self.training[:rows])


def build_tasks() -> list[RecipeTask]:
    """The tasks. They are the same at every call."""
    return [_build_classification(), _read_persona(), _build_extraction()]


def _build_extraction() -> RecipeTask:
    """Orders, to be written as JSON."""
    chance = random.Random(14)  # noqa: S311 - no secret
    rows: list[dict[str, Any]] = []
    for number in range(120):
        order = {
            "name": chance.choice(_NAMES),
            "item": chance.choice(_ITEMS),
            "quantity": chance.randrange(2, 60),
            "city": chance.choice(_CITIES),
        }
        text = _ORDERS[number % len(_ORDERS)].format(**order)
        rows.append(_row("Extract the order as JSON.", text, json.dumps(order)))
    return RecipeTask("JSON extraction", rows[:100], rows[100:], _is_same_json)


def _read_persona() -> RecipeTask:
    """The keeper of the lighthouse, from the examples of the quick start."""
    training, held_out = (
        [json.loads(line) for line in (_EXAMPLES / name).read_text("utf-8").splitlines()]
        for name in ("lighthouse-train.jsonl", "lighthouse-validation.jsonl")
    )
    return RecipeTask("persona", training, held_out, _is_in_persona)


def _build_classification() -> RecipeTask:
    """Messages of customers, to be sorted. The held-out ones are about other articles."""
    chance = random.Random(14)  # noqa: S311 - no secret
    articles = chance.sample(_ITEMS, len(_ITEMS))
    rows: list[list[dict[str, Any]]] = [[], []]
    for is_held_out, size, items in ((0, 16, articles[:12]), (1, 5, articles[12:])):
        for label, complaints in _COMPLAINTS.items():
            for number in range(size):
                text = complaints[(number + is_held_out) % len(complaints)]
                complaint = text.format(item=f"the {chance.choice(items)}")
                complaint = complaint[0].upper() + complaint[1:]
                rows[is_held_out].append(_row("Route the message.", complaint, label))
        chance.shuffle(rows[is_held_out])
    return RecipeTask("classification", rows[0], rows[1], _is_same_text)


def _row(instruction: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": instruction},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _is_same_json(answer: str, expected: str) -> bool:
    try:
        return json.loads(answer) == json.loads(expected)
    except ValueError:
        return False


def _is_in_persona(answer: str, expected: str) -> bool:
    del expected
    return answer.startswith("Ahoy!") and answer.endswith("Fair winds to you!")


def _is_same_text(answer: str, expected: str) -> bool:
    return answer == expected
