"""`python -m worker.tokenizing FD [FD]`: answer one request of the API that needs a tokenizer.

Standard input has a request of `app.core.dataset.tokenizing.messages`, and FD are inherited
descriptors of the files that it is about. Standard output gets the answer. Both are JSON.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

from pydantic import BaseModel

from app.core.dataset.tokenizing.messages import (
    REFUSED,
    REQUESTS,
    EstimateRequest,
    PreviewRequest,
    Refused,
)
from app.core.machine.linux import die_with_parent
from worker.tokenizing.containment import contain


def main(*descriptors: int) -> int:
    """Write the answer. Returns the exit code: 0, or `REFUSED`."""
    die_with_parent(sys.stdout.fileno())
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    request = REQUESTS.validate_json(sys.stdin.buffer.read())
    if isinstance(request, EstimateRequest):
        # Torch needs to write while it is imported. It reads nothing yet that is untrusted.
        importlib.import_module("worker.tokenizing.estimating")
    contain(request)
    with answers:
        answer = _answer(request, [os.fdopen(descriptor, "rb") for descriptor in descriptors])
        answers.write(answer.model_dump_json().encode())
    return REFUSED if isinstance(answer, Refused) else 0


def _answer(request: PreviewRequest | EstimateRequest, sources: Sequence[BinaryIO]) -> BaseModel:
    if isinstance(request, EstimateRequest):
        from worker.tokenizing.estimating import estimate  # noqa: PLC0415 - the libraries are slow

        return estimate(request, sources)
    # Without torch, a preview starts in a second instead of four; tokenizers do not need it.
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - means: not installed
    from worker.tokenizing.preview import preview  # noqa: PLC0415 - the libraries are slow

    return preview(request, sources[0])


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
