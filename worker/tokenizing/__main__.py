"""`python -m worker.tokenizing FD`: answer one request of the API that needs a tokenizer.

Standard input has a request of `app.core.dataset.tokenizing.messages`, and FD is an inherited
descriptor of the file that it is about. Standard output gets the answer. Both are JSON.
"""

import os
import sys
from typing import BinaryIO

from pydantic import BaseModel

from app.core.dataset.tokenizing.messages import REFUSED, REQUESTS, PreviewRequest, Refused
from app.core.machine.linux import die_with_parent
from worker.tokenizing.containment import contain


def main(descriptor: int) -> int:
    """Write the answer. Returns the exit code: 0, or `REFUSED`."""
    die_with_parent(sys.stdout.fileno())
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    request = REQUESTS.validate_json(sys.stdin.buffer.read())
    contain(request)
    with answers, os.fdopen(descriptor, "rb") as source:
        answer = _answer(request, source)
        answers.write(answer.model_dump_json().encode())
    return REFUSED if isinstance(answer, Refused) else 0


def _answer(request: PreviewRequest, source: BinaryIO) -> BaseModel:
    # Without torch, a preview starts in a second instead of four; tokenizers do not need it.
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - means: not installed
    from worker.tokenizing.preview import preview  # noqa: PLC0415 - the libraries are slow

    return preview(request, source)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
