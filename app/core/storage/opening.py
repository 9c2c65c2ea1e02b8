"""The one place that chooses the blob store."""

import os

from app.core.errors import OperatorError
from app.core.settings import Settings
from app.core.settings.store_urls import BucketAddress, DirectoryAddress, parse_store_url
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore
from app.core.storage.moving import MovingBlobStore


class StoreSetUpError(OperatorError):
    """The blob store that the settings name cannot be used on this machine."""


def open_store(settings: Settings) -> BlobStore:
    """The blob store of this service, as the settings name it. Asks no server yet.

    A process that serves or works uses `app.core.installation.connect_store` instead.

    Raises:
        StoreSetUpError: the library for S3 is not installed.
    """
    present, previous = open_stores(settings)
    return present if previous is None else MovingBlobStore(present, previous)


def open_stores(settings: Settings) -> tuple[BlobStore, BlobStore | None]:
    """The present store, and the previous one if the service moves. Asks no server yet.

    Raises:
        StoreSetUpError: the library for S3 is not installed.
    """
    previous = settings.store_previous_url
    return (
        open_store_at(settings.store_url, settings),
        open_store_at(previous, settings) if previous else None,
    )


def open_store_at(url: str, settings: Settings) -> BlobStore:
    """The blob store at a URL; at an empty one, that of the data directory. Asks no server yet.

    Raises:
        StoreSetUpError: the library for S3 is not installed.
        ValueError: it is no URL of a store.
    """
    match parse_store_url(url):
        case BucketAddress() as address:
            return _open_bucket(address, settings)
        case DirectoryAddress(path=path):
            return LocalBlobStore(path)
        case None:
            return LocalBlobStore(settings.blobs_dir)


def _open_bucket(address: BucketAddress, settings: Settings) -> BlobStore:
    try:
        from app.core.storage.s3 import S3Access, S3BlobStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise StoreSetUpError(
            "TUNERY_STORE_URL names a bucket of S3, and the library for it is not installed. "
            "Install it: pip install 'tunery[s3]'"
        ) from error
    access = S3Access.from_environment(os.environ)
    return S3BlobStore(address, access, scratch_root=settings.blobs_dir)
