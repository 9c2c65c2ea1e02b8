"""Addresses of blob stores, as `TUNERY_STORE_URL` names them."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PREFIX_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class DirectoryAddress:
    """A directory of a file system that this machine has."""

    path: Path


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket of S3 or of a server that speaks its protocol."""

    bucket: str
    prefix: str
    """What every key begins with, without a slash at either end. May be empty."""

    @property
    def path(self) -> PurePosixPath:
        """Bucket and prefix."""
        return PurePosixPath(self.bucket, self.prefix)


def parse_store_url(url: str) -> DirectoryAddress | BucketAddress | None:
    """Parse an address. Empty means the default, for which there is None.

    Raises:
        ValueError: it is none. The message does not repeat it: it may hold a password.
    """
    if not url:
        return None
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "it must have no user, no password and nothing after a ? or #: keys and endpoint of S3 "
            "come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    match parts.scheme:
        case "file" if not parts.netloc and parts.path.startswith("/") and parts.path != "/":
            return DirectoryAddress(Path(unquote(parts.path)))
        case "s3":
            return _parse_bucket(parts.netloc, parts.path.strip("/"))
        case _:
            raise ValueError("it must be s3://BUCKET/PREFIX or file:///DIRECTORY")


def is_nested(first: object, second: object) -> bool:
    """Whether one store is inside the other, whose search for orphans would find its blobs."""
    match first, second:
        case (DirectoryAddress(), DirectoryAddress()) | (BucketAddress(), BucketAddress()):
            paths = (first.path, second.path)
        case _:
            return False
    return first != second and (paths[0] in paths[1].parents or paths[1] in paths[0].parents)


def is_shared(url: str) -> bool:
    """Whether every machine of an installation reaches the store at this address."""
    return isinstance(parse_store_url(url), BucketAddress)


def _parse_bucket(bucket: str, prefix: str) -> BucketAddress:
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("it must name a bucket of S3 in lower case, such as s3://my-bucket/tunery")
    if prefix and not all(map(_PREFIX_PART.fullmatch, prefix.split("/"))):
        raise ValueError("its prefix may have letters, digits, '-', '_', '.' and single slashes")
    return BucketAddress(bucket, prefix)


def _checked(url: str) -> str:
    parse_store_url(url)
    return url


StoreUrl = Annotated[str, AfterValidator(_checked)]
"""An address that `parse_store_url` accepts."""
