"""Turn a GGUF file of the llama architecture into a directory that transformers loads.

Weights are dequantized, renamed, and stored as bfloat16; the rows of the query and key
projections go back to the order that transformers expects.

Source:
    ggml-org/llama.cpp, `convert_hf_to_gguf.py`: the names, and the permutation undone here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import TensorSpec, serialize_file

from worker.model_store.checks import CONFIG_NAME, WEIGHTS_NAME
from worker.model_store.errors import InstallError
from worker.model_store.gguf_tokenizer import write_tokenizer

Float32 = npt.NDArray[np.float32]
Bfloat16Bits = npt.NDArray[np.uint16]
"""The upper halves of float32 numbers: numpy has no bfloat16."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_NAMES_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf: Path, files_dir: Path) -> None:
    """Write weights, configuration, tokenizer and chat template into `files_dir`.

    Raises:
        InstallError: the file is not GGUF, or of an architecture that is not converted here.
    """
    try:
        reader = GGUFReader(gguf)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(metadata)
        write_tokenizer(metadata, files_dir)
        weights = _weights(reader, config)
    # The last is what the gguf library raises for weights in a quantization it cannot undo.
    except (ValueError, IndexError, NotImplementedError) as error:
        raise InstallError(f"{gguf.name} cannot be read as GGUF: {error}") from error
    except KeyError as error:
        raise InstallError(f"{gguf.name} has no {error} in its metadata.") from error
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(files_dir / CONFIG_NAME, config)
    _write_json(files_dir / "generation_config.json", {name: config[name] for name in special})
    _write_weights(files_dir / WEIGHTS_NAME, weights)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or "llama.rope.scaling.type" in metadata:
        raise InstallError(
            f"GGUF files of the architecture {architecture!r} are converted only when it is "
            "'llama', without scaled positions. Take the model from a hub or a directory."
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _shortest(stored: float) -> float:
    """The decimal that was meant: 1e-05 where float32 has 9.999999747378752e-06."""
    return float(str(np.float32(stored)))


def _weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, Bfloat16Bits]:
    return {
        _hub_name(tensor.name): _to_bfloat16(
            _restore_rows(tensor.name, dequantize(tensor.data, tensor.tensor_type), config)
        )
        for tensor in reader.tensors
    }


def _hub_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and part in _NAMES_IN_BLOCK:
        return f"model.layers.{block}.{_NAMES_IN_BLOCK[part]}.{kind}"
    raise InstallError(f"The tensor {name!r} has no place in a llama model of transformers.")


def _restore_rows(name: str, weight: Float32, config: dict[str, Any]) -> Float32:
    """Undo the reordering of query and key rows within each head.

    llama.cpp rotates neighbouring dimensions, (0, 1), (2, 3), ...; transformers rotates those
    half a head apart, (0, d/2), (1, d/2 + 1), ...
    """
    if ".attn_q." in name:
        heads: int = config["num_attention_heads"]
    elif ".attn_k." in name:
        heads = config["num_key_value_heads"]
    else:
        return weight
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _to_bfloat16(weight: Float32) -> Bfloat16Bits:
    """Round to the nearest bfloat16, ties to even, as torch does."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    is_odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + is_odd) >> 16).astype(np.uint16)


def _write_weights(path: Path, weights: dict[str, Bfloat16Bits]) -> None:
    specs = {
        name: TensorSpec(
            dtype="bfloat16",
            shape=weight.shape,
            data_ptr=weight.ctypes.data,
            data_len=weight.nbytes,
        )
        for name, weight in weights.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
