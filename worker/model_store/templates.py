"""Checks the chat templates of a base model by rendering a short chat with each.

A template is a program. It runs in a sandbox of Jinja that keeps it from the interpreter, but may
still loop or write without end. So it is rendered in a process of its own, with limits.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from app.core.machine.subprocesses import python_module, with_import_path
from worker.model_store.configs import TOKENIZER_CONFIG_NAME, read_object
from worker.model_store.errors import RefusedModelError
from worker.model_store.files import TEMPLATE_NAME
from worker.model_store.rendering import CPU_S

_PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH")
"""Environment variables that the process inherits: no address, no secret."""

_TIMEOUT_S = 120.0
"""Limit on the whole process, in seconds. Nearly all of it is for loading libraries on a slow
machine: a template cannot wait for anything, so the limit on processor time stops it first."""

_ADVICE = "Do not use this model unless its publisher explains it."


def check_templates(directory: Path) -> None:
    """Render a short chat with every chat template in `directory`.

    A template that only rejects the chat passes: it may need one of another form.

    Raises:
        RefusedModelError: a template is invalid, does what none may do, or exceeds a limit.
    """
    templates = dict(_find_templates(directory))
    if not templates:
        return
    problem = _try(templates)
    if problem is not None:
        raise RefusedModelError(f"The chat template in {problem}. {_ADVICE}")


def _find_templates(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield every chat template with the place where it is."""
    path = directory / TEMPLATE_NAME
    if path.exists():
        try:
            yield TEMPLATE_NAME, path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise RefusedModelError(f"{TEMPLATE_NAME} is not UTF-8. Use an intact copy.") from error
    if (directory / TOKENIZER_CONFIG_NAME).exists():
        config = read_object(directory / TOKENIZER_CONFIG_NAME)
        for number, template in enumerate(_strings_in(config.get("chat_template"))):
            yield f"{TOKENIZER_CONFIG_NAME} ({number + 1})", template


def _strings_in(value: Any) -> Iterator[str]:
    """The templates of a configuration: one, or a list of objects with `name` and `template`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _strings_in(item)
    elif isinstance(value, dict):
        for item in cast("dict[str, Any]", value).values():
            yield from _strings_in(item)


def _try(templates: dict[str, str]) -> str | None:
    """Return what is wrong with a template, as the end of a sentence. None if they are all good."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            python_module("worker.model_store.rendering"),
            input=json.dumps(templates).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=with_import_path(environment) | {"HF_HUB_OFFLINE": "1"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"one of {', '.join(templates)} does not end"
    names = ", ".join(templates)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"{names} needs more than {CPU_S} s of processor time for a short chat"
    if done.returncode != 0:
        return f"{names} cannot be rendered: the process ended with {done.returncode}"
    return cast("str | None", json.loads(done.stdout))
