"""Tiny models of every architecture that the docs, the exports or the forms of tool calls name."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tests.tiny import ALL_LINEAR

_WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_RECURRENT = {"layer_types": ["linear_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = _EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}


@dataclass(frozen=True, slots=True)
class ModelFamily:
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    modules: tuple[str, ...] = ("q_proj", "v_proj", "up_proj")
    """Linear layers for adapters."""


def _rotation(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **parameters}}


_LLAMA_3 = _rotation(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8,
)

FUSED = MappingProxyType(
    {
        name: ModelFamily(model_type, settings, tuple(ALL_LINEAR))
        for name, model_type, settings in (
            ("gemma", "gemma", {}),
            ("llama", "llama", {}),
            ("llama 3", "llama", _LLAMA_3),
            ("mistral", "mistral", {}),
            ("qwen2", "qwen2", {}),
            ("qwen3", "qwen3", {}),
        )
    }
)
"""Those that the sampler reads as one batch."""

OTHERS = MappingProxyType(
    {
        "cohere": ModelFamily("cohere", {"logit_scale": 1.0}),
        "deepseek": ModelFamily(
            "deepseek_v3",
            _ROUTED
            | {
                "first_k_dense_replace": 1,
                "num_key_value_heads": 4,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 8,
                "v_head_dim": 8,
            },
            ("q_b_proj", "kv_b_proj", "up_proj"),
        ),
        "gemma2": ModelFamily(
            "gemma2",
            _WINDOW
            | {
                "query_pre_attn_scalar": 8,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 5.0,
            },
        ),
        "gemma3": ModelFamily("gemma3_text", _WINDOW),
        "glm4": ModelFamily("glm4", modules=("q_proj", "v_proj", "gate_up_proj")),
        "glm4 moe": ModelFamily("glm4_moe", _ROUTED | {"first_k_dense_replace": 1}),
        "gpt oss": ModelFamily(
            "gpt_oss",
            _WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
            ("q_proj", "v_proj", "o_proj"),
        ),
        "granite": ModelFamily("granite"),
        "granite 4": ModelFamily(
            "granitemoehybrid",
            _RECURRENT
            | {
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "shared_intermediate_size": 32,
                "mamba_n_heads": 8,
                "mamba_d_head": 8,
                "mamba_d_state": 8,
                "mamba_chunk_size": 8,
            },
            ("q_proj", "v_proj", "in_proj"),
        ),
        "jamba": ModelFamily(
            "jamba",
            {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mamba_d_state": 4,
                "mamba_dt_rank": 4,
                "use_mamba_kernels": False,
            },
            ("q_proj", "v_proj", "in_proj", "up_proj"),
        ),
        "lfm2": ModelFamily("lfm2", modules=("q_proj", "v_proj", "in_proj", "w1")),
        "llama with a changing rotation": ModelFamily(
            "llama", {"max_position_embeddings": 8, **_rotation(rope_type="dynamic", factor=2.0)}
        ),
        "mistral with a window": ModelFamily("mistral", {"sliding_window": 8}),
        "nemotron": ModelFamily("nemotron"),
        "nemotron h": ModelFamily(
            "nemotron_h",
            _ROUTED
            | {
                "num_hidden_layers": 4,
                "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
                "ssm_state_size": 8,
                "mamba_num_heads": 8,
                "mamba_head_dim": 8,
                "n_groups": 2,
                "chunk_size": 8,
                "moe_shared_expert_intermediate_size": 16,
            },
            ("q_proj", "v_proj", "in_proj", "up_proj"),
        ),
        "olmo2": ModelFamily("olmo2"),
        "olmo3": ModelFamily("olmo3", _WINDOW),
        "phi3": ModelFamily("phi3", modules=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        "qwen3 moe": ModelFamily(
            "qwen3_moe", _EXPERTS | {"num_experts": 4}, ("q_proj", "v_proj", "o_proj")
        ),
        "qwen3.5": ModelFamily(
            "qwen3_5_text",
            _RECURRENT
            | {
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            ("q_proj", "v_proj", "out_proj", "up_proj"),
        ),
        "smollm3": ModelFamily("smollm3"),
    }
)
"""Those that it reads row by row, with the layers of `transformers`."""
