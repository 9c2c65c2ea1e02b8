"""Looks for what is probably a mistake in the texts of a file, as far as no token is needed."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.dataset.formats import (
    ChatExample,
    Example,
    ParsedExample,
    PreferenceExample,
    PromptExample,
)
from app.core.job.data_report import DataWarning, FileParam
from worker.training.preparation.named_lines import NamedLines
from worker.training.preparation.repeats import LineDigests

_PLACEHOLDERS = frozenset(
    {"", "-", "...", "n/a", "nan", "none", "null", "tbd", "todo", "undefined"}
)

_MAX_NAMES = 1000
"""Number of different names above which none of them is looked at: they are free text then."""

_USES_PER_RARITY = 20
"""Uses of other names, or lines in other scripts, for each that occurs once and is reported."""

_MOST = 0.5
_FEWEST_LINES = 10
"""Lines below which equal answers are no surprise."""

_SAMPLE = 200
"""Characters of an answer that tell its script."""

_TOKENS_NAMED = 5

_SCRIPTS = (
    (0x0041, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"),
    (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0780, ""), (0x0900, "Devanagari"),
    (0x0980, "Bengali"), (0x0A00, ""), (0x0B80, "Tamil"), (0x0C00, ""), (0x0E00, "Thai"),
    (0x0E80, ""), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, ""), (0x1E00, "Latin"),
    (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Chinese or Japanese"), (0x3100, ""),
    (0x3400, "Chinese or Japanese"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""),
)  # fmt: skip
"""First characters of the blocks of a script. An empty name stands for all other scripts."""
_STARTS = [start for start, _ in _SCRIPTS]


@dataclass(slots=True)
class _Names:
    """How often each name of a kind is used, and where first."""

    uses: Counter[str] = field(default_factory=Counter[str])
    first_lines: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, name: str, line: int) -> None:
        if name in self.uses or len(self.uses) < _MAX_NAMES:
            self.uses[name] += 1
            self.first_lines.setdefault(name, line)

    def find_rarities(self) -> dict[str, int]:
        """The names that are used once, with their lines, where nearly all others are not."""
        once = {name: self.first_lines[name] for name, uses in self.uses.items() if uses == 1}
        is_rare = self.uses.total() >= _USES_PER_RARITY * len(once)
        return once if is_rare and len(self.uses) < _MAX_NAMES else {}

    def warn(self, code: str, message: str, param: FileParam) -> Iterator[DataWarning]:
        """A warning for all names that are used once. `{names}` in the message stands for them."""
        rarities = self.find_rarities()
        found = NamedLines()
        for line in sorted(rarities.values()):
            found.add(line)
        names = ", ".join(repr(name[:40]) for name in list(rarities)[:_TOKENS_NAMED])
        yield from found.warn(code, message.replace("{names}", names), param)


class ContentCheck:
    """What was found in the texts of the examples of one file so far.

    Args:
        special_tokens: texts that the tokenizer reads as special tokens.
    """

    def __init__(self, special_tokens: Sequence[str]) -> None:
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._special_lines = NamedLines()
        self._special_found: set[str] = set()
        self._empty_answers = NamedLines()
        self._answers = LineDigests()
        self._tools, self._speakers, self._scripts = _Names(), _Names(), _Names()

    def add(self, line: int, example: ParsedExample) -> None:
        """Take the next line. Mistakes in the worse answer of a preference may be meant."""
        texts = _texts(example)
        if isinstance(example, PreferenceExample):
            example = example.preferred
        found = {match for text in texts for match in self._special.findall(text)}
        if found:
            self._special_lines.add(line)
            self._special_found |= found
        answers = list(_answers(example))
        if any(answer.strip().lower() in _PLACEHOLDERS for answer in answers):
            self._empty_answers.add(line)
        if answers:
            self._answers.add(line, [answer.encode("utf-8", "replace") for answer in answers])
        script = _script_of("".join(answers)[:_SAMPLE])
        if script:
            self._scripts.add(script, line)
        if isinstance(example, ChatExample):
            self._add_names(line, example)

    def warnings(self, param: FileParam) -> Iterator[DataWarning]:
        """A warning for each kind of mistake."""
        tokens = ", ".join(sorted(self._special_found)[:_TOKENS_NAMED])
        yield from self._special_lines.warn(
            "special_token_in_text",
            f"Lines with special tokens in their texts, such as {tokens}: {{count}}. The model "
            "takes them for those of the chat template, so they can end a turn in the middle. "
            "Remove them, unless you rendered the rows yourself.",
            param,
        )
        yield from self._empty_answers.warn(
            "empty_answer",
            "Lines with an answer that looks empty, such as null or a hyphen: {count}. Remove "
            "them, unless the model is to learn such an answer.",
            param,
        )
        same = self._answers.find_most_common()
        if len(self._answers) >= _FEWEST_LINES and same.count > _MOST * len(self._answers):
            yield from same.warn(
                "same_answer",
                "{count} lines have the same answer, so the model mostly learns to repeat it. Add "
                "other answers, or remove some of these lines.",
                param,
            )
        yield from self._warn_of_rarities(param)

    def _add_names(self, line: int, example: ChatExample) -> None:
        for message in example.messages:
            name = message.get("name")
            if isinstance(name, str) and message["role"] != "tool":
                self._speakers.add(name, line)
            for call in message.get("tool_calls") or ():
                self._tools.add(str(_function_of(call).get("name")), line)

    def _warn_of_rarities(self, param: FileParam) -> Iterator[DataWarning]:
        yield from self._tools.warn(
            "tool_used_once",
            "Tools that are called only once: {names}. Check their spelling.",
            param,
        )
        yield from self._speakers.warn(
            "name_used_once",
            "Names of speakers that occur only once: {names}. Check their spelling.",
            param,
        )
        yield from self._scripts.warn(
            "script_used_once",
            "Scripts in which only one line is answered: {names}. Check that this line belongs to "
            "this file.",
            param,
        )


def _answers(example: Example) -> Iterator[str]:
    """The texts that are learned, other than calls of tools."""
    if isinstance(example, ChatExample):
        for message, is_learned in zip(example.messages, example.is_learned, strict=True):
            if is_learned and not message.get("tool_calls"):
                yield message["content"]
    else:
        yield example.completion if isinstance(example, PromptExample) else example.text


def _texts(example: ParsedExample) -> Iterator[str]:
    """All texts that a user wrote."""
    if isinstance(example, PreferenceExample):
        yield from _texts(example.preferred)
        yield from _texts(example.non_preferred)
    elif isinstance(example, ChatExample):
        for message in example.messages:
            yield message["content"]
            yield message.get("reasoning_content") or ""
            for call in message.get("tool_calls") or ():
                yield str(_function_of(call).get("arguments"))
    elif isinstance(example, PromptExample):
        yield example.prompt
        yield example.completion
    else:
        yield example.text


def _function_of(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _script_of(text: str) -> str:
    """The script of most letters of a text; empty if there is none, or it is a rare one."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else ""
    scripts = Counter(
        _SCRIPTS[bisect_right(_STARTS, ord(letter)) - 1][1] for letter in text if letter.isalpha()
    )
    return scripts.most_common(1)[0][0] if scripts else ""
