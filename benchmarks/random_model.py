"""Models of the shapes of well-known ones with random weights, for their time and memory.

    python -m benchmarks.random_model SHAPE DIRECTORY TOKENIZER [LAYERS]

They learn nothing sensible, and take the time and the memory that the real ones take.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

_QWEN2: dict[str, Any] = {"vocab_size": 151_936, "max_position_embeddings": 32_768}
SHAPES: dict[str, Callable[..., LlamaConfig | Qwen2Config]] = {
    "135M": partial(
        LlamaConfig,
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "360M": partial(
        LlamaConfig,
        num_hidden_layers=32,
        hidden_size=960,
        num_attention_heads=15,
        num_key_value_heads=5,
        intermediate_size=2560,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "0.5B": partial(
        Qwen2Config,
        num_hidden_layers=24,
        hidden_size=896,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        tie_word_embeddings=True,
        **_QWEN2,
    ),
    "1.5B": partial(
        Qwen2Config,
        num_hidden_layers=28,
        hidden_size=1536,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        tie_word_embeddings=True,
        **_QWEN2,
    ),
    "7B": partial(
        Qwen2Config,
        num_hidden_layers=28,
        hidden_size=3584,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18_944,
        tie_word_embeddings=False,
        **_QWEN2 | {"vocab_size": 152_064},
    ),
}
"""SmolLM2 in two sizes, and Qwen2.5 in three. Qwen2-1.5B has the shape of `1.5B`."""

_SHARD_BYTES = 1_000_000_000
_SPREAD = 0.02


def write_random_model(
    directory: Path, shape: str, *, tokenizer_of: Path, layers: int | None = None
) -> None:
    """Write the model as it would be on a hub: bfloat16, in safetensors, one part at a time.

    Args:
        directory: to be made.
        shape: a key of `SHAPES`.
        tokenizer_of: a model whose tokenizer it gets; its ids must be below the vocabulary's size.
        layers: number of layers, if not that of the shape.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_of)
    config = SHAPES[shape](**({"num_hidden_layers": layers} if layers else {}))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert len(tokenizer) <= config.vocab_size
    model = build_empty(config)
    directory.mkdir(parents=True)
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_weights(directory, {name: tensor.shape for name, tensor in model.named_parameters()})


def build_empty(config: LlamaConfig | Qwen2Config) -> Any:
    """The model of a configuration, whose weights are nowhere."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def _write_weights(directory: Path, shapes: dict[str, torch.Size]) -> None:
    torch.manual_seed(0)
    weight_map: dict[str, str] = {}
    part: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        # Norms have one dimension and start at one; biases start at zero.
        value = 0.0 if name.endswith("bias") else 1.0
        weight = torch.full(shape, value, dtype=torch.bfloat16)
        part[name] = weight.normal_(0.0, _SPREAD) if len(shape) > 1 else weight
        is_last = len(weight_map) + len(part) == len(shapes)
        if is_last or sum(each.nbytes for each in part.values()) >= _SHARD_BYTES:
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(part, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
            part = {}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    _shape, _directory, _tokenizer_of, *_layers = sys.argv[1:]
    write_random_model(
        Path(_directory),
        _shape,
        tokenizer_of=Path(_tokenizer_of),
        layers=int(_layers[0]) if _layers else None,
    )
