"""Base model, tokenizer and adapter: what a job loads and what it trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.core.job.training_config import BaseModelRef, LoraShape
from worker.training.failures import TrainingFailedError


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Raises:
        TrainingFailedError: `tokenizer_unsupported`, when it does not say which characters a
            token stands for, or what ends a text.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise TrainingFailedError(
            "tokenizer_unsupported",
            "The base model's tokenizer has no fast form (tokenizer.json) or no end-of-text "
            "token. Choose another base model.",
            param="model",
        )
    return tokenizer


def load_base_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the weights of a base model from safetensors and nothing else."""
    return AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


@dataclass(frozen=True, slots=True)
class Loaders:
    """How a job comes by its base model, of which it is given the directory."""

    load_tokenizer: Callable[[Path], PreTrainedTokenizerBase] = load_tokenizer
    load_base_model: Callable[[Path, torch.dtype], PreTrainedModel] = load_base_model
    bytes_in_memory: Callable[[Path, torch.dtype], int] = lambda _directory, _dtype: 0
    """What need not be loaded any more: bytes that are not on the disk as well."""


FROM_DISK = Loaders()


def attach_adapter(base: PreTrainedModel, shape: LoraShape, reference: BaseModelRef) -> PeftModel:
    """Freeze the base model and add a fresh adapter, which is all that is trained.

    Its first matrices are random (seed torch before), its second ones zero, so it changes nothing
    until its first step.

    Raises:
        TrainingFailedError: `unknown_target_module`.
    """
    _check_target_modules(base, shape)
    adapter = LoraConfig(
        r=shape.rank,
        lora_alpha=_as_written(shape.alpha),
        lora_dropout=shape.dropout,
        target_modules=list(shape.target_modules),
        task_type="CAUSAL_LM",
        revision=reference.revision,
    )
    model = cast("PeftModel", get_peft_model(base, adapter))
    # peft has put the local directory here, which is nowhere to be found for anyone else.
    adapter.base_model_name_or_path = reference.repo
    return model


def _as_written(alpha: float) -> int:
    """16 for 16.0, since some readers of an adapter's configuration know only whole numbers."""
    return int(alpha) if alpha.is_integer() else cast("int", alpha)  # peft takes either


def _check_target_modules(base: PreTrainedModel, shape: LoraShape) -> None:
    # Of a changed head, not every server of adapters can make use.
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
    """How much of the model is trained, in the words that `peft` prints it in."""
    trainable, all_ = model.get_nb_trainable_parameters()
    return (
        f"trainable params: {trainable:,d} || all params: {all_:,d} || "
        f"trainable%: {100 * trainable / all_:.4f}"
    )


def trainable_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
