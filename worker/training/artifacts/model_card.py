"""Model card: the `README.md` of a checkpoint, with how it was made and how to use it."""

import json
from collections.abc import Sequence

from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import DatasetRef, JobSpec

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

Nats per learned token; the full log is in `metrics.csv`, the picture in `loss.svg`.

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

With vLLM. Its limit for the rank is 16 unless an option raises it:

```sh
vllm serve {repo}{vllm_revision} --enable-lora --max-lora-rank {max_rank} --lora-modules tuned=DIR
```

Tunery's `docs/use-your-model.md` has more: how to prompt it, how to merge it into the base model,
and how to run it in llama.cpp and Ollama.

`manifest.json` has the sha256 of every file here, of the data and of the base model, and the
versions of all software involved.
"""

_EXACT_BASE = """
It was trained on the files of `models/{id}` in the service's data directory, which do not come from
a commit of a hub repository. Load that directory for exactly the same weights.
"""

_VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""The values that vLLM takes for `--max-lora-rank`."""


def write_model_card(spec: JobSpec, *, step: int, rows: Sequence[StepMetrics]) -> str:
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
        losses="\n".join(_loss_row(row) for row in rows),
        load_arguments=load_arguments,
        vllm_revision=f" --revision {base.revision}" if base.revision else "",
        max_rank=next(limit for limit in _VLLM_RANKS if rank <= limit),
    )


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
    return (
        f"| {row.step} | {row.epoch:.2f} | {row.train_loss:.4f} | {valid_loss} | {valid_accuracy} |"
    )
