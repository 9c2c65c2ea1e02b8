"""Text of tokens as they come, compared with that of all tokens at once."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from worker.sampling.decoding.text.token_text import Detokenizer, TokenTexts

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
WORDS = "the grey fox — naïve Straße Привет 你好 日本語 한국어 مرحبا שלום ไทย हिन्दी 👩‍👩‍👧 🇨🇭 \n\t"


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: spaces as ▁, one before the text, and bytes for unknown characters."""
    characters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    characters += list("abcdefghijklmnoprstuvwxyzé")
    vocabulary = {character: index for index, character in enumerate(characters)}
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = ["<unk>", "</s>", "▁", *sorted(set(WORDS) - {" "}), "▁x", "xx"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(alphabet)},
            merges=[("▁", "x"), ("x", "x")],
            unk_token=UNKNOWN,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["<tool call>", "日本"])
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "sentencepiece": sentencepiece_tokenizer(),
    "metaspace": metaspace_tokenizer(),
}
TEXTS = {name: TokenTexts(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def read_one_by_one(name: str, tokens: list[int], *, begins_text: bool = True) -> str:
    detokenizer = Detokenizer(TEXTS[name], begins_text=begins_text)
    pieces = [detokenizer.add(token) for token in tokens]
    return "".join(pieces) + detokenizer.end()


def read_at_once(name: str, tokens: list[int]) -> str:
    return TOKENIZERS[name].backend_tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.one_of(st.text(), st.text(alphabet=WORDS)))
def test_texts_of_all_scripts_are_those_of_all_tokens_at_once(name: str, text: str) -> None:
    tokens = TOKENIZERS[name].encode(text, add_special_tokens=False)

    assert read_one_by_one(name, tokens) == read_at_once(name, tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_random_tokens_are_read_as_all_tokens_at_once(name: str, data: st.DataObject) -> None:
    allowed = range(len(TOKENIZERS[name]))
    if name == "sentencepiece":  # whose decoder writes each byte of a broken character as U+FFFD
        allowed = [token for token in allowed if not 3 <= token < 3 + 256]
    tokens = data.draw(st.lists(st.sampled_from(allowed)))

    assert read_one_by_one(name, tokens) == read_at_once(name, tokens)


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
def test_half_a_character_is_never_told(name: str) -> None:
    tokens = TOKENIZERS[name].encode("x🦊x", add_special_tokens=False)
    detokenizer = Detokenizer(TEXTS[name], begins_text=True)

    told = [detokenizer.add(token) for token in tokens]

    assert [text for text in told if text] == ["x", "🦊", "x"]


def test_a_character_that_is_not_completed_is_told_at_the_end() -> None:
    tokens = TOKENIZERS["byte-level"].encode("🦊")[:3]

    assert read_one_by_one("byte-level", tokens) == "\ufffd"


def test_an_answer_that_goes_on_with_a_prompt_keeps_its_first_space() -> None:
    tokens = TOKENIZERS["sentencepiece"].encode("the fox", add_special_tokens=False)

    assert read_one_by_one("sentencepiece", tokens) == "the fox"
    assert read_one_by_one("sentencepiece", tokens, begins_text=False) == " the fox"


def test_special_tokens_are_told_only_if_they_are_shown() -> None:
    texts = TEXTS["byte-level"]
    tokens = TOKENIZERS["byte-level"].encode("a<|im_start|>b<|im_end|>")
    shown = Detokenizer(texts, begins_text=True, shown={texts.special["<|im_start|>"]})

    assert read_one_by_one("byte-level", tokens) == "ab"
    assert "".join(map(shown.add, tokens)) == "a<|im_start|>b"


@pytest.mark.parametrize("token", ["naïve", "<é>", "Ġ"])
def test_an_added_token_is_its_own_text(token: str) -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens([token])
    tokens = tokenizer.encode(f"x{token}y", add_special_tokens=False)
    detokenizer = Detokenizer(TokenTexts(tokenizer), begins_text=True)

    assert len(tokens) == 3
    assert "".join(map(detokenizer.add, tokens)) == f"x{token}y"


def test_a_token_that_does_not_exist_has_no_text() -> None:
    assert TEXTS["byte-level"].read(10**6) == b""
