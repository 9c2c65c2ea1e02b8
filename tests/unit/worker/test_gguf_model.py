"""A GGUF file is written here as llama.cpp writes it, converted, and compared with its origin."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from worker.model_store.errors import InstallError
from worker.model_store.gguf import convert_gguf

TOKENS = ["<|end|>", "<|turn|>", "a", "b", "Ġ", "ab", "1", "2"]
CONTROL, NORMAL = 3, 1
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def files_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


def build_model(*, tie_word_embeddings: bool) -> LlamaForCausalLM:
    """A random llama whose weights bfloat16 holds exactly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=50_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def reorder_rows_as_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{GGUF_NAMES[part]}.{kind}"


def write_gguf(path: Path, model: LlamaForCausalLM, **changes: Any) -> Path:
    """Write `model`; `changes` replaces metadata, `None` leaves it out."""
    config = model.config
    dtype = changes.pop("dtype", np.float32)
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(50_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL, CONTROL] + [NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    if changes.pop("has_pad_token", True):
        writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    for key, value in changes.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy().astype(dtype)
        if ".q_proj." in name:
            weight = reorder_rows_as_llama_cpp(weight, config.num_attention_heads)
        if ".k_proj." in name:
            weight = reorder_rows_as_llama_cpp(weight, config.num_key_value_heads)
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tie_word_embeddings", [True, False], ids=["tied", "untied"])
def test_the_converted_model_computes_what_its_origin_computes(
    tie_word_embeddings: bool,  # noqa: FBT001
    tmp_path: Path,
    files_dir: Path,
) -> None:
    origin = build_model(tie_word_embeddings=tie_word_embeddings)

    convert_gguf(write_gguf(tmp_path / "model.gguf", origin), files_dir)

    converted = AutoModelForCausalLM.from_pretrained(files_dir, dtype=torch.float32)
    assert converted.config.tie_word_embeddings is tie_word_embeddings
    ids = torch.arange(len(TOKENS)).repeat(2)[None]
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, origin(ids).logits, rtol=0, atol=0)


def test_a_number_is_rounded_to_bfloat16_as_torch_rounds_it(
    tmp_path: Path, files_dir: Path
) -> None:
    model = build_model(tie_word_embeddings=True)
    numbers = torch.randn(model.config.vocab_size, model.config.hidden_size)
    exact_ties = torch.tensor([1.00390625, 1.01171875, -1.00390625, 0.0, -0.0])
    numbers[0, : len(exact_ties)] = exact_ties
    model.model.embed_tokens.weight.data = numbers

    convert_gguf(write_gguf(tmp_path / "model.gguf", model), files_dir)

    stored = load_file(files_dir / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(
        stored.view(torch.int16), numbers.bfloat16().view(torch.int16), rtol=0, atol=0
    )


def test_tokens_keep_their_numbers_and_control_tokens_are_never_split(
    tmp_path: Path, files_dir: Path
) -> None:
    model = build_model(tie_word_embeddings=True)
    convert_gguf(write_gguf(tmp_path / "model.gguf", model), files_dir)

    tokenizer = AutoTokenizer.from_pretrained(files_dir)

    assert tokenizer("<|turn|>ab 12<|end|>")["input_ids"] == [1, 5, 4, 6, 7, 0]
    assert tokenizer.decode([1, 5, 4, 6, 7, 0], skip_special_tokens=True) == "ab 12"
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"architecture": "gemma3"}, "'gemma3'", id="architecture"),
        pytest.param({"llama__rope__scaling__type": "yarn"}, "scaled positions", id="scaling"),
        pytest.param({"dtype": np.int8}, "for I8 is not yet implemented", id="quantization"),
        pytest.param({"pre": "qwen2"}, "('gpt2', 'qwen2')", id="tokenizer"),
        pytest.param(
            {"has_pad_token": False}, "no 'tokenizer.ggml.padding_token_id'", id="metadata"
        ),
    ],
)
def test_a_file_that_would_be_converted_wrongly_is_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path, files_dir: Path
) -> None:
    model = build_model(tie_word_embeddings=True)
    path = write_gguf(tmp_path / "model.gguf", model, **changes)

    with pytest.raises(InstallError) as caught:
        convert_gguf(path, files_dir)

    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 100])
def test_a_file_that_is_not_gguf_is_refused(
    content: bytes, tmp_path: Path, files_dir: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    with pytest.raises(InstallError, match="cannot be read as GGUF"):
        convert_gguf(path, files_dir)
