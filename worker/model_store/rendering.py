"""Runs as `python -m worker.model_store.rendering` and renders short chats with unknown templates.

Standard input has the templates as a JSON object, by the place where each was found. Standard
output gets a JSON string that says what is wrong with one of them, or null.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

CPU_S = 2
"""Limit on the processor time of all templates, in seconds. A real one needs milliseconds."""

_MEMORY_BYTES = 512 * 1024 * 1024
"""Limit on the memory that rendering adds to that of the libraries, in bytes."""

_MAX_CHARACTERS = 64 * 1024
"""Limit on the rendered text: a hundred times what a real template writes for these chats."""

_MAX_SHOWN = 200
_SYSTEM = {"role": "system", "content": "You answer briefly."}
_CHAT = [
    {"role": "user", "content": "Which port is this?"},
    {"role": "assistant", "content": "The port of Kiel."},
    {"role": "user", "content": "And where does the lighthouse stand?"},
]
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_lighthouse",
        "description": "Finds a lighthouse.",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
    },
}
_SAMPLES: tuple[dict[str, Any], ...] = (
    {"conversations": [_CHAT]},
    {"conversations": [_CHAT], "add_generation_prompt": True},
    {"conversations": [[_SYSTEM, *_CHAT]]},
    {"conversations": [_CHAT], "tools": [_TOOL]},
)
_TOKENS = {name: f"<{name}>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}


def main() -> None:
    templates: dict[str, str] = json.load(sys.stdin)
    # The function that tokenizers call, so that the sandbox is the one of the training.
    from transformers.utils.chat_template_utils import (  # noqa: PLC0415 - before the limits
        render_jinja_template,  # pyright: ignore[reportUnknownVariableType]  # bare dicts
    )

    _limit_resources()
    for place, template in templates.items():
        for sample in _SAMPLES:
            problem = _find_problem(cast("Any", render_jinja_template), template, sample)
            if problem is not None:
                sys.stdout.write(json.dumps(f"{place} {problem}"))
                return
    sys.stdout.write("null")


def _limit_resources() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    memory_bytes = pages * resource.getpagesize() + _MEMORY_BYTES
    for what, limit in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def _find_problem(render: Callable[..., Any], template: str, sample: dict[str, Any]) -> str | None:
    """What is wrong with a template, as the end of a sentence. None if it is harmless."""
    try:
        (text,), _ = render(chat_template=template, **sample, **_TOKENS)
    except Exception as error:
        return _describe(error)
    if len(text) > _MAX_CHARACTERS:
        return f"writes {len(text):,} characters for a short chat"
    return None


def _describe(error: Exception) -> str | None:
    from jinja2.exceptions import SecurityError, TemplateSyntaxError  # noqa: PLC0415 - as above

    match error:
        case MemoryError():
            return f"needs more than {_MEMORY_BYTES // 1024**2} MiB for a short chat"
        case RecursionError():
            return "is nested too deeply"
        case SecurityError() | OverflowError():
            return f"does what no template may do: {_shorten(error)}"
        case TemplateSyntaxError() | SyntaxError():
            return f"is not a valid template: {_shorten(error)}"
        case _:  # it rejects this chat, and may be right to
            return None


def _shorten(error: Exception) -> str:
    return ascii(str(error))[:_MAX_SHOWN]


if __name__ == "__main__":
    main()
