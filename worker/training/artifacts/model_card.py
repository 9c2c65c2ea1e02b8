"""The model card of a checkpoint: what was trained on what, its losses, and how to load it."""

import json
from collections.abc import Sequence

from app.core.job.lora_shape import LoraShape, ParentAdapter
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import BaseModelRef, DatasetRef, JobSpec
from worker.training.data.stop_tokens import StopTokens

_CARD = """\
---
{metadata}library_name: peft
license: {license}
pipeline_tag: text-generation
tags:
- lora
- peft
- fine-tuned
- tunery
---

# {name}

A LoRA adapter for {base_model}, fine-tuned with Tunery. This is the state after optimizer step
{step}.{lineage}
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

With `peft`, where DIR is the directory of this file{where_base}:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({load_arguments})
model = PeftModel.from_pretrained(base, "DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

With vLLM, whose limit for the rank is 16 unless an option raises it:

```sh
vllm serve {served_base} --enable-lora --max-lora-rank {max_rank} --lora-modules tuned=DIR
```

The model ends an answer with {ends}. `generation_config.json` has every token that must stop it.
{merge_first}
Tunery's `docs/use-your-model.md` has more: how to prompt it, how to merge it into the base model,
and how to run it in llama.cpp and Ollama.

`manifest.json` has the sha256 of every file here, of the data and of the base model, and the
versions of all software involved.
"""

_CONVERTED = """
It was trained on the files of `models/{id}` in the service's data directory. They were made from a
GGUF file of `{repo}`, and such a file usually has rounded weights. So the losses below are not
those of the repository's own weights. The adapter works on these too, but its answers can
differ.
"""
_FROM_DIRECTORY = """
It was trained on the files of `models/{id}` in the service's data directory, which do not come from
a model hub. A repository with a similar name is another model.
"""
_WHERE_BASE = ",\nand BASE is `models/{id}` in the service's data directory"

_CONTINUED = """

It continues the adapter of `{model}` after that one's step {step}, with a fresh
optimizer. The weights it started from have the sha256 `{sha256}`."""

_BEFORE = " Step 0 is the\nmodel before training."

_MERGE_DORA = """
vLLM and llama.cpp do not know DoRA. Merge the adapter into the base model first.
"""
_MERGE_EMBEDDINGS = """
vLLM and llama.cpp cannot load trained embeddings. Merge the adapter into the base model first.
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
    base, rank = spec.base_model, spec.config.lora.saved_rank
    arguments, served = _load_base(base)
    return _CARD.format(
        metadata="" if base.is_from_directory else f"base_model: {json.dumps(base.repo)}\n",
        license=json.dumps(base.licence.lower()),
        name=spec.fine_tuned_model,
        base_model=_name_base(base),
        step=f"{step:,}",
        lineage="" if spec.parent is None else _describe_parent(spec.parent),
        exact_base=_explain_base(base),
        data="\n".join(_data_rows(spec)),
        settings="\n".join(_setting_rows(spec)),
        before=_BEFORE if rows[0].step == 0 else "",
        losses="\n".join(_loss_row(row) for row in rows),
        where_base="" if base.revision else _WHERE_BASE.format(id=base.id),
        load_arguments=arguments,
        served_base=served,
        ends=" or ".join(f"`{end}`" for end in stop_tokens.taught),
        merge_first=_merge_first(spec.config.lora),
        max_rank=next(limit for limit in _VLLM_RANKS if rank <= limit),
    )


def _describe_parent(parent: ParentAdapter) -> str:
    return _CONTINUED.format(model=parent.model, step=f"{parent.step:,}", sha256=parent.sha256)


def _name_base(base: BaseModelRef) -> str:
    if base.revision:
        return f"`{base.repo}` at revision `{base.revision}`"
    return f"the base model `{base.id}`"


def _explain_base(base: BaseModelRef) -> str:
    """Where the weights are that the adapter was trained on, if no commit of a hub has them."""
    if base.revision:
        return ""
    text = _FROM_DIRECTORY if base.is_from_directory else _CONVERTED
    return text.format(id=base.id, repo=base.repo)


def _load_base(base: BaseModelRef) -> tuple[str, str]:
    """The base model in the arguments of `from_pretrained` and of `vllm serve`."""
    if base.revision:
        arguments = f'{json.dumps(base.repo)}, revision="{base.revision}"'
        return arguments, f"{base.repo} --revision {base.revision}"
    return '"BASE"', "BASE"


def _merge_first(shape: LoraShape) -> str:
    if shape.modules_to_save:
        return _MERGE_EMBEDDINGS
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
        return ", ".join(f"`{item}`" for item in value) or "none"
    return "none" if value is None else f"{value}"


def _loss_row(row: StepMetrics) -> str:
    valid_loss = "" if row.valid_loss is None else f"{row.valid_loss:.4f}"
    accuracy = row.valid_mean_token_accuracy
    valid_accuracy = "" if accuracy is None else f"{accuracy:.1%}"
    train_loss = "" if row.train_loss is None else f"{row.train_loss:.4f}"
    return f"| {row.step} | {row.epoch:.2f} | {train_loss} | {valid_loss} | {valid_accuracy} |"
