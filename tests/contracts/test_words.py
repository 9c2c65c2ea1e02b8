"""What can be checked of the rule of plain words in CONTRIBUTING.md."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from app.core.settings import Settings

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *PROJECT.glob("docs/*.md"),
    ]
)
MODULES = sorted(
    path for name in ("app", "worker", "tunery") for path in (PROJECT / name).rglob("*.py")
)
FRAMEWORK_TEXTS = {"Successful Response", "Validation Error"}
"""Descriptions that FastAPI writes itself."""

MIN_WORDS = 4
MAX_COLUMNS = 100
FRAGMENT = re.compile(r"(?:Of|As|So|Whose|(?:By |For |In |To )?[Ww]hich|That|And|Or|But|Also)\b")
"""Beginning of a text that does not stand alone, such as "Of the last evaluation."."""

ODD_WORDS = re.compile(
    r"\b(?:anew|mend(?:s|ed|ing)?|gone on|go(?:es|ing)? on from|knobs?)\b", re.IGNORECASE
)
"""Words for which the field has others: again, fix, resume, hyperparameter."""


def faults_of(text: str) -> Iterator[str]:
    """Yield the reasons why a text is not a sentence or noun phrase that stands alone."""
    if not re.match(r"[A-Z0-9`]", text):
        yield "does not begin with a capital letter"
    if FRAGMENT.match(text):
        yield "begins like a fragment"
    if not text.endswith("."):
        yield "does not end with a period"
    if len(text.split()) < MIN_WORDS:
        yield f"has fewer than {MIN_WORDS} words"
    if ODD_WORDS.search(text):
        yield "has a word for which the field has another"


def faulty(texts: dict[str, str]) -> list[str]:
    return [
        f"{place} {fault}: {text!r}"
        for place, text in texts.items()
        for fault in faults_of(" ".join(text.split()))
    ]


def descriptions_in(node: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every description of an OpenAPI document with its place."""
    if isinstance(node, dict):
        for key, value in cast("dict[str, object]", node).items():
            if key == "description" and isinstance(value, str):
                yield place, value
            yield from descriptions_in(value, f"{place}/{key}")
    elif isinstance(node, list):
        for index, item in enumerate(cast("list[object]", node)):
            yield from descriptions_in(item, f"{place}/{index}")


def docstrings_in(module: Path) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of a module, its classes, functions and attributes with their place."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield f"{module.relative_to(PROJECT)}:{node.lineno}", text
            case _:
                continue


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page without code blocks, tables and pictures."""
    is_code = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code and not line.startswith(("|", "!", "```")):
            yield number, line


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("whether it is done for good.", "does not begin with a capital letter"),
        ("Of the last evaluation.", "begins like a fragment"),
        ("In which the adapter is saved.", "begins like a fragment"),
        ("Validation loss after the last step", "does not end with a period"),
        ("The step.", "has fewer than 4 words"),
        ("Every knob with its value.", "has a word for which the field has another"),
        ("State that cannot be gone on from.", "has a word for which the field has another"),
    ],
)
def test_a_text_that_does_not_stand_alone_is_found(text: str, fault: str) -> None:
    assert list(faults_of(text)) == [fault]


def test_every_description_of_the_api_stands_alone() -> None:
    document: Any = json.loads((PROJECT / "openapi.json").read_bytes())
    texts = {
        place: text for place, text in descriptions_in(document) if text not in FRAMEWORK_TEXTS
    }

    assert texts
    assert faulty(texts) == []


def test_the_text_of_every_setting_stands_alone() -> None:
    texts = {name: field.description or "" for name, field in Settings.model_fields.items()}

    assert faulty(texts) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_page_has_the_words_of_the_field(page: Path) -> None:
    tables = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    # The table in CONTRIBUTING.md shows such words on purpose.
    shown = [] if page.name == "CONTRIBUTING.md" else tables
    lines = [line for _, line in prose_of(page)] + shown

    assert [line for line in lines if ODD_WORDS.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_prose_of_a_page_wraps_at_100_columns(page: Path) -> None:
    assert [number for number, line in prose_of(page) if len(line) > MAX_COLUMNS] == []


def test_no_docstring_begins_with_of() -> None:
    docstrings = [found for module in MODULES for found in docstrings_in(module)]

    assert docstrings
    assert [place for place, text in docstrings if re.match(r"\s*Of\b", text)] == []
