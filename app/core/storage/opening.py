"""The one place that chooses the blob store."""

import os

from app.core.errors import OperatorError
from app.core.settings import Settings
from app.core.settings.store_urls import BucketAddress, DirectoryAddress, parse_store_url
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore


class StoreSetUpError(OperatorError):
    """The blob store that the settings name cannot be used on this machine."""


def open_store(settings: Settings) -> BlobStore:
    """The blob store of this service, as `TUNERY_STORE_URL` names it. Asks no server yet.

    Raises:
        StoreSetUpError: the library for S3 is not installed.
    """
    match parse_store_url(settings.store_url):
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
