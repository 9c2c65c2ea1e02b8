"""The commands around job files: `tunery init` writes one, `tunery schema` prints their schema."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.core.base_models import DEFAULT_MODEL_ID
from app.core.errors import OperatorError
from app.schemas.fine_tuning_jobs import PRIORITIES
from tunery.client.job_schema import SCHEMA_NAME, make_schema
from tunery.client.options import ProfileName, open_api
from tunery.client.service.api import job_path

commands = typer.Typer()

_SHOWN = (
    *("n_epochs", "max_steps", "batch_size", "learning_rate", "lr_scheduler", "warmup_ratio"),
    *("context_length", "train_on", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("validation_split", "n_evals", "early_stopping_patience", "checkpoint_steps"),
)
"""Hyperparameters that an example shows, in this order."""

_EXAMPLES = {
    "max_steps": 100,
    "validation_split": 0.1,
    "n_evals": 10,
    "early_stopping_patience": 3,
}
"""Values to show of hyperparameters whose default is null."""

_WIDTH = 96

_SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_NAME}\n"

_HEAD = f"""\
{_SCHEMA_LINE}#
# A fine-tuning job. Start it with: tunery submit FILE
# Remove the # before a line to set it. What is not set has the default that is shown, unless
# an example is marked as such. `tunery schema` prints every field.

# Base model: its id, as `tunery models list` shows it.
model: {DEFAULT_MODEL_ID}

# File to train on: a path relative to this file, or the id of an uploaded file.
training_file: train.jsonl

# File to measure the validation loss on.
# validation_file: validation.jsonl  # an example; none by default

# Training method. A file with preferences, two answers to each prompt, needs `dpo`, which has
# hyperparameters of its own beside those below.
# method: {{type: dpo, dpo: {{hyperparameters: {{beta: 0.1}}}}}}  # an example; supervised otherwise

# Text that becomes part of the tuned model's name.
# suffix: my-model  # an example; none by default

# Random seed. The same seed and data give the same adapter.
# seed: 42  # an example; the service chooses one by default

# Source of the hyperparameters that are not set: `reference` for the defaults below, `auto` for
# values that fit the size of the base model and of the training file.
# recipe: reference

# Queue priority within the project, from {PRIORITIES.start} to {PRIORITIES.stop - 1}. The highest
# runs first.
# priority: 0

# False creates the job paused: it is validated now and trains once it is resumed.
# auto_start: true

# Labels of your own. The list of jobs can be filtered by them. Quote numbers.
# metadata: {{team: search, version: "1.10"}}  # an example; none by default

hyperparameters:
"""


@commands.command()
def init(
    file: Annotated[Path, typer.Argument(help="Job file to write.")] = Path("job.yaml"),
    *,
    job_id: Annotated[
        str | None,
        typer.Option(
            "--from", help="Id of a job. The file gets its settings, all of them.", metavar="JOB"
        ),
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Write a commented job file, and the schema from which editors complete it.

    The schema is `job.schema.json` beside the file. No existing file is overwritten.
    """
    schema = file.with_name(SCHEMA_NAME)
    text = example_text(file.name) if job_id is None else _text_of_job(job_id, profile)
    _write_new(file, text)
    typer.echo(file)
    if not schema.exists():
        _write_new(schema, schema_text())
        typer.echo(schema)


@commands.command()
def schema() -> None:
    """Print the JSON schema of job files."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The JSON schema of job files, as it is published in the repository."""
    return json.dumps(make_schema(), indent=2) + "\n"


def example_text(name: str) -> str:
    """A job file of this name, with the most-used settings, their defaults and ranges."""
    fields = make_schema()["$defs"]["Hyperparameters"]["properties"]
    blocks = ("\n".join(_describe(name, fields[name])) for name in _SHOWN)
    return _HEAD.replace("FILE", name) + "\n\n".join(blocks) + "\n"


def _text_of_job(job_id: str, profile: str | None) -> str:
    from tunery.client.job_file import to_yaml  # noqa: PLC0415 - PyYAML takes a moment

    return _SCHEMA_LINE + to_yaml(open_api(profile).get(job_path(job_id)))


def _describe(name: str, field: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one hyperparameter."""
    text = " ".join(f"{field['description']} {_range_of(field)}".split())
    yield from textwrap.wrap(text, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")
    if name in _EXAMPLES:
        yield f"  # {name}: {_EXAMPLES[name]}  # an example; none by default"
    else:
        yield f"  # {name}: {_as_yaml(field['default'])}"


def _range_of(field: Mapping[str, Any]) -> str:
    """The values that a hyperparameter may have, as a sentence."""
    limits: Mapping[str, Any] = field["anyOf"][0]
    if "enum" in limits:
        return f"One of {', '.join(limits['enum'])}."
    bounds = [
        f"{word} {limits[key]:,}"
        for word, key in (
            *(("At least", "minimum"), ("Above", "exclusiveMinimum")),
            *(("at most", "maximum"), ("below", "exclusiveMaximum")),
        )
        if key in limits
    ]
    return f"{', '.join(bounds[:2])}." if bounds else ""  # a third one would be a wider limit


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OperatorError(f"{path} exists already. Remove it, or name another file.") from None
