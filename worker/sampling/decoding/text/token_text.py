"""The text of tokens, as they come one by one."""

import codecs
import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How tokenizers with byte fallback write a token that is one byte."""


class TokenTexts:
    """The text of each token of one tokenizer, in bytes of UTF-8.

    A token may be a part of a character, so its text alone need not be valid UTF-8.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = cast("Tokenizer", tokenizer.backend_tokenizer)
        added = tokenizer.added_tokens_decoder
        self.special = {token.content: id_ for id_, token in added.items() if token.special}
        """Tokens that are no text, such as the one that ends a turn, by how they are written."""
        self._added = {id_: token.content for id_, token in added.items()}
        steps = _decoding_steps(self._backend)
        self.strips_first_space = any(map(_strips_first_space, steps))
        """Whether the tokenizer drops a space at the beginning of a text."""
        kinds = {step["type"] for step in steps}
        self._has_byte_alphabet = "ByteLevel" in kinds
        self._has_byte_tokens = "ByteFallback" in kinds
        self._known: dict[int, bytes] = {}
        self._anchor = self._backend.encode("a", add_special_tokens=False).ids[-1:]

    def read(self, token: int) -> bytes:
        """The text of a token that does not begin a text. Empty for a token that does not exist."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> bytes:
        written = self._backend.id_to_token(token)
        if written is None:
            return b""
        if self._has_byte_alphabet:
            added = self._added.get(token)
            return _from_byte_alphabet(written) if added is None else added.encode()
        byte = _BYTE.fullmatch(written)
        if self._has_byte_tokens and byte:
            return bytes([int(byte[1], 16)])
        before = self._backend.decode(self._anchor, skip_special_tokens=False)
        both = self._backend.decode([*self._anchor, token], skip_special_tokens=False)
        return both.removeprefix(before).encode()


class Detokenizer:
    """Turns the tokens of one answer into text, and never tells half a character.

    Args:
        texts: the texts of the tokens.
        begins_text: whether the answer is a text of its own. Otherwise it goes on with the prompt.
        shown: special tokens that are told as they are written. The others are left out.
    """

    def __init__(
        self, texts: TokenTexts, *, begins_text: bool, shown: Collection[int] = ()
    ) -> None:
        self._texts = texts
        self._hidden = set(texts.special.values()).difference(shown)
        self._drops_space = begins_text and texts.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What can be told once the token is there."""
        if token in self._hidden:
            return ""
        read = self._texts.read(token)
        if read and self._drops_space:
            read = read.removeprefix(b" ")
            self._drops_space = False
        return self._decoder.decode(read)

    @property
    def is_within_character(self) -> bool:
        """Whether a character is begun and not complete."""
        return bool(self._decoder.getstate()[0])

    def end(self) -> str:
        """U+FFFD if the last character was not completed."""
        return self._decoder.decode(b"", final=True)


def _decoding_steps(backend: "Tokenizer") -> list[dict[str, Any]]:
    """What the tokenizer does to turn tokens into text, one step after the other."""
    if backend.decoder is None:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _strips_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme") != "never"
    return step["type"] == "Strip" and step["content"] == " " and step["start"] > 0


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character stands for in a byte-level vocabulary.

    Source: `bytes_to_unicode` of GPT-2. Bytes that print as one character are that character. The
    others have characters from U+0100 on, in their order.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in printed)
    alphabet = {chr(byte): byte for byte in printed}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _from_byte_alphabet(written: str) -> bytes:
    """The bytes of a token. One with other characters is its own text."""
    try:
        return bytes([_BYTE_ALPHABET[character] for character in written])
    except KeyError:
        return written.encode()
