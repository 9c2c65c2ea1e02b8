"""Requests to S3 without obstore, to URLs that carry their signature."""

import re
import urllib.error
import urllib.request

from obstore.exceptions import GenericError, PermissionDeniedError

from app.core.storage.s3.calls import SILENCE_S


def request(
    url: str, method: str = "GET", *, byte_range: tuple[int, int] | None = None, most: int
) -> bytes:
    """The body of the answer.

    Args:
        url: carries its signature, so it must not be shown.
        byte_range: the bytes to read, from one offset to another.
        most: how many bytes are read at most.

    Raises:
        FileNotFoundError, GenericError, PermissionDeniedError: as obstore would raise them.
        ConnectionError, TimeoutError: the connection failed.
    """
    headers = {"Range": f"bytes={byte_range[0]}-{byte_range[1] - 1}"} if byte_range else {}
    asked = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310 - the store
    try:
        with urllib.request.urlopen(asked, timeout=SILENCE_S) as answer:  # noqa: S310
            if byte_range:
                _check_range(answer.headers.get("content-range", ""), byte_range)
            body = answer.read(most)
    except urllib.error.HTTPError as error:
        raise _as_obstore_has_it(error) from None  # its text has the URL
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{type(reason).__name__}") from None
    if byte_range and len(body) != byte_range[1] - byte_range[0]:
        raise ConnectionError("the answer was cut short")
    return body


def _check_range(header: str, wanted: tuple[int, int]) -> None:
    """Check that the server has sent the range it was asked for, whatever status it has sent."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/.*", header)
    if match is None or (int(match[1]), int(match[2]) + 1) != wanted:
        raise GenericError("the server does not answer requests for a part of an object")


def _as_obstore_has_it(error: urllib.error.HTTPError) -> Exception:
    text = f"status code: {error.code} {error.read(2000).decode(errors='replace')}"
    match error.code:
        case 404:
            return FileNotFoundError(text)
        case 403:
            return PermissionDeniedError(text)
        case _:
            return GenericError(text)
