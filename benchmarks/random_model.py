"""A model of the shape of Qwen2-1.5B with random weights, for the reference script's own job.

    python -m benchmarks.random_model DIRECTORY LAYERS TOKENIZER

It learns nothing sensible, and takes the time and the memory that the real one takes.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config


def write_random_model(directory: Path, *, layers: int, tokenizer_of: Path) -> None:
    """Write the model as it would be on a hub: bfloat16, in safetensors.

    Args:
        directory: to be made.
        layers: the real one has 28.
        tokenizer_of: a model whose tokenizer it gets; its ids must be among 151,936.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=1536,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        vocab_size=151_936,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    assert len(tokenizer) <= config.vocab_size
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    write_random_model(Path(sys.argv[1]), layers=int(sys.argv[2]), tokenizer_of=Path(sys.argv[3]))
