"""The model card of a checkpoint: what was trained on what, its losses, and how to load it."""

import json
from collections.abc import Sequence

from app.core.hand_off.commands import llama_server, vllm_with_adapter, vllm_with_merged_model
from app.core.job.artifacts import ADAPTER_CARD_NAME
from app.core.job.child.job_spec import BaseModelRef, DatasetRef, JobSpec
from app.core.job.child.training_events import Verification
from app.core.job.lora_shape import LoraShape, ParentAdapter
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import DpoSettings
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
{tags}---

# {name}

A LoRA adapter for {base_model}, fine-tuned with Tunery. This is the state after optimizer step
{step}.{lineage}{method}
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

Nats per {unit}; the full log is in `metrics.csv`, the picture in `loss.svg`.{before}

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
{vllm}
```

With llama.cpp, where BASE.gguf is the base model as GGUF, and FILE.gguf this adapter, which
`GET /v1/fine_tuning/jobs/{job_id}/adapter?format=gguf` gives:

```sh
{llama}
```

The model ends an answer with {ends}. `generation_config.json` has every token that must stop it.
{merge_first}
Tunery's `docs/use-your-model.md` has more: how to prompt it, how to get it merged into the base
model, and how to run it in llama.cpp and Ollama.

`manifest.json` has the sha256 of every other file here, of the data and of the base model, and the
versions of all software involved. `report.md` says how the model answers, if the job has a report.
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

_PREFERENCES = """

It was trained on preferences with direct preference optimization
([DPO](https://arxiv.org/abs/2305.18290)), with a beta of {beta:g}. The reference is
{reference}."""

_BEFORE = " Step 0 is the\nmodel before training."

_MERGE_DORA = """
vLLM and llama.cpp do not know DoRA. Take the merged model instead: `.../adapter?format=merged`.
"""
_MERGE_EMBEDDINGS = """
vLLM and llama.cpp cannot load trained embeddings. Take the merged model instead:
`.../adapter?format=merged`.
"""
_CONVERT_RSLORA = """
The converter of llama.cpp does not know the scale of rsLoRA. The file of `format=gguf` has it.
"""

_MERGED_CARD = """\
---
{metadata}library_name: transformers
license: {license}
pipeline_tag: text-generation
tags:
- merged
- fine-tuned
- tunery
---

# {name}

{base_model}, fine-tuned with Tunery, with the adapter in its weights. `{adapter_card}` is the card
of the adapter: its data, settings and losses.
{exact_base}
With transformers, where DIR is the directory of this file:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

With vLLM:

```sh
{vllm}
```

The weights are in {verification.dtype}. They were loaded again and compared with the base model and
its adapter on {verification.prompts} prompts, in {verification.computed_in}: no logit differs by
more than {verification.max_difference:.2g} of the largest. The limit is {verification.tolerance:g}.
The adapter itself changes logits by up to {verification.adapter_effect:.2g} of the largest.
"""


def write_merged_card(spec: JobSpec, verification: Verification) -> str:
    """The card of the base model with the adapter merged into it."""
    base = spec.base_model
    return _MERGED_CARD.format(
        metadata=_name_in_metadata(base),
        license=json.dumps(base.licence.lower()),
        name=spec.fine_tuned_model,
        base_model=_upper_first(_name_base(base)),
        adapter_card=ADAPTER_CARD_NAME,
        exact_base=_explain_base(base),
        vllm=vllm_with_merged_model(spec.fine_tuned_model),
        verification=verification,
    )


def write_model_card(
    spec: JobSpec, *, step: int, rows: Sequence[StepMetrics], stop_tokens: StopTokens
) -> str:
    """The card of the checkpoint of `step`, with a loss table of `rows`."""
    base = spec.base_model
    return _CARD.format(
        metadata=_name_in_metadata(base),
        license=json.dumps(base.licence.lower()),
        name=spec.fine_tuned_model,
        base_model=_name_base(base),
        step=f"{step:,}",
        lineage="" if spec.parent is None else _describe_parent(spec.parent),
        tags="" if spec.config.dpo is None else "- dpo\n",
        method="" if spec.config.dpo is None else _describe_preferences(spec, spec.config.dpo),
        unit="learned token" if spec.config.dpo is None else "pair",
        exact_base=_explain_base(base),
        data="\n".join(_data_rows(spec)),
        settings="\n".join(_setting_rows(spec)),
        before=_BEFORE if rows[0].step == 0 else "",
        losses="\n".join(_loss_table(rows)),
        where_base="" if base.revision else _WHERE_BASE.format(id=base.id),
        load_arguments=_load_arguments(base),
        vllm=vllm_with_adapter(base.repo, base.revision, rank=spec.config.lora.saved_rank),
        llama=llama_server(),
        job_id=spec.job_id,
        ends=" or ".join(f"`{end}`" for end in stop_tokens.taught),
        merge_first=_merge_first(spec.config.lora),
    )


def _describe_parent(parent: ParentAdapter) -> str:
    return _CONTINUED.format(model=parent.model, step=f"{parent.step:,}", sha256=parent.sha256)


def _describe_preferences(spec: JobSpec, settings: DpoSettings) -> str:
    if settings.reference_free:
        reference = "none: every answer counts as equally likely before"
    elif spec.parent is not None:
        reference = f"the base model with the adapter of\n`{spec.parent.model}` that it continues"
    else:
        reference = "the base model without an adapter"
    return _PREFERENCES.format(beta=settings.beta, reference=reference)


def _name_in_metadata(base: BaseModelRef) -> str:
    return "" if base.is_from_directory else f"base_model: {json.dumps(base.repo)}\n"


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


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


def _load_arguments(base: BaseModelRef) -> str:
    """The base model in the arguments of `from_pretrained`."""
    return f'{json.dumps(base.repo)}, revision="{base.revision}"' if base.revision else '"BASE"'


def _merge_first(shape: LoraShape) -> str:
    if shape.modules_to_save:
        return _MERGE_EMBEDDINGS
    if shape.use_dora:
        return _MERGE_DORA
    return _CONVERT_RSLORA if shape.use_rslora else ""


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
    groups = {name: settings.pop(name) or {} for name in ("lora", "dpo")}
    named = {
        f"{group}.{name}": value for group, each in groups.items() for name, value in each.items()
    }
    return [f"| {name} | {_cell(value)} |" for name, value in (named | settings).items()]


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return "none" if value is None else f"{value}"


def _loss_table(rows: Sequence[StepMetrics]) -> list[str]:
    columns = ["step", "epoch", "train loss", "validation loss", "validation accuracy"]
    if rows[0].has_rewards:
        columns += ["reward accuracy", "reward margin"]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return head + [_loss_row(row) for row in rows]


def _loss_row(row: StepMetrics) -> str:
    valid_loss = "" if row.valid_loss is None else f"{row.valid_loss:.4f}"
    accuracy = row.valid_mean_token_accuracy
    valid_accuracy = "" if accuracy is None else f"{accuracy:.1%}"
    train_loss = "" if row.train_loss is None else f"{row.train_loss:.4f}"
    cells = f"| {row.step} | {row.epoch:.2f} | {train_loss} | {valid_loss} | {valid_accuracy} |"
    rewards = row.valid_rewards or row.train_rewards
    if rewards is None:
        return cells
    return f"{cells} {rewards.accuracy:.1%} | {rewards.margin:.3f} |"
