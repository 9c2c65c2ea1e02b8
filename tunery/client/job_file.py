"""Reads a YAML file that describes a job, and checks it before anything is sent.

The file has the fields of `POST /v1/fine_tuning/jobs`, with one difference: `training_file` and
`validation_file` may be paths, relative to the YAML file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from app.core.errors import InvalidRequestError, OperatorError
from app.core.ids import IdPrefix
from app.schemas.bodies import dotted, nearest_field
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import Hyperparameters, hint_for
from tunery.client import yaml_reading
from tunery.client.yaml_reading import Document, YamlError, read_yaml

FILE_FIELDS = ("training_file", "validation_file")
"""Fields that name a data file, by a path or by the id of an uploaded file."""

_SAME_FIELDS = (
    *("seed", "recipe", "priority", "metadata", "integrations"),
    *("eval_prompts", "eval_prompts_at_checkpoints", "allow_inexact_resume"),
)
"""Fields that a job shows as its request gave them."""

_FILE_ID = re.compile(rf"{IdPrefix.FILE}[0-9A-Za-z]+")

_COMPUTED_NAMES = frozenset({"learning_rate_multiplier", "train_on_inputs"})
"""Hyperparameters of a job that other ones of the same job imply."""


class JobFileError(OperatorError):
    """A job file cannot be used. The message has a line for each problem."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """A valid request for a job, and the files to upload before it is sent."""

    content: dict[str, Any]
    """Body of the request. Each field of `uploads` is to be replaced by the id of the file."""
    uploads: dict[str, Path]
    """Data file for each field of `content` that names one by its path."""


def read_job_file(path: Path, kind: type[JobCreate] = JobCreate) -> JobFile:
    """Read a job file and check it. Nothing is sent.

    Args:
        path: the file.
        kind: the request that it describes: a job, or a sweep.

    Raises:
        JobFileError: it is no YAML, has an invalid, unknown or repeated field, or names a data file
            that does not exist.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(yaml_reading.MAX_BYTES + 1)
    try:
        document = read_yaml(content)
    except YamlError as error:
        raise JobFileError(_located(path, error.line, str(error))) from None
    has_fields = isinstance(document.value, dict)
    if not has_fields:
        message = "The file must have fields such as `model: ...`. `tunery init` writes an example."
        raise JobFileError(_located(path, None, message))
    try:
        request = kind.model_validate(document.value)
        request.given_hyperparameters()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        found = sorted(
            (_describe(document, problem) for problem in problems), key=lambda each: each[0] or 0
        )
        raise JobFileError("\n".join(_located(path, *each) for each in found)) from None
    except InvalidRequestError as error:
        raise JobFileError(_located(path, None, str(error))) from None
    return JobFile(request.content(), _find_uploads(path, document, request))


def to_yaml(job: Mapping[str, Any]) -> str:
    """Write a job, as the API shows it, as the job file of a job like it.

    Every hyperparameter has its resolved value, so the new job does not depend on later defaults.
    """
    shown = {
        "model": job["model"],
        **{name: job[name] for name in FILE_FIELDS},
        "suffix": job["user_provided_suffix"],
        **{name: job[name] for name in _SAME_FIELDS},
        **_method_of(job),
    }
    given = {name: value for name, value in shown.items() if value or value == 0}
    return yaml.dump(given, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _method_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a job, where its method has them."""
    hyperparameters = {
        name: value
        for name, value in dict[str, Any](job["hyperparameters"]).items()
        if value is not None and name not in _COMPUTED_NAMES
    }
    method = job["method"]["type"]
    if method == "supervised":
        return {"hyperparameters": hyperparameters}
    return {"method": {"type": method, method: {"hyperparameters": hyperparameters}}}


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or YAML 1.2 would read as something else."""


_Dumper.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float", re.compile(r"[-+.0-9]+[eE][-+0-9]+$"), list("-+.0123456789")
)


def _find_uploads(path: Path, document: Document, request: JobCreate) -> dict[str, Path]:
    uploads: dict[str, Path] = {}
    for name in FILE_FIELDS:
        given = getattr(request, name)
        if given is None or _FILE_ID.fullmatch(given):
            continue
        uploads[name] = path.parent / given
        if not uploads[name].is_file():
            message = (
                f"'{name}': there is no file {uploads[name]}. A path is relative to {path.name}; "
                f"an uploaded file is named by its id, such as {IdPrefix.FILE}..."
            )
            raise JobFileError(_located(path, document.lines[(name,)], message))
    return uploads


def _located(path: Path, line: int | None, message: str) -> str:
    place = path.name if line is None else f"{path.name} line {line}"
    return f"{place}: {message}"


def _describe(document: Document, problem: Any) -> tuple[int | None, str]:
    """The line of one of pydantic's errors, and what is wrong there."""
    place: tuple[str | int, ...] = problem["loc"]
    is_key = place[-1:] == ("[key]",)
    path = place[:-2] if is_key else place
    while path and path not in document.lines:  # missing, or a branch of a union
        path = path[:-1]
    line, shown = document.lines.get(path), dotted(place[:-2] if is_key else place)
    if problem["type"] == "missing":
        return line, f"'{shown}' is missing."
    if problem["type"] == "extra_forbidden":
        return line, _describe_unknown(place, shown)
    what = "key in" if is_key else "value for"
    return line, f"Invalid {what} '{shown}': {problem['msg']}.{_hint(document, path, problem)}"


def _describe_unknown(place: tuple[str | int, ...], shown: str) -> str:
    name = str(place[-1])
    if len(place) == 1 and name in Hyperparameters.model_fields:
        return f"'{name}' is a hyperparameter. Write it below 'hyperparameters:', indented."
    if place == ("sweep",):
        return "'sweep' makes several jobs. Send the file with `tunery sweeps create`."
    if hint := hint_for(name):
        return f"Unknown field '{shown:.80}'. {hint}"
    nearest = nearest_field(JobCreate, place[:-1], name)
    if nearest == name:
        return f"'{shown}' is given twice, under two names. Keep one."
    return f"Unknown field '{shown:.80}'." + (f" Did you mean '{nearest}'?" if nearest else "")


def _hint(document: Document, path: tuple[str | int, ...], problem: Any) -> str:
    """How to write a value of the wrong type."""
    text = document.texts.get(path, "")
    match problem["type"]:
        case "string_type" if text and not isinstance(problem["input"], str):
            return f' Put it in quotes: "{text:.80}".'
        case "string_type" | "missing" if not text:
            return " Write a value after the colon."
        case "bool_type":
            return " Write true or false."
        case "int_type" | "float_type" | "int_parsing" if isinstance(problem["input"], str):
            return " Write the number without quotes."
        case _:
            return ""
