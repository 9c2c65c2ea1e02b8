"""Loads the tokenizer of a base model."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from worker.training.failures import TrainingFailedError


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the base model in `directory`.

    Raises:
        TrainingFailedError: `tokenizer_unsupported`, when it cannot tell which characters a token
            stands for, or has no token that ends a text.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise TrainingFailedError(
            "tokenizer_unsupported",
            "The base model's tokenizer has no fast form (tokenizer.json) or no end-of-text token. "
            "Choose another base model.",
            param="model",
        )
    return tokenizer
