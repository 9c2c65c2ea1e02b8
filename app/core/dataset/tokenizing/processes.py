"""Starts the process that tokenizes, `worker.tokenizing`, and believes no more of it than it must.

The API neither loads the libraries for it nor reads a file with them: a data file, a tokenizer and
a chat template are untrusted, and take a processor for seconds.
"""

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from io import BufferedReader
from subprocess import DEVNULL
from typing import TypeVar

from anyio import BrokenResourceError, Semaphore, fail_after, open_process, to_thread
from anyio.abc import Process
from pydantic import BaseModel, ValidationError

from app.core.dataset.tokenizing.messages import CPU_S, MEMORY_BYTES, REFUSED, FileRequest, Refused
from app.core.errors import InvalidRequestError, TokenizingBusyError, TokenizingFailedError
from app.core.machine.subprocesses import python_module, with_import_path

Answer = TypeVar("Answer", bound=BaseModel)

_WALL_S = 2.0 * CPU_S
"""Limit on the time that the process takes, in seconds, on a machine that others use too."""

_WAIT_S = 10.0
"""Time for which a request waits for others to end before it is refused, in seconds."""

_MAX_PROCESSES = 2
"""Number of processes at once, each with a processor and memory of its own."""

_MAX_ANSWER_BYTES = 64 * 1024**2
"""Maximum size of an answer. The largest preview takes an eighth."""

_PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONPATH")
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve address space
    "HF_HUB_OFFLINE": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # no thread may escape the sandbox
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": os.defpath,
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""The environment besides what is passed on, so that the process learns no secret of the API."""

logger = logging.getLogger(__name__)


class TokenizerProcesses:
    """Asks processes that tokenize, a few at once.

    Args:
        count: number of processes at once.
        wait_s: seconds after which a request that has no process is refused.
        wall_s: seconds after which a process is killed.
    """

    def __init__(
        self, count: int = _MAX_PROCESSES, *, wait_s: float = _WAIT_S, wall_s: float = _WALL_S
    ) -> None:
        self._slots = Semaphore(count)
        self._wait_s = wait_s
        self._wall_s = wall_s

    async def ask(
        self, request: FileRequest, sources: Sequence[BufferedReader], answer: type[Answer]
    ) -> Answer:
        """Let a process answer a request about files. If this is cancelled, the process ends.

        Args:
            request: the request.
            sources: the files, each of which has a descriptor and is at its first byte.
            answer: model of the answer.

        Raises:
            InvalidRequestError: the request cannot be answered.
            TokenizingFailedError: it cannot be answered within the limits, or the libraries for it
                are not installed.
            TokenizingBusyError: no process was free in time, or the machine is too busy.
        """
        if find_spec("transformers") is None:
            raise TokenizingFailedError(
                "This service cannot tokenize, because the libraries for it are not installed "
                "beside it. Install tunery[worker] there."
            )
        try:
            with fail_after(self._wait_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise _busy() from error
        try:
            with fail_after(self._wall_s):
                exit_code, said = await _run(request, [source.fileno() for source in sources])
        except TimeoutError as error:
            raise _busy() from error
        finally:
            self._slots.release()
        return await to_thread.run_sync(_read, exit_code, said, answer)


async def _run(request: FileRequest, sources: Sequence[int]) -> tuple[int, bytes]:
    process = await open_process(
        python_module("worker.tokenizing", *map(str, sources)),
        stderr=DEVNULL,
        env=with_import_path(
            _ENVIRONMENT | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        ),
        cwd="/",
        start_new_session=True,
        pass_fds=sources,
    )
    async with process:
        try:
            return await _talk(process, request.model_dump_json().encode())
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


async def _talk(process: Process, request: bytes) -> tuple[int, bytes]:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenResourceError):  # it died before it had read all; its exit code says more
        await process.stdin.send(request)
    await process.stdin.aclose()
    said = bytearray()
    async for chunk in process.stdout:
        said += chunk
        if len(said) > _MAX_ANSWER_BYTES:
            return -signal.SIGKILL, b""
    return await process.wait(), bytes(said)


def _read(exit_code: int, said: bytes, answer: type[Answer]) -> Answer:
    try:
        if exit_code == 0:
            return answer.model_validate_json(said)
        if exit_code == REFUSED:
            refused = Refused.model_validate_json(said)
            raise InvalidRequestError(refused.message, code=refused.code, param=refused.param)
    except ValidationError:
        pass
    logger.warning("a process that tokenizes has failed", extra={"exit_code": exit_code})
    raise TokenizingFailedError(
        f"The rows could not be tokenized with {MEMORY_BYTES // 2**30} GiB of memory in {CPU_S} "
        "seconds of processor time. Ask for fewer or shorter rows."
    )


def _busy() -> TokenizingBusyError:
    return TokenizingBusyError(
        "The service is tokenizing as much as it can at once. Nothing was done; send the request "
        "again in a moment."
    )
