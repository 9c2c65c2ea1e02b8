"""Base models as GGUF files, as llama.cpp's own converter writes them, but without a tokenizer.

Source:
    ggml-org/llama.cpp, `convert_hf_to_gguf.py`: the metadata, and what is changed in the weights.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
"""Names in llama.cpp that are not those of transformers."""

_PERMUTED = ("llama", "mistral", "smollm3")
"""Architectures whose queries and keys are in the order of Meta's Llama."""

_COUNTED_FROM_ONE = ("gemma", "gemma2", "gemma3_text")
"""Architectures whose norms are stored as differences from 1, but not in GGUF."""


def write_base_gguf(path: Path, model: PreTrainedModel) -> None:
    """Write a base model in float32, or its matrices in bfloat16 if the model is.

    No text can be tokenized with it: the texts of its tokens are made up.
    """
    config: Any = model.config
    model_type: str = config.model_type
    architecture = ARCHITECTURES.get(model_type, model_type)
    writer = gguf.GGUFWriter(path, architecture)
    _write_shape(writer, config)
    _write_tokens(writer, config)
    is_rounded = model.dtype == torch.bfloat16
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None, name
        array = _convert(name, weight.float().numpy(), config)
        if is_rounded and array.ndim > 1:  # llama.cpp has norms in float32 only
            rounded = gguf.quantize(array, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(place, rounded, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(place, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_width = config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type in {"gemma2", "gemma3_text"}:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def _write_tokens(writer: gguf.GGUFWriter, config: Any) -> None:
    tokens = [f"token{number}" for number in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control = {config.bos_token_id, config.eos_token_id}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[number in control] for number in range(config.vocab_size)])
    writer.add_token_merges(["a b"])  # there must be one, and no text is tokenized here
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def _convert(name: str, array: Any, config: Any) -> Any:
    if config.model_type in _COUNTED_FROM_ONE and "norm" in name:
        return array + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None or config.model_type not in _PERMUTED:
        return array
    halves = array.reshape(count, 2, -1, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
