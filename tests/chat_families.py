"""Families of chat templates, as packages ship them, and the conversations to try with each."""

import tomllib
from datetime import date
from importlib.metadata import distribution
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.dataset.formats import ChatExample
from worker.training.data.encoding import Encoded, Encoder

FAMILIES: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("unit").joinpath("worker/training/masks.toml").read_text("utf-8")
)
TODAY = date(2024, 7, 26)
MAX_SHOWN = 160

_TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "description": "Which."}},
            "required": ["x"],
        },
    },
}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "find", "arguments": '{"x": 1}'},
}


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _chat(
    *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None, unlearned: int = -1
) -> ChatExample:
    is_learned = [
        message["role"] == "assistant" and index != unlearned
        for index, message in enumerate(messages)
    ]
    return ChatExample(list(messages), is_learned, tools)


CONVERSATIONS = MappingProxyType(
    {
        "single_turn": _chat(_user("Q1"), _answer("R1")),
        "multi_turn": _chat(_user("Q1"), _answer("R1"), _user("Q2"), _answer("R2")),
        "system": _chat({"role": "system", "content": "S"}, _user("Q1"), _answer("R1")),
        "empty_system": _chat({"role": "system", "content": ""}, _user("Q1"), _answer("R1")),
        "tools": _chat(
            _user("Q1"),
            _answer("", tool_calls=[_CALL]),
            {"role": "tool", "content": "rain", "name": "find", "tool_call_id": "call00001"},
            _answer("R2"),
            tools=[_TOOL],
        ),
        "weight_0": _chat(_user("Q1"), _answer("R1"), _user("Q2"), _answer("R2"), unlearned=1),
        "white_space": _chat(_user("Q1"), _answer("  R1 \n\n"), _user("Q2"), _answer("\nR2")),
        "thinking": _chat(
            _user("Q1"),
            _answer("R1", reasoning_content="T1"),
            _user("Q2"),
            _answer("R2", reasoning_content="T2"),
        ),
    }
)


def read_template(file: str) -> str:
    """A template, byte for byte as a package ships it in this file, such as `trl/x.jinja`."""
    package = distribution(file.partition("/")[0])
    return Path(str(package.locate_file(file))).read_bytes().decode()


def trl_file(name: str) -> str:
    return f"trl/chat_templates/{name}.jinja"


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, and one for each of the special tokens."""
    expected = FAMILIES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = dict.fromkeys(["<s>", expected["eos"], *expected["special_tokens"]])
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    special = {"bos_token": "<s>", "eos_token": expected["eos"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = read_template(expected.get("template", trl_file(family)))
    return tokenizer


def build_encoder(family: str, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer, today=TODAY, stop_tokens=FAMILIES[family].get("stop_tokens"))


def mark_learned(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a row, with what is learned of it in « and ».

    A text of more than 160 characters before the first question, such as a description of tools,
    is shortened to …. The mark of a learned token in it would stay.
    """
    tokens = zip(encoded.is_learned, encoded.input_ids, strict=True)
    parts = [
        ("«{}»" if is_learned else "{}").format(tokenizer.decode([token for _, token in run]))
        for is_learned, run in groupby(tokens, key=itemgetter(0))
    ]
    before, question, after = "".join(parts).partition("Q1")
    if len(before) > MAX_SHOWN and "«" not in before:
        before = "…"
    return before + question + after
