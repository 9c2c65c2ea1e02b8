"""Errors that a caller, the service or a worker can act on.

ServiceError                      the caller acts; the API answers with its status and code
├── InvalidRequestError           400  the request is invalid
│   ├── InvalidFileError          400  an upload has bad lines; `problems` lists them
│   ├── TokenizingFailedError     400  rows need more memory or time than there is for them
│   └── StateConflictError        400  the object is in the wrong state (clients would retry a 409)
├── UnauthenticatedError          401  the request has no valid API key
├── PermissionDeniedError         403  the key, or the web page that sent it, may not do this
├── NotFoundError                 404
├── PayloadTooLargeError          413
├── UnsupportedMediaTypeError     415
├── QuotaExceededError            429  a limit of the project; repeating the request does not help
├── RateLimitError                429  too many requests; the caller repeats it later
├── OutcomeUnknownError           500  the request may have succeeded; check before repeating it
├── EngineFailedError             502  the operator acts; an engine of theirs is set up wrongly
├── BaseModelNotHereError         503  it is being fetched, or cannot be; the caller may repeat it
├── DatabaseBusyError             503  nothing was done; the caller may repeat the request
│   └── DatabaseAwayError         503  its server does not answer
├── EngineUnavailableError        503  an engine of the operator is away; the caller may repeat it
├── SamplerUnavailableError       503  the sampler is away or has failed; the caller may repeat it
├── StoreAwayError                503  the blob store does not answer; the caller may repeat it
│   └── StoreMovedError           503  the service has moved to another store; restart the process
├── TokenizingBusyError           503  nothing was done; the caller may repeat the request
├── TooManyStreamsError           503  nothing was done; the caller may repeat the request
├── TooManyUploadsError           503  nothing was done; the caller may repeat the request
├── TooManyWebhookTestsError      503  nothing was done; the caller may repeat the request
└── StorageFullError              507  nothing was done; the disk needs free space first
OperatorError                     who gave a command acts; it ends the command with its message
LeaseLostError                    the worker acts; no caller ever sees it
BlobNotFoundError                 the service or the worker acts
BlobDamagedError                  the operator acts; `tunery doctor` says what is lost
BlobExistsError                   never expected: keys are unique

To add an error, subclass the class whose status fits, or pass a new `code`. Then list the code in
`docs/errors.md`; `tests/contracts/test_documented.py` checks that.
"""

from collections.abc import Sequence
from typing import ClassVar

from app.core.job.child.training_events import DataProblem


class ServiceError(Exception):
    """Base class of the errors that the API answers with. `code` is stable and for programs.

    Args:
        message: what is wrong, where, and how to fix it. For people.
        param: the invalid field of the request, such as `method.supervised.batch_size`.
        problems: the problems, where a request can have several.
        is_partial: whether there may be more problems than `problems` holds.
    """

    status_code: ClassVar[int] = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        problems: Sequence[DataProblem] = (),
        is_partial: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.param = param
        self.problems = tuple(problems)
        self.is_partial = is_partial


class InvalidRequestError(ServiceError):
    status_code = 400
    code = "invalid_value"


class InvalidFileError(InvalidRequestError):
    code = "invalid_file"


class TokenizingFailedError(InvalidRequestError):
    code = "tokenizing_failed"


class StateConflictError(InvalidRequestError):
    code = "invalid_state"


class UnauthenticatedError(ServiceError):
    status_code = 401
    code = "invalid_api_key"


class PermissionDeniedError(ServiceError):
    status_code = 403
    code = "insufficient_scope"


class NotFoundError(ServiceError):
    status_code = 404
    code = "not_found"


class PayloadTooLargeError(ServiceError):
    status_code = 413
    code = "payload_too_large"


class UnsupportedMediaTypeError(ServiceError):
    status_code = 415
    code = "unsupported_media_type"


class QuotaExceededError(ServiceError):
    status_code = 429
    code = "insufficient_quota"


class RateLimitError(ServiceError):
    """The project has sent too many requests.

    Args:
        message: see `ServiceError`.
        retry_after_s: seconds after which the request can be repeated.
        code: see `ServiceError`.
    """

    status_code = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class BaseModelNotHereError(ServiceError):
    status_code = 503
    code = "base_model_not_here"


class DatabaseBusyError(ServiceError):
    status_code = 503
    code = "database_busy"


class DatabaseAwayError(DatabaseBusyError):
    """The server of the database does not answer.

    Args:
        for_operator: where the database is, why it cannot be reached, and what to do.
    """

    def __init__(self, message: str, *, for_operator: str) -> None:
        super().__init__(message)
        self.for_operator = for_operator


class EngineFailedError(ServiceError):
    status_code = 502
    code = "engine_failed"


class EngineUnavailableError(ServiceError):
    status_code = 503
    code = "engine_unavailable"


class SamplerUnavailableError(ServiceError):
    status_code = 503
    code = "sampler_unavailable"


class StoreAwayError(ServiceError):
    """The blob store does not answer, or refuses. Nothing is known about what it holds.

    Args:
        for_operator: where the store is, what it says, and what to do. It has no secret.
    """

    status_code = 503
    code = "store_unavailable"

    def __init__(self, *, for_operator: str) -> None:
        super().__init__("The store of files does not answer. Send the same request again later.")
        self.for_operator = for_operator


class StoreMovedError(StoreAwayError):
    """The installation has moved to another store, and this process still has its old settings."""

    def __init__(self) -> None:
        super().__init__(
            for_operator="The service has moved to another store, and this process has the old "
            "settings. Set TUNERY_STORE_URL and TUNERY_STORE_PREVIOUS_URL as for the other "
            "processes of the service, and restart this one. `tunery store status` shows which "
            "store is used."
        )


class TokenizingBusyError(ServiceError):
    status_code = 503
    code = "tokenizing_busy"


class TooManyStreamsError(ServiceError):
    status_code = 503
    code = "too_many_streams"


class TooManyUploadsError(ServiceError):
    status_code = 503
    code = "too_many_uploads"


class TooManyWebhookTestsError(ServiceError):
    status_code = 503
    code = "webhook_tests_busy"


class OutcomeUnknownError(ServiceError):
    code = "outcome_unknown"


class StorageFullError(ServiceError):
    status_code = 507
    code = "insufficient_storage"


class OperatorError(Exception):
    """A command cannot do its work. The message tells the operator why, and what to do."""

    may_pass: ClassVar[bool] = False
    """Whether the same command may succeed later, without a change."""


class LeaseLostError(Exception):
    """The attempt no longer owns its job. Whatever it still had to write must be discarded."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"Attempt {attempt} of job {job_id} no longer holds its lease.")


class BlobNotFoundError(Exception):
    """The database names a blob that the store does not have."""

    def __init__(self, key: str) -> None:
        super().__init__(f"No blob has the key {key!r}.")


class BlobDamagedError(Exception):
    """The store has other bytes than were written."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The blob {key!r} does not have the bytes that were written.")


class BlobExistsError(Exception):
    """The store has other bytes under a key that was to be new."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The blob {key!r} exists already, with other bytes.")
