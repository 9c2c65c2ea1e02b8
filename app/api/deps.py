"""Dependencies of the routes: resources, clock, list cursors and the origin of a request."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel

from app.api.access import CALLER, REQUEST_ID
from app.api.upload_slots import UploadSlots
from app.core import disk
from app.core.access import Caller
from app.core.base_models import Catalogue, InstalledModel
from app.core.clock import utc_now
from app.core.dataset.tokenizing.messages import FileRequest
from app.core.dataset.tokenizing.processes import TokenizerProcesses
from app.core.db.session import Database, Session
from app.core.errors import InvalidRequestError, StorageFullError
from app.core.ids import IdPrefix
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore, delete_blobs
from app.core.stored_models.local_models import LocalModels
from app.maintenance.doctor import Checkups
from app.services.idempotency import RequestOrigin
from app.webhooks.client import WebhookClient

T = TypeVar("T")

JOB_ID = "job_id"
"""Key in the state of a request that holds the id of a job it made, for the access log."""

_DEFAULT_TIMEOUT_S = 600
"""How long OpenAI's clients wait for an answer by default."""
_MAX_TIMEOUT_S = 3600
_MAX_DIGITS = 4
"""Maximum number of digits in a plausible retry count."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the application was built from, shared by all requests.

    A route reaches the database only through `read`, `write` and `delete`. Each runs a function in
    one transaction and returns its result, so an answer is sent only after the commit, and no
    transaction is open while bytes are sent or received.
    """

    settings: Settings
    database: Database
    store: BlobStore
    catalogue: Catalogue
    models: LocalModels
    ballast: disk.Ballast
    webhooks: WebhookClient
    upload_slots: UploadSlots
    tokenizers: TokenizerProcesses
    checkups: Checkups

    def read(self, act: Callable[[Session], T]) -> T:
        """Run queries that see one consistent state of the database."""
        return self.database.read(act)

    def write(self, act: Callable[[Session], T], *, frees_space: bool = False) -> T:
        """Run changes, and commit them.

        Args:
            frees_space: the changes must also succeed on a full disk. If there is no space for
                them, they are rolled back, the ballast is dropped, and `act` runs once more.

        Raises:
            StorageFullError: the disk is full, and there was no ballast or it was not enough.
        """
        try:
            return self.database.transact(act)
        except StorageFullError:
            if not (frees_space and self.ballast.release()):
                raise
        return self.database.transact(act)

    def delete(self, delete_rows: Callable[[Session], list[str]]) -> None:
        """Delete rows, then the blobs whose keys `delete_rows` returns, also on a full disk.

        Raises:
            StorageFullError: there was no ballast, or it was not enough.
        """
        delete_blobs(self.store, self.write(delete_rows, frees_space=True))

    async def with_base_model(self, request: FileRequest, installed: InstalledModel) -> FileRequest:
        """A request with the directory of a base model, whose small files may have to be fetched.

        Raises:
            BaseModelNotHereError: they cannot be.
        """
        find = partial(self.models.find, installed, needs_weights=False)
        directory = await to_thread.run_sync(find)
        return request.model_copy(update={"base_model": directory})

    def require_room(self, more_bytes: int) -> None:
        """Raise StorageFullError if the disk has no room for so many more bytes."""
        disk.require_room(self.settings, more_bytes)


async def _resources(request: Request) -> Resources:  # not `def`, which would switch threads
    return request.app.state.resources


async def _caller(request: Request) -> Caller:
    state = request.scope["state"]
    return replace(state[CALLER], request_id=state[REQUEST_ID])


ResourcesDep = Annotated[Resources, Depends(_resources)]
CallerDep = Annotated[Caller, Depends(_caller)]
Now = Annotated[datetime, Depends(utc_now)]


class Cursor:
    """The query parameter `after` of a list whose items have ids with this prefix."""

    def __init__(self, prefix: IdPrefix) -> None:
        self._prefix = prefix

    async def __call__(
        self,
        after: Annotated[
            str | None,
            Query(description="Id of the last item of the previous page."),
        ] = None,
    ) -> str | None:
        if after and not after.startswith(self._prefix):
            raise InvalidRequestError(
                f"'after' must be the id of an item in this list, which begins with {self._prefix}",
                code="invalid_cursor",
                param="after",
            )
        return after or None


def _read_origin(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[ -~]+$",
            description="Key of your choice for this request. Requests with the same key and body "
            "make one job or model, however often they are sent.",
        ),
    ] = None,
) -> RequestOrigin:
    credentials = request.headers.get("authorization", "")
    return RequestOrigin(
        key=idempotency_key,
        credentials_sha256=hashlib.sha256(credentials.encode()).hexdigest(),
        retry_count=_retry_count(request.headers.get("x-stainless-retry-count", "")),
        timeout=timedelta(seconds=_timeout_s(request.headers.get("x-stainless-read-timeout", ""))),
    )


REPLAYED = "idempotent-replayed"
"""Header of the answer to a request that was sent before."""
REPLAYED_HEADER: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REPLAYED: {
                "description": "`true` if the request was sent before and what it makes already "
                "existed. Otherwise the header is absent.",
                "schema": {"type": "string", "const": "true"},
            }
        }
    }
}

OriginDep = Annotated[RequestOrigin, Depends(_read_origin)]


def _retry_count(text: str) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else 0


def _timeout_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return _DEFAULT_TIMEOUT_S
    is_sensible = math.isfinite(seconds) and seconds > 0
    return min(seconds, _MAX_TIMEOUT_S) if is_sensible else _DEFAULT_TIMEOUT_S


LIMIT = "Maximum number of items on the page."
ORDER = "Order by the time of creation: `desc` lists the newest first."


def as_json(answer: BaseModel) -> Response:
    """The answer that FastAPI makes of a model, without its second validation.

    For routes that are asked many times a second: FastAPI would validate the model again, in
    another thread, which takes longer than all the rest. Such a route names its model in
    `response_model`.
    """
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")
