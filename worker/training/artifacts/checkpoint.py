"""The files of a checkpoint that a user downloads, and the check that its adapter works."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.job.artifacts import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    GENERATION_CONFIG_NAME,
    LOSS_CHART_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAMES,
    TRAINING_CONFIG_NAME,
)
from app.core.job.lora_shape import LoraShape
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import DatasetRef, JobSpec
from worker.training.artifacts.loss_log import LossLog, draw_losses
from worker.training.data.stop_tokens import StopTokens
from worker.training.failures import TrainingFailedError, diverged

_TOKENS_READ = 128
_NO_EFFECT = 1e-6
"""Largest change of a logit, as a fraction of the largest logit, that may be rounding alone."""


def write_checkpoint(
    directory: Path,
    *,
    spec: JobSpec,
    step: int,
    model: PeftModel,
    base_model: Path,
    log: LossLog,
    stop_tokens: StopTokens,
) -> None:
    """Write the adapter, its tokenizer, the loss log, the chart and the model card.

    Args:
        directory: an empty directory.
        spec: the job.
        step: optimizer steps that the adapter has taken.
        model: the model with the adapter.
        base_model: directory of the base model. Its tokenizer files are copied, because saving the
            tokenizer would name classes that only the newest transformers knows.
        log: every step so far.
        stop_tokens: where an inference server has to stop the model.
    """
    write_adapter(directory, model)
    for name in TOKENIZER_NAMES:
        if (base_model / name).is_file():
            shutil.copyfile(base_model / name, directory / name)
    generation = stop_tokens.as_generation_config()
    (directory / GENERATION_CONFIG_NAME).write_text(generation, encoding="utf-8")
    settings = spec.config.model_dump_json(indent=2)
    (directory / TRAINING_CONFIG_NAME).write_text(settings + "\n", encoding="utf-8")
    log.copy_tables(directory)
    title = f"Loss of {spec.fine_tuned_model}"
    (directory / LOSS_CHART_NAME).write_text(draw_losses(log.losses, title=title), encoding="utf-8")
    card = write_model_card(spec, step=step, rows=log.sample(20), stop_tokens=stop_tokens)
    (directory / MODEL_CARD_NAME).write_text(card, encoding="utf-8")


def write_adapter(directory: Path, model: PeftModel) -> None:
    """Write the adapter under the names and keys that `PeftModel.from_pretrained` reads."""
    # Embeddings are never resized. With "auto", peft would ask a model hub whether they were.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(weights, directory / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    settings: dict[str, Any] = model.active_peft_config.to_dict() | {"inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, of no fixed order
    text = json.dumps(settings, indent=2, sort_keys=True)
    (directory / ADAPTER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def check_adapter(
    model: PeftModel, adapter: Path, input_ids: Tensor, *, step: int, learning_rate: float
) -> None:
    """Load a saved adapter as users do, with `peft`, and check that it works and does something.

    This takes the adapter out of `model`, because a second base model may not fit in memory.

    Args:
        model: the model with the trained adapter.
        adapter: directory of the saved adapter.
        input_ids: tokens of a training example.
        step: step of the adapter, for the message.
        learning_rate: learning rate of the job, for the message.

    Raises:
        TrainingFailedError: `adapter_has_no_effect`, or `loss_not_finite` if the last step was too
            large: no later step has noticed.
        RuntimeError: the saved adapter is not the one that was trained.
    """
    input_ids_BL = input_ids[None, :_TOKENS_READ].to(model.device)
    trained_BLV = _logits(model, input_ids_BL)
    if not trained_BLV.isfinite().all():
        what = "the output of the adapter is not finite"
        raise diverged(step, what, learning_rate=learning_rate)
    base: nn.Module = model.unload()
    untrained_BLV = _logits(base, input_ids_BL)
    loaded = PeftModel.from_pretrained(base, str(adapter))
    loaded_BLV = _logits(loaded, input_ids_BL)
    if not torch.allclose(loaded_BLV, trained_BLV, rtol=1e-4, atol=1e-4):
        raise RuntimeError(f"The adapter in {adapter.name} is not the one that was trained.")
    change = (loaded_BLV - untrained_BLV).abs().max()
    if change <= _NO_EFFECT * untrained_BLV.abs().max():
        raise TrainingFailedError(
            "adapter_has_no_effect",
            f"The trained adapter does not change what the base model says: {learning_rate=:g} is "
            "too low, or the job has too few steps to learn anything. Raise learning_rate or "
            "n_epochs.",
            param="hyperparameters.learning_rate",
        )


def _logits(model: nn.Module, input_ids_BL: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=input_ids_BL, use_cache=False).logits


_CARD = """\
---
base_model: {base_model}
library_name: peft
license: {license}
pipeline_tag: text-generation
tags:
- lora
- peft
- fine-tuned
- tunery
---

# {name}

A LoRA adapter for `{repo}`{revision}, fine-tuned with Tunery. This is the state after optimizer
step {step}.
{exact_base}
## Data

| | file | examples | sha256 |
|---|---|---|---|
{data}

## Settings

| setting | value |
|---|---|
{settings}

## Loss

Nats per learned token; the full log is in `metrics.csv`, the picture in `loss.svg`.{before}

| step | epoch | train loss | validation loss | validation accuracy |
|---|---|---|---|---|
{losses}

## How to load it

With `peft`, where DIR is the directory of this file:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({load_arguments})
model = PeftModel.from_pretrained(base, "DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

With vLLM, whose limit for the rank is 16 unless an option raises it:

```sh
vllm serve {repo}{vllm_revision} --enable-lora --max-lora-rank {max_rank} --lora-modules tuned=DIR
```

The model ends an answer with {ends}. `generation_config.json` has every token that must stop it.
{merge_first}
Tunery's `docs/use-your-model.md` has more: how to prompt it, how to merge it into the base model,
and how to run it in llama.cpp and Ollama.

`manifest.json` has the sha256 of every file here, of the data and of the base model, and the
versions of all software involved.
"""

_EXACT_BASE = """
It was trained on the files of `models/{id}` in the service's data directory, which do not come from
a commit of a hub repository. Load that directory for exactly the same weights.
"""

_BEFORE = " Step 0 is the\nbase model, before training."

_MERGE_DORA = """
vLLM and llama.cpp do not know DoRA. Merge the adapter into the base model first.
"""
_MERGE_RSLORA = """
llama.cpp does not know the scale of rsLoRA. Merge the adapter into the base model first.
"""

_VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""The values that vLLM takes for `--max-lora-rank`."""


def write_model_card(
    spec: JobSpec, *, step: int, rows: Sequence[StepMetrics], stop_tokens: StopTokens
) -> str:
    """The card of the checkpoint of `step`, with a loss table of `rows`."""
    base, rank = spec.base_model, spec.config.lora.rank
    load_arguments = json.dumps(base.repo)
    if base.revision:
        load_arguments += f', revision="{base.revision}"'
    return _CARD.format(
        base_model=json.dumps(base.repo),
        license=json.dumps(base.licence.lower()),
        name=spec.fine_tuned_model,
        repo=base.repo,
        revision=f" at revision `{base.revision}`" if base.revision else "",
        step=f"{step:,}",
        exact_base="" if base.revision else _EXACT_BASE.format(id=base.id),
        data="\n".join(_data_rows(spec)),
        settings="\n".join(_setting_rows(spec)),
        before=_BEFORE if rows[0].step == 0 else "",
        losses="\n".join(_loss_row(row) for row in rows),
        load_arguments=load_arguments,
        vllm_revision=f" --revision {base.revision}" if base.revision else "",
        ends=" or ".join(f"`{end}`" for end in stop_tokens.taught),
        merge_first=_merge_first(spec.config.lora),
        max_rank=next(limit for limit in _VLLM_RANKS if rank <= limit),
    )


def _merge_first(shape: LoraShape) -> str:
    if shape.use_dora:
        return _MERGE_DORA
    return _MERGE_RSLORA if shape.use_rslora else ""


def _data_rows(spec: JobSpec) -> list[str]:
    rows = [_data_row("training", spec.training_file)]
    if spec.validation_file is not None:
        rows.append(_data_row("validation", spec.validation_file))
    return rows


def _data_row(use: str, file: DatasetRef) -> str:
    name = " ".join(file.filename.split()).replace("|", "\\|").replace("`", "'")
    return f"| {use} | `{name}` | {file.examples:,} | `{file.sha256}` |"


def _setting_rows(spec: JobSpec) -> list[str]:
    settings = spec.config.model_dump(mode="json")
    lora = {f"lora.{name}": value for name, value in settings.pop("lora").items()}
    return [f"| {name} | {_cell(value)} |" for name, value in (lora | settings).items()]


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return "none" if value is None else f"{value}"


def _loss_row(row: StepMetrics) -> str:
    valid_loss = "" if row.valid_loss is None else f"{row.valid_loss:.4f}"
    accuracy = row.valid_mean_token_accuracy
    valid_accuracy = "" if accuracy is None else f"{accuracy:.1%}"
    train_loss = "" if row.train_loss is None else f"{row.train_loss:.4f}"
    return f"| {row.step} | {row.epoch:.2f} | {train_loss} | {valid_loss} | {valid_accuracy} |"
