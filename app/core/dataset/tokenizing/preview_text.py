"""Writes a preview as text for a terminal."""

from collections.abc import Iterator
from itertools import groupby

from app.core.dataset.tokenizing.messages import Preview, PreviewedExample, PreviewedRow, Token

_LEARNED, _SPECIAL, _PLAIN = "32", "2", ""
"""Colours, as parameters of the escape sequence SGR: green, dim, and that of the terminal."""
_LEARNED_SPECIAL = f"{_LEARNED};{_SPECIAL}"

_LEFT, _RIGHT = "\u27e6", "\u27e7"
"""Brackets around what is learned where there are no colours."""

_OUTCOMES = {
    "kept": "kept",
    "truncated": "its end is cut off",
    "dropped": "left out, because it is too long",
    "too_long": "fails the job, because it is too long",
    "nothing_to_learn": "left out, because nothing of it is learned",
    "equal_answers": "left out, because both answers have the same tokens",
}


def write_preview(preview: Preview, *, has_colours: bool) -> Iterator[str]:
    """Yield the lines of a preview.

    What the file or the base model has written cannot control the terminal: its control characters
    are shown as escapes.

    Args:
        preview: the preview.
        has_colours: whether escape sequences show what is learned; otherwise brackets do.
    """
    yield _legend(has_colours=has_colours)
    for warning in preview.warnings:
        yield f"Warning: {_escape(warning)}"
    for row in preview.rows:
        yield ""
        yield from _write_row(row, has_colours=has_colours)


def _legend(*, has_colours: bool) -> str:
    line_end = "\u21b5 is a line feed."
    if not has_colours:
        return f"{_LEFT}learned{_RIGHT} is learned; the rest is only read. {line_end}"
    samples = (("learned", _LEARNED), ("special", _SPECIAL))
    learned, special = (_paint(text, style) for text, style in samples)
    return f"{learned} tokens are learned; the rest is only read. {special} tokens. {line_end}"


def _write_row(row: PreviewedRow, *, has_colours: bool) -> Iterator[str]:
    if row.error is not None:
        yield _title(f"line {row.line}", _escape(row.error.message), has_colours=has_colours)
    for number, example in enumerate(row.examples, start=1):
        name = f"line {row.line}"
        if example.answer is not None:
            name += f", {example.answer.replace('_', '-')} answer"
        elif len(row.examples) > 1:
            name += f", example {number} of {len(row.examples)}"
        yield _title(name, _describe(example), has_colours=has_colours)
        yield _write_tokens(example.tokens, has_colours=has_colours).removesuffix("\n")
    if row.is_cut:
        yield "... (there are more tokens than a preview shows)"


def _title(name: str, rest: str, *, has_colours: bool) -> str:
    return f"{_paint(name, '1') if has_colours else name}: {rest}"


def _describe(example: PreviewedExample) -> str:
    text = (
        f"{example.total_tokens:,} tokens, {example.learned_tokens:,} learned; "
        f"{_OUTCOMES[example.outcome]}"
    )
    if example.learned_tokens and not example.learns_stop:
        text += "; what is learned does not end with the stop token"
    if not example.is_whole:
        text += "; the chat template leaves out a part of an answer"
    return text


def _write_tokens(tokens: tuple[Token, ...], *, has_colours: bool) -> str:
    if has_colours:
        runs = groupby(tokens, key=_style)
        return "".join(_paint(_text(run), style) for style, run in runs)
    return "".join(
        f"{_LEFT}{_text(run)}{_RIGHT}" if is_learned else _text(run)
        for is_learned, run in groupby(tokens, key=lambda token: token.is_learned)
    )


def _style(token: Token) -> str:
    if token.is_learned:
        return _LEARNED_SPECIAL if token.is_special else _LEARNED
    return _SPECIAL if token.is_special else _PLAIN


def _paint(text: str, style: str) -> str:
    """Colour each line of a text by itself, because pagers forget a colour at the end of a line."""
    if not style:
        return text
    return "\n".join(f"\x1b[{style}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


def _text(tokens: Iterator[Token]) -> str:
    return _escape("".join(token.text for token in tokens)).replace("\n", "\u21b5\n")


def _escape(text: str) -> str:
    """Replace what does not print, and our own marks, by Python's escapes."""
    return "".join(
        character
        if character == "\n" or (character.isprintable() and character not in (_LEFT, _RIGHT))
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
