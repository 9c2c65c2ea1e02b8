"""Base model, tokenizer and adapter: what a job loads and what it trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.core.job.child.job_spec import BaseModelRef
from app.core.job.child.training_events import Noted
from app.core.job.lora_shape import LoraShape
from worker.training.data.tokenizer import load_tokenizer
from worker.training.failures import TrainingFailedError
from worker.training.model.embeddings import are_tied, check_embeddings, train_in_float32
from worker.training.model.initialisation import start_from_base
from worker.training.model.parent import load_parent


class ModelLoader:
    """Loads a base model from its directory."""

    def load_tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a base model.

        Raises:
            TrainingFailedError: `tokenizer_unsupported`.
        """
        return load_tokenizer(directory)

    def load_weights(self, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
        """Load the weights of a base model from safetensors and nothing else."""
        return AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )

    def bytes_in_memory(self, directory: Path, dtype: torch.dtype) -> int:
        """Bytes of the model that are in memory already and not on the disk."""
        del directory, dtype
        return 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a base model's files say about it before its weights are loaded."""

    architecture: str
    """`config.model_type`."""
    parameters: int
    layers: int
    width: int
    mlp_width: int
    heads: int
    head_width: int
    kv_heads: int
    vocabulary: int
    activation: str = "silu"
    attention_window: int | None = None
    """Tokens that a token can look back on; None for all."""
    has_attention_dropout: bool = False
    has_tied_embeddings: bool = True
    """Whether one matrix is both the input and the output embeddings."""

    @classmethod
    def read(cls, directory: Path) -> "ModelShape":
        """Read the shape of the base model in `directory`."""
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True)
        parameters = sum(_count_parameters(file) for file in directory.glob("*.safetensors"))
        return cls.of(config.get_text_config(), parameters=parameters)

    @classmethod
    def of(cls, config: Any, *, parameters: int) -> "ModelShape":
        """The shape of a model with this configuration of `transformers`."""
        heads = config.num_attention_heads
        return cls(
            architecture=config.model_type,
            parameters=parameters,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            mlp_width=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            heads=heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            vocabulary=config.vocab_size,
            activation=getattr(config, "hidden_act", ""),
            attention_window=getattr(config, "sliding_window", None),
            has_attention_dropout=bool(getattr(config, "attention_dropout", 0.0)),
            has_tied_embeddings=bool(getattr(config, "tie_word_embeddings", True)),
        )

    def linear(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of a linear layer. An unknown name counts as the largest."""
        heads, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        known = {
            "q_proj": (self.width, heads),
            "k_proj": (self.width, kv),
            "v_proj": (self.width, kv),
            "o_proj": (heads, self.width),
            "gate_proj": (self.width, self.mlp_width),
            "up_proj": (self.width, self.mlp_width),
            "down_proj": (self.mlp_width, self.width),
        }
        return known.get(name, (self.mlp_width, 2 * self.mlp_width))


def attach_adapter(
    base: PreTrainedModel, shape: LoraShape, reference: BaseModelRef, parent: Path | None = None
) -> PeftModel:
    """Freeze the base model and add a new adapter. Only that and `modules_to_save` are trained.

    Its matrices are random (seed torch before) and their product zero, so it changes nothing until
    the first step. The length of each row of a weight, which DoRA trains, is that of the base
    model. With `parent`, the weights of an adapter, it starts as that one instead.

    Raises:
        TrainingFailedError: `unknown_target_module`, `lora_rank_too_large` or `parent_unusable`.
    """
    _check_target_modules(base, shape)
    check_embeddings(base, shape.modules_to_save)
    adapter = LoraConfig(
        r=shape.saved_rank,
        lora_alpha=_as_written(shape.alpha * shape.saved_rank / shape.rank),
        lora_dropout=shape.dropout,
        target_modules=list(shape.target_modules),
        use_rslora=shape.use_rslora,
        use_dora=shape.use_dora,
        init_lora_weights=_initialisation_of_peft(shape),
        layers_to_transform=_find_layers(base, shape),
        modules_to_save=list(shape.modules_to_save) or None,
        ensure_weight_tying=bool(shape.modules_to_save) and are_tied(base),
        task_type="CAUSAL_LM",
        revision=reference.revision,
    )
    model = cast("PeftModel", get_peft_model(base, adapter))
    train_in_float32(model)
    if parent is not None:
        load_parent(model, parent)
    elif shape.starts_from_base:
        start_from_base(model, shape)
    # peft has put the local directory here, which nobody else has.
    adapter.base_model_name_or_path = reference.address
    return model


def _find_layers(base: PreTrainedModel, shape: LoraShape) -> list[int] | None:
    """Indices of the layers that get an adapter. None for all."""
    if shape.layers is None:
        return None
    config: Any = base.config
    return list(adapted_layers(shape, config.get_text_config().num_hidden_layers))


def adapted_layers(shape: LoraShape, layers: int) -> Sequence[int]:
    """Indices of the layers that get an adapter, of a base model with so many layers.

    Raises:
        TrainingFailedError: `unknown_target_module`. The API could not see the base model.
    """
    try:
        return shape.adapted_layers(layers)
    except ValueError as error:
        raise TrainingFailedError(
            "unknown_target_module", str(error), param="hyperparameters.lora_layers"
        ) from error


def _initialisation_of_peft(shape: LoraShape) -> Any:
    if shape.starts_from_base or shape.init_lora_weights == "kaiming":
        return True
    return shape.init_lora_weights


def _as_written(alpha: float) -> int:
    """16 for 16.0, since some readers of an adapter's configuration know only whole numbers."""
    return int(alpha) if alpha.is_integer() else cast("int", alpha)  # peft takes either


def _check_target_modules(base: PreTrainedModel, shape: LoraShape) -> None:
    # Not every server of adapters can use a changed head.
    head = base.get_output_embeddings()
    known = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    unknown = [name for name in shape.target_modules if name not in known]
    if unknown:
        raise TrainingFailedError(
            "unknown_target_module",
            f"The base model has no linear layers named {', '.join(unknown)}. It has "
            f"{', '.join(sorted(known))}.",
            param="hyperparameters.lora_target_modules",
        )


def describe_parameters(model: PeftModel) -> str:
    """How much of the model is trained, in the words that `peft` prints."""
    trainable, all_ = model.get_nb_trainable_parameters()
    return (
        f"trainable params: {trainable:,d} || all params: {all_:,d} || "
        f"trainable%: {100 * trainable / all_:.4f}"
    )


def explain_adapter(model: PeftModel, shape: LoraShape) -> Iterator[Noted]:
    """What is trained, and what other programs have to know of the adapter."""
    yield Noted(message=describe_parameters(model))
    if shape.starts_from_base:
        yield Noted(
            message=f"The adapter has rank {shape.saved_rank}, twice lora_r: one half is trained, "
            f"and the other subtracts what '{shape.init_lora_weights}' starts from, so that it "
            "fits the base model as it is. vLLM needs --max-lora-rank for this rank."
        )
    if shape.modules_to_save:
        yield Noted(
            message="The adapter has whole embeddings, because modules_to_save names some. vLLM "
            "and llama.cpp cannot load it: merge it into the base model first.",
            level="warn",
        )


def trainable_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def _count_parameters(file: Path) -> int:
    """Count numbers by the header of a safetensors file."""
    with safe_open(file, "pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))
