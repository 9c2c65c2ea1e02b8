"""Blobs in a bucket of S3, or of a server that speaks its protocol, through obstore."""

from app.core.storage.s3.access import S3Access
from app.core.storage.s3.store import S3BlobStore

__all__ = ["S3Access", "S3BlobStore"]
