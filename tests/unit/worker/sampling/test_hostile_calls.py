"""What a model writes instead of a call costs time that grows with its length, and no faster."""

# ruff: noqa: RUF001 - DeepSeek writes with characters that look like others

import math
import time
from collections.abc import Callable, Sequence

import pytest

from worker.sampling.decoding.calls.forms import FORMS, CallForm
from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.calls.values import MalformedCallError
from worker.sampling.decoding.text.told import Told

PIECE = 3
"""Characters of a token."""
GROWTH = 30
"""Ten times the text may take so many times as long. If all of it were read again for each piece,
that would be a hundred."""
SHORTEST_S = 0.001
"""Less than this is not measured, but chance."""

BEGINNING = "<｜tool▁call▁begin｜>"
BODIES: dict[str, Callable[[int], str]] = {
    "space": lambda n: " " * n,
    "lines": lambda n: "\n" * n,
    "space, then more": lambda n: f"f{' ' * n}!",
    "braces": lambda n: "{" * n,
    "braces in pairs": lambda n: "{}" * (n // 2),
    "brackets": lambda n: "[" * n,
    "a name": lambda n: "f" * n,
    "names": lambda n: "f " * (n // 2),
    "an identifier": lambda n: f"f[CALL_ID]{' x' * (n // 2)}",
    "identifiers": lambda n: "f[CALL_ID]" * (n // 10),
    "no end of arguments": lambda n: "f[ARGS]{" + "}" * n + "!",
    "no end of a function": lambda n: f"<function=f>{' ' * n}",
    "ends of functions": lambda n: "<function=f>" + "</function>" * (n // 11) + "!",
    "parameters": lambda n: "<function=f>" + "<parameter=a>" * (n // 13) + "</function>",
    "lines in a parameter": lambda n: f"<function=f><parameter=a>{chr(10) * n}</function>",
    "keys": lambda n: "f" + "<arg_key>" * (n // 9),
    "values": lambda n: "f<arg_key>a</arg_key><arg_value>" + "</arg_key>" * (n // 10),
    "fences": lambda n: f"{BEGINNING}function<｜tool▁sep｜>f\n```json" + "\n```" * (n // 4),
    "separators": lambda n: f"{BEGINNING}f" + "<｜tool▁sep｜>" * (n // 12),
    "python": lambda n: "f(x=1)\n" * (n // 7) + "!",
    "a long number": lambda n: '{"name": "f", "arguments": {"x": ' + "1" * n + "}}",
    "half an opening": lambda n: "[TOOL_CALL<tool_cal" * (n // 19),
    "half a closing": lambda n: "</tool_cal" * (n // 10),
}  # fmt: skip


def id_of(form: CallForm) -> str:
    return f"{form.opening}-{form.read.__name__}"


def seconds(form: CallForm, text: str) -> float:
    """Processor time in which a text is read that comes in small pieces."""
    begun = time.thread_time()
    reader = CallReader(form, {})
    for start in range(0, len(text), PIECE):
        reader.add(text[start : start + PIECE])
    reader.end()
    return time.thread_time() - begun


def check_growth(form: CallForm, write: Callable[[int], str], sizes: Sequence[int]) -> None:
    limit = math.inf
    for size in sizes:
        text = write(size)
        tries = (seconds(form, text) for _ in range(5))
        taken = next((each for each in tries if each < limit), None)

        assert taken is not None, f"{size:,} characters take more than {limit:.3f} s"
        limit = GROWTH * max(taken, SHORTEST_S)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("form", FORMS, ids=id_of)
def test_ten_times_the_call_takes_ten_times_as_long(
    form: CallForm, body: Callable[[int], str]
) -> None:
    opening = "" if form.is_bare else form.opening

    check_growth(form, lambda size: f"{opening}{body(size)}{form.closing or ''}", (30, 300, 3000))


@pytest.mark.parametrize("write", [lambda n: "<tool_call>" + "x" * n, lambda n: " " * n])
def test_what_is_held_back_is_read_once(write: Callable[[int], str]) -> None:
    check_growth(FORMS[0], write, (30_000, 300_000))


def test_what_is_held_back_is_counted() -> None:
    reader, held = CallReader(FORMS[0], {}), list[int]()

    for piece in (" \r\n", "Hi ", "<tool_", "call>", "x"):
        reader.add(piece)
        held.append(reader.held)

    assert held == [3, 1, 7, 12, 13]
    assert reader.end() == Told(" <tool_call>x")


def test_python_calls_are_read_up_to_a_length() -> None:
    (form,) = (form for form in FORMS if form.opening == "<function_calls>")
    short, long = (f"f(x='{'x' * length}')" for length in (60_000, 70_000))

    assert len(form.read(short, {})) == 1
    with pytest.raises(MalformedCallError, match="too long"):
        form.read(long, {})
