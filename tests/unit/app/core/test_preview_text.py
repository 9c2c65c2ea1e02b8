"""A preview on a terminal: what is learned can be seen, and no text controls the terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.dataset.tokenizing.messages import Preview, PreviewedExample, PreviewedRow, Token
from app.core.dataset.tokenizing.preview_text import write_preview
from app.core.job.child.training_events import DataProblem

OURS = re.compile(r"\x1b\[(?:1|2|32|32;2|0)m")


def build_token(text: str, *, is_learned: bool = False, is_special: bool = False) -> Token:
    return Token(id=1, text=text, is_learned=is_learned, is_special=is_special)


def build_preview(
    *tokens: Token, warning: str = "", problem: str = "", **changes: object
) -> Preview:
    example = PreviewedExample(
        outcome="kept",
        total_tokens=len(tokens),
        learned_tokens=1,
        learns_stop=True,
        is_whole=True,
        tokens=tokens,
    ).model_copy(update=changes)
    rows = [PreviewedRow(line=1, examples=(example,))]
    if problem:
        error = DataProblem(line=2, path="messages", code="any", message=problem)
        rows.append(PreviewedRow(line=2, error=error))
    return Preview(rows=tuple(rows), stop="<end>", warnings=(warning,) if warning else ())


def write(preview: Preview, *, has_colours: bool = True) -> str:
    return "\n".join(write_preview(preview, has_colours=has_colours))


TURN = (
    build_token("<bot>", is_special=True),
    build_token("Two"),
    build_token("\n"),
    build_token("Four", is_learned=True),
    build_token(".\nYes", is_learned=True),
    build_token("<end>", is_learned=True, is_special=True),
)


def test_what_is_learned_is_coloured_line_by_line() -> None:
    assert write(build_preview(*TURN)).partition("\n\n")[2] == (
        "\x1b[1mline 1\x1b[0m: 6 tokens, 1 learned; kept\n"
        "\x1b[2m<bot>\x1b[0mTwo\u21b5\n"
        "\x1b[32mFour.\u21b5\x1b[0m\n\x1b[32mYes\x1b[0m\x1b[32;2m<end>\x1b[0m"
    )


def test_brackets_take_the_place_of_colours() -> None:
    text = write(build_preview(*TURN), has_colours=False)

    assert text.endswith("\n<bot>Two\u21b5\n\u27e6Four.\u21b5\nYes<end>\u27e7")
    assert "\x1b" not in text


@pytest.mark.parametrize("has_colours", [True, False])
@given(text=st.text(), warning=st.text(), problem=st.text())
def test_no_text_controls_the_terminal_or_passes_for_ours(
    text: str, warning: str, problem: str, *, has_colours: bool
) -> None:
    plain = build_preview(build_token("a"), warning="a", problem="a")
    preview = build_preview(build_token(text), warning=f"a{warning}", problem=f"a{problem}")

    written = write(preview, has_colours=has_colours)

    assert all(character.isprintable() for character in OURS.sub("", written).replace("\n", ""))
    for mark in ("\x1b", "\u27e6", "\u27e7"):
        assert written.count(mark) == write(plain, has_colours=has_colours).count(mark)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"outcome": "truncated", "learns_stop": False}, "cut off; what is learned does not end"),
        ({"is_whole": False}, "kept; the chat template leaves out a part of an answer"),
        ({"outcome": "dropped", "learned_tokens": 0}, "left out, because it is too long"),
        ({"outcome": "too_long", "learned_tokens": 0}, "fails the job"),
        ({"outcome": "nothing_to_learn", "learned_tokens": 0}, "nothing of it is learned"),
    ],
)
def test_the_title_says_what_becomes_of_an_example(
    changes: dict[str, object], expected: str
) -> None:
    assert expected in write(build_preview(*TURN, **changes))
