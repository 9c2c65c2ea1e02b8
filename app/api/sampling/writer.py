"""What turns the answers of the sampler into those of one of OpenAI's APIs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pydantic import BaseModel

from app.api.errors import service_error_response
from app.core.clock import utc_now
from app.core.errors import ServiceError
from app.core.ids import IdPrefix, new_id
from app.core.sampling.messages import Accepted, Delta, Finished
from app.schemas.sampling.collected import Collected
from app.services.sampling.models import SamplingModel

DONE = b"data: [DONE]\n\n"


class Writer(ABC):
    """Writes the answer to one request, whole or as the messages of a stream.

    Args:
        model: the model that answers.
        choices: number of answers.
        prefix: prefix of the id of the answer.

    Attributes:
        collected: what the sampler has answered so far.
    """

    def __init__(self, model: SamplingModel, choices: int, prefix: IdPrefix) -> None:
        self.collected = Collected(choices)
        self._model = model
        self._id = new_id(prefix)
        self._created = int(utc_now().timestamp())

    def take(self, answer: Accepted | Delta | Finished) -> None:
        """Keep an answer of the sampler for the whole answer."""
        self.collected.take(answer)

    @abstractmethod
    def whole(self) -> BaseModel:
        """The answer to a request that is not streamed, once all is taken."""

    @abstractmethod
    def write(self, answer: Accepted | Delta | Finished) -> Iterator[bytes]:
        """Take an answer, and yield the messages of the stream that it makes."""

    @abstractmethod
    def ending(self) -> Iterator[bytes]:
        """Yield the messages at the end of a complete stream."""

    def failure(self, error: ServiceError) -> bytes:
        """The message at the end of a stream that fails after it has begun."""
        return data(bytes(service_error_response(error).body))


def data(content: bytes) -> bytes:
    """A message of a stream that has JSON and no name."""
    return b"data: %b\n\n" % content
