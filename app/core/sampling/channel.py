"""The API's side of the sampler's socket: sends one request, and reads its answers as hostile."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import NoReturn, Self

from pydantic import ValidationError

from app.core.errors import (
    InvalidRequestError,
    RateLimitError,
    SamplerUnavailableError,
    ServiceError,
)
from app.core.sampling.messages import (
    ANSWERS,
    HEAD,
    MAX_ANSWER_BYTES,
    MAX_SILENCE_S,
    Accepted,
    Alive,
    Ask,
    Delta,
    Finished,
    Refused,
)
from app.core.sampling.socket_path import socket_path

_RETRY_AFTER_S = 5
"""When to ask again if the sampler does not say, in seconds."""

Progress = Accepted | Delta | Finished

logger = logging.getLogger(__name__)


class Channel:
    """One request to the sampler. Closing it before the last answer cancels the request."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        choices: int,
        silence_s: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._unfinished = set(range(choices))
        self._silence_s = silence_s

    @classmethod
    async def open(
        cls,
        directory: Path,
        ask: Ask,
        files: Sequence[BufferedReader],
        *,
        silence_s: float = MAX_SILENCE_S,
    ) -> Self:
        """Send a request.

        Args:
            directory: that of the socket.
            ask: the request.
            files: weights and configuration of the adapter; none for the base model. They can be
                closed afterwards.
            silence_s: time after which the sampler counts as hanging if it neither reads nor says
                anything, in seconds.

        Raises:
            SamplerUnavailableError: nobody listens, as many requests wait as the socket takes, or
                the sampler hangs.
        """
        body = ask.model_dump_json().encode()
        connection = _connect(directory)
        try:
            # The connection is new, so a few bytes never have to wait.
            descriptors = [file.fileno() for file in files]
            socket.send_fds(connection, [HEAD.pack(len(body))], descriptors)
            reader, writer = await asyncio.open_unix_connection(
                sock=connection, limit=MAX_ANSWER_BYTES
            )
        except OSError as error:
            connection.close()
            raise _unavailable() from error
        channel = cls(reader, writer, choices=ask.choices, silence_s=silence_s)
        try:
            await channel._send(body)
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        self._writer.transport.abort()

    async def answers(self) -> AsyncGenerator[Progress]:
        """Yield the answers: one `Accepted`, then the others until each choice is finished.

        Raises:
            SamplerUnavailableError: the sampler refuses for now, has failed, hangs, or has broken
                the protocol.
            InvalidRequestError: it refuses the request.
            RateLimitError: too many requests wait.
            ServiceError: the sampler has failed on this request.
        """
        is_accepted = False
        while self._unfinished:
            answer = await self._read()
            if isinstance(answer, Alive):
                continue
            if isinstance(answer, Refused):
                _refuse(answer)
            if isinstance(answer, Accepted) == is_accepted:
                raise _broken("an answer is out of order")
            is_accepted = True
            if not isinstance(answer, Accepted) and answer.choice not in self._unfinished:
                raise _broken("an answer is for a choice that is finished or was not asked for")
            if isinstance(answer, Finished):
                self._unfinished.remove(answer.choice)
            yield answer

    async def _send(self, body: bytes) -> None:
        try:
            self._writer.write(body)
            async with asyncio.timeout(self._silence_s):
                await self._writer.drain()
        except TimeoutError as error:
            raise _silent(self._silence_s) from error
        except OSError as error:
            raise _unavailable() from error

    async def _read(self) -> Progress | Alive | Refused:
        try:
            async with asyncio.timeout(self._silence_s):
                line = await self._reader.readuntil()
        except TimeoutError as error:
            raise _silent(self._silence_s) from error
        except asyncio.LimitOverrunError as error:
            raise _broken("a line is too long") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise SamplerUnavailableError(
                "The sampler has stopped before the answer was complete. It starts again by "
                "itself; send the request again."
            ) from error
        try:
            return ANSWERS.validate_json(line)
        except ValidationError as error:
            raise _broken("a line is no answer") from error


def _connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0)
    try:
        with socket_path(directory) as path:
            # Not by the event loop, which would take a full queue for a connection.
            connection.connect(path)
    except OSError as error:
        connection.close()
        raise _unavailable() from error
    return connection


def _unavailable() -> SamplerUnavailableError:
    return SamplerUnavailableError(
        "The sampler does not run, so nothing can be answered now. 'tunery serve' starts it unless "
        "TUNERY_SAMPLING is off; 'tunery sampler' starts it alone."
    )


def _silent(silence_s: float) -> SamplerUnavailableError:
    logger.error("the sampler has said nothing for %g s", silence_s)
    return SamplerUnavailableError(
        f"The sampler has said nothing for {silence_s:g} seconds. It is started again if it hangs; "
        "the log of 'tunery serve' or 'tunery sampler' says why. Send the request again later."
    )


def _broken(what: str) -> SamplerUnavailableError:
    logger.error("the sampler has broken the protocol: %s", what)
    return SamplerUnavailableError("The sampler has failed on this request. See the service's log.")


def _refuse(refused: Refused) -> NoReturn:
    code, param = refused.code, refused.param
    match refused.status:
        case 400:
            raise InvalidRequestError(refused.message, code=code, param=param)
        case 429:
            wait_s = refused.retry_after_s or _RETRY_AFTER_S
            raise RateLimitError(refused.message, code=code, retry_after_s=wait_s)
        case 503:
            raise SamplerUnavailableError(refused.message, code=code, param=param)
        case 500:
            raise ServiceError(refused.message, code=code, param=param)
