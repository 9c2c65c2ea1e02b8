"""Rebuild a tokenizer from the tokens and merges in a GGUF file's metadata."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from worker.model_store.errors import InstallError

_CONTROL = 3
"""Type of a token that is never text, such as the start of a turn."""


def write_tokenizer(metadata: dict[str, Any], files_dir: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and, if there is one, the chat template.

    Raises:
        InstallError: text is split in a way that is not rebuilt here.
        KeyError: something that belongs to a tokenizer is not in the metadata.
    """
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InstallError(
            f"A tokenizer of the kind {kind} is not rebuilt from GGUF, only ('gpt2', 'smollm'). "
            "Take the model from a hub or a directory."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges: list[str] = metadata["tokenizer.ggml.merges"]
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL]
    tokenizer = _build(tokens, [_pair(merge) for merge in merges], control)
    tokenizer.save(str(files_dir / "tokenizer.json"))
    config: dict[str, object] = {
        # Reads tokenizer.json as it is; GPT2Tokenizer would put a splitter of its own in.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (files_dir / "tokenizer_config.json").write_text(text, "utf-8")
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        (files_dir / "chat_template.jinja").write_text(template, "utf-8")


def _build(tokens: list[str], merges: list[tuple[str, str]], control: list[str]) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Any: the parameters of add_special_tokens have no types.
    tokenizer: Any = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
