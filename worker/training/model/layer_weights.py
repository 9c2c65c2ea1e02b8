"""What the fused layers take from a base model of `transformers` with an adapter of `peft`."""

from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import nn

from worker.training.model.decoder_layer import LayerShape, LayerTensors, Linear
from worker.training.model.randomness import DropoutRate

NORM_OFFSETS = {"gemma": 1.0, "llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0}
"""Architectures (`config.model_type`) with fused layers. A test holds each to the reference."""


def layer_tensors(layer: Any) -> LayerTensors:
    """The weights of a decoder layer of `transformers`, with those of its adapter."""
    attention, mlp = layer.self_attn, layer.mlp
    has_head_norms = hasattr(attention, "q_norm")
    return LayerTensors(
        attention_norm_H=layer.input_layernorm.weight,
        q=_linear_of(attention.q_proj),
        k=_linear_of(attention.k_proj),
        v=_linear_of(attention.v_proj),
        o=_linear_of(attention.o_proj),
        q_norm_D=attention.q_norm.weight if has_head_norms else None,
        k_norm_D=attention.k_norm.weight if has_head_norms else None,
        mlp_norm_H=layer.post_attention_layernorm.weight,
        gate=_linear_of(mlp.gate_proj),
        up=_linear_of(mlp.up_proj),
        down=_linear_of(mlp.down_proj),
    )


def _linear_of(module: Any) -> Linear:
    if not isinstance(module, LoraLayer):
        return Linear(module.weight, module.bias)
    (name,) = module.active_adapters
    base: Any = module.get_base_layer()
    lora_a, lora_b = (cast("Any", half)[name].weight for half in (module.lora_A, module.lora_B))
    return Linear(base.weight, base.bias, lora_a, lora_b)


def layer_shape(config: Any, *, lora_scale: float) -> LayerShape:
    """What all layers of a model with this configuration share."""
    heads = config.num_attention_heads
    return LayerShape(
        query_groups=heads // config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=NORM_OFFSETS[config.model_type],
        activation=config.hidden_act,
        lora_scale=lora_scale,
    )


def scale_of(adapter: LoraLayer) -> float:
    (name,) = adapter.active_adapters
    return adapter.scaling[name]


def dropout_of(adapter: LoraLayer) -> DropoutRate | None:
    (name,) = adapter.active_adapters
    probability = getattr(cast("Any", adapter.lora_dropout)[name], "p", 0.0)
    return DropoutRate.of(probability) if probability else None


def first_with_gradient(embeddings: nn.Module, layers: list[LayerTensors]) -> int:
    """Index of the first layer with a backward pass: the first with an adapter.

    It is the first of all if the embeddings below it are trained.
    """
    if any(weight.requires_grad for weight in embeddings.parameters()):
        return 0
    return next(index for index, layer in enumerate(layers) if adapted(layer))


def adapted(layer: LayerTensors) -> dict[str, Linear]:
    """The linear layers with an adapter, by field, in their order."""
    return {
        name: field
        for name, field in layer._asdict().items()
        if isinstance(field, Linear) and field.lora_A_RI is not None
    }
